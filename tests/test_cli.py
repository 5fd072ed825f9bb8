"The command line as a user meets it: help, exit codes, streams, and what the files hold."

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from io import BytesIO, TextIOWrapper

import pytest

from fmtut.conll import read_conll

COMMANDS = [[], ["ner"], ["ner", "train"], ["ner", "evaluate"], ["ner", "predict"], ["ner", "inspect"], ["ner", "demo"], ["doctor"],
            ["check-notebook"]]


def process(*arguments, **options):
    "The command in a process of its own."
    return subprocess.Popen([sys.executable, "-m", "fmtut", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(fmtut, command):
    code, out, err = fmtut(*command, "--help")
    assert code == 0 and not err and "usage: fmtut" in out
    if command:
        assert "fmtut " + " ".join(command) in out
    if len(command) == 2:
        assert "example:" in out


def test_recipe_is_the_one_list_of_flags(fmtut):
    import dataclasses

    from fmtut.training import Recipe

    _, out, _ = fmtut("ner", "train", "--help")
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')} " in out
        assert field.metadata["help"].split()[0] in out


def test_version(fmtut):
    import fmtut as package

    assert fmtut("--version")[:2] == (0, f"fmtut {package.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["ner"], ["fly"], ["ner", "fly"], ["ner", "train"], ["ner", "predict", "--model", "x"], ["--fly"]], ids=" ".join)
def test_usage_errors(fmtut, arguments):
    code, out, err = fmtut(*arguments)
    assert code == 2 and not out and "usage: fmtut" in err


def test_a_wrong_flag_is_answered_by_its_own_command(fmtut, tmp_path):
    code, _, err = fmtut("ner", "train", "--out", tmp_path / "out", "--epoch", 3)
    assert code == 2 and "usage: fmtut ner train" in err and "unrecognized arguments: --epoch 3; did you mean --epochs?" in err


def test_files_that_go_together(fmtut, corpus, tmp_path):
    for arguments, text in [(["--train", corpus], "--train and --dev go together"), (["--dev", corpus], "--train and --dev go together"),
                            (["--test", corpus], "--test needs --train and --dev")]:
        code, _, err = fmtut("ner", "train", *arguments, "--out", tmp_path / "out")
        assert code == 2 and text in err


def test_train_evaluate_predict_round(fmtut, corpus, tmp_path):
    "One round on a tiny file: the folder, the reports, and seqeval on the written tags agree."
    from seqeval.metrics import f1_score

    out = tmp_path / "tagger"
    arguments = ["ner", "train", "--train", corpus, "--dev", corpus, "--test", corpus, "--out", out, "--epochs", 20, "--patience", 20]
    code, printed, err = fmtut(*arguments)
    assert code == 0, err
    assert "epoch 20/20" in printed and "fmtut ner predict --model" in printed
    assert {"model.safetensors", "config.json", "tokenizer.json", "recipe.json", "report.json", "history.json", "report.html"} <= {p.name for p in out.iterdir()}
    assert f"open in a browser: {out / 'report.html'}\n" in printed
    report, history = json.loads((out / "report.json").read_text()), json.loads((out / "history.json").read_text())
    assert set(report) == {"dev", "test"} and len(history["epochs"]) == 20
    assert json.loads((out / "recipe.json").read_text())["epochs"] == 20

    code, printed, err = fmtut("ner", "evaluate", "--model", out, "--data", corpus, "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert code == 0 and scores == report["test"] and "strict IOB2: micro f1" in printed and "accuracy" in printed
    assert set(scores) == {"entity", "strict", "word", "sentences", "words"} and scores["sentences"] == 2 and scores["words"] == 11
    assert set(scores["entity"]) == {"micro", "macro", "weighted", "types"} and set(scores["word"]) == {"accuracy", "tags"}
    assert set(scores["entity"]["micro"]) == {"precision", "recall", "f1", "support"} and "O" in scores["word"]["tags"]

    code, printed, _ = fmtut("ner", "predict", "--model", out, "--input", corpus, "--input-format", "conll")
    (tmp_path / "predicted.conll").write_text(printed)
    gold, predicted = read_conll(corpus), read_conll(tmp_path / "predicted.conll")
    assert [s.words for s in gold] == [s.words for s in predicted]
    assert f1_score([s.tags for s in gold], [s.tags for s in predicted]) == pytest.approx(scores["entity"]["micro"]["f1"])
    assert scores["entity"]["micro"]["f1"] == 1.0 # two sentences, twenty epochs: it must know them by heart

    again = tmp_path / "again" # the same command, the same weights
    assert fmtut(*arguments[:8], "--out", again, *arguments[10:])[0] == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert fmtut(*arguments, "--overwrite")[0] == 0
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Elements(HTMLParser):
    "The tags, attributes and text of a page; fails where tags do not balance."

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag != "meta" and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes): self.handle_starttag(tag, attributes)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


HOSTILE = ["<script>alert(1)</script>", '"><img/src=x/onerror=alert(2)>', "</style></title><b>", "&amp;", "http://example.com/x.js", "x" * 5000, "שלום"]


def test_report_page(fmtut, corpus, tmp_path):
    "One file that needs no other, holds the scores of report.json, and shows what the data says without obeying it."
    data, out = tmp_path / "a&b<i>.conll", tmp_path / "<b>tagger & co"
    twice = ["".join(f"{word}\t{tag}\n" for word in HOSTILE) for tag in ("B-R&D<i>", "O")] # whatever is predicted, one of them has errors
    data.write_text("\n".join([corpus.read_text(), *twice]), encoding="utf-8")
    code, printed, err = fmtut("ner", "train", "--train", data, "--dev", data, "--test", data, "--out", out, "--epochs", 2)
    assert code == 0 and not err and f"open in a browser: {out / 'report.html'}\n" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    report, history = json.loads((out / "report.json").read_text()), json.loads((out / "history.json").read_text())
    best = max(history["epochs"], key=lambda row: row["score"])
    elements = Elements(page)
    assert not elements.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    assert not {name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "srcset", "data", "action", "xlink:href")}
    assert all(value.startswith("#") for name, value in elements.attributes if name == "href")
    assert "url(" not in page and "@import" not in page and len(page) < 100_000
    for word in [*HOSTILE[:5], HOSTILE[6], "R&D<i>", "a&b<i>.conll:", "test sentences stand word for word in train", "<b>tagger & co", "learning_rate",
                 f"best after epoch {best['epoch']}", f"epoch {best['epoch']}: {best['score']:.3f}"]:
        assert word in elements.text, word
    for scores in report.values():
        for number in [scores["entity"]["micro"]["f1"], scores["strict"]["micro"]["f1"], scores["word"]["accuracy"],
                       *(row[key] for row in [*scores["entity"]["types"].values(), scores["entity"]["macro"]] for key in ("precision", "recall", "f1"))]:
            assert f"{number:.3f}" in elements.text
    (out / ".report.html.1").write_text("half a page") # as a kill in mid-writing leaves it
    assert fmtut("ner", "train", "--train", data, "--dev", data, "--out", out, "--epochs", 1, "--overwrite")[0] == 0
    assert [path.name for path in out.iterdir() if "report" in path.name and "json" not in path.name] == ["report.html"]
    assert "Worst sentences of dev" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("<no\npage>")], ids=repr)
