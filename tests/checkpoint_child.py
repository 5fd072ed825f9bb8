"""Training runs to be killed. Reads one JSON object a line from standard input, and forks a process for each.

The run prints `pid N`, `step N` after each step, and `done HASH` at its end; then `ended STATUS` follows.
The import of torch is paid once for all runs.
"""

import hashlib
import json
import os
import signal
import sys
import time

import torch
from torch import nn

from fmtut import checkpoints
from fmtut.batching import TokenDataset, training_batches
from fmtut.losses import cross_entropy
from fmtut.training import Callback, Recipe, Trainer

torch.set_num_threads(1)


class Reporter(Callback):
    "Prints each step at once, in one write: a line is there or not; `pause` seconds make a step long."

    order = 90

    def __init__(self, pause=0.0):
        self.pause = pause

    def before_step(self, trainer):
        os.write(1, f"begun {trainer.step}\n".encode())
        time.sleep(self.pause)

    def after_step(self, trainer):
        os.write(1, f"step {trainer.step}\n".encode())


class Tagger(nn.Module):
    "Embedding, dropout, and a layer; large enough for a save to take a while."

    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(500, 200), nn.Dropout(0.3), nn.Linear(200, 5)

    def forward(self, batch):
        return self.head(self.dropout(self.embedding(batch["input_ids"])))


def loss(model, batch):
    "Mean cross-entropy over the labelled pieces."
    labels = batch["labels"].flatten()
    return cross_entropy(model(batch).flatten(0, 1), labels), (labels >= 0).sum()


def examples(number=96):
    "Sentences of random pieces; the label follows from the piece."
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 500, (3 + i % 9,), generator=generator).tolist() for i in range(number)]
    return TokenDataset([{"input_ids": row, "labels": [piece % 5 for piece in row]} for row in rows])


def digest(trainer) -> str:
    "SHA-256 of all that must not depend on how often a run was stopped: everything but the clock."
    state = trainer.state_dict()
    rows = [{name: row[name] for name in row if name not in ("seconds", "tokens_per_second")} for row in trainer.history.epochs]
    parts = [state["model"], state["optimizer"]["state"], state["best_weights"] or {}]
    found = hashlib.sha256(json.dumps([trainer.history.steps, trainer.history.evaluations, rows, state["stopping"]]).encode())
    for part in parts:
        for _, value in sorted(part.items()):
            for tensor in value.values() if isinstance(value, dict) else [value]:
                found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def run(folder=None, every=2, epochs=3, workers=0, pause=0.0, resume=True, fcntl=True, evaluate_every=0):
    "One run from its start or its last checkpoint; without a folder nothing is saved."
    if not fcntl:
        checkpoints.fcntl = None
    torch.manual_seed(0)
    model, dataset = Tagger(), examples()
    loader = training_batches(dataset, 4, 0)
    if workers:
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn,
                                             num_workers=workers, multiprocessing_context="fork")
    saving = [checkpoints.Checkpoint(folder, every=every, resume=resume)] if folder else []
    trainer = Trainer(model, loss, loader, Recipe(epochs=epochs, learning_rate=1e-2, evaluate_every=evaluate_every), [*saving, Reporter(pause)])
    trainer.fit(lambda model: float(model.head.bias.detach().sum()))
    return digest(trainer)


def main():
    "Forks a run a line until standard input ends."
    for line in sys.stdin:
        if pid := os.fork():
            os.write(1, f"pid {pid}\n".encode())
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(1, f"ended {status}\n".encode())
            continue
        code = 1
        try:
            os.write(1, f"done {run(**json.loads(line))}\n".encode())
            code = 0
        except checkpoints.Terminated:
            code = 128 + signal.SIGTERM
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        except checkpoints.CheckpointError as error:
            os.write(1, f"refused {error}\n".encode())
        finally:
            sys.stdout.flush()
            os._exit(code)


if __name__ == "__main__":
    main()
