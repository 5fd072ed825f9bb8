"""The rows of the table: each function measures and returns rows {"name", "ratio", "low", "high", "unit", "raw"}; `measure.py` adds the gates.

`low` and `high` are the quartiles of the rounds, `ratio` their median. A round is A-B-B-A, so that a slow drift of the machine hits both sides alike.
"""

import copy
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import compare, peak_flops, quartiles, run_child, seconds, wall_clock
from gates import trained
from torch import nn
from work import Shapes, Stamps, Work, arms, device, fmtut_arm, hugging_face_arm, make_model, make_sentences, missing_reason, set_seed, size_flag

from fmtut.batching import to_device, token_loss, training_batches
from fmtut.checkpoints import Checkpoint
from fmtut.distributed import engine, large_tables
from fmtut.optimizers import Schedule, linear_warmup
from fmtut.training import Recipe, Trainer, make_optimizer


class Setting(NamedTuple):
    "How to measure."

    work: Work
    rounds: int
    clock: Callable[[], float] # CPU seconds with one thread, else wall-clock seconds
    clock_name: str


def row(name: str, ratios: list[float], unit: str, **raw) -> dict:
    "A row of the table from the values of all rounds."
    low, middle, high = quartiles(ratios)
    return {"name": name, "ratio": middle, "low": low, "high": high, "unit": unit, "raw": raw}


class Turn(NamedTuple):
    "One run of an arm."

    seconds: float
    pieces: int
    tax: float
    needed: float # operations
    done: float # operations, with padding


def take_turn(name: str, initial: nn.Module, dataset, setting: Setting, seed: int) -> Turn:
    "Trains a copy of the initial model. The time begins with its first call: what an arm prepares once is left out."
    model = copy.deepcopy(initial)
    shapes = Shapes(model, setting.clock)
    sorts = name.startswith("fmtut") or name == "hf_grouped"
    run = arms()[name](model, dataset, setting.work._replace(steps=setting.work.pool) if sorts else setting.work)
    set_seed(seed)
    gc.collect()
    run()
    took = setting.clock() - shapes.began
    return Turn(took, shapes.pieces(), shapes.tax(), *shapes.flops(setting.work))


def finetune(setting: Setting) -> tuple[list[dict], dict]:
    "Real pieces a second of each arm, and fmtut's over the others'; beside the rows what each arm did."
    names = [name for name in arms() if not missing_reason(name)]
    initial, dataset = make_model(setting.work), make_sentences(setting.work.sentences, setting.work.vocabulary, seed=0)
    quick = setting._replace(work=setting.work._replace(steps=2, pool=2))
    for name in names: # not counted: first calls fill caches and load libraries
        take_turn(name, initial, dataset, quick, 0)
    where, size = device(), 8192 if device() == "cuda" else 2048
    dtypes = [torch.float32, torch.bfloat16] if where == "cuda" else [torch.float32]
    peak = max(peak_flops(where, 128 if size_flag(setting.work) else size, dtype, setting.clock) for dtype in dtypes)
    turns = {name: [] for name in names}
    for number in range(setting.rounds):
        for name in names + names[::-1]:
            turns[name].append(take_turn(name, initial, dataset, setting, number))
            print(f"  round {number + 1} {name:12} {turns[name][-1].pieces / turns[name][-1].seconds:8.0f} pieces/s", flush=True)
    rates = {name: [sum(t.pieces for t in pair) / sum(t.seconds for t in pair) for pair in zip(taken[::2], taken[1::2])] for name, taken in turns.items()}
    rows = [row(f"finetune_vs_{name}", [ours / other for ours, other in zip(rates["fmtut"], rates[name])],
                "pieces per second, fmtut / the other", fmtut=statistics.median(rates["fmtut"]), other=statistics.median(rates[name]), clock=setting.clock_name)
            for name in names if not name.startswith("fmtut")]
    details = {"peak_gflops": peak / 1e9, "arms": {name: arm_details(rates[name], taken, peak) for name, taken in turns.items()}}
    return rows, details


def arm_details(rates: list[float], taken: list[Turn], peak: float) -> dict:
    "Speed, padding and use of the arithmetic of an arm."
    low, middle, high = quartiles(rates)
    total = sum(turn.seconds for turn in taken)
    return {"pieces_per_second": middle, "low": low, "high": high, "padding_tax": sum(t.tax * t.pieces for t in taken) / sum(t.pieces for t in taken),
            "mfu": sum(t.needed for t in taken) / total / peak, "hfu": sum(t.done for t in taken) / total / peak}


