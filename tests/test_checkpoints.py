"Killed, interrupted, damaged, full: a run that goes on must end as one that was never stopped, bit for bit."

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fmtut import checkpoints
from fmtut.checkpoints import (
    Checkpoint, CheckpointError, Terminated, as_columns, latest, load, only_writer, random_state, save, set_random_state, verify,
)
from fmtut.losses import cross_entropy
from fmtut.training import Callback, CancelFit, Recipe, Trainer

FOLDER = Path(__file__).resolve().parent
BATCHES = 7
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# Runs in this process


class Accident(Exception):
    "What ends a run in these tests."


class Breaks(Callback):
    "Raises after a step, once the checkpoint of that step is written."

    order = 99

    def __init__(self, step, action=None):
        self.step, self.action = step, action

    def after_step(self, trainer):
        if trainer.step == self.step:
            if self.action is None:
                raise Accident
            self.action()


def network(width=8):
    "Dropout needs random numbers, BatchNorm has buffers."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 3))


def loss(model, batch):
    "Cross-entropy, and one target a row."
    return cross_entropy(model(batch[0]), batch[1]), torch.tensor(len(batch[1]))


def table(rows=5 * BATCHES):
    "Random rows, each with one of three labels."
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, generator=generator), i % 3) for i in range(rows)]


def some_batches():
    "The same rows as a list of batches."
    rows = table()
    parts = [rows[i:i + 5] for i in range(0, len(rows), 5)]
    return [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])) for part in parts]


def score(model):
    "Some number that changes with the weights."
    return float(model[0].weight.detach().sum())


def started(*callbacks, evaluate=score, batches=None, width=8, **settings):
    "A Trainer after its run."
    trainer = Trainer(network(width), loss, batches or some_batches(), Recipe(**{"epochs": 3, "learning_rate": 1e-2, "patience": 9} | settings), callbacks)
    trainer.fit(evaluate)
    return trainer


def facts(trainer):
    "What a run leaves, but for the clock."
    rows = [{name: row[name] for name in row if name not in ("seconds", "tokens_per_second")} for row in trainer.history.epochs]
    state = trainer.state_dict()
    plain = {name: state[name] for name in ("epoch", "position", "step", "tokens", "skipped", "schedule", "stopping")}
    return [plain, trainer.history.steps, trainer.history.evaluations, rows], [state["model"], state["best_weights"], *state["optimizer"]["state"].values()]


def assert_same(one, other):
    "Bit for bit."
    (plain, tensors), (others, more) = facts(one), facts(other)
    assert plain == others
    for a, b in zip(tensors, more, strict=True):
        assert (a is None) == (b is None) and all(torch.equal(a[name], b[name]) for name in a or {})


def stopped_at(step, folder, **settings):
    "A run with a checkpoint after each step that ended after `step`; 0 ends it before the first."
    with pytest.raises(Accident):
        if step:
            started(Checkpoint(folder, every=1), Breaks(step), **settings)
        else:
            started(Breaks(1), Checkpoint(folder), **settings)


def folders(folder):
    "Names of the checkpoints of a run."
    return [path.name for path in sorted(folder.glob("step-*"))]


EDGES = [0, 1, BATCHES - 1, BATCHES, BATCHES + 1, 3 * BATCHES]


@pytest.mark.parametrize("step", EDGES)
@pytest.mark.parametrize("settings", [{}, {"evaluate_every": 3}, {"evaluate_every": 3, "patience": 2}, {"evaluate": None}], ids=["epochs", "steps", "early", "no score"])
def test_resume_equals_the_straight_run(tmp_path, step, settings, capsys):
    if settings.get("patience") == 2:
        settings = settings | {"evaluate": lambda model: -float(len(str(score(model))) > 0)} # never better: stops early, in mid-epoch
    straight = started(**settings)
    stop = min(step, straight.step) # an early stop may come before
    stopped_at(stop, tmp_path, **settings)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    resumed = started(Checkpoint(tmp_path, every=1, resume=True), **settings)
    assert_same(straight, resumed)
    assert ("a fresh start" in capsys.readouterr().out) == (step == 0)


