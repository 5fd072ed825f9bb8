"""What a learner sees in JupyterLab; needs `pip install playwright` and a chromium, and is skipped without them."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no chromium")]
# Cells that run before the kernel is ready are dropped without a word.
RUN_ALL = """async () => {
    const notebook = window.jupyterapp.shell.currentWidget
    await notebook.context.ready; await notebook.sessionContext.ready; await notebook.sessionContext.session.kernel.info
    await window.jupyterapp.commands.execute('notebook:run-all-cells')
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => cell.model.type === 'code'
    ? cell.model.outputs.toJSON().filter(output => output.output_type === 'error').map(output => output.evalue) : [])"""
SHOW_LAST = """start => {
    const content = window.jupyterapp.shell.currentWidget.content
    const place = content.widgets.map(cell => cell.model.sharedModel.source.startsWith(start)).lastIndexOf(true)
    content.activeCellIndex = place; content.scrollToItem(place, 'center')
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Address of a JupyterLab over a copy of the notebooks."
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"FMTUT_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=",
               "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api").close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/nbs"
    finally:
        server.terminate()


@pytest.fixture
def page():
    "A page that keeps the addresses it asked for outside this machine in `page.outside`."
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.outside = []
        page.on("request", lambda request: page.outside.append(request.url) if request.url.startswith("http") and "127.0.0.1" not in request.url else None)
        yield page
        browser.close()


def run_all(page, address):
    "Opens a notebook, runs it, and asserts that no cell failed."
    page.goto(address)
    page.wait_for_selector(".jp-Notebook", timeout=60_000)
    page.evaluate(RUN_ALL)
    assert page.evaluate(ERRORS) == [] and page.outside == []


def test_quiz_and_slider_answer(lab, page):
    run_all(page, f"{lab}/46_decoding.ipynb")
    page.evaluate(SHOW_LAST, "quiz(")
    page.locator(".jupyter-button:visible").first.click()
    page.wait_for_selector("text=/^a: (right|no)\\./", timeout=10_000)
    page.evaluate(SHOW_LAST, "import io")
    handle = page.locator(".noUi-handle:visible, .ui-slider-handle:visible").first
    handle.scroll_into_view_if_needed()
    image = page.locator(".widget-image:visible, .jupyter-widgets.widget-image:visible").first
    before = image.get_attribute("src")
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("([image, before]) => image.src !== before", arg=[image.element_handle(), before], timeout=10_000)


def test_start_page_shows_progress_and_leads_to_chapters(lab, page):
    run_all(page, f"{lab}/index.ipynb")
    page.evaluate(SHOW_LAST, "progress()")
    assert page.locator("progress:visible").count() >= 10
    page.evaluate(SHOW_LAST, "done =")
    page.locator("a:visible", has_text="01 exercises").first.click()
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.context.path === 'nbs/01_exercises.ipynb'", timeout=30_000)
