"""The rules of the house as functions: from parsed notebooks and modules to a list of complaints.

A complaint names the file, the cell (counted from 1 over all cells) and the cell's first line.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = {"__init__", "__main__", "cli"}
REQUIREMENTS = "torch transformers tokenizers safetensors numpy scikit-learn matplotlib seqeval ipywidgets tqdm".split()
LONGEST_MODULE, LONGEST_FUNCTION, LONGEST_CELL, LONGEST_CLASS_CELL = 250, 30, 30, 110
CODE_CELLS_WITHOUT_PROSE, CELLS_TO_TEST, LARGEST_IMAGE = 6, 3, 100 * 1024
FOR_LEARNERS = {"check", "hint", "solution", "quiz", "progress"}
# In ipywidgets 7 and 8 alike; the rest is missing, renamed or drawn differently in one of them.
CORE_WIDGETS = set("Button Dropdown FloatSlider HBox HTML HTMLMath Image IntSlider Layout Play SelectionSlider Tab Text Textarea VBox".split())
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DIRECTIVE = re.compile(r"\s*#\s*\|\s*(\w+)(.*)")


# Parsing


def shell_call(match: re.Match) -> str:
    "A line for the shell or a magic as an ordinary call, so that indentation and guards survive."
    return f"{match[1]}shell({match[2]!r})"


def parse(source: str) -> ast.Module:
    "The tree of a cell; lines for the shell, magics and questions become calls of `shell`."
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compile(source, "cell", "exec", flags)
    except SyntaxError:
        body = "\n".join(line for line in source.splitlines() if not DIRECTIVE.match(line)).strip()
        if body.startswith("%%") and not re.match("%%(time|timeit|capture)\\b", body):
            return ast.parse(f"shell({body!r})")
        lines = re.sub(r"(?m)^([ \t]*)(?:[\w, ]+=[ \t]*)?[%!]+(.*)$", shell_call, source)
        return compile(re.sub(r"(?m)^([ \t]*)(\??[\w.]+\?+)$", shell_call, lines), "cell", "exec", flags)


@dataclass
class Cell:
    "One cell of a notebook, parsed on demand."

    number: int
    kind: str
    source: str
    outputs: list = field(default_factory=list)

    @cached_property
    def directives(self) -> dict[str, str]:
        "What nbdev reads from the leading `#|` lines: name -> rest of the line."
        found = {}
        for line in self.source.splitlines():
            if match := DIRECTIVE.match(line):
                found[match[1]] = match[2].strip(": ")
            elif line.strip():
                break
        return found

    @property
    def lines(self) -> list[str]:
        "Lines that a reader sees: neither empty nor a directive."
        return [line for line in self.source.splitlines() if line.strip() and not DIRECTIVE.match(line)]

    @property
    def exported(self) -> bool:
        "Does the cell go into the module?"
        return self.kind == "code" and any(name.startswith("export") for name in self.directives)

    @property
    def runs(self) -> bool:
        "Does nbdev_test run it? What it leaves out proves nothing."
        return self.directives.get("eval", "").lower() != "false" and not {"slow", "gpu"} & set(self.directives)

    @cached_property
    def tree(self) -> ast.Module:
        "The syntax tree; empty for prose and for what is no Python (which `is_python` reports)."
        try:
            return parse(self.source if self.kind == "code" else "")
        except SyntaxError:
            return ast.parse("")


@dataclass
class Notebook:
    "A notebook with its place in the reading order; appendices and the start page come last."

    path: str
    cells: list[Cell]
    metadata: dict = field(default_factory=dict)

    @property
    def stem(self) -> str:
        "File name without its ending."
        return Path(self.path).stem

    @property
    def number(self) -> int:
        "Chapter number; a solution may also import its own chapter, so it stands half a step behind."
        digits = re.match(r"\d\d(?=_)", self.stem)
        return (int(digits[0]) if digits else 100) + ("solutions/" in self.path) / 2

    @property
    def is_chapter(self) -> bool:
        "Chapters export a module; solutions, appendices and the start page do not."
        return self.number < 100 and "solutions/" not in self.path

    @property
    def is_solution(self) -> bool:
        "Solutions export the checks of their chapter."
        return self.number < 100 and "solutions/" in self.path

    @property
    def code(self) -> list[Cell]:
        "Code cells."
        return [cell for cell in self.cells if cell.kind == "code"]

    def at(self, cell: Cell) -> str:
        "Start of a complaint."
        return f"{self.path} cell {cell.number} ({(cell.lines or [''])[0].strip()[:60]}): "


def notebook_from(path: str, node: nbformat.NotebookNode) -> Notebook:
    "A notebook from nbformat's form."
    cells = [Cell(number, cell.cell_type, cell.source, cell.get("outputs", [])) for number, cell in enumerate(node.cells, 1)]
    return Notebook(path, cells, node.metadata)


def read_notebooks(root: Path = ROOT) -> list[Notebook]:
    "All notebooks of the course in reading order."
    paths = [p for p in sorted((root / "nbs").rglob("*.ipynb")) if not any(part[0] == "." for part in p.relative_to(root).parts)]
    return [notebook_from(p.relative_to(root).as_posix(), nbformat.read(p, as_version=4)) for p in paths]


def chapter_numbers(notebooks: list[Notebook]) -> dict[str, int]:
    "Module name -> number of the chapter that exports it."
    return {notebook.stem[3:]: int(notebook.number) for notebook in notebooks if notebook.is_chapter}


def lazy_names(init: str) -> set[str]:
    "The names that `fmtut/__init__.py` loads on first use."
    values = [node.value for node in ast.parse(init).body if isinstance(node, ast.Assign) and node.targets[0].id == "LAZY"]
    return set(ast.literal_eval(values[0])) if values else set()


def last_name(node: ast.AST) -> str:
    "`c` of `a.b.c`, of `c` and of a call of either."
    return getattr(node, "attr", getattr(node, "id", last_name(node.func) if isinstance(node, ast.Call) else ""))


# Imports


def imported_modules(tree: ast.AST):
    "Every import as a dotted name, relative ones as from inside fmtut; `*` stays."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(["fmtut"] * bool(node.level) + [node.module] * bool(node.module))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fmtut":
            yield f"fmtut.{node.attr}"
        elif isinstance(node, ast.Call) and last_name(node.func) in ("import_module", "__import__") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield "fmtut" * node.args[0].value.startswith(".") + node.args[0].value


def bad_imports(tree: ast.AST, number: float, chapters: dict[str, int], lazy: set[str]) -> list[str]:
    "Reading order is import order: what chapter `number` must not import."
    bad = []
    for root, *rest in (name.split(".") for name in imported_modules(tree)):
        name = rest[0] if rest else ""
        if root in ("nbdev", "fastcore", "execnb"):
            bad.append(f"imports {root}, a tool of the authors")
        if root != "fmtut" or not name or name == "checks" or name.startswith("__") and name != "__main__":
            continue
        if number == 0 and name in FOR_LEARNERS & lazy: # chapter 00 has exercises, and chapter 01 stands behind it
            continue
        if "*" in rest:
            bad.append("imports *; name what you need")
        elif name in HAND_WRITTEN:
            bad.append(f"imports fmtut.{name}, which nothing may import")
        elif name in lazy:
            bad.append(f"imports fmtut's lazy name {name}; import it from its module")
        elif name not in chapters:
            bad.append(f"imports {name}, which no chapter exports")
        elif chapters[name] >= number and not (name == "exercises" and number % 1): # every solution uses it
            bad.append(f"imports {name} of chapter {chapters[name]:02}, which is not an earlier one")
    return sorted(set(bad))


def import_order(notebook: Notebook, chapters: dict[str, int], lazy: set[str]) -> list[str]:
    "Complaints about the imports of every cell."
    return [notebook.at(cell) + bad for cell in notebook.code for bad in bad_imports(cell.tree, notebook.number, chapters, lazy)]


def module_imports(path: str, source: str, chapters: dict[str, int], lazy: set[str]) -> list[str]:
    "Complaints about the imports of a module, and about a module without a chapter."
    if Path(path).stem not in chapters:
        return [f"{path}: no notebook exports this module"]
    return [f"{path}: {bad}" for bad in bad_imports(ast.parse(source), chapters[Path(path).stem], chapters, lazy)]


# Names, sizes and safety of code


def module_name(notebook: Notebook) -> list[str]:
    "`NN_name.ipynb` has `#| default_exp name`, its solutions `checks.name`; other notebooks export nothing."
    found = [cell.directives["default_exp"] for cell in notebook.code if "default_exp" in cell.directives]
    name = notebook.stem[3:]
    wanted = [name] if notebook.is_chapter else [f"checks.{name}"] if notebook.is_solution else []
    return [] if found == wanted else [f"{notebook.path}: default_exp is {found}, but the file's name asks for {wanted}"]


def is_python(notebook: Notebook) -> list[str]:
    "Every code cell can be parsed: the other checks see nothing in one that cannot."
    bad = []
    for cell in notebook.code:
        try:
            parse(cell.source)
        except SyntaxError as error:
            bad.append(notebook.at(cell) + f"is no Python: {error}")
    return bad


def definitions(cell: Cell) -> list[str]:
    "Functions, classes and upper-case constants that a cell defines at its top level."
    names = [node.name for node in cell.tree.body if isinstance(node, (*FUNCTION, ast.ClassDef))]
    assigned = [node for node in cell.tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    targets = [target for node in assigned for target in getattr(node, "targets", [getattr(node, "target", None)])]
    targets = [name for target in targets for name in getattr(target, "elts", [target])]
    return names + [name.id for name in targets if isinstance(name, ast.Name) and name.id.isupper()]


def defined_twice(notebooks: list[Notebook]) -> list[str]:
    "Nothing is defined twice among exported cells of the whole course."
    first, bad = {}, []
    for notebook in (notebook for notebook in notebooks if not notebook.is_solution): # each has its own EXERCISES and QUIZ
        for cell in (cell for cell in notebook.code if cell.exported):
            for name in definitions(cell):
                if name in first:
                    bad.append(notebook.at(cell) + f"defines {name}, as {first[name]} does")
                first.setdefault(name, f"{notebook.path} cell {cell.number}")
    return bad


def comments(source: str) -> dict[int, str]:
    "Line number -> comment that explains something; what only silences a tool does not count."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {token.start[0]: token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {line: text for line, text in found.items() if text and not text.startswith(("noqa", "type:"))}


def undocumented_parameters(function: ast.FunctionDef, explained: dict[int, str]) -> list[str]:
    "Parameters without a comment on their line; `self`, `cls`, `*rest` and `**rest` need none."
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip(map(id, reversed(positional)), reversed(arguments.defaults)))
    defaults |= {id(a): d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d}
    asked = [a for a in [*positional, *arguments.kwonlyargs] if a.arg not in ("self", "cls")]
    return [a.arg for a in asked if not explained.keys() & range(a.lineno, defaults.get(id(a), a).end_lineno + 1)]


def documentation(notebook: Notebook) -> list[str]:
    "Exported public names have a one-line docstring; functions and `__init__` a comment for each parameter."
    bad = []
    for cell in (cell for cell in notebook.code if cell.exported):
        explained = comments(cell.source)
        members = [(node, "") for node in cell.tree.body if isinstance(node, (*FUNCTION, ast.ClassDef))]
        members += [(inner, f"{node.name}.") for node, _ in members if isinstance(node, ast.ClassDef)
                    for inner in node.body if isinstance(inner, FUNCTION) and not node.name.startswith("_")]
        for node, owner in members:
            text, where = ast.get_docstring(node), notebook.at(cell) + owner + node.name
            if not node.name.startswith("_") and (not text or "\n" in text):
                bad.append(f"{where} needs a docstring of one line")
            if node.name == "__init__" or isinstance(node, FUNCTION) and not owner and not node.name.startswith("_"):
                bad += [f"{where}: parameter {name} needs a comment" for name in undocumented_parameters(node, explained)]
    return bad


def is_test(cell: Cell) -> bool:
    "A cell that runs, is not exported and can fail on purpose."
    nodes = list(ast.walk(cell.tree))
    calls = {last_name(node.func) for node in nodes if isinstance(node, ast.Call)}
    asserts = any(isinstance(node, ast.Assert) for node in nodes) or any(c == "raises" or c.startswith("assert_") for c in calls)
    return not cell.exported and cell.runs and asserts


def mentions(cell: Cell) -> set[str]:
    "Names that a cell's code uses; comments and strings do not count."
    return {last_name(node) for node in ast.walk(cell.tree) if isinstance(node, (ast.Name, ast.Attribute))}


def tested(notebook: Notebook) -> list[str]:
    "Each exported function and class is used in a test within three code cells; `exercises` looks after solutions."
    bad = []
    if notebook.is_solution:
        return bad
    for position, cell in enumerate(notebook.code):
        near = [test for test in notebook.code[position + 1:position + 1 + CELLS_TO_TEST] if is_test(test)]
        seen = set().union(*map(mentions, near))
        names = [node.name for node in cell.tree.body if cell.exported and isinstance(node, (*FUNCTION, ast.ClassDef))]
        bad += [notebook.at(cell) + f"{name} has no test within {CELLS_TO_TEST} code cells"
                for name in names if not name.startswith("_") and name not in seen]
    return bad


def module_length(path: str, source: str) -> list[str]:
    "A module is short; empty lines and nbdev's cell markers are not counted."
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("# %%")]
    return [f"{path}: {len(lines)} lines, {LONGEST_MODULE} at most"] * (len(lines) > LONGEST_MODULE)


def lengths(notebook: Notebook) -> list[str]:
    "Functions and code cells are short; a cell that defines a class or only assigns may be longer."
    bad = []
    for cell in notebook.code:
        body, lines = cell.tree.body, cell.source.splitlines()
        if not body or not all(isinstance(node, (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)) for node in body):
            limit = LONGEST_CLASS_CELL if any(isinstance(node, ast.ClassDef) for node in body) else LONGEST_CELL
            bad += [notebook.at(cell) + f"{len(cell.lines)} lines, {limit} at most"] * (len(cell.lines) > limit)
        for node in (node for node in ast.walk(cell.tree) if isinstance(node, FUNCTION)):
            length = sum(bool(line.strip()) for line in lines[node.lineno - 1:node.end_lineno])
            bad += [notebook.at(cell) + f"{node.name} has {length} lines, {LONGEST_FUNCTION} at most"] * (length > LONGEST_FUNCTION)
    return bad


def prose(notebook: Notebook) -> list[str]:
    "No more than six code cells follow each other without prose."
    bad, run = [], 0
    for cell in notebook.cells:
        run = run + 1 if cell.kind == "code" else 0
        if run == CODE_CELLS_WITHOUT_PROSE + 1:
            bad.append(notebook.at(cell) + f"more than {CODE_CELLS_WITHOUT_PROSE} code cells without prose")
    return bad


def unfinished(notebook: Notebook) -> list[str]:
    "Exported code holds no note to self, and no stored output is an error."
    bad = [notebook.at(c) + "TODO or FIXME in exported code" for c in notebook.code if c.exported and re.search("TODO|FIXME", c.source)]
    failed = [c for c in notebook.code if any(output.get("output_type") == "error" for output in c.outputs)]
    return bad + [notebook.at(cell) + "its stored output is an error" for cell in failed]


def unsafe_loading(path: str, source: str) -> list[str]:
    "No file that fmtut opens can run code: no pickle, no torch.load, no code from a model's folder."
    bad, picklers = [], {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree := ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            bad.append(f"{path}:{node.lineno}: torch.load")
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            if getattr(node.value, "value", True) is not False:
                bad.append(f"{path}:{node.value.lineno}: {node.arg}")
    names = [name for name in imported_modules(tree) if name.split(".")[0] in picklers or name == "torch.load"]
    return bad + [f"{path}: imports {name}" for name in names]


# Prose


ABBREVIATIONS = set("al approx cf ch co corp dr eq etc fig gov inc jr ltd mr mrs ms pp prof resp sec sen sr st vs".split())
SENTENCE_END = re.compile(r"""(\S+?)([.!?])["'”’)]*\s+(?=["'“‘(]*[A-ZÀ-Þ])""")


def two_sentences(line: str) -> bool:
    "Does a line of Markdown hold the end of one sentence and the start of another?"
    line = re.sub(r"^\s*((>|[-*+]|\d+[.)])\s+)+", "", line)
    line = re.sub(r"`+[^`]*`+|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)", "Qq", line) # code, math, links
    line = re.sub(r"\"[^\"]*\"|“[^”]*”|<[^>]*>|https?://\S+", "q", line) # quoted text, tags, addresses
    for word, mark in SENTENCE_END.findall(line):
        word = re.sub(r"^\W+", "", word)
        if mark != "." or not (word.lower() in ABBREVIATIONS or re.fullmatch(r"(\w\.)*\w", word) and not word.isdigit()):
            return True
    return False


def one_sentence_a_line(notebook: Notebook) -> list[str]:
    "One sentence per line; code, displayed math, tables and lists of sources are left alone."
    bad = []
    for cell in (cell for cell in notebook.cells if cell.kind == "markdown"):
        text = re.sub(r"(?s)```.*?```|~~~.*?~~~|\$\$.*?\$\$|<!--.*?-->", "Qq", cell.source)
        text = re.split(r"(?m)^(#+ |\*\*)Sources", text)[0]
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("|") and two_sentences(line)]
        bad += [notebook.at(cell) + f"two sentences on one line: {line[:80]}" for line in lines]
    return bad


