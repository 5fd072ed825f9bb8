"The rules of the house: each notebook and module against each rule, and each rule against a planted violation."

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys

import badges
import house
import nbformat.v4 as v4
import pytest
import shape

NOTEBOOKS = house.read_notebooks()
CHAPTERS = house.chapter_numbers(NOTEBOOKS)
MODULES = {p.relative_to(house.ROOT).as_posix(): p.read_text(encoding="utf-8") for p in sorted((house.ROOT / "fmtut").rglob("*.py"))
           if p.name != "_modidx.py"}
GENERATED = {path: text for path, text in MODULES.items()
             if path.split("/")[1].removesuffix(".py") not in {*house.HAND_WRITTEN, "checks"}}
LAZY = house.lazy_names(MODULES["fmtut/__init__.py"])
NOTEBOOK_RULES = [
    house.module_name, house.is_python, house.documentation, house.tested, house.lengths, house.prose, house.unfinished,
    house.one_sentence_a_line, house.heading, house.no_absolute_path, house.small_images, house.no_network, house.dead_links,
]
parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
parser.read(house.ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]


def none(complaints):
    "Fails with one complaint a line."
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def name_of(value):
    "How a parameter is called in pytest's list."
    return getattr(value, "path", getattr(value, "__name__", str(value)))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
