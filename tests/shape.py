"""Prints the shape of each chapter: what COURSE-like plans ask for, measured on the notebooks.

`python tests/shape.py [NAME...]`, where NAME is a part of a notebook's name; all lessons without one.
"""

import re
import statistics
import sys
from typing import NamedTuple

import house


class Shape(NamedTuple):
    "Counts over one notebook; words are `\\w+` in prose, lines are those of code cells without directives."

    cells: int
    prose_share: float
    words: int
    code_lines: int
    exported_share: float
    median_lines: float
    p90_lines: float
    longest_run: int
    plots: int
    exports: int
    tested: int


def shape(notebook: house.Notebook) -> Shape:
    "Measures one notebook; the badge and the install cell count like any other."
    prose = [cell for cell in notebook.cells if cell.kind == "markdown"]
    lines = [len(cell.lines) for cell in notebook.code]
    exported = sum(len(cell.lines) for cell in notebook.code if cell.exported)
    exports = sum(name.islower() or not name.isupper() for cell in notebook.code if cell.exported for name in house.definitions(cell))
    untested = len(house.tested(notebook))
    runs = re.findall("c+", "".join("c" if cell.kind == "code" else "m" for cell in notebook.cells))
    plots = sum(any("image/png" in output.get("data", {}) or "<svg" in str(output.get("data", {}).get("text/html", "")) for output in cell.outputs)
                for cell in notebook.code)
    return Shape(
        len(notebook.cells), len(prose) / len(notebook.cells), sum(len(re.findall(r"\w+", cell.source)) for cell in prose),
        sum(lines), exported / max(sum(lines), 1), statistics.median(lines), statistics.quantiles(lines, n=10)[-1],
        max(map(len, runs), default=0), plots, exports, exports - untested,
    )


def table(notebooks: list[house.Notebook]) -> str:
    "One line for each notebook."
    head = f"{'chapter':20} cells prose words  code  exp. median  p90  run plots tested"
    rows = [f"{n.stem:20} {s.cells:5} {s.prose_share:5.0%} {s.words:5} {s.code_lines:5} {s.exported_share:5.0%} {s.median_lines:6.1f} "
            f"{s.p90_lines:4.0f} {s.longest_run:4} {s.plots:5} {s.tested:3}/{s.exports}" for n in notebooks for s in [shape(n)]]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    chosen = [n for n in house.read_notebooks() if n.is_chapter and (not sys.argv[1:] or any(a in n.stem for a in sys.argv[1:]))]
    print(table(chosen))