def test_a_page_that_cannot_be_written_costs_no_model(fmtut, corpus, tmp_path, monkeypatch, error):
    import fmtut.errors as errors

    def fail(*_): raise error
    monkeypatch.setattr(errors, "report_page", fail)
    out = tmp_path / "out"
    code, printed, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", out, "--epochs", 1)
    assert code == 0 and not err and f"warning: report.html was not written ({type(error).__name__}: " in printed and "open in a browser" not in printed
    assert "ner predict --model" in printed and not list(out.glob("*report.html*"))
    assert fmtut("ner", "evaluate", "--model", out, "--data", corpus)[0] == 0


@pytest.mark.slow
def test_demo_writes_the_page_too(fmtut, tmp_path):
    out = tmp_path / "out"
    for _ in "12": # the second run replaces the first, page and all
        code, printed, err = fmtut("ner", "demo", "--out", out, "--sentences", 50, "--epochs", 1)
        assert code == 0 and f"open in a browser: {out / 'report.html'}\n" in printed, err
    assert "Worst sentences of test" in Elements((out / "report.html").read_text(encoding="utf-8")).text


def test_predict_formats(fmtut, model_dir, tmp_path):
    text = tmp_path / "in.txt"
    text.write_text("Ana flew to Lund.\n\nJosé won.", encoding="utf-8")
    code, out, _ = fmtut("ner", "predict", "--model", model_dir, "--input", text)
    blocks = out.split("\n\n")
    assert code == 0 and blocks[0].split("\n")[0].split("\t")[0] == "Ana" and all(len(line.split("\t")) == 2 for line in blocks[0].split("\n"))
    code, out, _ = fmtut("ner", "predict", "--model", model_dir, "--input", text, "--format", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["Ana flew to Lund.", "", "José won."] # one object a line, empty lines too
    assert set(rows[0]) == {"text", "words", "tags", "entities"} and rows[0]["words"] == ["Ana", "flew", "to", "Lund", "."]
    for row in rows:
        for entity in row["entities"]:
            assert row["text"][entity["start"]:entity["end"]] == entity["text"]
            assert set(entity) == {"type", "text", "start_word", "end_word", "start", "end", "confidence"}
    code, out, _ = fmtut("ner", "predict", "--model", model_dir, "--input", text, "--format", "color")
    assert code == 0 and len(out.splitlines()) == 3


def test_program_is_called_as_it_can_be(monkeypatch, tmp_path):
    from fmtut.cli import program

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "fmtut")])
    assert program() == ".venv/bin/fmtut"
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/fmtut"])
    assert program() == "fmtut"


