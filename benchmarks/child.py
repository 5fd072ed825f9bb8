"""What needs a process of its own, for rows.py and gates.py: prints one line of JSON.

    python benchmarks/child.py memory ARM       # peak memory of one run
    ... under RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torchrun sets them:
    python benchmarks/child.py invariance       # loss and gradient norm of a batch that the processes share
    python benchmarks/child.py weak             # step times, alone and together
"""

import argparse
import json
import os
import statistics

parser = argparse.ArgumentParser()
parser.add_argument("task", choices=["memory", "invariance", "weak"])
parser.add_argument("arm", nargs="?")
parser.add_argument("--small", action="store_true")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=12)


def peak_memory(name: str, work, seed: int) -> dict:
    "Of one pass over 25 batches; the longest sentences are among them, whatever the order."
    import torch
    from common import memory
    from work import arms, device, make_model, make_sentences, set_seed

    if name.startswith("hf"):
        import accelerate # noqa: F401
        from transformers import Trainer # noqa: F401  what the arm needs is part of the baseline
    baseline, steps = memory("VmRSS"), min(work.pool, 25)
    dataset = make_sentences(steps * work.batch_size, work.vocabulary, seed)
    model = make_model(work)
    set_seed(seed)
    arms()[name](model, dataset, work._replace(steps=steps, pool=steps))()
    if device() == "cuda":
        return {"peak": torch.cuda.max_memory_allocated() / 2**20, "baseline": 0.0}
    return {"peak": memory("VmHWM"), "baseline": baseline}


def weak_scaling(work, rounds: int, steps: int) -> dict:
    "Seconds of a step: one process alone, and all of them, with as many rows each; A-B-B-A."
    import torch
    import torch.distributed as dist
    from common import wall_clock
    from work import Stamps, make_model

    from fmtut.batching import token_loss
    from fmtut.distributed import Distributed, rank, world_size
    from fmtut.training import Recipe, Trainer

    def batches(rows: int) -> list[dict]:
        "Full rows of 24 pieces, so that no process has more to do than another."
        ids = torch.randint(10, work.vocabulary, (rows, 24), generator=torch.Generator().manual_seed(0))
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 9}] * steps

    def median_step(together: bool) -> float:
        "Of a short run; 0 in a process that waits meanwhile."
        dist.barrier()
        if not together and rank():
            return 0.0
        stamps = Stamps(wall_clock)
        rows = work.batch_size * (world_size() if together else 1)
        Trainer(model, token_loss, batches(rows), Recipe(epochs=1), [stamps, *([Distributed()] if together else [])]).fit()
        return statistics.median(after - before for before, after in zip(stamps.times[1:], stamps.times[2:]))

    model = make_model(work)
    turns = [[median_step(together) for together in (False, True, True, False)] for _ in range(rounds + 1)][1:]
    return {"alone": [[first, last] for first, _, _, last in turns], "together": [[second, third] for _, second, third, _ in turns]}


def main():
    "Runs the task."
    args = parser.parse_args()
    import torch
    from work import FULL, SMALL, device

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    work = SMALL if args.small else FULL
    if args.task == "memory":
        print(json.dumps(peak_memory(args.arm, work, args.seed)))
        return
    from fmtut.distributed import processes

    with processes(device()):
        if args.task == "invariance":
            from gates import one_step

            result = one_step(work)
        else:
            result = weak_scaling(work, args.rounds, args.steps)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