def heading(notebook: Notebook) -> list[str]:
    "The first prose is `# NN Title` with one line of `> summary`; the kernel is python3; no widget state is kept."
    first = next((cell for cell in notebook.cells if cell.kind == "markdown"), Cell(1, "markdown", ""))
    label, bad = notebook.stem.split("_")[0] + " " if "_" in notebook.stem else "", []
    if not re.search(rf"(?m)^# {label}\S", first.source):
        bad.append(notebook.at(first) + f"needs a heading '# {label}Title'")
    if len(re.findall(r"(?m)^>", first.source)) != 1 or not re.search(r"(?m)^> \S", first.source):
        bad.append(notebook.at(first) + "needs a summary '> ...' of one line")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        bad.append(f"{notebook.path}: its kernel must be python3")
    return bad + [f"{notebook.path}: widget state in the metadata; remove it"] * ("widgets" in notebook.metadata)


# Exercises


def called_with(notebook: Notebook, function: str) -> list[str]:
    "First arguments of all calls of `function` that are text, or `EXERCISES[text]`."
    calls = [node for cell in notebook.code for node in ast.walk(cell.tree) if isinstance(node, ast.Call) and last_name(node.func) == function]
    firsts = [call.args[0].slice if isinstance(call.args[0], ast.Subscript) else call.args[0] for call in calls if call.args]
    return [first.value for first in firsts if isinstance(first, ast.Constant)]