def test_color_marks_entities():
    from fmtut.cli import color
    from fmtut.decoding import Entity, Tagged

    result = Tagged("Ana ran", ["Ana", "ran"], ["B-PER", "O"], [Entity("PER", "Ana", 0, 1, 0, 3, 0.9)])
    assert color(result, codes=False) == "[Ana PER] ran"
    assert color(result) == "\033[1;34mAna\033[0;34m PER\033[0m ran"


def test_predict_reads_standard_input_and_nothing_is_nothing(fmtut, model_dir, monkeypatch):
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"Ana ran.\r\n")))
    code, out, _ = fmtut("ner", "predict", "--model", model_dir, "--input", "-", "--format", "json")
    assert code == 0 and json.loads(out)["text"] == "Ana ran."
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"")))
    assert fmtut("ner", "predict", "--model", model_dir, "--input", "-")[:2] == (0, "")


def test_predict_names_the_bad_line_of_a_text(fmtut, model_dir, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"good\nb\xe4d\n")
    code, _, err = fmtut("ner", "predict", "--model", model_dir, "--input", tmp_path / "in.txt")
    assert code == 1 and "in.txt:2: byte 6 is not utf-8" in err
    assert fmtut("ner", "predict", "--model", model_dir, "--input", tmp_path / "in.txt", "--encoding", "latin-1")[0] == 0


def test_predict_streams(fmtut, model_dir, monkeypatch):
    "An endless input: it is answered while it comes, and little is read ahead."
    import fmtut.ner as ner

    class Endless:
        read_lines = 0

        def read1(self, size):
            self.read_lines += 100
            if self.read_lines > 2_000:
                raise KeyboardInterrupt
            return b"Ana ran .\n" * 100

    source, lead, answered = Endless(), [], []
    monkeypatch.setattr(sys, "stdin", type("In", (), {"buffer": source}))
    tag = ner.Tagger.__call__

    def watched(self, inputs):
        answered.append(len(inputs))
        lead.append(source.read_lines - sum(answered))
        return tag(self, inputs[:1]) * len(inputs)

    monkeypatch.setattr(ner.Tagger, "__call__", watched)
    code, out, err = fmtut("ner", "predict", "--model", model_dir, "--input", "-", "--format", "json")
    assert code == 130 and "interrupted" in err
    assert sum(answered) == 2_000 == len(out.splitlines()) and max(lead) == 0


