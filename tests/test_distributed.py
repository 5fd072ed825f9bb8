"Two processes against one: equal runs, and what happens when one of them is killed."

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import distributed_child as child
import pytest
import torch

from fmtut.distributed import Distributed, ShardedSampler, large_tables, processes
from fmtut.training import Callback

CHILD = Path(child.__file__)


def launch(task, folder, processes=2, restarts=0, seconds=150):
    "Starts the child under torchrun; the children end themselves after 100 seconds, so a run that hangs fails."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}",
               str(CHILD), task, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                                "PYTHONPATH": os.pathsep.join([str(CHILD.parent.parent), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        return run.communicate(timeout=seconds)[0], run.returncode
    except subprocess.TimeoutExpired:
        run.terminate() # torchrun's processes are in groups of their own; it ends them
        pytest.fail(f"{task} hung:\n{run.communicate()[0][-3000:]}")


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    "What two processes found, and what one finds."
    folder = tmp_path_factory.mktemp("equal")
    output, code = launch("equal", folder)
    assert code == 0, output[-3000:]
    child.equal(folder)
    return [torch.load(folder / f"equal-{name}.pt", weights_only=True) for name in ("0-2", "1-2", "0-1")]


@pytest.mark.slow
@pytest.mark.parametrize("name", child.RUNS)
def test_two_processes_equal_one(equal, name):
    first, second, alone = (found["runs"][name] for found in equal)
    assert first["steps"] == second["steps"] and first["tokens"] == second["tokens"] == alone["tokens"]
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert [row["targets"] for row in first["steps"]] == [row["targets"] for row in alone["steps"]]
    for key in ("loss", "gradient_norm", "learning_rate"):
        assert [row[key] for row in first["steps"]] == pytest.approx([row[key] for row in alone["steps"]], rel=1e-5, abs=1e-6), key
    for key, value in first["weights"].items():
        torch.testing.assert_close(value, alone["weights"][key], rtol=0, atol=1e-5, msg=key)


@pytest.mark.slow
def test_processes_decide_alike(equal):
    first, second, alone = (found["behaviour"] for found in equal)
    assert [found["world"] for found in (first, second, alone)] == [2, 2, 1] and second["rank"] == 1
    assert first["broken"] == second["broken"] == alone["broken"] == [1, True]
    assert first["scores"] == second["scores"] == [0.5, 0.5]
    assert first["noise"] == alone["noise"] != second["noise"]
    assert first["predictions"] == second["predictions"] == alone["predictions"]
    assert first["shares"] == second["shares"] == [[n * n for n in range(count)] for count in range(5)]
    for found in (first, second):
        assert "return 0 targets instead" in found["refused"][0] and "another order in each process" in found["refused"][1]


def test_nothing_of_ddp_outlives_its_group(monkeypatch):
    "Its thread aborts a process in which it is still there when the group is gone: seven of 25 runs ended so."
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    made, ended, end = [], [], torch.distributed.destroy_process_group

    class Keep(Callback):
        def before_step(self, trainer):
            made.append(weakref.ref(next(c for c in trainer.callbacks if isinstance(c, Distributed)).wrapped))

    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: (ended.append([ref() for ref in made]), end()))
    gc.disable()
    try:
        with processes("cpu"):
            child.trained(child.bert(), Distributed(), Keep())
    finally:
        gc.enable()
    assert len(made) > 1 and ended == [[None] * len(made)]


def test_large_tables_have_sparse_gradients_during_a_run_only(monkeypatch):
    monkeypatch.setattr("fmtut.distributed.LARGE_TABLE", 0)
    seen, models = [], [child.bert(), child.bert()]

    class Look(Callback):
        def after_backward(self, trainer):
            seen.append([name for name, p in trainer.model.named_parameters() if p.grad.is_sparse])

    trainers = [child.trained(model, *callbacks) for model, callbacks in zip(models, ([Distributed(), Look()], [Look()]))]
    half = len(seen) // 2
    assert all("bert.embeddings.word_embeddings.weight" in names for names in seen[:half]) and not any(seen[half:])
    assert not any(part.sparse for part in models[0].modules() if isinstance(part, torch.nn.Embedding))
    for key in ("loss", "gradient_norm"):
        rows = [[row[key] for row in trainer.history.steps] for trainer in trainers]
        assert rows[0] == pytest.approx(rows[1], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("change", [lambda net: setattr(net.out, "weight", net.words.weight), lambda net: net.words.weight.requires_grad_(False),
                                    lambda net: setattr(net.words, "scale_grad_by_freq", True), lambda net: setattr(net, "again", net.words)])
def test_a_table_that_is_used_elsewhere_stays_dense(change, monkeypatch):
    monkeypatch.setattr("fmtut.distributed.LARGE_TABLE", 20)
    net = torch.nn.ModuleDict({"words": torch.nn.Embedding(5, 4), "out": torch.nn.Linear(4, 5), "places": torch.nn.Embedding(4, 4)})
    assert large_tables(net) == {"words.weight": net["words"]}
    change(net)
    assert large_tables(net) == {}


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_example_once(world, monkeypatch):
    "Without processes: the sampler of each rank, which stands in where its share is empty."
    seen = []
    for rank in range(world):
        monkeypatch.setattr("fmtut.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("fmtut.distributed.world_size", lambda: world)
        sampler = ShardedSampler(child.dataset().lengths, child.BATCH, 0)
        sampler.set_epoch(1, start=2)
        shares = list(sampler)
        assert len(shares) == len(sampler) - 2 and all(shares)
        seen += [i for whole, share in zip(sampler.batches[2:], shares) if rank < len(whole) for i in share]
        assert all(len(share) <= -(-len(whole) // world) for whole, share in zip(sampler.batches[2:], shares))
    assert sorted(seen) == sorted(i for whole in sampler.batches[2:] for i in whole)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The result of two processes that nobody kills."
    folder = tmp_path_factory.mktemp("undisturbed")
    output, code = launch("resumable", folder)
    assert code == 0, output[-3000:]
    return torch.load(folder / "result.pt", weights_only=True)


def same(one, other):
    "Whether two results agree to the last bit."
    return one["steps"] == other["steps"] and all(torch.equal(value, other["weights"][key]) for key, value in one["weights"].items())


@pytest.mark.slow
def test_a_killed_process_restarts_from_the_checkpoint(undisturbed, tmp_path):
    output, code = launch("killed", tmp_path, restarts=2)
    assert code == 0 and "step 4 of 14" in output, output[-3000:]
    assert same(torch.load(tmp_path / "result.pt", weights_only=True), undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(undisturbed, tmp_path, capsys):
    output, code = launch("asked", tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "alone" / "run")
    stopped = [(tmp_path / f"stopped-{rank}.txt").read_text() for rank in (0, 1)]
    assert stopped[0] == stopped[1] and "after step 6" in stopped[0], output[-3000:]
    output, code = launch("resumable", tmp_path)
    assert code == 0 and same(torch.load(tmp_path / "result.pt", weights_only=True), undisturbed), output[-3000:]
    capsys.readouterr()
    child.resumable(tmp_path / "alone") # one process goes on where two were
    assert "saved by 2 processes, goes on with 1" in capsys.readouterr().out
    assert len(torch.load(tmp_path / "alone" / "result.pt", weights_only=True)["steps"]) == 14