def given(solutions: Notebook) -> list[str]:
    "The ids to which a solutions notebook assigns an exercise."
    targets = [node.targets[0] for cell in solutions.code for node in cell.tree.body if isinstance(node, ast.Assign)]
    return [t.slice.value for t in targets if isinstance(t, ast.Subscript) and last_name(t.value) == "EXERCISES"]


def exercises(chapter: Notebook, solutions: Notebook) -> list[str]:
    "Each exercise is asked in its chapter, takes its solution, and refuses two wrong answers; the chapter ends with its quiz."
    ids, number, bad = given(solutions), chapter.stem[:2], []
    asked = [id for id in called_with(chapter, "check") if re.fullmatch(rf"{number}\.\d+", id)]
    bad += [f"{solutions.path}: {len(ids)} exercises, 4 to 6 wanted"] * (not 4 <= len(ids) <= 6)
    bad += [f"{chapter.path}: exercise {id} has no solution" for id in asked if id not in ids]
    for id in ids:
        bad += [f"{solutions.path}: exercise {id} is not asked in {chapter.path}"] * (id not in asked)
        bad += [f"{solutions.path}: exercise {id} needs accepts(EXERCISES[{id!r}])"] * (id not in called_with(solutions, "accepts"))
        refused = called_with(solutions, "refuses").count(id)
        bad += [f"{solutions.path}: exercise {id} refuses {refused} wrong answers, 2 at least"] * (refused < 2)
    return bad + [f"{chapter.path}: needs quiz({number!r})"] * (number not in called_with(chapter, "quiz"))