def optimizer_in_loop(setting: Setting) -> list[dict]:
    "AdamW with clipping, ours and torch's by turns, on the gradients that each one's loop leaves: steps A-B-B-A, forward and backward not timed."
    work, where = setting.work, device()
    model = make_model(work).train()
    parameters = list(model.parameters())
    ours = make_optimizer(model, Recipe())
    theirs = torch.optim.AdamW([{key: group[key] for key in ("params", "weight_decay")} for group in ours.param_groups], lr=5e-5, fused=True)
    loader = iter(training_batches(make_sentences(work.sentences, work.vocabulary, seed=0), work.batch_size, seed=0))
    valid, clipped, times = torch.tensor(True, device=where), [], []
    tables = large_tables(model).values() if where == "cpu" else []

    def step_theirs():
        clipped.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0) > 1)
        theirs.step()

    for step in range(4 * (min(setting.rounds, 10) * (1 if size_flag(setting.work) else 2) + 1)):
        mine = step % 4 in (0, 3)
        for table in tables:
            table.sparse = mine # as `Distributed` has it
        loss, _ = token_loss(model, to_device(next(loader), torch.device(where)))
        loss.backward()
        times.append(seconds((lambda: ours.step(1.0, valid)) if mine else step_theirs, clock=setting.clock))
        model.zero_grad(set_to_none=True)
    rounds = [times[i:i + 4] for i in range(4, len(times), 4)] # in the first one both make their moments
    ratios = [(a + d) / (b + c) for a, b, c, d in rounds]
    return [row("optimizer_vs_torch", ratios, "time, fmtut / torch fused AdamW + clip_grad_norm_",
                fmtut_ms=1e3 * statistics.median(t for a, _, _, d in rounds for t in (a, d)), torch_ms=1e3 * statistics.median(t for _, b, c, _ in rounds for t in (b, c)),
                clipped=float(torch.stack(clipped).float().mean()), clock=setting.clock_name)]


def memory(setting: Setting) -> list[dict]:
    "Most memory that a fresh process takes for one pass over 25 batches: of the process on a CPU, of the tensors on a GPU."
    if reason := missing_reason("hf_default"):
        return [{"name": "memory_vs_hf", "ratio": None, "why": reason}]
    pairs = []
    for number in range(max(1, min(3, setting.rounds - 2))):
        pairs.append([run_child("memory", name, "--seed", str(number), *size_flag(setting.work)) for name in ("fmtut", "hf_default")])
    extra = {} if size_flag(setting.work) else {"plain_loop": run_child("memory", "plain_loop")}
    names = ("fmtut", "hf_default")
    raw = {name: {key: statistics.median(pair[i][key] for pair in pairs) for key in ("peak", "baseline")} for i, name in enumerate(names)}
    return [row("memory_vs_hf", [ours["peak"] / other["peak"] for ours, other in pairs], "peak memory, fmtut / Trainer default",
                megabytes=raw | extra, what="tensors" if device() == "cuda" else "resident set; baseline: after imports")]


def weak_scaling(setting: Setting) -> list[dict]:
    "Time of a step of one process over that of two that each do as much."
    if device() == "cuda" and torch.cuda.device_count() < 2:
        return [{"name": "weak_scaling_2", "ratio": None, "why": "needs two GPUs"}]
    rounds = run_child("weak", "--rounds", str(setting.rounds), *size_flag(setting.work), processes=2)
    alone, together = rounds["alone"], rounds["together"]
    return [row("weak_scaling_2", [sum(one) / sum(two) for one, two in zip(alone, together)], "step of one process / of two, as much work in each",
                alone_ms=1e3 * statistics.median(sum(alone, [])), together_ms=1e3 * statistics.median(sum(together, [])), clock="wall")]


