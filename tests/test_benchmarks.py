"The benchmark scripts run, at tiny sizes, and refuse to time what is not equal."

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks/ is not part of an installed package")
NAMES = ["finetune_vs_hf_default", "finetune_vs_hf_grouped", "finetune_vs_plain_loop", "optimizer_vs_torch", "memory_vs_hf", "weak_scaling_2",
         "trainer_overhead_ms", "save_cost", "hf_accumulation"]


def run(script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    "A script of benchmarks/ as a user starts it."
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True, timeout=540,
                          env={**os.environ, "PYTHONPATH": path, **more})


@pytest.fixture
def load(monkeypatch):
    "Imports a script as a module, and forgets it again."
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def script(load):
    "optimizer.py"
    return load("optimizer")


# --- optimizer.py

def test_the_optimizer_benchmark_prints_a_line_for_each_ratio():
    done = run("optimizer.py", "--small", "--rounds", "2", "--threads", "1")
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


# --- measure.py

@pytest.mark.slow
def test_the_whole_benchmark_runs_at_tiny_sizes_and_writes_nothing():
    written = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.suffix in {".json", ".md"}}
    done = run("measure.py", "--small")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split() and line.split()[0] in NAMES}
    assert sorted(lines) == sorted(NAMES), done.stdout + done.stderr
    missing = [name for name, line in lines.items() if "not measured" in line]
    if importlib.util.find_spec("accelerate"):
        assert not missing and done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("passed") == 4
    else: # what needs Hugging Face's Trainer says so, and so does the exit code
        assert missing and all("accelerate" in lines[name] for name in missing) and done.returncode == 1
        assert not {"trainer_overhead_ms", "save_cost", "optimizer_vs_torch"} & set(missing)
    assert written == {path: path.read_bytes() for path in FOLDER.rglob("*") if path.suffix in {".json", ".md"}}


def test_a_failed_gate_is_not_timed(load, monkeypatch):
    runner, rows, work = load("measure"), load("rows"), load("work")
    monkeypatch.setitem(runner.ROWS, "optimizer_vs_torch", lambda setting: pytest.fail("was timed"))
    monkeypatch.setattr(runner, "finetune", lambda setting: pytest.fail("was timed"))
    gates = {name: {"passed": False, "why": "they differ"} for name in ("exactness", "invariance", "optimizer")}
    setting = rows.Setting(work.SMALL, 2, *rows.clocks(1))
    found, _ = runner.measure(setting, ["optimizer_vs_torch", "finetune_vs_plain_loop"], gates)
    assert [row["name"] for row in found] == ["finetune_vs_plain_loop", "optimizer_vs_torch"]
    assert all(row["ratio"] is None and "they differ" in row["why"] and not any(row["gates"].values()) for row in found)


@pytest.mark.parametrize("gate", ["exactness", "invariance", "optimizer", "restored"])
def test_a_gate_that_cannot_be_tried_has_failed(load, monkeypatch, gate):
    gates, work = load("gates"), load("work")
    for name in ("make_sentences", "bert_shapes", "trained", "one_step"):
        monkeypatch.setattr(gates, name, lambda *args, **more: (_ for _ in ()).throw(ImportError("no such chapter")))
    found = gates.GATES[gate](work.SMALL)
    assert not found["passed"] and "missing" in found["why"]


def test_the_gate_of_exactness_sees_another_learning_rate(load, monkeypatch):
    gates, work = load("gates"), load("work")
    monkeypatch.setattr(gates, "missing_reason", lambda name: None)
    arms = {name: work.plain_arm for name in ("fmtut", "plain_loop", "hf_default")}
    monkeypatch.setattr(gates, "arms", lambda: arms)
    assert gates.exactness(work.SMALL)["passed"]
    arms["fmtut"] = lambda *args, **more: work.plain_arm(*args, **more, learning_rate=5.2e-5)
    assert not gates.exactness(work.SMALL)["passed"]