def core_widgets(path: str, tree: ast.Module) -> list[str]:
    "Only widgets that version 7 and version 8 of ipywidgets draw alike."
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and last_name(node.value) == "widgets" and node.attr[0].isupper()}
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "ipywidgets"]
    used |= {alias.name for node in imports for alias in node.names}
    return [f"{path}: {name} is no core widget" for name in sorted(used - CORE_WIDGETS)]


def dead_links(notebook: Notebook, root: Path = ROOT) -> list[str]:
    "Links and pictures that name a file: in prose, and in the HTML of outputs."
    bad = []
    for cell in notebook.cells:
        texts = [re.sub(r"(?s)```.*?```|`[^`\n]*`", "", cell.source)] if cell.kind == "markdown" else []
        outputs = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
        links = [link for text in texts for link in re.findall(r"\]\(<?([^)>\s]+)", text)]
        links += [link for text in texts + ["".join(o) for o in outputs] for link in re.findall(r"""(?:href|src)=["']([^"']+)""", text)]
        files = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
        bad += [notebook.at(cell) + f"links to {file}, which is not there" for file in files
                if not ((root / notebook.path).parent / file).exists()]
    return bad


# What belongs to one machine only


# Written in two halves, so that the names of the authors' folders stand nowhere.
OWN_FOLDERS = ["/wor" + "k/", "shared/" + "data", "shared/" + "corpus", "shared/" + "notes", "shared/" + "seed"]
ABSOLUTE = re.compile(r"(?<![\w.])/(?:home|tmp|root|Users)/|\bC:\\|(?<![\w~])~/|" + "|".join(rf"(?<!\w){f}" for f in OWN_FOLDERS))


