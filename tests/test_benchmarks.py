"The benchmark scripts run, at tiny sizes, and refuse to time what is not equal."

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "optimizer.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of an installed package")


@pytest.fixture
def script():
    "The script as a module."
    spec = importlib.util.spec_from_file_location("benchmark_optimizer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_optimizer_benchmark_prints_a_line_for_each_ratio():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), "--small", "--rounds", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r" +1  \w", line)]
    assert [re.split(r"  +", line.strip())[1] for line in lines] == ["AdamW, the clip acts", "AdamW, the clip does not act", "cross_entropy, forward+backward"]
    assert all(float(re.split(r"  +", line.strip())[2]) > 0 for line in lines)


def test_it_refuses_to_time_an_optimizer_that_differs(script):
    arms = script.optimizer_arms(script.bert_shapes(1, 10, 8), 1.0)
    script.refuse_unequal("same", *arms.results())
    arms.ours()
    weights, gradients = arms.results() # ours is now a step ahead
    with pytest.raises(SystemExit, match="not timed"):
        script.refuse_unequal("a step ahead", weights, gradients)


def test_it_refuses_to_time_a_loss_that_differs(script, monkeypatch):
    monkeypatch.setattr(script, "cross_entropy", lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels) * (1 + 1e-5))
    with pytest.raises(SystemExit, match="losses or gradients by"):
        script.refuse_unequal("scaled", *script.loss_arms(8, 5).results())


@pytest.mark.parametrize("bad", [float("nan"), 1.1])
def test_one_bad_tensor_among_many_is_enough(script, bad):
    good = (torch.ones(2), torch.ones(2))
    for pairs in ([good, (torch.tensor([bad]), torch.ones(1))], [(torch.tensor([bad]), torch.ones(1)), good]):
        for weights, others in ((pairs, []), ([], pairs)):
            with pytest.raises(SystemExit):
                script.refuse_unequal("bad", weights, others)