def square(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    "A loss for a model with one weight."
    return model(batch).square().mean(), 1


def median_gap(times: list[float]) -> float:
    "Median milliseconds from one step to the next, without the first few."
    return 1e3 * statistics.median(after - before for before, after in zip(times[5:], times[6:]))


def trainer_steps(steps: int, with_engine: bool) -> float:
    "Milliseconds of a step of the Trainer, with the callbacks of `fmtut.ner` or alone."
    recipe, stamps = Recipe(epochs=1), Stamps(time.process_time)
    Trainer(nn.Linear(1, 1, bias=False), square, [torch.ones(1, 1)] * steps, recipe, [stamps, *(engine(recipe) if with_engine else [])]).fit()
    return median_gap(stamps.times)


def ten_lines(steps: int) -> float:
    "Milliseconds of a step of chapter 22's ten lines, with the clipping and the schedule that the Trainer has."
    model, times, losses = nn.Linear(1, 1, bias=False), [], []
    optimizer = make_optimizer(model, Recipe())
    schedule = Schedule(optimizer, lambda step: linear_warmup(step, steps, 0.1))
    for batch in [torch.ones(1, 1)] * steps:
        loss, _ = square(model, batch)
        loss.backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        times.append(time.process_time())
    return median_gap(times)


def overhead(setting: Setting) -> list[dict]:
    "CPU time that the Trainer adds to a step, on a model with one weight; 2,000 steps of each in rounds A-B-B-A."
    steps = 40 if size_flag(setting.work) else -(-1000 // setting.rounds)
    gaps, alone = [], []
    for _ in range(setting.rounds):
        first, second, third, fourth = trainer_steps(steps, True), ten_lines(steps), ten_lines(steps), trainer_steps(steps, True)
        gaps.append((first + fourth - second - third) / 2)
        alone.append(trainer_steps(steps, False) - third)
    return [row("trainer_overhead_ms", gaps, "ms a step over the ten-line loop", ten_lines_ms=third, without_engine_ms=statistics.median(alone), clock="cpu")]


def save_cost(setting: Setting) -> list[dict]:
    "One checkpoint over one file of as many bytes, written and flushed to the same disk."
    trainer = trained(setting.work)
    with tempfile.TemporaryDirectory(prefix=".save-", dir=Path(__file__).parent) as place:
        folder, single = Path(place) / "run", Path(place) / "single"
        folder.mkdir()
        checkpoint = Checkpoint(folder)

        def ours():
            trainer.step += 1 # a checkpoint of its own
            checkpoint.write(trainer)

        def theirs():
            with open(single, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        ours()
        content = os.urandom(1) * sum(file.stat().st_size for file in next(folder.glob("step-*")).iterdir())
        ratios, checkpoint_s, file_s = compare(ours, theirs, lambda: single.unlink(missing_ok=True), setting.rounds)
    return [row("save_cost", ratios, "time of a checkpoint / of one file of as many bytes",
                megabytes=len(content) / 1e6, checkpoint_s=checkpoint_s, file_s=file_s, clock="wall")]


def accumulation(setting: Setting) -> list[dict]:
    "The loss that Hugging Face's Trainer reports for one batch of 16 in 8 parts over that of the batch as a whole; in `raw` the gradient norm and fmtut."
    if reason := missing_reason("hf_default"):
        return [{"name": "hf_accumulation", "ratio": None, "why": reason}]
    found = {"hf": {}, "fmtut": {}}
    for parts in (1, 4, 8):
        work = setting.work._replace(steps=1, batch_size=16)
        dataset = make_sentences(16, work.vocabulary, seed=2)
        theirs = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts, "log": True}
        found["hf"][parts] = hugging_face_arm(make_model(work, dropout=0.0), dataset, work, in_order=True, **theirs)()[0]
        found["fmtut"][parts] = fmtut_arm(make_model(work, dropout=0.0), dataset, work, in_order=True, accumulate=parts)()[0]
    numbers = {name: {parts: {key: step[key] for key in ("loss", "gradient_norm")} for parts, step in steps.items()} for name, steps in found.items()}
    times = {name: {parts: steps[parts]["loss"] / steps[1]["loss"] for parts in steps} for name, steps in numbers.items()}
    return [row("hf_accumulation", [times["hf"][8]], "loss of a batch in 8 parts / as a whole, Trainer", times=times, numbers=numbers)]


# Shortest first: a mistake shows early.
ROWS = {
    "trainer_overhead_ms": overhead, "hf_accumulation": accumulation, "save_cost": save_cost, "optimizer_vs_torch": optimizer_in_loop,
    "weak_scaling_2": weak_scaling, "memory_vs_hf": memory,
}
NEEDS = {"trainer_overhead_ms": [], "hf_accumulation": ["invariance"], "save_cost": ["restored"], "optimizer_vs_torch": ["optimizer"],
         "weak_scaling_2": ["invariance"], "memory_vs_hf": ["exactness"]}
FINETUNE = ["finetune_vs_hf_default", "finetune_vs_hf_grouped", "finetune_vs_plain_loop"]
FINETUNE_NEEDS = ["exactness", "invariance"]


def clocks(threads: int) -> tuple[Callable[[], float], str]:
    "CPU time with one thread, because it does not count what others do; else, and on a GPU, the clock on the wall."
    return (wall_clock, "wall") if threads > 1 or device() == "cuda" else (time.process_time, "cpu")