def test_a_run_with_checkpoints_equals_one_without(tmp_path):
    assert_same(started(), started(Checkpoint(tmp_path, every=1)))


class Noisy(Callback):
    "Draws from every generator at each step, and keeps what it drew."

    def __init__(self):
        self.drawn = []

    def before_step(self, trainer):
        self.drawn.append([random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.normal()), float(torch.rand(()))])

    def state_dict(self):
        return {"drawn": self.drawn, "spread": torch.tensor(self.drawn).std(), "nothing": None}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def test_random_numbers_and_callbacks_go_on(tmp_path):
    straight, resumed = Noisy(), Noisy()
    started(straight)
    with pytest.raises(Accident):
        started(Noisy(), Checkpoint(tmp_path, every=1), Breaks(10))
    started(resumed, Checkpoint(tmp_path, resume=True))
    assert straight.drawn == resumed.drawn and len(straight.drawn) == 3 * BATCHES


def test_random_state_is_that_of_every_generator():
    state = random_state()
    draws = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), float(torch.rand(()))]
    set_random_state(state)
    assert draws == [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), float(torch.rand(()))]


@pytest.mark.gpu
def test_random_state_holds_every_cuda_device(tmp_path):
    torch.rand(1, device="cuda")
    save(tmp_path / "step-1", random_state())
    state, draws = load(tmp_path / "step-1"), [torch.rand(3, device=f"cuda:{i}") for i in range(torch.cuda.device_count())]
    assert len(state["cuda"]) == torch.cuda.device_count()
    set_random_state(state)
    assert all(torch.equal(drawn, torch.rand(3, device=drawn.device)) for drawn in draws)


@pytest.mark.parametrize("step", [BATCHES - 2, BATCHES, BATCHES + 3])
@pytest.mark.parametrize("own", [False, True])
def test_a_shuffled_loader_goes_on_in_mid_epoch(tmp_path, step, own):
    def loader():
        generator = torch.Generator().manual_seed(5) if own else None
        return DataLoader(table(), batch_size=5, shuffle=True, generator=generator)

    straight = started(Checkpoint(tmp_path / "straight"), batches=loader())
    stopped_at(step, tmp_path / "run", batches=loader())
    used = loader()
    before = used.sampler.generator
    assert_same(straight, started(Checkpoint(tmp_path / "run", resume=True), batches=used))
    assert used.sampler.generator is before


# What is kept, and what is refused


def test_the_newest_and_the_best_stay(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.5])
    started(Checkpoint(tmp_path, keep=2), evaluate=lambda model: next(scores), epochs=5)
    assert [name[-1] for name in folders(tmp_path)] == ["2", "4", "5"]


def test_a_new_best_by_steps_is_saved(tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.1, 0.1, 0.1])
    started(Checkpoint(tmp_path, keep=1), evaluate=lambda model: next(scores), evaluate_every=3)
    assert folders(tmp_path) == ["step-000000006-epoch-00000", "step-000000021-epoch-00003"]


def test_a_nan_is_never_the_best(tmp_path):
    scores = iter([float("nan"), 0.2, float("nan"), float("nan")])
    run = started(Checkpoint(tmp_path, keep=1), evaluate=lambda model: next(scores), epochs=4)
    assert [name[-1] for name in folders(tmp_path)] == ["2", "4"] and run.stopping.best_score == 0.2
    text = (tmp_path / folders(tmp_path)[-1] / "state.json").read_text()
    assert "NaN" not in json.dumps(json.loads(text)["stopping"])


def test_a_finished_run_returns_at_once_with_its_best_weights(tmp_path):
    scores = iter([0.9, 0.1, 0.2])
    finished = started(Checkpoint(tmp_path), evaluate=lambda model: next(scores))

    def never(model):
        raise AssertionError("evaluated again")

    again = started(Checkpoint(tmp_path, resume=True), Breaks(1), evaluate=never)
    assert_same(finished, again)
    assert torch.equal(again.model[0].weight, again.best_weights["0.weight"])


