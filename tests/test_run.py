"The runner of `make check` and `make test` must see what is planted; a check that cannot fail is none."

import shutil
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import run  # noqa: E402


@pytest.fixture
def tree(tmp_path, monkeypatch):
    "A small copy of the project with one chapter; the runner looks there."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "fmtut").mkdir()
    for name in "settings.ini", "pyproject.toml", "setup.py", "README.md", "fmtut/__init__.py", "fmtut/regularization.py", "nbs/16_regularization.ipynb":
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return tmp_path


def notebook(folder, name, *cells):
    "Writes a notebook of code cells, returns its path from the project's folder."
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(book, folder / "nbs" / name)
    return f"nbs/{name}"


@pytest.mark.slow
def test_notebooks_that_fail_hang_or_are_not_run(tree, monkeypatch, capfd):
    assert run.check_notebook(notebook(tree, "a.ipynb", "assert 1 + 1 == 2")) == {"passed": 1}
    assert run.check_notebook(notebook(tree, "b.ipynb", "assert 1 + 1 == 3")) == {"failed": 1}
    assert run.check_notebook(notebook(tree, "c.ipynb", "---\nskip_exec: true\n---", "assert False")) == {"failed": 1}
    monkeypatch.setattr(run, "NOTEBOOK_SECONDS", 5)
    assert run.check_notebook(notebook(tree, "d.ipynb", "import time; time.sleep(60)")) == {"failed": 1}
    assert "ended after 5 s" in capfd.readouterr().out


@pytest.mark.slow
def test_modules_and_notebooks_out_of_step_are_named(tree):
    shutil.rmtree(tree / "fmtut" / "__pycache__", ignore_errors=True)
    (tree / "fmtut" / "regularization.py").write_text("# edited by hand\n")
    assert "fmtut/regularization.py" in run.check_export() and "run nbdev_export" in run.check_export()
    path = tree / "nbs" / "16_regularization.ipynb"
    assert run.check_clean() == ""
    book = nbformat.read(path, 4)
    book.cells[1]["metadata"] = {"scrolled": True}
    nbformat.write(book, path)
    assert "nbs/16_regularization.ipynb" in run.check_clean()


def test_state_of_widgets_is_removed_and_nothing_else(tree, capsys):
    path = tree / "nbs" / "16_regularization.ipynb"
    clean = path.read_text(encoding="utf-8")
    run.remove_widget_state()
    assert path.read_text(encoding="utf-8") == clean and capsys.readouterr().out == ""
    book = nbformat.reads(clean, as_version=4)
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
    nbformat.write(book, path)
    run.remove_widget_state()
    assert path.read_text(encoding="utf-8") == clean
    assert capsys.readouterr().out == "removed the state of widgets from nbs/16_regularization.ipynb\n"