def output_texts(cell: Cell):
    "All text of the stored outputs; pictures have none, drawings in SVG do."
    for output in cell.outputs:
        data = {k: v for k, v in output.get("data", {}).items() if k == "image/svg+xml" or not k.startswith("image/")}
        yield from (str(part) for part in [*data.values(), output.get("text", ""), *output.get("traceback", [])])


def no_absolute_path(notebook: Notebook) -> list[str]:
    "Neither sources nor outputs hold a path that exists on one machine only."
    found = [(cell, ABSOLUTE.search(text)) for cell in notebook.cells for text in [cell.source, *output_texts(cell)]]
    return [notebook.at(cell) + f"holds the path {match[0]}" for cell, match in found if match]


def module_paths(path: str, source: str) -> list[str]:
    "The same for a module."
    return [f"{path}:{n}: holds the path {match[0]}" for n, line in enumerate(source.splitlines(), 1)
            if (match := ABSOLUTE.search(line))]


def small_images(notebook: Notebook) -> list[str]:
    "A stored picture has at most 100 KB."
    sizes = [(cell, len(str(value)) * (1 if "svg" in kind else 0.75)) for cell in notebook.code
             for output in cell.outputs for kind, value in output.get("data", {}).items() if kind.startswith("image/")]
    return [notebook.at(cell) + f"an image of {size / 1024:.0f} KB, 100 at most" for cell, size in sizes if size > LARGEST_IMAGE]