def test_a_cancelled_run_is_finished_too(tmp_path):
    def cancel():
        raise CancelFit

    first = started(Checkpoint(tmp_path), Breaks(10, cancel), epochs=2)
    assert latest(tmp_path).name == f"step-{10:09}-epoch-00002" and first.step == 10
    assert started(Checkpoint(tmp_path, resume=True), epochs=2).step == 10


def test_checkpoints_of_another_run_are_neither_mixed_nor_deleted(tmp_path):
    started(Checkpoint(tmp_path))
    before = folders(tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already; resume=True goes on with it, another folder begins anew"):
        started(Checkpoint(tmp_path))
    assert folders(tmp_path) == before


def test_every_difference_is_listed(tmp_path):
    started(Checkpoint(tmp_path, identity={"labels": ["O", "B-PER"], "tokenizer": "abc"}))
    with pytest.raises(CheckpointError) as caught:
        started(Checkpoint(tmp_path, resume=True, identity={"labels": ("O", "B-LOC"), "data": 1}), learning_rate=0.5, batch_size=4, width=9, epochs=4)
    text = str(caught.value)
    for part in ("recipe.learning_rate is 0.5, was 0.01", "recipe.batch_size is 4, was 16", "run.total_steps is 28, was 21",
                 "identity.labels is ['O', 'B-LOC'], was ['O', 'B-PER']", "identity.data is 1, was 'absent'", "identity.tokenizer is 'absent', was 'abc'",
                 "tensor.0.weight is 'float32 [9, 4]', was 'float32 [8, 4]'"):
        assert part in text
    assert str(tmp_path) in text and "begin anew in another folder" in text and "\n" not in text and "patience" not in text


def test_a_recipe_that_is_the_same_is_taken(tmp_path):
    started(Checkpoint(tmp_path, identity={"labels": ("O", "B-PER")}))
    started(Checkpoint(tmp_path, resume=True, identity={"labels": ["O", "B-PER"]}))


@pytest.mark.parametrize("settings", [{"every": 0}, {"every": -1}, {"keep": 0}])
def test_settings_that_cannot_be(tmp_path, settings):
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        Checkpoint(tmp_path, **settings)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match="set is not JSON"):
        save(tmp_path / "step-1", {"x": {1, 2}})
    with pytest.raises(TypeError, match="set is not JSON"):
        Checkpoint(tmp_path, identity={"labels": {1, 2}})
    assert not list(tmp_path.iterdir())


# Files


EVERY_TYPE = {str(dtype)[6:]: torch.tensor([0, 1, 1]).to(dtype) for dtype in checkpoints.CODES}
ODD = {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": torch.arange(6.0).reshape(2, 3).T, "weight": nn.Parameter(torch.ones(2)),
       "infinite": torch.tensor([np.nan, np.inf, -np.inf]), "channels": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}


@pytest.mark.parametrize("tensors", [EVERY_TYPE, ODD], ids=["every type", "odd ones"])
def test_tensors_come_back(tmp_path, tensors):
    save(tmp_path / "new" / "step-1", {"model": tensors, "one": torch.arange(3), "nested": [{"a": [tensors]}], "none": None, "text": "é\n"})
    found = load(tmp_path / "new" / "step-1")
    for name, tensor in tensors.items():
        for other in (found["model"][name], found["nested"][0]["a"][0][name]):
            assert other.dtype == tensor.dtype and torch.equal(torch.nan_to_num(other), torch.nan_to_num(tensor.detach()))
    assert found["one"].tolist() == [0, 1, 2] and found["none"] is None and found["text"] == "é\n"


def test_other_tools_can_read_and_check_it(tmp_path):
    from safetensors.torch import load_file

    save(tmp_path / "step-1", {"model": ODD, "step": 3})
    assert torch.equal(load_file(tmp_path / "step-1" / "model.safetensors")["turned"], ODD["turned"])
    assert json.loads((tmp_path / "step-1" / "state.json").read_text())["step"] == 3
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "step-1", check=True, capture_output=True)


def test_nothing_is_pickled_and_names_are_plain(tmp_path):
    started(Checkpoint(tmp_path))
    names = {path.name for path in latest(tmp_path).iterdir()}
    assert names == {"SHA256SUMS", "state.json", *(f"{part}.safetensors" for part in ("model", "optimizer", "best_weights", "history", "random"))}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save(tmp_path / "step-1", {"model": ODD})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "step-1").iterdir()} == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "step-1").stat().st_mode) == 0o777 & ~umask


