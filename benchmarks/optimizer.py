"""Times AdamW with clipping and cross-entropy against PyTorch's own.

Two measurements, each in one process and in turns (ours, torch, torch, ours), so that a busy moment of the machine hits both:

- `fmtut.optimizers.AdamW.step(max_norm)` against `clip_grad_norm_` and `torch.optim.AdamW(fused=True)`, on the 103 tensors
  (22.6 million weights) of a small BERT with 6 layers of width 384; once where the clip acts and once where it does not;
- `fmtut.losses.cross_entropy`, forward and backward, against `torch.nn.functional.cross_entropy` on 4,096 x 8,192 logits.

Before anything is timed, both sides run once and must agree to 1e-6: weights absolutely, losses and gradients (their norm) relatively.
A ratio below 1 means that fmtut is faster. Ratios are taken round by round; the table shows their median and quartiles.

    python benchmarks/optimizer.py                  # 15 rounds, with 1 and with 2 threads
    python benchmarks/optimizer.py --rounds 31 --threads 1
"""

import argparse
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import compare, cpu_name, load_average, quartiles, refuse_unequal

from fmtut.losses import cross_entropy
from fmtut.optimizers import AdamW

LENGTHS = {"acts": 1.0, "does not act": 1e9} # max_norm; the gradients' norm is about 48


class Arms(NamedTuple):
    "Two ways to do one thing, what comes before each call and is not timed, and what one call of each leaves."

    ours: Callable
    theirs: Callable
    prepare: Callable
    results: Callable # runs both once; pairs of weights, then pairs of losses and gradients


def bert_shapes(layers: int, vocabulary: int, width: int) -> list[tuple[int, ...]]:
    "Shapes of all parameters: embeddings, layers, a head for nine tags."
    layer = [(width, width), (width,)] * 4 + [(width,)] * 2 + [(4 * width, width), (4 * width,), (width, 4 * width), (width,)] + [(width,)] * 2
    return [(vocabulary, width), (512, width), (2, width), (width,), (width,), *layer * layers, (9, width), (9,)]


def make_tensors(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    "Parameters with gradients, the same ones at every call."
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return made


def optimizer_arms(shapes: list[tuple[int, ...]], max_norm: float) -> Arms:
    "One step of each on tensors of its own; the gradients that a clip has changed are restored."
    sides = make_tensors(shapes), make_tensors(shapes)
    fresh = [p.grad.clone() for p in sides[0]]
    mine, torchs = AdamW(sides[0], lr=1e-4), torch.optim.AdamW(sides[1], lr=1e-4, fused=True)

    def theirs():
        torch.nn.utils.clip_grad_norm_(sides[1], max_norm)
        torchs.step()

    def restore():
        for side in sides:
            torch._foreach_copy_([p.grad for p in side], fresh)

    def results():
        restore()
        arms.ours()
        arms.theirs()
        return [(p.detach(), q.detach()) for p, q in zip(*sides)], [(p.grad, q.grad) for p, q in zip(*sides)]

    arms = Arms(lambda: mine.step(max_norm), theirs, restore, results)
    return arms


def loss_arms(rows: int, classes: int) -> Arms:
    "Forward and backward of each; the gradient is forgotten before."
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (rows,), generator=generator)

    def forget():
        logits.grad = None

    def run(loss):
        value = loss(logits, labels)
        value.backward()
        return value.detach()

    def results():
        left = []
        for arm in (arms.ours, arms.theirs):
            forget()
            left.append((arm(), logits.grad))
        return [], list(zip(*left))

    arms = Arms(lambda: run(cross_entropy), lambda: run(torch.nn.functional.cross_entropy), forget, results)
    return arms


def main():
    "Reads the arguments, measures, prints one line for each ratio."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds A-B-B-A for each ratio (default 15)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that the script runs; its ratios mean nothing")
    args = parser.parse_args()
    if args.rounds < 2 or min(args.threads) < 1:
        parser.error("at least 2 rounds and 1 thread")
    shapes = bert_shapes(1, 100, 16) if args.small else bert_shapes(6, 30522, 384)
    rows, classes = (64, 32) if args.small else (4096, 8192)
    load = "" if load_average() is None else f", load {load_average():.1f}"
    print(f"{cpu_name()}, {os.cpu_count()} cores{load}, torch {torch.__version__}, {args.rounds} rounds")
    print(f"{len(shapes)} tensors, {sum(map(math.prod, shapes)) / 1e6:.1f} million weights; logits {rows} x {classes}")
    print(f"{'threads':>7}  {'measured':31} {'ratio':>7}  {'quartiles':11}  {'fmtut ms':>8}  {'torch ms':>8}")
    for threads in args.threads:
        torch.set_num_threads(threads)
        cases = {f"AdamW, the clip {name}": (lambda limit=limit: optimizer_arms(shapes, limit)) for name, limit in LENGTHS.items()}
        cases["cross_entropy, forward+backward"] = lambda: loss_arms(rows, classes)
        for name, make in cases.items():
            arms = make()
            refuse_unequal(name, *arms.results())
            ratios, mine, torchs = compare(arms.ours, arms.theirs, arms.prepare, args.rounds)
            low, middle, high = quartiles(ratios)
            print(f"{threads:7}  {name:31} {middle:7.2f}  {low:.2f} - {high:.2f}  {mine * 1e3:8.1f}  {torchs * 1e3:8.1f}", flush=True)


if __name__ == "__main__":
    main()
