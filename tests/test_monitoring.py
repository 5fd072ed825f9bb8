"The watchers at their edges: logs that are resumed, torn, unwritable or without room, pictures of odd runs, bars in terminals."

import copy
import io
import itertools
import json
import math
import re
import subprocess
import sys
import types

import pytest
import torch
from torch import nn
from tqdm import tqdm

from fmtut import monitoring
from fmtut.losses import cross_entropy
from fmtut.monitoring import JsonLog, LivePlot, Progress, bins, draw_run, in_notebook, log_line, peak_memory, read_log
from fmtut.training import Callback, CancelFit, History, Recipe, Trainer, TrainingDiverged


def loss(model, batch):
    "Cross-entropy, and one target a row."
    return cross_entropy(model(batch[0]), batch[1]), len(batch[1])


def make(callbacks, broken=(), batches=6, **settings):
    "A trainer of 6 steps an epoch; the batches `broken` are NaN."
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(5, 4, generator=generator) * (math.nan if i in broken else 1), torch.arange(5) % 3) for i in range(batches)]
    torch.manual_seed(0)
    return Trainer(nn.Linear(4, 3), loss, data, Recipe(**({"epochs": 2, "learning_rate": 1e-2} | settings)), callbacks)


def rising():
    "Scores that never stop a run."
    scores = itertools.count()
    return lambda model: next(scores) / 100


def numbers(path):
    "Kind and number of each line; every line must be JSON as it stands."
    rows = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    return [(row["kind"], row["epoch" if row["kind"] == "epoch" else "step"]) for row in rows]


