"""What must be equal before anything is timed. Each gate returns a dict with `passed`, the numbers that were compared, and `why` it failed.

A gate that cannot be tried, because a chapter or a package is missing, has failed.
"""

import copy
import math
import tempfile
from collections.abc import Callable

import torch
from common import refuse_unequal, run_child
from optimizer import bert_shapes, optimizer_arms
from work import StopAfter, Work, arms, fmtut_arm, make_model, make_sentences, missing_reason, set_seed, size_flag

from fmtut.batching import token_loss, training_batches
from fmtut.checkpoints import Checkpoint, latest, load
from fmtut.distributed import engine
from fmtut.training import Recipe, Trainer

LOSSES, WEIGHTS, CUTS = 1e-4, 1e-5, 1e-5 # relative, absolute, relative
STEPS, PARTS = 20, (1, 2, 4, 8)


def closed(gate: Callable) -> Callable:
    "The gate, failed if it raises."
    def guarded(work: Work) -> dict:
        try:
            return gate(work)
        except Exception as error: # whatever it is, nothing is timed
            return {"passed": False, "why": f"{'missing: ' if isinstance(error, ImportError) else ''}{error}"}
    return guarded


def worst(pairs: list[tuple[float, float]]) -> float:
    "The largest relative difference; infinite for a number that is not finite."
    gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in pairs]
    return max(gap if math.isfinite(gap) else math.inf for gap in gaps)


@closed
def exactness(work: Work) -> dict:
    "20 steps without dropout on the same batches in the same order: every arm has the losses and the weights of the plain loop."
    work = work._replace(steps=STEPS)
    dataset = make_sentences(STEPS * work.batch_size, work.vocabulary, seed=1)
    settings = {"fmtut": {"warmup": 0.0, "precision": "fp32"}, "hf_default": {"log": True, "weight_decay": 0.01}, "plain_loop": {"precision": "fp32"}}
    if reason := missing_reason("hf_default"):
        return {"passed": False, "why": f"missing: {reason}"}
    found = {}
    for name, values in settings.items():
        model = make_model(work, dropout=0.0)
        set_seed(0)
        rows = arms()[name](model, dataset, work, in_order=True, **values)()
        found[name] = [row["loss"] for row in rows], {key: value.cpu() for key, value in model.state_dict().items()}
    losses, weights = found["plain_loop"]
    loss_gap = max(worst(list(zip(other, losses, strict=True))) for other, _ in found.values())
    weight_gap = max(float((other[name] - value).abs().max()) for _, other in found.values() for name, value in weights.items())
    passed = loss_gap <= LOSSES and weight_gap <= WEIGHTS
    return {"passed": passed, "steps": STEPS, "losses": loss_gap, "weights": weight_gap, "arms": list(found)} | (
        {} if passed else {"why": f"losses differ by {loss_gap:.1e}, weights by {weight_gap:.1e}"})


def one_step(work: Work, parts: int = 1) -> dict:
    "Loss and gradient norm of fmtut's first step on one batch that is computed in some parts."
    work = work._replace(steps=1, batch_size=16)
    dataset = make_sentences(16, work.vocabulary, seed=2)
    return fmtut_arm(make_model(work, dropout=0.0), dataset, work, in_order=True, accumulate=parts, precision="fp32")()[0]


@closed
def invariance(work: Work) -> dict:
    "The same batch in 1, 2, 4, 8 parts and in 2 processes: the same loss and gradient norm."
    rows = {f"{parts} parts": one_step(work, parts) for parts in PARTS}
    rows["2 processes"] = run_child("invariance", *size_flag(work), processes=2)
    whole = rows["1 parts"]
    gap = max(worst([(row[name], whole[name]) for row in rows.values()]) for name in ("loss", "gradient_norm"))
    return {"passed": gap <= CUTS, "gap": gap, "ways": list(rows)} | ({} if gap <= CUTS else {"why": f"loss or gradient norm differ by {gap:.1e}"})


@closed
def optimizer(work: Work) -> dict:
    "One step of fmtut's AdamW and of torch's with clipping, from equal tensors: weights and gradients to 1e-6."
    for limit in (1.0, 1e9):
        try:
            refuse_unequal("AdamW", *optimizer_arms(bert_shapes(work.layers, work.vocabulary, work.width), limit).results())
        except SystemExit as error:
            return {"passed": False, "why": str(error)}
    return {"passed": True}


@closed
def restored(work: Work) -> dict:
    "What a checkpoint holds is what the run had: weights and AdamW's means, bit for bit."
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(work)
        Checkpoint(folder).write(trainer)
        state = copy.deepcopy(load(latest(folder)))
    now = trainer.state_dict()
    same = [torch.equal(state["model"][name].cpu(), value.cpu()) for name, value in now["model"].items()]
    for number, kept in now["optimizer"]["state"].items():
        saved = state["optimizer"]["state"][str(number)] # a key of JSON
        same += [torch.equal(torch.as_tensor(saved[name]).cpu(), value.cpu()) for name, value in kept.items()]
    return {"passed": all(same), "tensors": len(same)} | ({} if all(same) else {"why": f"{same.count(False)} of {len(same)} tensors came back changed"})


def trained(work: Work) -> Trainer:
    "A Trainer that has taken two steps."
    recipe = Recipe(epochs=1, batch_size=work.batch_size)
    batches = training_batches(make_sentences(8 * work.batch_size, work.vocabulary, seed=3), work.batch_size, seed=0)
    trainer = Trainer(make_model(work), token_loss, batches, recipe, [*engine(recipe), StopAfter(2)])
    trainer.fit()
    return trainer


GATES = {"exactness": exactness, "invariance": invariance, "optimizer": optimizer, "restored": restored}
