"What test_distributed.py starts in several processes, and compares with the same in one: distributed_child.py TASK FOLDER."

import faulthandler
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification

import fmtut.distributed
from fmtut.batching import TokenDataset, pad, token_loss, training_batches
from fmtut.checkpoints import Terminated
from fmtut.distributed import Distributed, RankCheckpoint, engine, processes, rank, shard_model, share, sharded_batches, whole, world_size
from fmtut.training import Callback, CancelStep, Recipe, Trainer

EXAMPLES, BATCH = 37, 6 # the last batch has one row: in one of two processes it finds nothing to do
RECIPE = Recipe(epochs=2, learning_rate=1e-2, batch_size=BATCH)


def dataset():
    "Examples of 3 to 12 pieces; some labels do not count, and one example has no target at all."
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 13, (EXAMPLES,), generator=generator).tolist()
    examples = [{"input_ids": torch.randint(1, 50, (n,), generator=generator).tolist(), "labels": [-100] + [i % 3 for i in range(n - 1)]}
                for n in lengths]
    examples[5]["labels"] = [-100] * lengths[5]
    return TokenDataset(examples)


def bert(dropout=0.0):
    "A small BERT from a fixed seed."
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
                        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertForTokenClassification(config)


def trained(model, *callbacks, loss=token_loss, loader=training_batches, recipe=RECIPE, evaluate=None):
    "A Trainer after its run."
    trainer = Trainer(model, loss, loader(dataset(), BATCH, 0), recipe, callbacks)
    trainer.fit(evaluate)
    return trainer


def result(trainer):
    "What must be the same: steps, tokens, weights."
    weights = {name: value.clone() for name, value in whole(trainer.model.state_dict()).items()}
    return {"steps": trainer.history.steps, "tokens": trainer.tokens, "weights": weights}


RUNS = {"ddp": {}, "micro": {"micro_batches": 2}, "sampler": {"loader": sharded_batches}, "rows": {"large": 0}, "rows_micro": {"large": 0, "micro_batches": 2},
        "fsdp": {"sharded": True}, "fsdp_micro": {"sharded": True, "micro_batches": 2}, "fsdp_resumed": {"sharded": True, "interrupted": True}}


class Interrupt(Callback):
    "Ends the run at step 9, one step after a checkpoint."

    def before_step(self, trainer):
        if trainer.step == 9:
            raise KeyboardInterrupt


def train(folder, micro_batches=1, loader=training_batches, sharded=False, large=2**20, interrupted=False):
    "One run without dropout; only rank 0 begins with the right weights."
    fmtut.distributed.LARGE_TABLE = large
    for callbacks in [[Interrupt()], []] if interrupted else [[]]:
        model = bert()
        if rank():
            nn.init.zeros_(model.classifier.weight)
        if sharded and world_size() > 1:
            shard_model(model)
        callbacks += [RankCheckpoint(folder / f"run-{world_size()}", every=4, resume=True)] if interrupted else []
        with suppress(KeyboardInterrupt):
            trainer = trained(model, Distributed(micro_batches), *callbacks, loader=loader)
    return result(trainer)


class NanStep(Callback):
    "Spoils the gradient of step 2 in the last process."

    def before_fit(self, trainer):
        spoil = lambda gradient: gradient * (math.nan if trainer.step == 2 and rank() == world_size() - 1 else 1.0)
        self.handle = trainer.model.classifier.weight.register_hook(spoil)

    def after_fit(self, trainer):
        self.handle.remove()


class Noise(Callback):
    "Notes which random number each process would draw first."

    drawn = None

    def before_epoch(self, trainer):
        with torch.random.fork_rng():
            self.drawn = self.drawn or float(torch.rand(()))


def predictions(model, batch_size):
    "The most probable label of each piece of each example, computed in shares."
    def compute(examples):
        batch = pad([{"input_ids": example["input_ids"]} for example in examples])
        with torch.inference_mode():
            rows = model.eval()(**batch).logits.argmax(-1).tolist()
        return [row[:len(example["input_ids"])] for row, example in zip(rows, examples)]
    return share(dataset().examples, compute)


def behaviour():
    "A broken step, scores that differ, dropout, hooks, shares, and what is refused."
    noise, found = Noise(), {"rank": rank(), "world": world_size()}
    broken = trained(bert(), Distributed(), NanStep())
    found["broken"] = [broken.skipped, all(bool(p.isfinite().all()) for p in broken.model.parameters())]
    scored = trained(bert(0.1), *engine(RECIPE), noise, evaluate=lambda model: 0.5 + 0.1 * rank())
    found |= {"noise": noise.drawn, "scores": [row["score"] for row in scored.history.evaluations]}
    if rank() == 0: # alone: DDP's hooks would wait for the others here
        token_loss(scored.model, pad(dataset().examples[:2]))[0].backward()
    found["predictions"] = predictions(bert(), 4)
    found["shares"] = [share(list(range(n)), lambda part: [n * n for n in part]) for n in range(5)]

    def cancels(model, batch):
        raise CancelStep

    def shuffled(dataset, batch_size, seed):
        return DataLoader(dataset, batch_size, shuffle=True, collate_fn=pad)

    found["refused"] = []
    for arguments in ({"loss": cancels}, {"loader": shuffled}):
        try:
            trained(bert(), Distributed(), **arguments)
        except (RuntimeError, ValueError) as error:
            found["refused"].append(str(error))
    return found


def equal(folder):
    "Every kind of run, then the behaviour."
    runs = {name: train(folder, **arguments) for name, arguments in RUNS.items()}
    torch.save({"runs": runs, "behaviour": behaviour()}, folder / f"equal-{rank()}-{world_size()}.pt")


class Accident(Callback):
    "Kills the last process, or asks one to stop, at step 5 of its first start."

    order = 90

    def __init__(self, number):
        self.number = number

    def after_step(self, trainer):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.number and first and trainer.step == 5 and rank() == world_size() - 1:
            os.kill(os.getpid(), self.number)


def resumable(folder, number=0):
    "A run with dropout that saves every two steps; an accident may happen to it."
    trainer = trained(bert(0.1), *engine(RECIPE), RankCheckpoint(folder / "run", every=2, resume=True), Accident(number))
    if rank() == 0:
        torch.save(result(trainer), folder / "result.pt")


def killed(folder):
    "As if the last process had run out of memory."
    resumable(folder, signal.SIGKILL)


def asked(folder):
    "SIGTERM reaches one process alone."
    try:
        resumable(folder, signal.SIGTERM)
    except Terminated as error:
        (folder / f"stopped-{rank()}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100, exit=True) # a hang shows where, and ends
    with processes("cpu"):
        globals()[sys.argv[1]](Path(sys.argv[2]))