def test_what_comes_before_a_bad_line_is_answered(fmtut, model_dir, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"Ana ran .\n" * 200 + b"b\xe4d\nAna ran .\n")
    code, out, err = fmtut("ner", "predict", "--model", model_dir, "--input", tmp_path / "in.txt", "--format", "json")
    assert code == 1 and "in.txt:201: " in err and len(out.splitlines()) == 200


@pytest.mark.parametrize("sizes", [[1], [7], [1 << 18]])
def test_lines_arrive_whole_whatever_the_portions(sizes):
    from fmtut.cli import arriving_lines

    class Portions(BytesIO):
        def read1(self, size): return super().read1(sizes[0])

    for text in b"", b"a", b"a\n", b"a\n\nbcd\r\ne", b"\n\n", b"long " * 1000 + b"\nend":
        assert b"".join(arriving_lines(Portions(text), lambda: None)) == text
        assert list(arriving_lines(Portions(text), lambda: None)) == text.splitlines(keepends=True)


@pytest.mark.slow
def test_one_line_through_an_open_pipe_is_answered(model_dir):
    child = process("ner", "predict", "--model", model_dir, "--input", "-", "--format", "json")
    for name in "Ana", "Bo":
        child.stdin.write(f"{name} ran.\n".encode())
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["words"] == [name, "ran", "."]
    child.stdin.close()
    assert child.wait(60) == 0


def test_inspect(fmtut, corpus, tmp_path):
    other = tmp_path / "dev.conll"
    other.write_text(corpus.read_text() + "\nAna\tI-PER\n\u200b\tO\n\ncup\tB-EVENT\n")
    code, out, _ = fmtut("ner", "inspect", "--train", corpus, "--dev", other)
    assert code == 0
    for line in ["scheme                 IOB2", "scheme                 ill-formed IOB", "entities               ORG 2, PER 1, LOC 1",
                 "ill-formed tags        1", "words without a piece  1", "2 of 4 sentences stand word for word in train; 33.3% of its mentions do not occur there",
                 "dev: train has no entity of type EVENT, so a model cannot learn it"]:
        assert line in out, out


def test_real_files_are_read_as_they_lie(fmtut, shared):
    layouts = {"wnut17/dev.conll": [], "wikiann_en/dev.conll": ["--strip-prefix", "en:"],
               "uner_ewt/dev.iob2": ["--word-column", 1, "--tag-column", 2, "--comment", "#"]}
    expected = {"wnut17/dev.conll": "1,009", "wikiann_en/dev.conll": "10,000", "uner_ewt/dev.iob2": "2,001"}
    for name, layout in layouts.items():
        code, out, err = fmtut("ner", "inspect", "--train", shared / name, *layout)
        assert code == 0 and f"sentences              {expected[name]}\n" in out, err


# --- what only a process of its own shows --------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_gives_130_and_leaves_nothing(corpus, tmp_path):
    out = tmp_path / "out"
    child = process("ner", "train", "--train", corpus, "--dev", corpus, "--out", out, "--epochs", 100_000, "--patience", 100_000, "--checkpoint-every", 0,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a shell's background job ignores it
    for line in child.stdout:
        if line.startswith(b"epoch 2/"):
            break
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and b"interrupted" in err and b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_kill_in_training_leaves_the_old_model(corpus, model_dir, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(model_dir, out)
    before = (out / "model.safetensors").read_bytes()
    child = process("ner", "train", "--train", corpus, "--dev", corpus, "--out", out, "--overwrite", "--epochs", 100_000, "--patience", 100_000)
    for line in child.stdout:
        if line.startswith(b"epoch 2/"):
            break
    child.kill()
    child.communicate()
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_closed_pipe_and_plain_locale(model_dir, tmp_path):
    "`| head` must not print a traceback; LANG=C must not break names."
    text = tmp_path / "in.txt"
    text.write_text("José won in Århus.\n" * 3000, encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))} | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = process("ner", "predict", "--model", model_dir, "--input", text, env=plain)
    assert child.stdout.readline().decode().startswith("José\t")
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(60) == 1 and err == b""