def expected(steps, every=0):
    "The lines of a whole run with 6 steps an epoch."
    found = []
    for step in range(1, steps + 1):
        found.append(("step", step))
        if (step % every == 0 if every else step % 6 == 0) or step == steps:
            found.append(("score", step))
        if step % 6 == 0:
            found.append(("epoch", step // 6))
    return found


class Stop(Callback):
    "Ends the process, as it were, at a step; keeps the last state that was saved."

    order = 50

    def __init__(self, save, stop, moment="after_step"):
        self.save, self.stop, self.state = save, stop, None
        setattr(self, moment, self.look)

    def look(self, trainer):
        "Saves, stops."
        if trainer.step == self.save:
            self.state = copy.deepcopy(trainer.state_dict())

    def after_backward(self, trainer):
        if trainer.step == self.stop:
            raise KeyboardInterrupt


# The log


@pytest.mark.parametrize("every", [0, 4])
def test_log_holds_the_history(tmp_path, every):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    trainer = make([JsonLog(path)], evaluate_every=every, patience=9)
    history = trainer.fit(rising())
    assert numbers(path) == expected(12, every)
    for kind, rows in [("step", history.steps), ("score", history.evaluations), ("epoch", history.epochs)]:
        assert [{k: v for k, v in row.items() if k not in ("kind", "time")} for row in read_log(path) if row["kind"] == kind] == rows
    assert all(row["time"] > 1e9 for row in read_log(path))


def test_line_is_in_the_file_at_once(tmp_path):
    seen = []

    class Look(Callback):
        order = 99

        def after_step(self, trainer):
            seen.append(len(numbers(tmp_path / "log")))

    make([JsonLog(tmp_path / "log"), Look()], epochs=1).fit()
    assert seen == [1, 2, 3, 4, 5, 6]


def test_nan_is_null(tmp_path):
    make([JsonLog(tmp_path / "log")], broken=[2]).fit(lambda model: math.nan)
    rows = read_log(tmp_path / "log")
    assert [row["loss"] for row in rows if row["kind"] == "step" and row["step"] in (3, 9)] == [None, None]
    assert all(row["score"] is None for row in rows if row["kind"] == "score") and len(numbers(tmp_path / "log")) == 16
    assert log_line({"a": math.inf, "b": -math.inf, "c": 1, "d": True}) == b'{"a": null, "b": null, "c": 1, "d": true}\n'


def test_last_rows_of_a_diverged_run_are_there(tmp_path):
    with pytest.raises(TrainingDiverged):
        make([JsonLog(tmp_path / "log")], broken=[2, 3, 4]).fit()
    assert numbers(tmp_path / "log")[-1] == ("step", 5) and read_log(tmp_path / "log")[-1]["loss"] is None


@pytest.mark.parametrize("moment", ["after_step", "after_epoch"])
@pytest.mark.parametrize("every", [0, 1, 4])
@pytest.mark.parametrize("save, stop", [(1, 2), (3, 6), (6, 7), (6, 12), (11, 12), (12, 18), (5, 18), (6, 18)])
def test_resumed_log_has_no_line_twice(tmp_path, moment, every, save, stop):
    if moment == "after_epoch":
        save = -(-save // 6) * 6
    if stop <= save:
        stop = save + 1
    path, saved = tmp_path / "log", Stop(save, stop, moment)
    with pytest.raises(KeyboardInterrupt):
        make([saved, JsonLog(path)], epochs=3, evaluate_every=every, patience=99).fit(rising())
    assert numbers(path)[-1][1] <= stop
    resumed = make([JsonLog(path)], epochs=3, evaluate_every=every, patience=99)
    resumed.load_state_dict(saved.state)
    resumed.fit(lambda model: 1.0)
    assert numbers(path) == expected(18, every)


def test_torn_line_and_lines_of_others_go_but_are_kept_aside(tmp_path):
    path, saved = tmp_path / "log", Stop(4, 6)
    with pytest.raises(KeyboardInterrupt):
        make([saved, JsonLog(path)]).fit()
    with open(path, "ab") as file:
        file.write(b'{"kind": "step", "st')
    before = path.read_bytes()
    resumed = make([JsonLog(path)])
    resumed.load_state_dict(saved.state)
    resumed.fit()
    assert [line for line in numbers(path) if line[0] == "step"] == [("step", step) for step in range(1, 13)]
    assert path.with_name("log.old").read_bytes() == before


def test_lost_log_is_written_again_from_the_history(tmp_path):
    path, saved = tmp_path / "log", Stop(4, 6)
    with pytest.raises(KeyboardInterrupt):
        make([saved, JsonLog(path)]).fit()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    resumed = make([JsonLog(path)])
    resumed.load_state_dict(saved.state)
    resumed.fit()
    assert sorted(numbers(path)) == sorted(line for line in expected(12) if line[0] != "score")


def test_new_run_puts_an_old_log_aside(tmp_path):
    path = tmp_path / "log"
    make([JsonLog(path)]).fit()
    first = path.read_bytes()
    make([JsonLog(path)], epochs=1).fit()
    assert path.with_name("log.old").read_bytes() == first and numbers(path) == [("step", i) for i in range(1, 7)] + [("epoch", 1)]


def test_second_fit_of_one_trainer_goes_on_in_the_file(tmp_path):
    trainer = make([Stop(0, 8), JsonLog(tmp_path / "log")])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    steps = [number for kind, number in numbers(tmp_path / "log") if kind == "step"]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12] and not (tmp_path / "log.old").exists()


def test_log_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in [tmp_path, tmp_path / "file" / "log"]:
        trainer = make([JsonLog(path)])
        with pytest.raises(OSError, match="give JsonLog a file in a folder where you may write") as caught:
            trainer.fit()
        assert str(path) in str(caught.value) and trainer.step == 0
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_full_disk_is_told_once_and_training_goes_on(capsys):
    trainer = make([JsonLog("/dev/full")])
    trainer.fit(lambda model: 1.0)
    said = capsys.readouterr().out
    assert trainer.epoch == 2 and said.count("cannot be written (No space left on device)") == said.count("\n") == 1


class Disk(io.RawIOBase):
    "A file on a disk with room for some bytes; keeps what was truncated to."

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, line):
        part = line[:max(0, self.room - self.file.tell())]
        if not part:
            raise OSError(28, "No space left on device")
        return self.file.write(part)

    def truncate(self, size):
        self.file.truncate(size)
        return self.file.seek(size)

    def close(self):
        self.file.close()


def test_lines_follow_when_there_is_room_again(tmp_path, capsys):
    log = JsonLog(tmp_path / "log")

    class Filling(Callback):
        order = 96

        def before_fit(self, trainer):
            log.file = Disk(log.file, 400) # a few lines, and a part of the next

        def before_step(self, trainer):
            assert all(line.endswith(b"}\n") for line in (tmp_path / "log").read_bytes().splitlines(keepends=True))
            if trainer.step == 9:
                log.file.room = 10**6

    make([log, Filling()]).fit(rising())
    assert sorted(numbers(tmp_path / "log")) == sorted(expected(12)) and capsys.readouterr().out.count("cannot be written") == 1


def test_killed_run_leaves_whole_lines(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(sys.path[0])!r})
from test_monitoring import *
class Kill(Callback):
    order = 99
    def after_step(self, trainer):
        if trainer.step == 9: os.kill(os.getpid(), 9)