def test_loaded_tensors_are_the_file_but_writing_to_them_is_not(tmp_path):
    save(tmp_path / "step-1", {"model": {"weight": torch.zeros(300_000)}})
    weight = load(tmp_path / "step-1")["model"]["weight"]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "step-1" / "model.safetensors") in maps.read_text()
    weight += 1
    verify(tmp_path / "step-1")
    assert load(tmp_path / "step-1")["model"]["weight"].sum() == 0


def test_steps_are_columns(tmp_path):
    run = started(Checkpoint(tmp_path), epochs=9)
    state = load(latest(tmp_path))
    assert state["history"]["steps"]["loss"].dtype == torch.float64 and state["history"]["steps"]["step"].dtype == torch.int64
    resumed = started(Checkpoint(tmp_path, resume=True), epochs=9)
    assert resumed.history.steps == run.history.steps and isinstance(resumed.history.steps[0]["step"], int)
    plain = json.loads((latest(tmp_path) / "state.json").read_text())["history"]["steps"]
    assert len(json.dumps(plain)) < 500 # names only, however many steps


@pytest.mark.parametrize("rows", [[{"a": 1}, {"b": 2}], [{"a": 1}, {"a": 1, "b": 2}], [{"a": "x"}], [{"a": None}], [{"a": [1]}, {"a": [1, 2]}]])
def test_rows_that_are_no_table_stay_rows(rows):
    assert as_columns(rows) == rows


def test_a_row_of_one_callback_does_not_break_a_save(tmp_path):
    class Adds(Callback):
        def after_step(self, trainer):
            trainer.history.steps[-1]["note"] = "x" * (trainer.step % 2)

    straight = started(Adds())
    with pytest.raises(Accident):
        started(Adds(), Checkpoint(tmp_path, every=1), Breaks(5))
    assert_same(straight, started(Adds(), Checkpoint(tmp_path, resume=True)))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no way to see which file is meant")
def test_the_disk_has_it_before_and_after_the_rename(tmp_path, monkeypatch):
    "No kill can show this: the order of calls is what a power failure would test."
    calls, fsync, rename = [], os.fsync, os.rename

    def watched_fsync(handle):
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def watched_rename(source, target):
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    save(tmp_path / "step-1", {"model": {"w": torch.ones(2)}, "random": [torch.ones(2)], "step": 1})
    place = calls.index("rename")
    before, after = calls[:place], calls[place + 1:]
    temporary = before[-1]
    assert {path.name for path in before[:-1]} == {path.name for path in (tmp_path / "step-1").iterdir()} and before[-2].name == "SHA256SUMS"
    assert temporary.parent == tmp_path and all(path.parent == temporary for path in before[:-1])
    assert after == [tmp_path]


