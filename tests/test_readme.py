"What README.md shows is run: every command but `make test`, and the Python example, in its order."

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from fmtut.environment import CHAPTERS, chapter_state, load_result

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    "The fenced blocks of one language."
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    "Every command line of the shell blocks, comments removed."
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def targets():
    "What the Makefile can make."
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_two_commands_come_first():
    made = [line for line in commands() if line.startswith("make")]
    assert made[:2] == ["make ner", "make test"]
    assert {line.split()[1] for line in made} <= targets()


def test_files_and_chapters_that_it_names_exist():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_table_says_what_is_there():
    for chapter in CHAPTERS.values():
        name, state = f"{chapter.number} {chapter.name}", chapter_state(chapter)
        link = f"[{name}](nbs/{chapter.number}_{chapter.name}.ipynb)"
        assert {"lesson": link, "code": f"{link} (code)", "planned": f"*{name}*"}[state] in README, f"{name} is {state}"
        assert state == "code" or f"{link} (code)" not in README, f"{name} is {state}"


@pytest.mark.parametrize("page", ["00_environment", "index"])
def test_stored_maps_say_what_is_there(page):
    notebook = nbformat.read(ROOT / "nbs" / f"{page}.ipynb", as_version=4)
    html = "".join("".join(output.get("data", {}).get("text/html", "")) for cell in notebook.cells for output in cell.get("outputs", []))
    for chapter in CHAPTERS.values():
        name, state = f"{chapter.number} {chapter.name}", chapter_state(chapter)
        assert (f"{name} (planned)" in html) == (state == "planned"), f"run nbs/{page}.ipynb again: {name} is {state}"
        assert (f"{name}</a> (code only)" in html) == (state == "code"), f"run nbs/{page}.ipynb again: {name} is {state}"


def test_picture_is_drawn_by_its_command(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "docs" / "picture.py", tmp_path / "drawn.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn, stored = (plt.imread(path) for path in (tmp_path / "drawn.png", ROOT / "docs" / "tagger.png"))
    assert abs(drawn.shape[1] - stored.shape[1]) < 40 and abs(float(drawn.mean() - stored.mean())) < 0.02 # fonts differ a little
    assert (ROOT / "docs" / "tagger.png").stat().st_size < 100 * 1024
    stored = load_result("47_ner")
    scores = [sum(stored["f1"]["test"]) / 5, stored["baselines"]["linear"], stored["baselines"]["dictionary"]]
    assert "small BERT {:.2f}, linear model {:.2f}, dictionary {:.2f}".format(*scores) in README # the picture's alt text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder to run the commands in, with the small files that they name."
    folder = tmp_path_factory.mktemp("readme")
    text = "Ana\tB-PER\nOkafor\tI-PER\nflew\tO\nto\tO\nLund\tB-LOC\n.\tO\n\nRovers\tB-ORG\nwon\tO\n.\tO\n"
    for name in "train.conll", "dev.conll", "test.conll":
        (folder / name).write_text(text)
    (folder / "news.txt").write_text("Ana Okafor flew to Lund.\n")
    return folder


@pytest.mark.slow
def test_every_command_runs(folder):
    "`make ner` runs with few sentences and one epoch, and leaves the folder that the other commands name."
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ready = (ROOT / ".venv" / ".ok").exists()
    for line in commands():
        if line == "make test": # this is being run; that the target exists is tested above
            continue
        place = folder
        if line.startswith("pip install"): # what is installed must stay as it is
            line, place = line + " --dry-run", ROOT
        if line.startswith("source "):
            line, place = f"bash -c '{line}'" if ready else "true", ROOT
        if line == "make ner":
            if not ready or not shutil.which("make"): # not inside the project's own environment
                line = f'fmtut ner demo --out "{folder}/runs/ner" --sentences 100 --epochs 1'
            else:
                line = f'make -s -C "{ROOT}" ner OUT="{folder}/runs/ner" ARGS="--sentences 100 --epochs 1"'
        if line.startswith("fmtut ner train"):
            line += " --epochs 1"
        done = subprocess.run(line, shell=True, cwd=place, env=environment, capture_output=True, text=True)
        if line.startswith("pip") and "No matching distribution found for setuptools" in done.stderr:
            continue # no network to fetch the build tool
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (folder / "runs" / "ner" / "model.safetensors").exists()


@pytest.mark.slow
def test_python_example_runs(folder):
    example, = blocks("python")
    assert len(example.strip().splitlines()) == 5
    assert (folder / "runs" / "ner").exists(), "test_every_command_runs comes first"
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