def test_fmtut_equals_the_plain_loop(load):
    work = load("work")
    small = work.SMALL._replace(steps=5)
    dataset = work.make_sentences(5 * small.batch_size, small.vocabulary, seed=1)
    rows, weights = [], []
    for arm, settings in ((work.fmtut_arm, {"warmup": 0.0}), (work.plain_arm, {})):
        model = work.make_model(small, dropout=0.0)
        rows.append(arm(model, dataset, small, in_order=True, **settings)())
        weights.append(model.state_dict())
    for name in ("loss", "gradient_norm"):
        assert [row[name] for row in rows[0]] == pytest.approx([row[name] for row in rows[1]], rel=1e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_the_sentences_have_the_lengths_of_news(load):
    work = load("work")
    dataset = work.make_sentences(6400, 30522, seed=0)
    words = sum(sum(label != -100 for label in example["labels"]) for example in dataset.examples) / 6400
    assert words == pytest.approx(14.5, abs=0.4) and sum(dataset.lengths) / 6400 == pytest.approx(20, abs=0.5)
    longest = [max(dataset.lengths[i:i + 16]) for i in range(0, 6400, 16)]
    assert sum(longest) / len(longest) / 20 == pytest.approx(2.4, abs=0.1)
    assert work.make_sentences(3, 512, seed=0).examples == work.make_sentences(3, 512, seed=0).examples


def test_a_noisy_machine_is_refused_unless_forced(load, monkeypatch):
    runner = load("measure")
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(runner.ForeignLoad, "cores", lambda watch: 0.7)
    with pytest.raises(SystemExit, match="0.70 cores"):
        runner.wait_for_quiet(force=False)
    assert runner.wait_for_quiet(force=True) == 0.7


def result(**changes) -> dict:
    "A result as measure.py writes it."
    rows = [{"name": name, "ratio": 1.0, "low": 0.9, "high": 1.1, "unit": "", "gates": {}, "raw": {}} for name in NAMES]
    versions = dict.fromkeys(["python", "torch", "transformers", "accelerate"], "1.0")
    return {"date": "2026-01-01", "machine": {"cpu": "a processor", "cores": 2, "gpu": None}, "versions": versions, "rounds": 5, "threads": 1, "clock": "cpu",
            "load": {"foreign_cores": 0.0}, "forced": False, "gates": {}, "rows": rows, **changes}


def test_the_table_is_written_between_its_marks(load, tmp_path):
    table = load("table")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cpu.json").write_text(json.dumps(result(forced=True)))
    (tmp_path / "README.md").write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    table.write_readme(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert all(f"`{name}`" in text for name in NAMES) and "**1.00** (0.90 - 1.10) missed" in text
    assert "not measured" in text and "provisional" in text # no GPU; a busy machine
    table.write_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_a_second_run_of_one_row_keeps_the_others(load, monkeypatch, tmp_path):
    runner = load("measure")
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    runner.write(result())
    runner.write(result(rows=[{"name": "save_cost", "ratio": 1.4, "low": 1.3, "high": 1.5}]))
    rows = {row["name"]: row["ratio"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]}
    assert list(rows) == list(runner.table.TARGETS) and rows["save_cost"] == 1.4 and rows["memory_vs_hf"] == 1.0


def test_the_readme_holds_the_table_of_the_stored_results(load):
    table = load("table")
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((FOLDER / "results").glob("*.json"))}
    assert "\n".join(table.write_lines(results)) in text, "run python benchmarks/table.py"


def test_verdicts(load):
    table = load("table")
    assert [table.verdict("save_cost", value) for value in (1.0, 1.1, 1.3, 1.6)] == ["aim reached", "aim reached", "floor reached", "missed"]
    assert [table.verdict("weak_scaling_2", value) for value in (0.95, 0.8, 0.7)] == ["aim reached", "floor reached", "missed"]
    assert table.verdict("hf_accumulation", 8.0) == ""


def test_foreign_load_counts_what_others_do(load):
    watch = load("common").ForeignLoad()
    if watch.start is None:
        pytest.skip("no /proc/stat")
    watch.start = (watch.start[0] - 10.0, watch.start[1] - 7.0, watch.start[2] - 2.0) # ten seconds ago; seven busy, two of them ours
    assert watch.cores() == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_a_child_that_fails_is_told(load):
    with pytest.raises(RuntimeError, match="(?s)memory no_such_arm --small ended with 1.*KeyError"):
        load("common").run_child("memory", "no_such_arm", "--small")