def unguarded(node: ast.AST):
    "All nodes but those that run on Colab only, or in a block that says HF_HUB_OFFLINE=1."
    if isinstance(node, ast.If) and "'google.colab' in sys.modules" in ast.unparse(node.test):
        children = node.orelse
    elif isinstance(node, ast.With) and re.search("HF_HUB_OFFLINE(=|': )'1'", " ".join(map(ast.unparse, node.items))):
        children = []
    else:
        yield node
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from unguarded(child)


def is_remote(call: ast.Call) -> bool:
    "Does the call reach the network, as far as its text can tell?"
    name = last_name(call.func)
    texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    first = call.args[0] if call.args else None
    if name in ("from_pretrained", "load_model", "load_pretrained"):
        literal = isinstance(first, ast.Constant) and str(first.value)
        return bool(literal) and not literal.startswith((".", "/", "~")) and literal != "fmtut-mini"
    if name in ("create_connection", "connect"):
        host = first.elts[0] if isinstance(first, ast.Tuple) and first.elts else None
        return isinstance(host, ast.Constant) and not re.match(r"localhost$|127\.|::1$", str(host.value))
    if name in ("shell", "system", "run", "Popen", "call", "check_call", "check_output", "getoutput"):
        return bool(re.search(r"\b(wget|curl|pip3? install|git clone|apt-get)\b", " ".join(texts)))
    return name in ("load_dataset", "hf_hub_download", "snapshot_download", "urlopen", "urlretrieve")


def no_network(notebook: Notebook) -> list[str]:
    "Only cells that begin with `# network:` or are guarded reach the network."
    bad = []
    for cell in notebook.code:
        if cell.lines and cell.lines[0].startswith("# network:"):
            continue
        for node in unguarded(cell.tree):
            names = list(imported_modules(ast.Module([node], []))) if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "urllib.request":
                names.append("urllib.request")
            if any(re.match(r"(requests|httpx|aiohttp|urllib\.request|urllib3)\b", name) for name in names):
                bad.append(notebook.at(cell) + f"uses {names[0]} without '# network:' on its first line")
            if isinstance(node, ast.Call) and is_remote(node):
                bad.append(notebook.at(cell) + f"{last_name(node.func)}(...) needs '# network:' on its first line")
    return bad


def address_outside(texts: dict[str, str], user: str, repository: str) -> list[str]:
    "The repository's address stands in settings.ini only; badges and install lines are generated from it."
    address = re.compile(rf"github(\.com)?[/:]{re.escape(user)}/{re.escape(repository)}\b")
    generated = re.compile(r"colab-badge|\.svg\)\]\(|%pip install -q git\+")
    return [f"{path}:{number}: the repository's address; only settings.ini holds it" for path, text in texts.items()
            for number, line in enumerate(text.splitlines(), 1) if address.search(line) and not generated.search(line)]