make([JsonLog({str(tmp_path / "log")!r}), Kill()]).fit()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=__file__.rsplit("/", 1)[0], capture_output=True, text=True)
    assert run.returncode == -9, run.stderr
    assert [number for kind, number in numbers(tmp_path / "log") if kind == "step"] == list(range(1, 10))


# Pictures


NASTY = {
    "empty": History(),
    "one step": History(steps=[{"step": 1, "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1, "targets": 1}]),
    "all broken": History(steps=[{"step": i, "loss": math.nan, "gradient_norm": math.inf, "learning_rate": 0.1, "targets": 1} for i in range(5)]),
    "zeros": History(steps=[{"step": i, "loss": 0.0, "gradient_norm": 0.0, "learning_rate": 0.0, "targets": 0} for i in range(9)]),
    "huge": History(steps=[{"step": i, "loss": 1e30 * i + 1, "gradient_norm": 1e38, "learning_rate": 1e-9, "targets": 1} for i in range(9)]),
    "bad scores": History(evaluations=[{"step": i, "epoch": i, "score": score, "best": False} for i, score in enumerate([math.nan, -math.inf, 0.5])]),
}


@pytest.mark.parametrize("name", NASTY)
def test_any_history_can_be_drawn(name):
    file = io.BytesIO()
    draw_run(NASTY[name], name).savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_long_run_is_drawn_from_few_points_and_keeps_its_peaks():
    rows = [{"step": i, "loss": 100.0 if i == 77_777 else 1.0} for i in range(100_001)]
    parts = bins(rows, "loss")
    assert len(parts) <= 200 and max(high for *_, high in parts) == 100 and parts[0][0] == 250
    assert bins(rows[:3], "loss") == [(0, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1)] and bins([], "loss") == []


class Screen:
    "Stands for a notebook: counts new pictures and replaced ones."

    def __init__(self, monkeypatch):
        self.new, self.updates, self.bundles = 0, 0, []
        display = types.SimpleNamespace(display=self.display)
        fake = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()), display=display)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def display(self, bundle, raw, display_id):
        "As IPython's."
        assert raw and display_id is True
        self.new += 1
        self.bundles.append(bundle)
        return self

    def update(self, bundle, raw):
        "As a display handle's."
        assert raw
        self.updates += 1
        self.bundles.append(bundle)


def test_one_output_area_for_a_run(monkeypatch):
    screen = Screen(monkeypatch)
    plot = LivePlot(seconds=0, share=1e9)
    make([plot]).fit(rising())
    assert screen.new == 1 and screen.updates == 12 and screen.bundles[-1]["text/plain"] == "A training run, step 12 of 12"
    make([plot]).fit()
    assert screen.new == 2


@pytest.mark.parametrize("settings, low, high", [({}, 0, 1), ({"seconds": 0.0}, 0, 8)])
def test_pictures_are_rare(monkeypatch, settings, low, high):
    screen = Screen(monkeypatch)
    make([LivePlot(**settings)], epochs=4).fit()
    assert screen.new == 1 and low <= screen.updates <= high # 24 steps take far less than a second


def test_picture_is_there_after_an_error(monkeypatch):
    screen = Screen(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make([LivePlot(), Stop(0, 5)]).fit()
    assert screen.new == 1
    with pytest.raises(KeyboardInterrupt):
        make([LivePlot(), Stop(0, 1)]).fit() # nothing to draw
    assert screen.new == 1


def test_no_picture_outside_a_notebook(monkeypatch):
    monkeypatch.setattr(monitoring, "draw_run", pytest.fail)
    for fake in [None, types.SimpleNamespace(get_ipython=lambda: None), types.SimpleNamespace(get_ipython=lambda: object())]:
        monkeypatch.setitem(sys.modules, "IPython", fake) if fake else monkeypatch.delitem(sys.modules, "IPython", raising=False)
        assert not in_notebook()
        make([LivePlot(seconds=0, share=1e9)]).fit()


def test_import_loads_no_ipython_and_no_matplotlib():
    code = "import sys, fmtut.monitoring; print({'IPython', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Lines and bars


@pytest.mark.parametrize("every, starts", [(0, ["epoch 1/2", "epoch 2/2"]), (4, ["step 4/12", "step 8/12", "step 12/12"]),
                                           (5, ["step 5/12", "step 10/12", "step 12/12"])])
def test_line_for_each_epoch_or_score(capsys, every, starts):
    make([Progress()], evaluate_every=every, patience=9).fit(rising())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == starts and all("dev score 0.0" in line and "(best so far)" in line for line in lines)


def test_by_steps_without_scores_means_by_epochs(capsys):
    make([Progress()], evaluate_every=4, broken=[1]).fit()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r"epoch ./2  loss \d\.\d{4}  [\d,]+ tokens/s  1 steps skipped", line) for line in lines)