@pytest.mark.parametrize("rule", NOTEBOOK_RULES, ids=name_of)
def test_notebook(rule, notebook):
    none(rule(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_import_order(notebook):
    none(house.import_order(notebook, CHAPTERS, LAZY))


@pytest.mark.parametrize("path", GENERATED)
def test_module(path):
    none(house.module_imports(path, MODULES[path], CHAPTERS, LAZY) + house.module_length(path, MODULES[path]))


@pytest.mark.parametrize("path", MODULES)
def test_any_module(path):
    none(house.unsafe_loading(path, MODULES[path]) + house.module_paths(path, MODULES[path]))


def test_nothing_is_defined_twice():
    none(house.defined_twice(NOTEBOOKS))


SOLUTIONS = {notebook.stem: notebook for notebook in NOTEBOOKS if notebook.is_solution}


@pytest.mark.parametrize("stem", SOLUTIONS)
def test_exercises(stem):
    chapter = next((n for n in NOTEBOOKS if n.is_chapter and n.stem == stem), None)
    assert chapter, f"{SOLUTIONS[stem].path} has no chapter"
    none(house.exercises(chapter, SOLUTIONS[stem]))


@pytest.mark.parametrize("stem", SOLUTIONS)
def test_shape_of_a_lesson(stem):
    "Wide bounds around what a chapter aims at; `python tests/shape.py` prints the numbers."
    found = shape.shape(next(n for n in NOTEBOOKS if n.is_chapter and n.stem == stem))
    assert 40 <= found.cells <= 125 and found.longest_run <= 6, found
    assert 0.38 <= found.prose_share <= 0.56 and 1400 <= found.words <= 3000, found
    assert found.plots >= 3 and found.tested == found.exports, found


def test_only_core_widgets():
    trees = [(f"{n.path} cell {cell.number}", cell.tree) for n in NOTEBOOKS for cell in n.code]
    none([bad for path, tree in trees for bad in house.core_widgets(path, tree)])


def test_badges_are_written_from_settings(tmp_path):
    shutil.copytree(house.ROOT / "nbs", tmp_path / "nbs")
    shutil.copy(house.ROOT / "settings.ini", tmp_path)
    assert badges.write_badges(tmp_path) == [], "run python tests/badges.py"
    settings = (tmp_path / "settings.ini").read_text()
    (tmp_path / "settings.ini").write_text(settings.replace(f"user = {SETTINGS['user']}", "user = somebody"))
    assert len(badges.write_badges(tmp_path)) == len(list((tmp_path / "nbs").glob("*.ipynb")))
    assert "github/somebody/" in (tmp_path / "nbs" / "00_environment.ipynb").read_text()
    assert badges.write_badges(tmp_path) == []


def test_chapters_have_different_numbers():
    assert NOTEBOOKS and len(set(CHAPTERS.values())) == len(CHAPTERS), CHAPTERS


def test_requirements_and_version():
    assert [re.match(r"[\w-]+", r)[0] for r in SETTINGS["requirements"].split()] == house.REQUIREMENTS
    assert f'__version__ = "{SETTINGS["version"]}"' in MODULES["fmtut/__init__.py"]


def test_address_stands_once():
    folders = [house.ROOT / name for name in ("fmtut", "nbs", "tests", "docs", "benchmarks", ".ci")]
    paths = [p for p in [*house.ROOT.iterdir(), *(p for folder in folders for p in folder.rglob("*"))] if p.is_file()]
    kinds = {"", ".py", ".ipynb", ".md", ".toml", ".json", ".yml", ".yaml", ".cfg"}
    texts = {p.relative_to(house.ROOT).as_posix(): p.read_text(encoding="utf-8", errors="replace") for p in paths
             if p.suffix in kinds and p.name != "README.md" and "/." not in p.as_posix()[len(str(house.ROOT)) + 1:]}
    none(house.address_outside(texts, SETTINGS["user"], SETTINGS["repo"]))


LIGHT = """
import json, socket, sys, time
connected, before = [], set(sys.modules)
socket.socket.connect = socket.socket.connect_ex = lambda self, address: connected.append(str(address))
start = time.perf_counter()
import fmtut
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({name.split(".")[0] for name in set(sys.modules) - before}), connected]))
"""
HEAVY = set("torch nbdev fastcore transformers matplotlib numpy jupyter jupyter_core IPython ipywidgets".split())


def test_import_is_light():
    runs = [subprocess.run([sys.executable, "-c", LIGHT], cwd=house.ROOT, capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded, connected = zip(*(json.loads(run.stdout) for run in runs))
    assert min(seconds) < 0.5, f"import fmtut takes {min(seconds):.2f} s"
    assert not HEAVY & set(loaded[0]), f"import fmtut loads {sorted(HEAVY & set(loaded[0]))}"
    assert not any(connected), f"import fmtut connects to {connected}"


# Each rule against a violation: a check that cannot fail is no check.


GOOD = ['md:# 12 Losses\n\n> One line', "#| default_exp losses",
        '#| export\ndef mse(\n    x: int, # a number\n    y=0, # another\n):\n    "Squared difference."\n    return (x - y) ** 2',
        "assert mse(2) == 4"]


def planted(*sources, path="nbs/12_losses.ipynb", outputs=(), good=GOOD, kernel="python3", **metadata):
    "The good notebook with further cells; `md:` marks prose; the last cell gets the outputs."
    cells = [v4.new_markdown_cell(s[3:]) if s.startswith("md:") else v4.new_code_cell(s) for s in [*good, *sources]]
    if outputs:
        cells[-1].outputs = list(outputs)
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel}} | metadata
    return house.notebook_from(path, v4.new_notebook(cells=cells, metadata=metadata))


def order(notebook):
    "The import rule with a small course around the notebook."
    return house.import_order(notebook, {"environment": 0, "losses": 12, "layers": 14}, {"Tagger"})


def twice(notebook):
    "The rule against double definitions, for one notebook."
    return house.defined_twice([notebook])


NOTEBOOK_CHECKS = [*NOTEBOOK_RULES, order, twice]


@pytest.mark.parametrize("rule", NOTEBOOK_CHECKS, ids=name_of)
def test_good_notebook_passes(rule):
    none(rule(planted(
        "from fmtut.environment import raises\nimport fmtut\nfmtut.__version__",
        "md:It is $x. Y$, `a. B`, e.g. Mr. Smith of the U.S. Army [see. This](https://a.b).\n1. Why?\n| A. B | C. D |\n## Sources\nA. Then B.",
        'import sys\nif "google.colab" in sys.modules:\n    %pip install -q fmtut',
        "with patch.dict(os.environ, HF_HUB_OFFLINE='1'), raises(OSError):\n    Bert.from_pretrained('gone')",
        "md:Next.", "# network: the hub\nBert.from_pretrained('bert-base-cased')", "Bert.from_pretrained('./model')",
        "%%bash\necho 1", "x = !ls\n%matplotlib inline\nawait f()\nsocket.create_connection(('127.0.0.1', 8000))",
        "md:Next.", "TABLE = [\n" + "    1,\n" * 40 + "]", "class Long:\n" + "    a = 1\n" * 100,
        '#| export\n@dataclass\nclass Row:\n    "A row."\n\n    value: int = 0\n\n    def __len__(self): return 1\n\n'
        '    def double(self, other):\n        "Twice."\n        def inner(z): pass\n        return 2 * self.value',
        "#| hide\n" + "f()\n" * 30, "md:Next.", "#| export\nLIMIT = 3\n\ndef hook(a, *args, **rest): # a number\n    'Does nothing.'",
        "with raises(ValueError): hook(Row(1))", outputs=[v4.new_output("display_data", {"image/png": "=/tmp/"})])))


VIOLATIONS = [
    (order, "from fmtut.layers import Linear", "imports layers of chapter 14"),
    (order, "def f():\n    from .layers import Linear", "imports layers of chapter 14"),
    (order, "import fmtut.layers", "imports layers of chapter 14"),
    (order, "from fmtut import layers", "imports layers of chapter 14"),
    (order, "import fmtut\nfmtut.layers.Linear", "imports layers of chapter 14"),
    (order, "import_module('fmtut.layers')", "imports layers of chapter 14"),
    (order, "from fmtut.losses import mse", "imports losses of chapter 12"),
    (order, "from fmtut.environment import *", "imports *"),
    (order, "from fmtut import *", "imports *"),
    (order, "from fmtut.cli import main", "nothing may import"),
    (order, "import fmtut.__main__", "nothing may import"),
    (order, "from fmtut import Tagger", "lazy name Tagger"),
    (order, "import fmtut\nfmtut.Tagger('x')", "lazy name Tagger"),
    (order, "import fmtut.gone", "which no chapter exports"),
    (order, "from nbdev.showdoc import *", "imports nbdev"),
    (order, "import fastcore.all", "imports fastcore"),
    (house.is_python, "def f(:", "is no Python"),
    (twice, "#| export\ndef mse(): pass", "defines mse, as nbs/12_losses.ipynb cell 3 does"),
    (twice, "#| export\nclass A: pass\nA, B = LIMIT = 1, 2\nclass A: pass", "defines A"),
    (house.documentation, "#| export\ndef f(): pass", "f needs a docstring"),
    (house.documentation, "#| export\ndef f():\n    '''One.\n\n    Two.'''", "f needs a docstring of one line"),
    (house.documentation, "#| export\nclass A: pass", "A needs a docstring"),
    (house.documentation, "#| export\nclass A:\n    'An A.'\n    def go(self): pass", "A.go needs a docstring"),
    (house.documentation, "#| export\nclass A:\n    'An A.'\n    def __init__(self, size): pass", "parameter size"),
    (house.documentation, "#| export\ndef f(a, b):\n    'Adds.' # not here", "parameter b"),
    (house.documentation, "#| export\ndef f(\n    a, # first\n    *,\n    b=1, # noqa: B008\n):\n    'Adds.'", "parameter b"),
    (house.tested, "#| export\ndef f(): pass", "f has no test"),
    (house.tested, "#| export\ndef f(): pass\n#\f\nf()\f# f is mentioned\nassert True\f#| slow\nassert f()\fassert f()", "f has no test"),
    (house.tested, "#| export\nclass A: pass\f#| export\nassert A", "A has no test"),
    (house.lengths, "x = 1\n" * 30 + "f()", "31 lines, 30 at most"),
    (house.lengths, "class A: pass\n" + "f()\n" * 110, "111 lines, 110 at most"),
    (house.lengths, "class A:\n    def f(self):\n" + "        f()\n" * 30, "f has 31 lines"),
    (house.prose, "1\f2\f3\f4", "more than 6 code cells"),
    (house.unfinished, "#| export\nf() # TODO: later", "TODO or FIXME"),
    (house.one_sentence_a_line, "md:One. Two.", "two sentences on one line: One. Two."),
    (house.one_sentence_a_line, "md:- Is it `x`? Yes.", "two sentences"),
    (house.one_sentence_a_line, "md:> It is 3. `f` is next.", "two sentences"),
    (house.one_sentence_a_line, "md:(It is so.) The end", "two sentences"),
    (house.no_absolute_path, "open('/home/me/x')", "holds the path /home/"),
    (house.no_absolute_path, "open('/" + "work/x')", "holds the path /"),
    (house.no_absolute_path, "md:See ~/data.", "holds the path ~/"),
    (house.no_absolute_path, "'C:\\\\data'", "holds the path C:\\"),
    (house.no_absolute_path, "read('../" + "shared/" + "data/x')", "holds the path shared/"),
    (house.dead_links, "md:See [this](gone.ipynb#part).", "links to gone.ipynb"),
    (house.dead_links, "md:![a picture](images/gone.png)", "links to images/gone.png"),
    (house.dead_links, 'md:<a href="gone.ipynb">x</a>', "links to gone.ipynb"),
    (house.no_network, "import requests", "uses requests"),
    (house.no_network, "from urllib import request", "uses urllib.request"),
    (house.no_network, "import urllib\nurllib.request.urlopen(x)", "uses urllib.request"),
    (house.no_network, "from datasets import load_dataset\nload_dataset('a/b')", "load_dataset(...) needs '# network:'"),
    (house.no_network, "AutoModel.from_pretrained('owner/name')", "from_pretrained(...) needs"),
    (house.no_network, "with patch.dict(os.environ, HF_HUB_OFFLINE='0'): load_pretrained('gone')", "load_pretrained(...) needs"),
    (house.no_network, "%pip install x", "shell(...) needs"),
    (house.no_network, "if debug:\n    !pip install x", "shell(...) needs"),
    (house.no_network, "%%bash\nwget x", "shell(...) needs"),
    (house.no_network, "subprocess.run(['curl', 'x'])", "run(...) needs"),
    (house.no_network, "socket.create_connection(('a.org', 80))", "create_connection(...) needs"),
    (house.no_network, "if 'google.colab' in sys.modules: pass\nelse: urlopen(x)", "urlopen(...) needs"),
]


@pytest.mark.parametrize("rule, source, complaint", VIOLATIONS)
def test_violation_is_found(rule, source, complaint):
    notebook = planted(*source.split("\f"))
    found = rule(notebook)
    assert any(complaint in line for line in found), found
    assert all(re.match(r"nbs/12_losses.ipynb cell [5-8] \(.+\): ", line) for line in found), found


PICTURE = v4.new_output("display_data", {"image/png": "a" * 140_000})
TRACEBACK = v4.new_output("error", ename="E", evalue="", traceback=["/tmp/x.py"])


@pytest.mark.parametrize("rule, output, complaint", [
    (house.dead_links, v4.new_output("display_data", {"text/html": "<a href='gone.html'>x</a>"}), "links to gone.html, which is not there"),
    (house.small_images, PICTURE, "an image of 103 KB, 100 at most"),
    (house.unfinished, TRACEBACK, "its stored output is an error"),
    (house.no_absolute_path, TRACEBACK, "holds the path /tmp/"),
    (house.no_absolute_path, v4.new_output("stream", text="in /root/x"), "holds the path /root/"),
    (house.no_absolute_path, v4.new_output("display_data", {"image/svg+xml": "/tmp/x"}), "holds the path /tmp/"),
])
def test_bad_output_is_found(rule, output, complaint):
    assert rule(planted("f()", outputs=[output])) == [f"nbs/12_losses.ipynb cell 5 (f()): {complaint}"]


@pytest.mark.parametrize("rule, notebook, complaint", [
    (house.heading, planted(good=["md:# 13 Losses\n\n> One line"]), "needs a heading '# 12 Title'"),
    (house.heading, planted(good=["md:# 12 Losses"]), "needs a summary"),
    (house.heading, planted(good=["md:# 12 Losses\n\n> One\n> Two"]), "needs a summary"),
    (house.heading, planted(kernel="conda"), "kernel must be python3"),
    (house.heading, planted(widgets={"state": {}}), "widget state"),
    (house.module_name, planted(path="nbs/12_risk.ipynb"), "asks for ['risk']"),
    (house.module_name, planted(path="nbs/B_glossary.ipynb"), "asks for []"),
    (house.module_name, planted(good=[]), "default_exp is []"),
    (order, planted("import fmtut.layers", path="nbs/solutions/12_losses.ipynb"), "imports layers"),
])
def test_bad_notebook_is_found(rule, notebook, complaint):
    assert any(complaint in line and line.startswith(notebook.path) for line in rule(notebook))


def test_solution_may_import_its_chapter():
    assert order(planted("from fmtut.losses import mse", path="nbs/solutions/12_losses.ipynb")) == []


ASKED = planted(*(f"check('12.{n}', ...)" for n in (1, 2, 3, 4)), "quiz('12')")
ACCEPTED = "accepts(EXERCISES['12.{0}'])\nrefuses(EXERCISES['12.{0}'], 1, 'a')\nrefuses(EXERCISES['12.{0}'], 2, 'b')"


def solved(*sources):
    "A solutions notebook with four good exercises; `sources` replace the cells of the last one."
    cells = [f"EXERCISES['12.{n}'] = Exercise(f, g, h)\f{ACCEPTED.format(n)}" for n in (1, 2, 3, 4)]
    return planted(*"\f".join([*cells[:3], *(sources or cells[3:])]).split("\f"), path="nbs/solutions/12_losses.ipynb")


@pytest.mark.parametrize("chapter, solutions, complaint", [
    (ASKED, solved("1"), "3 exercises, 4 to 6 wanted"),
    (ASKED, solved("1"), "exercise 12.4 has no solution"),
    (ASKED, solved("EXERCISES['12.5'] = e\f" + ACCEPTED.format(5)), "exercise 12.5 is not asked"),
    (ASKED, solved("EXERCISES['12.4'] = e\faccepts(EXERCISES['12.4'])\nrefuses(EXERCISES['12.4'], 1, 'a')"), "12.4 refuses 1 wrong answers"),
    (ASKED, solved("EXERCISES['12.4'] = e"), "12.4 needs accepts"),
    (planted("quiz('11')"), solved(), "needs quiz('12')"),
])
def test_bad_exercise_is_found(chapter, solutions, complaint):
    assert any(complaint in line for line in house.exercises(chapter, solutions)), house.exercises(chapter, solutions)


def test_good_exercises_pass():
    assert house.exercises(ASKED, solved()) == []
    solutions = planted(good=["md:# 12 Solutions\n\n> One", "#| default_exp checks.losses"], path="nbs/solutions/12_losses.ipynb")
    assert house.module_name(solutions) == [] and solutions.is_solution and not solutions.is_chapter


@pytest.mark.parametrize("source, names", [
    ("import ipywidgets as widgets\nwidgets.TagsInput()\nwidgets.HTML()", ["TagsInput"]),
    ("from ipywidgets import Stack, VBox", ["Stack"]),
])
def test_other_widgets_are_found(source, names):
    assert house.core_widgets("a", ast.parse(source)) == [f"a: {name} is no core widget" for name in names]


def test_chapter_00_may_use_the_lazy_names_for_learners():
    lazy, chapters = {"check", "Tagger"}, {"environment": 0}
    assert house.bad_imports(ast.parse("import fmtut\nfmtut.check('00.1', 1)"), 0, chapters, lazy) == []
    assert house.bad_imports(ast.parse("import fmtut\nfmtut.Tagger('x')"), 0, chapters, lazy) != []
    assert house.bad_imports(ast.parse("import fmtut\nfmtut.check('00.1', 1)"), 12, chapters, lazy) != []


def test_reading_finds_notebooks_and_lazy_names(tmp_path):
    for folder in (tmp_path / "nbs", tmp_path / "nbs" / ".ipynb_checkpoints"):
        folder.mkdir()
        (folder / "12_losses.ipynb").write_text(json.dumps(v4.new_notebook(cells=[v4.new_markdown_cell("# 12")])))
    assert [(n.path, n.cells[0].source) for n in house.read_notebooks(tmp_path)] == [("nbs/12_losses.ipynb", "# 12")]
    assert house.lazy_names("OTHER = 1\nLAZY = {'a': 'b'}\nf()") == {"a"}


def test_bad_module_is_found():
    path, chapters = "fmtut/losses.py", {"losses": 12, "layers": 14}
    assert house.module_imports(path, "from .layers import Linear", chapters, set()) == [
        "fmtut/losses.py: imports layers of chapter 14, which is not an earlier one"]
    assert house.module_imports("fmtut/gone.py", "", chapters, set()) == ["fmtut/gone.py: no notebook exports this module"]
    assert house.module_length(path, "# %% cell\n\n" + "x = 1\n" * 250) == []
    assert house.module_length(path, "x = 1\n" * 251) == ["fmtut/losses.py: 251 lines, 250 at most"]
    assert house.module_paths(path, "\nx = '/root/y'") == ["fmtut/losses.py:2: holds the path /root/"]


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "def f():\n    import torch\n    torch.load(x)", "from torch import load",
    "numpy.load(x, allow_pickle=True)", "f(trust_remote_code=True)", "import joblib"])
def test_unsafe_loading_is_found(source):
    assert house.unsafe_loading("fmtut/weights.py", source)
    assert not house.unsafe_loading("fmtut/weights.py", "'pickle torch.load'\nnumpy.load(x, allow_pickle=False)")


def test_address_outside_is_found():
    texts = {"a.py": "\n# https://github.com/me/it/issues", "b.ipynb": "%pip install -q git+https://github.com/me/it", "c.md": "github.com/me/item"}
    assert house.address_outside(texts, "me", "it") == ["a.py:2: the repository's address; only settings.ini holds it"]
