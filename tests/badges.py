"""Writes the Colab badge and the install cell of every notebook from `user`, `repo` and `branch` in settings.ini.

`python tests/badges.py` (or `make badges`) after the address in settings.ini has changed, or for a new notebook.
"""

import configparser
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def read_address(root: Path = ROOT) -> dict[str, str]:
    "user, repo and branch from settings.ini."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf-8")
    return {name: parser["DEFAULT"][name] for name in ("user", "repo", "branch")}


def generated_cells(name: str, address: dict[str, str]) -> list[nbformat.NotebookNode]:
    "The two cells that follow the title of the notebook `nbs/NAME`."
    user, repo, branch = address["user"], address["repo"], address["branch"]
    badge = f"[![Open in Colab](images/colab.svg)](https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{name})"
    install = f'import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q git+https://github.com/{user}/{repo}'
    cells = [nbformat.v4.new_markdown_cell(badge, id="badge"), nbformat.v4.new_code_cell(install, id="install")]
    return cells


def with_badge(notebook: nbformat.NotebookNode, name: str, address: dict[str, str]) -> nbformat.NotebookNode:
    "The notebook with fresh generated cells behind its title; old ones are known by their ids."
    others = [cell for cell in notebook.cells if cell.get("id") not in ("badge", "install")]
    notebook.cells = [*others[:1], *generated_cells(name, address), *others[1:]]
    return notebook


def write_badges(root: Path = ROOT) -> list[str]:
    "Rewrites the notebooks of nbs/ (solutions need no badge); names those that changed."
    changed = []
    for path in sorted((root / "nbs").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(with_badge(nbformat.reads(before, as_version=4), path.name, read_address(root))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path.name)
    return changed


if __name__ == "__main__":
    print("\n".join(write_badges()) or "nothing to change", file=sys.stderr)