@pytest.mark.slow
def test_closed_standard_output(model_dir, corpus):
    code = subprocess.run(f'"{sys.executable}" -m fmtut ner predict --model "{model_dir}" --input "{corpus}" >&-', shell=True, stderr=subprocess.PIPE)
    assert code.returncode == 0 and code.stderr == b""


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path):
    for arguments in ["ner", "inspect", "--train", tmp_path / "none", "--debug"], ["--debug", "ner", "inspect", "--train", tmp_path / "none"]:
        child = process(*arguments)
        _, err = child.communicate()
        assert child.returncode == 1 and b"Traceback" in err and b"DataError" in err


@pytest.mark.slow
def test_progress_bar_on_a_terminal(corpus, tmp_path):
    "A bar with loss, tokens per second and time left is drawn where standard error is a terminal."
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(sys.executable, ["-m", "fmtut", "ner", "train", "--train", str(corpus), "--dev", str(corpus),
                                           "--out", str(tmp_path / "out"), "--epochs", "300"], timeout=120, dimensions=(24, 120))
    child.expect(r"\d+/300 \[\d+:\d+<\d+:\d+, .*loss \d\.\d+, norm \d+\.\d+, [\d,]+ tokens/s")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_help_is_fast():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fmtut", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - start < 2 # no torch


def notebook_with(path, *sources):
    "A handed-in notebook with these code cells."
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": source} for source in sources]}))
    return path


def test_check_notebook_prints_one_row_a_learner(fmtut, tmp_path):
    ana = notebook_with(tmp_path / "ana.ipynb", "from fmtut.exercises import check", "check('46.1', 14 * 81)", "check('46.2', 81)")
    code, out, err = fmtut("check-notebook", ana)
    assert code == 0 and "running the code of 1 notebook with your rights" in err
    assert re.search(r"ana.ipynb  1 of 5 right  wrong: 46.2  not answered: 46.3 46.4 46.5", out)
    (tmp_path / "ben.ipynb").write_text("no notebook")
    code, out, err = fmtut("check-notebook", ana, tmp_path / "ben.ipynb", "--json")
    assert code == 1 and [row["solved"] for row in json.loads(out)] == [["46.1"], []]
    assert json.loads(out)[1]["problem"].startswith("is no notebook: open it in Jupyter")


def test_check_notebook_leaves_the_teachers_progress_alone(fmtut, tmp_path, monkeypatch):
    monkeypatch.setenv("FMTUT_HOME", str(tmp_path / "home"))
    notebook = notebook_with(tmp_path / "a.ipynb", "from fmtut.exercises import check; check('46.1', 1134); open('left', 'w')")
    before = sorted(tmp_path.iterdir())
    assert fmtut("check-notebook", notebook)[0] == 0
    assert sorted(tmp_path.iterdir()) == before


def cut_short(arguments, number, moment):
    "Runs the command, sends it a signal at the first line that starts with `moment`; exit code and all it wrote."
    child = process(*arguments, text=True)
    lines = []
    for line in child.stdout:
        lines.append(line)
        if line.startswith(moment):
            child.send_signal(number)
            moment = "never again"
    return child.wait(60), "".join(lines) + child.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on_to_the_same_weights(fmtut, corpus, tmp_path, number, code):
    arguments = ["ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 40, "--patience", 40]
    assert fmtut(*arguments, "--out", tmp_path / "straight")[0] == 0
    cut = [*arguments, "--out", tmp_path / "cut"]
    found, printed = cut_short([*cut, "--checkpoint-every", 7], number, "epoch 3/")
    assert found == code and "the run is saved, --resume goes on with it" in printed and not (tmp_path / "cut").exists()
    found, _, err = fmtut(*cut)
    assert found == 1 and "holds an unfinished run; give --resume to go on with it, or --overwrite to forget it" in err
    found, _, err = fmtut(*cut, "--resume", "--seed", 3)
    assert found == 1 and "recipe.seed is 3, was 0" in err
    found, printed, err = fmtut(*cut, "--resume")
    assert found == 0 and "epoch 40/40" in printed and "epoch 1/40" not in printed, err
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "straight/model.safetensors").read_bytes()
    assert not (tmp_path / "cut.checkpoints").exists() # it has served