def test_line_of_a_score_speaks_of_the_steps_since_the_last(capsys):
    trainer = make([Progress()], evaluate_every=4, patience=9, broken=[1])
    history = trainer.fit(rising())
    lines = capsys.readouterr().out.splitlines()
    rows = [row["loss"] for row in history.steps[4:8] if math.isfinite(row["loss"])]
    assert f"loss {sum(rows) / len(rows):.4f}" in lines[1]
    assert ["steps skipped" in line for line in lines] == [True, True, False]


def test_worse_score_is_not_called_best(capsys):
    scores = iter([0.9, 0.5])
    make([Progress()]).fit(lambda model: next(scores))
    assert ["best so far" in line for line in capsys.readouterr().out.splitlines()] == [True, False]


class Terminal(io.StringIO):
    "A stream that says it is a terminal."

    def isatty(self):
        return True


def test_bar_in_a_terminal_tells_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("fmtut.monitoring.tqdm", lambda **settings: tqdm(**settings | {"ncols": 200, "dynamic_ncols": False, "mininterval": 0}))
    monkeypatch.setattr(monitoring.tqdm, "external_write_mode", tqdm.external_write_mode, raising=False)
    make([Progress()]).fit()
    last = terminal.getvalue().split("\r")
    assert any(re.search(r"11/12 \[.*<.*loss \d\.\d{3}, norm \d+\.\d\d, [\d,]+ tokens/s, [\d,]+ MB\]", part) for part in last), last[-3:]


def test_bar_goes_on_where_the_run_stood(monkeypatch):
    saved = Stop(4, 5)
    with pytest.raises(KeyboardInterrupt):
        make([saved]).fit()
    progress = Progress()
    resumed = make([progress])
    resumed.load_state_dict(saved.state)
    monkeypatch.setattr(sys, "stderr", Terminal())
    resumed.fit()
    assert progress.bar.initial == 4 and progress.bar.n == 12


@pytest.mark.parametrize("stop", [Stop(0, 3), None])
def test_bar_is_closed_whatever_comes(monkeypatch, stop):
    class Cancel(Callback):
        def after_step(self, trainer):
            raise CancelFit

    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress()
    try:
        make([progress, stop or Cancel()]).fit()
    except KeyboardInterrupt:
        assert stop
    assert progress.bar.disable # tqdm's sign of a closed bar


def test_no_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None) # as on Windows
    assert peak_memory(torch.device("cpu")) is None
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    make([Progress()]).fit()
    assert " MB" not in terminal.getvalue()


def test_memory_is_in_megabytes():
    assert 100 < peak_memory(torch.device("cpu")) < 100_000 # torch alone takes more than 100


def test_watchers_change_no_weight(tmp_path, monkeypatch):
    Screen(monkeypatch)
    plain, watched = make([]), make([Progress(), LivePlot(seconds=0), JsonLog(tmp_path / "log")])
    for trainer in (plain, watched):
        trainer.fit(rising())
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters()))


def test_no_earlier_log_is_lost(tmp_path):
    path = tmp_path / "log"
    for text in ("precious\n", "also\n", "third\n"):
        path.write_text(text)
        make([JsonLog(path)]).fit()
    assert sorted(old.read_text() for old in tmp_path.glob("log.old*")) == ["also\n", "precious\n", "third\n"]