def test_orphans_are_swept(tmp_path):
    for name in (".tmp-step-000000001-epoch-00000-ab", ".old-step-000000001-epoch-00000-ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    started(Checkpoint(tmp_path))
    assert {name.split("-")[0] for name in os.listdir(tmp_path)} == {"lock", "step"}


# Damage


def cut(length):
    "Truncates a file to a length, or to a share of it, or by a byte."
    def damage(path):
        size = path.stat().st_size
        os.truncate(path, {"half": size // 2, "last": size - 1}.get(length, length))
    return damage


def flip(path):
    "Turns one bit, somewhere."
    data = bytearray(path.read_bytes())
    place = random.Random(len(data)).randrange(len(data))
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE = {"cut to 0": cut(0), "cut to 1": cut(1), "cut to half": cut("half"), "cut by 1": cut("last"), "flipped": flip, "missing": os.unlink,
          "grown": lambda path: path.open("ab").write(b"x")}
FILES = ["SHA256SUMS", "state.json", "model.safetensors", "optimizer.safetensors", "history.safetensors", "random.safetensors", "best_weights.safetensors"]


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    "Folder of a run that broke off at step 9, and the run that did not."
    folder = tmp_path_factory.mktemp("broken") / "run"
    stopped_at(9, folder)
    return folder, started()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_older_one_is_used(broken_off, tmp_path, name, kind, capsys):
    folder, straight = broken_off
    shutil.copytree(folder, tmp_path / "run")
    newest = latest(tmp_path / "run")
    assert newest.name == "step-000000009-epoch-00001"
    DAMAGE[kind](newest / name)
    resumed = started(Checkpoint(tmp_path / "run", resume=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{newest} is damaged: ") and (name in lines[0] or name == "SHA256SUMS") and "step-000000008" in lines[1]
    assert_same(straight, resumed)


def test_every_bit_counts(tmp_path):
    save(tmp_path / "step-1", {"model": {"w": torch.arange(3)}, "x": [1.5, "a"]})
    for path in (tmp_path / "step-1").iterdir():
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1:])
            with pytest.raises(CheckpointError, match="is damaged"):
                load(tmp_path / "step-1")
        path.write_bytes(good)
    load(tmp_path / "step-1")


def test_without_a_good_one_nothing_starts(broken_off, tmp_path):
    shutil.copytree(broken_off[0], tmp_path / "run")
    for path in (tmp_path / "run").glob("step-*"):
        flip(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"all \d checkpoints in .* are damaged, as printed; begin anew in another folder"):
        started(Checkpoint(tmp_path / "run", resume=True))
    assert len(folders(tmp_path / "run")) >= 2


def test_a_damaged_newer_one_does_not_push_good_ones_out(tmp_path):
    with pytest.raises(Accident):
        started(Checkpoint(tmp_path, every=1, keep=5), Breaks(9))
    for path in sorted(tmp_path.glob("step-*"))[-2:]:
        flip(path / "model.safetensors")
    with pytest.raises(Accident):
        started(Checkpoint(tmp_path, every=1, keep=1, resume=True), Breaks(8)) # step 9 is still the damaged one
    assert latest(tmp_path).name == "step-000000008-epoch-00001"
    assert_same(started(), started(Checkpoint(tmp_path, keep=1, resume=True)))


def test_load_says_what_is_no_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(CheckpointError, match="SHA256SUMS: No such file"):
            load(path)


# A disk that is full, a folder that cannot be written


@pytest.fixture
def small_files():
    "Files of at most 50,000 bytes: to a program that is a full disk."
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_no_checkpoint(tmp_path, small_files):
    save(tmp_path / "step-000000001-epoch-00000", {"model": {"w": torch.zeros(100)}})
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path / "step-000000002-epoch-00000", {"model": {"w": torch.zeros(20_000)}, "optimizer": {"m": torch.zeros(100)}})
    assert str(tmp_path / "step-000000002-epoch-00000") in str(caught.value) and "80,400 bytes" in str(caught.value)
    assert os.listdir(tmp_path) == ["step-000000001-epoch-00000"] and load(latest(tmp_path))["model"]["w"].sum() == 0


def test_a_full_disk_in_a_run(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))

    try:
        with pytest.raises(CheckpointError, match="step-000000006"):
            started(Checkpoint(tmp_path, every=1), Breaks(5, fill), width=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob(".*")) and latest(tmp_path).name == "step-000000005-epoch-00000"
    assert_same(started(width=100), started(Checkpoint(tmp_path, resume=True), width=100))


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, reason in ((tmp_path / "file", "File exists|Not a directory"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(CheckpointError, match=f"{path}.*({reason}).* give another folder"):
            started(Checkpoint(path))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.name == "nt" or hasattr(os, "geteuid") and os.geteuid() == 0, reason="modes do not bind this user; the path below a file stands for it")
def test_a_read_only_folder(tmp_path):
    os.chmod(tmp_path, 0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            started(Checkpoint(tmp_path))
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path / "step-1", {"x": 1})
    finally:
        os.chmod(tmp_path, 0o700)


# Signals in this process


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_saves_raises_and_leaves_a_usable_trainer(tmp_path, number, error):
    straight, handlers = started(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    interrupts = Breaks(9, lambda: signal.raise_signal(number))
    interrupts.order = 0 # the signal comes before the checkpoint's turn
    trainer = Trainer(network(), loss, some_batches(), Recipe(epochs=3, learning_rate=1e-2, patience=9), [interrupts, Checkpoint(tmp_path)])
    with pytest.raises(error, match="after step 9; resume=True goes on from"):
        trainer.fit(score)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert latest(tmp_path).name == "step-000000009-epoch-00001"
    torch.rand(5), random.random() # a cell run in between
    trainer.fit(score)
    assert_same(straight, trainer)
    assert not issubclass(Terminated, Exception)


def test_a_second_signal_acts_at_once(tmp_path):
    def twice():
        interrupts.step = None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal was only noted")

    interrupts = Breaks(9, twice)
    interrupts.order = 0
    trainer = Trainer(network(), loss, some_batches(), Recipe(epochs=3, learning_rate=1e-2, patience=9), [interrupts, Checkpoint(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(score)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.fit(score) # from the newest checkpoint
    assert_same(started(), trainer)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path):
    class Late(Callback):
        order = 40

        def after_fit(self, trainer):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        started(Checkpoint(tmp_path), Late())
    assert latest(tmp_path).name == "step-000000021-epoch-00003"


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) # as under nohup
    try:
        trainer = started(Checkpoint(tmp_path), Breaks(3, lambda: signal.raise_signal(signal.SIGINT)))
        assert trainer.step == 21 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_handler_is_set(tmp_path):
    found, handlers = [], [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def look():
        found.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=lambda: found.append(started(Checkpoint(tmp_path), Breaks(3, look))))
    thread.start()
    thread.join()
    assert found[0] == handlers and found[1].step == 21


def test_an_error_frees_folder_and_signals(tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stopped_at(5, tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers and not checkpoints.LOCKED
    started(Checkpoint(tmp_path, resume=True))


# Two writers


@pytest.fixture(params=[True, False], ids=["fcntl", "lock file"])
def with_fcntl(request, monkeypatch):
    "Both ways to lock a folder."
    if not request.param:
        monkeypatch.setattr(checkpoints, "fcntl", None)
    elif checkpoints.fcntl is None:
        pytest.skip("no fcntl here")
    return request.param


def test_a_second_writer_in_this_process_is_refused(tmp_path, with_fcntl):
    with only_writer(tmp_path / "lock"):
        with pytest.raises(CheckpointError, match="another run holds it; wait until that ends, or give another folder"):
            started(Checkpoint(tmp_path))
        with only_writer(tmp_path / "other" / "lock"):
            pass
    started(Checkpoint(tmp_path))


class Runs:
    "The child that forks runs, and what it printed."

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, str(FOLDER / "checkpoint_child.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, env=environment)

    def start(self, **arguments):
        "Starts a run; `pid` is its process."
        self.process.stdin.write(json.dumps(arguments, default=str) + "\n")
        self.pid = int(self.until("pid")[-1].split()[1])

    def until(self, *words):
        "The lines up to the first that begins with one of the words."
        lines = []
        while not lines or lines[-1].split()[0] not in words:
            line = self.process.stdout.readline()
            assert line, f"the child is gone: {lines[-5:]}"
            lines.append(line.strip())
        return lines

    def send(self, number=signal.SIGKILL):
        "Sends a signal to the run."
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def result(self):
        "Hash of the finished run."
        lines = self.until("ended")
        assert lines[-1] == "ended 0", lines[-5:]
        return next(line for line in lines if line.startswith("done"))


@pytest.fixture(scope="module")
def runs():
    "One child for all tests; it ends with its standard input."
    found = Runs()
    yield found
    found.process.stdin.close()
    found.process.wait(60)


@pytest.fixture(scope="module")
def expected(runs):
    "Hash of the run that nothing stopped."
    runs.start()
    return runs.result()


@needs_fork
def test_a_second_writer_is_refused_until_the_first_is_dead(runs, tmp_path, with_fcntl):
    runs.start(folder=tmp_path, fcntl=with_fcntl, pause=0.2)
    runs.until("step")
    with pytest.raises(CheckpointError, match="another run holds it"):
        started(Checkpoint(tmp_path, resume=True))
    assert (tmp_path / "lock").read_text().endswith(str(runs.pid))
    runs.send()
    assert runs.until("ended")[-1] == "ended -9"
    with only_writer(tmp_path / "lock"):
        pass


# Killed


@needs_fork
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_a_run(runs, expected, tmp_path, number, code):
    runs.start(folder=tmp_path, every=1000, pause=0.01)
    lines = runs.until("step")
    runs.send(number)
    lines += runs.until("ended")
    assert lines[-1] == f"ended {code}" and not [line for line in lines if line.startswith("done")]
    begun = max(int(line.split()[1]) for line in lines if line.startswith("begun"))
    assert load(latest(tmp_path))["step"] == begun # the step was finished, none was begun after it
    runs.start(folder=tmp_path, every=1000)
    assert runs.result() == expected


@needs_fork
def test_a_second_signal_ends_a_long_step(runs, tmp_path):
    runs.start(folder=tmp_path, pause=60)
    runs.until("begun")
    runs.send(signal.SIGTERM)
    time.sleep(0.3)
    os.kill(runs.pid, 0) # still there
    start = time.monotonic()
    runs.send(signal.SIGTERM)
    assert runs.until("ended")[-1] == "ended -15" and time.monotonic() - start < 10


@needs_fork
def test_a_run_with_worker_processes_goes_on_at_once(runs, expected, tmp_path):
    runs.start(folder=tmp_path, workers=1)
    for _ in range(9):
        runs.until("step")
    runs.send()
    runs.until("ended") # its worker may live on for some seconds; the lock must not
    runs.start(folder=tmp_path, workers=1)
    assert runs.result() == expected


KILLS, RUNS = 10, 4


@needs_fork
@pytest.mark.slow
def test_kill_at_random_moments(runs, expected, tmp_path):
    inside = kills = 0
    for number in range(RUNS):
        folder, moments = tmp_path / str(number), random.Random(number)
        for _ in range(KILLS):
            runs.start(folder=folder)
            for _ in range(moments.randint(1, 6)):
                if runs.until("step", "ended")[-1].startswith("ended"):
                    break
            time.sleep(moments.uniform(0, 0.03))
            runs.send()
            kills += runs.until("ended")[-1] == "ended -9"
            inside += bool(list(folder.glob(".tmp-*")))
        runs.start(folder=folder)
        assert runs.result() == expected, f"run {number} differs"
        assert not list(folder.glob(".*"))
    assert kills >= 20 and inside > 0, f"{kills} kills, {inside} inside a save: the test proves nothing"
    print(f"{kills} kills, {inside} inside a save")


def test_a_signal_does_not_hide_an_error(tmp_path):
    class Fail(Callback):
        def before_step(self, trainer):
            signal.raise_signal(signal.SIGINT)
            raise ValueError("bad label in example 17")

    with pytest.raises(ValueError, match="example 17"):
        started(Checkpoint(tmp_path), Fail())
    assert not list(tmp_path.glob("step-*"))


def test_only_its_own_folders_are_swept(tmp_path):
    names = [".old-photos", ".tmp-mine", "step-zzz", "step-000000001-epoch-00000.keep"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".tmp-step-000000001-epoch-00000-x").mkdir()
    started(Checkpoint(tmp_path, every=1, keep=1))
    assert all((tmp_path / name).is_dir() for name in names) and not list(tmp_path.glob(".tmp-step*"))
    assert re.fullmatch(r"step-\d{9}-epoch-\d{5}", latest(tmp_path).name)


def test_two_checkpoints_give_the_signals_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    started(Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b", every=2))
    assert signal.getsignal(signal.SIGINT) is before and latest(tmp_path / "a").name == latest(tmp_path / "b").name


def test_other_frozen_weights_are_another_run(tmp_path):
    def frozen(number):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
        model[number].requires_grad_(False)
        loss = lambda model, batch: (model(batch).square().mean(), len(batch))
        return Trainer(model, loss, [torch.ones(2, 3)] * 4, Recipe(epochs=1), [Checkpoint(tmp_path, resume=True)])

    frozen(0).fit()
    with pytest.raises(CheckpointError, match="trained.0.weight"):
        frozen(1).fit()