@pytest.mark.slow
def test_overwrite_forgets_an_unfinished_run(fmtut, corpus, tmp_path):
    arguments = ["ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 3, "--out", tmp_path / "out"]
    (tmp_path / "out.checkpoints/step-000000001-epoch-00001").mkdir(parents=True)
    code, printed, err = fmtut(*arguments, "--overwrite")
    assert code == 0 and "epoch 1/3" in printed, err


@pytest.mark.parametrize("flags, text", [
    (["--resume", "--checkpoint-every", 0], "--resume needs checkpoints; leave out --checkpoint-every 0"),
    (["--checkpoint-every", -1], "--checkpoint-every is -1; give 0 for none, or the steps between two checkpoints"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"), (["--accumulate", 0], "--accumulate is 0"),
], ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value)))
def test_flags_of_a_long_run(fmtut, tmp_path, flags, text):
    code, _, err = fmtut("ner", "train", "--out", tmp_path / "out", *flags)
    assert code == 2 and text in err


@pytest.mark.slow
def test_accumulation_changes_no_result(fmtut, corpus, tmp_path):
    losses = []
    for parts in 1, 2:
        out = tmp_path / f"out{parts}"
        code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 2, "--out", out, "--accumulate", parts, "--checkpoint-every", 0)
        assert code == 0 and not (tmp_path / f"out{parts}.checkpoints").exists(), err
        losses.append(json.loads((out / "history.json").read_text())["steps"][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.2) # dropout draws differ; chapter 24 tests equality without it


@pytest.mark.slow
def test_torchrun_needs_no_other_flags(corpus, tmp_path):
    "Two processes: one report, one folder, a tagger that can be used."
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fmtut", "ner", "train",
                 "--train", str(corpus), "--dev", str(corpus), "--out", str(tmp_path / "out"), "--epochs", "3"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epoch 3/3") == 1 and done.stdout.count("tag a text:") == 1
    assert (tmp_path / "out/model.safetensors").is_file() and not (tmp_path / "out.checkpoints").exists()


@pytest.mark.slow
def test_only_checkpoints_are_removed_from_their_folder(fmtut, corpus, tmp_path):
    arguments = ["ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 2]
    place = tmp_path / "out.checkpoints"
    place.mkdir()
    (place / "notes.txt").write_text("precious")
    assert fmtut(*arguments, "--out", tmp_path / "out")[0] == 0
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    (place / "step-000000001-epoch-00001").mkdir()
    code, _, err = fmtut(*arguments, "--out", tmp_path / "out", "--checkpoint-every", 0, "--overwrite", "--resume")
    assert code == 2 and "--resume needs checkpoints" in err
    (tmp_path / "out").rename(tmp_path / "kept")
    code, _, err = fmtut(*arguments, "--out", tmp_path / "out", "--checkpoint-every", 0)
    assert code == 1 and "holds an unfinished run" in err and (place / "step-000000001-epoch-00001").is_dir()


@pytest.mark.slow
def test_overwrite_waits_for_a_run_that_is_alive(fmtut, corpus, tmp_path):
    (tmp_path / "out.checkpoints/step-000000001-epoch-00001").mkdir(parents=True)
    code = """import sys; from fmtut.checkpoints import only_writer
with only_writer(sys.argv[1]): print("locked", flush=True); sys.stdin.read()"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out.checkpoints/lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"locked\n"
        found = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 2, "--out", tmp_path / "out", "--overwrite")
    assert found[0] == 1 and "lock: another run holds it" in found[2] and (tmp_path / "out.checkpoints/step-000000001-epoch-00001").is_dir()


@pytest.mark.slow
def test_a_run_that_replaces_a_model_goes_on(fmtut, corpus, tmp_path):
    arguments = ["ner", "train", "--train", corpus, "--dev", corpus, "--epochs", 2, "--out", tmp_path / "out"]
    assert fmtut(*arguments)[0] == 0
    code, _, err = fmtut(*arguments, "--resume")
    assert code == 1 and "give --overwrite, too, to replace it when the run ends" in err
    assert fmtut(*arguments, "--resume", "--overwrite")[0] == 0
