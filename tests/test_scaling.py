"Scaling at its edges: every cut of a batch, scales that fall, memory that runs out, and no waiting for the device."

import contextlib
import copy
import math
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fmtut import scaling, training
from fmtut.batching import IGNORE_INDEX, token_loss
from fmtut.scaling import (
    Accumulate, FitMemory, MixedPrecision, choose_precision, count_rows, has_amx, is_out_of_memory, split_batch,
)
from fmtut.training import Callback, CancelStep, Recipe, Trainer, TrainingDiverged


class Tokens(nn.Module):
    "Embedding, dropout, LayerNorm and scores for three labels; called as token_loss calls a model."

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Embedding(20, 16), nn.Dropout(dropout), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3))

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.layers(input_ids))


def token_batches(sizes=(16, 16, 7), length=9, label_share=0.5):
    "Batches of these numbers of rows; many positions are no target."
    generator = torch.Generator().manual_seed(1)
    batches = []
    for size in sizes:
        ids = torch.randint(20, (size, length), generator=generator)
        labels = torch.where(torch.rand(size, length, generator=generator) < label_share, ids % 3, IGNORE_INDEX)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return batches


def run(*callbacks, model=None, batches=None, loss=token_loss, **settings):
    "A Trainer after its run."
    recipe = Recipe(**{"epochs": 2, "learning_rate": 1e-2, **settings})
    trainer = Trainer(model or Tokens(), loss, batches or token_batches(), recipe, callbacks)
    trainer.fit()
    return trainer


def column(trainer, name):
    "One number of every step."
    return torch.tensor([row[name] for row in trainer.history.steps], dtype=torch.float64)


def assert_same_run(one, other, tolerance=1e-5):
    "Same losses, norms, targets and weights, relative to their size."
    for name in ("loss", "gradient_norm", "targets"):
        torch.testing.assert_close(column(one, name), column(other, name), rtol=tolerance, atol=0, equal_nan=True)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_equal_run(one, other):
    "The same bit for bit."
    assert [row["loss"] for row in one.history.steps] == [row["loss"] for row in other.history.steps]
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Cutting a batch


def test_a_part_has_no_more_positions_than_asked_for():
    "16 rows of 9 pieces are 144 positions: 3 parts of at most 50; the batch of 7 rows has 63: 2 parts; at least micro_batches."
    sizes = []
    def noting(model, batch):
        sizes.append(len(batch["input_ids"]))
        return token_loss(model, batch)
    whole, cut = run(), run(Accumulate(1, cpu_positions=50), loss=noting)
    assert sizes == 2 * [5, 5, 6, 5, 5, 6, 3, 4]
    for name in ("loss", "gradient_norm"):
        torch.testing.assert_close(column(cut, name), column(whole, name), rtol=1e-5, atol=1e-6)
    sizes.clear()
    run(Accumulate(4, cpu_positions=50), loss=noting, epochs=1)
    assert sizes[:4] == [4, 4, 4, 4]
    tensors = [torch.rand(30, 2)]
    trainer = run(Accumulate(1, cpu_positions=2), model=nn.Linear(2, 1), batches=tensors, loss=lambda model, batch: (model(batch).square().mean(), len(batch)))
    assert trainer.step == 2 # other batches are left whole


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("parts", [1, 3])
def test_sparse_gradients_go_the_same_way(parts, precision):
    "Parts and the loss scale, with a table whose gradient is sparse; weights end as with a dense one."
    trainers = []
    for sparse in (False, True):
        model = Tokens()
        model.layers[0].sparse = sparse
        trainers.append(run(MixedPrecision(precision), Accumulate(parts), model=model))
    for name in ("loss", "gradient_norm"):
        torch.testing.assert_close(column(trainers[1], name), column(trainers[0], name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(list(trainers[1].model.parameters()), list(trainers[0].model.parameters()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8, 16, 100])
def test_accumulation_is_the_whole_batch(parts):
    assert_same_run(run(Accumulate(parts)), run())


def test_one_part_is_no_change_at_all():
    assert_equal_run(run(Accumulate(1)), run())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_without_any_target(parts):
    batches = token_batches()
    for batch in batches:
        batch["labels"][:5] = IGNORE_INDEX # the first parts, too
        batch["labels"][10:12] = IGNORE_INDEX
    assert_same_run(run(Accumulate(parts), batches=batches), run(batches=batches))


def test_batch_without_any_target_changes_nothing():
    batches = token_batches(label_share=0.0)
    trainer = run(Accumulate(4), batches=batches)
    assert trainer.skipped == 0 and all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), Tokens().parameters(), strict=True))
    assert [row["loss"] for row in trainer.history.steps] == [0.0] * 6


def test_counts_may_be_plain_numbers():
    def loss(model, batch):
        value, count = token_loss(model, batch)
        return value, int(count)
    assert_same_run(run(Accumulate(4), loss=loss), run(loss=loss))


def test_a_double_model_stays_double():
    one, other = run(Accumulate(3), model=Tokens().double()), run(model=Tokens().double())
    assert_same_run(one, other, 1e-12)


def test_a_parameter_that_only_some_parts_use():
    class Odd(Tokens):
        def __init__(self):
            super().__init__()
            self.extra, self.unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, input_ids, attention_mask):
            logits = self.layers(input_ids)
            return SimpleNamespace(logits=logits + self.extra if (input_ids == 7).any() else logits)

    batches = token_batches()
    for batch in batches:
        batch["input_ids"][batch["input_ids"] == 7] = 8
        batch["input_ids"][3, 3] = 7
    one, other = run(Accumulate(8), model=Odd(), batches=batches), run(model=Odd(), batches=batches)
    assert one.model.unused.grad is None and bool(one.model.extra.any())
    assert len(other.history.steps) == len(one.history.steps) # rows without a 7 see another function, so losses may differ
    assert math.isfinite(one.history.steps[-1]["loss"])


def test_nested_batch_is_split_everywhere():
    Pair = namedtuple("Pair", "left right")
    batch = {"a": [torch.arange(5), Pair(torch.ones(5, 2), torch.tensor(3.0))], "words": ["v", "w", "x", "y", "z"], "name": "five", "k": (1, 2)}
    one, two = split_batch(batch, 2)
    assert one["a"][0].tolist() == [0, 1] and two["a"][0].tolist() == [2, 3, 4]
    assert one["a"][1].left.shape == (2, 2) and type(two["a"][1]) is Pair and two["a"][1].right == 3.0
    assert one["words"] == ["v", "w"] and two["words"] == ["x", "y", "z"] and two["name"] == "five" and two["k"] == (1, 2)


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_parts_are_the_batch_in_nearly_equal_sizes(rows, parts):
    batch = torch.arange(rows)
    pieces = split_batch(batch, parts)
    assert torch.equal(torch.cat(pieces), batch) and len(pieces) == min(parts, rows)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_what_cannot_be_split():
    with pytest.raises(ValueError, match=r"16 rows holds a tensor of shape \(9,\)"):
        split_batch({"input_ids": torch.ones(16, 3), "class_weights": torch.ones(9)}, 2)
    assert split_batch("text", 4) == ["text"] and count_rows({"a": torch.tensor(1), "b": [torch.ones(4, 2)]}) == 4
    assert len(split_batch(torch.empty(0, 3), 4)) == 1


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", None])
def test_number_of_parts_is_checked(number):
    with pytest.raises(ValueError, match="give a whole number of at least 1"):
        Accumulate(number)


def test_the_arithmetic_is_put_back():
    trainer = run(MixedPrecision("bf16"), Accumulate(2), batches=token_batches()[:1])
    assert trainer.loss is token_loss and trainer.forward_backward == Trainer.forward_backward.__get__(trainer)
    assert trainer.backward == Trainer.backward.__get__(trainer)


# Number formats


def test_fp32_is_no_change_at_all():
    assert_equal_run(run(MixedPrecision("fp32")), run())


def test_bf16_is_near_and_stays_fp32_outside():
    seen = []

    def loss(model, batch):
        value, count = token_loss(model, batch)
        seen.append(model(batch["input_ids"], None).logits.dtype)
        return value, count

    one, other = run(MixedPrecision("bf16"), Accumulate(2), loss=loss), run()
    assert set(seen) == {torch.bfloat16} and all(p.dtype == torch.float32 for p in one.model.parameters())
    torch.testing.assert_close(column(one, "loss"), column(other, "loss"), rtol=0.02, atol=0)
    assert not torch.equal(column(one, "loss"), column(other, "loss"))


def test_a_loss_in_bf16_is_summed_in_fp32():
    def loss(model, batch):
        return model(batch).square().mean(), torch.tensor(len(batch))

    model, seen = nn.Linear(4, 4), []

    class Watch(Callback):
        def before_fit(self, trainer):
            inner = trainer.loss
            trainer.replace("loss", lambda model, batch: seen.append(inner(model, batch)[0].dtype) or inner(model, batch))

    run(MixedPrecision("bf16"), Watch(), model=model, batches=[torch.ones(8, 4)], loss=loss)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("wrong", ["fp8", "FP16", "", None])
def test_unknown_format_is_named(wrong):
    with pytest.raises(ValueError, match="give one of auto, fp32, tf32, bf16, fp16"):
        MixedPrecision(wrong)


def test_16_bit_weights_are_refused():
    with pytest.raises(ValueError, match="call model.float"):
        run(MixedPrecision("bf16"), model=Tokens().bfloat16())


@pytest.mark.parametrize("capability, choice", [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")])
def test_choice_on_a_gpu(monkeypatch, capability, choice):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("cuda") == choice


def test_choice_on_a_cpu(monkeypatch, tmp_path):
    (tmp_path / "with").write_text("flags : avx512_bf16 amx_bf16 amx_tile\n")
    (tmp_path / "without").write_text("flags : avx512_bf16 amx_bf16x\n")
    assert has_amx(tmp_path / "with") and not has_amx(tmp_path / "without") and not has_amx(tmp_path / "gone")
    for answer, choice in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(scaling, "has_amx", lambda answer=answer: answer)
        assert choose_precision(torch.device("cpu")) == choice and choose_precision("mps") == "fp32"


def test_tf32_is_allowed_in_the_fit_alone():
    def flags():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before, seen = flags(), []

    def loss(model, batch):
        seen.append(flags())
        return token_loss(model, batch)

    run(MixedPrecision("tf32"), loss=loss, epochs=1)
    run(MixedPrecision("fp32"), loss=loss, epochs=1)
    assert seen[0] == ("high", True) and seen[-1] == ("highest", False) and flags() == before

    def broken(model, batch):
        raise OSError("gone")
    with pytest.raises(OSError):
        run(MixedPrecision("tf32"), loss=broken)
    assert flags() == before


# fp16 and its scale


def test_a_scale_changes_nothing_but_the_last_bits():
    one, other = run(MixedPrecision("fp16")), run()
    torch.testing.assert_close(column(one, "loss"), column(other, "loss"), rtol=0.01, atol=0)
    torch.testing.assert_close(column(one, "gradient_norm"), column(other, "gradient_norm"), rtol=0.02, atol=0)
    assert one.skipped == 0 and {row["scale"] for row in one.history.steps} == {2.0**16}


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_keeps_the_scale(parts):
    one, other = run(MixedPrecision("fp16"), Accumulate(parts)), run(MixedPrecision("fp16"))
    assert [row["scale"] for row in one.history.steps] == [row["scale"] for row in other.history.steps]
    torch.testing.assert_close(column(one, "gradient_norm"), column(other, "gradient_norm"), rtol=0.01, atol=0)


def steep(factor):
    "A loss whose gradients in fp16 overflow until the scale is small enough: they are about as large as `factor`."
    def loss(model, batch):
        value, count = token_loss(model, batch)
        return value * factor, count
    return loss


def test_a_falling_scale_skips_and_does_not_end_the_run():
    trainer = run(MixedPrecision("fp16"), loss=steep(1e5), epochs=6)
    scales = [row["scale"] for row in trainer.history.steps]
    falls = sum(after < before for before, after in zip(scales, scales[1:]))
    assert falls == trainer.skipped > 3 and trainer.skipped_in_a_row == 0
    assert scales[:5] == [65536.0, 32768.0, 16384.0, 8192.0, 4096.0] and math.isfinite(trainer.history.steps[-1]["gradient_norm"])
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_skipped_step_changes_no_weight_and_no_moment():
    trainer = run(MixedPrecision("fp16"), loss=steep(1e5), batches=token_batches()[:2], epochs=1)
    assert trainer.skipped == 2 and all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), Tokens().parameters(), strict=True))
    assert all(float(state["step"]) == 0 and not state["exp_avg"].any() for state in trainer.optimizer.state.values())


def test_a_scale_below_one_is_divergence():
    with pytest.raises(TrainingDiverged, match="step 17: the loss scale of fp16 fell below 1"):
        run(MixedPrecision("fp16"), loss=steep(1e12), epochs=20)


def test_a_loss_that_is_not_finite_is_not_forgiven():
    with pytest.raises(TrainingDiverged, match="step 3: loss nan"):
        run(MixedPrecision("fp16"), loss=steep(math.nan), epochs=20)


def test_a_gradient_that_no_scale_can_help_ends_the_run():
    model = Tokens()
    model.layers[2].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match="step 17"):
        run(MixedPrecision("fp16"), model=model, epochs=20)


def test_three_broken_steps_among_falls_still_end_the_run():
    calls = []

    def loss(model, batch):
        calls.append(1)
        return steep(1e5 if len(calls) < 3 else math.nan)(model, batch)

    with pytest.raises(TrainingDiverged, match="step 5: loss nan"):
        run(MixedPrecision("fp16"), loss=loss, epochs=20)


def test_the_scale_grows_after_quiet_steps():
    class Short(Callback):
        order = 1

        def before_fit(self, trainer):
            precision.scaler.set_growth_interval(2)

    precision = MixedPrecision("fp16", scale=4.0)
    trainer = run(precision, Short())
    assert [row["scale"] for row in trainer.history.steps] == [4.0, 4.0, 8.0, 8.0, 16.0, 16.0]


def test_callbacks_see_gradients_without_the_scale():
    class Watch(Callback):
        norm = None

        def after_backward(self, trainer):
            self.norm = float(trainer.model.layers[4].bias.grad.norm())

    one, other = Watch(), Watch()
    run(MixedPrecision("fp16"), one, epochs=1)
    run(other, epochs=1)
    assert math.isclose(one.norm, other.norm, rel_tol=0.01)


def test_a_cancelled_step_leaves_the_scaler_usable():
    class Cancel(Callback):
        order = 5

        def before_step(self, trainer):
            if trainer.step == 2:
                raise CancelStep

        def after_backward(self, trainer):
            if trainer.step == 4:
                raise CancelStep

    trainer = run(MixedPrecision("fp16"), Cancel())
    assert [row["step"] for row in trainer.history.steps] == [1, 3, 5, 6] and all("scale" in row for row in trainer.history.steps)


def test_an_interrupted_step_leaves_the_scaler_usable():
    class Interrupt(Callback):
        order, done = 5, False

        def after_backward(self, trainer):
            if trainer.step == 2 and not self.done:
                self.done = True
                raise KeyboardInterrupt

    trainer = Trainer(Tokens(), token_loss, token_batches(), Recipe(epochs=2), [MixedPrecision("fp16"), Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert len(trainer.fit().steps) == 5


def test_no_gradient_at_all():
    def loss(model, batch):
        return torch.zeros((), requires_grad=True) * 1.0, torch.tensor(1)

    assert run(MixedPrecision("fp16"), Accumulate(2), loss=loss).skipped == 0


def test_a_reused_callback_starts_afresh():
    precision = MixedPrecision("fp16")
    run(precision, loss=steep(1e5))
    assert run(precision).history.steps[0]["scale"] == 2.0**16


def test_a_resumed_callback_starts_afresh_with_another_trainer():
    precision = MixedPrecision("fp16")
    precision.load_state_dict(run(MixedPrecision("fp16"), loss=steep(1e5)).callbacks[0].state_dict())
    assert run(precision).history.steps[0]["scale"] < 2.0**16
    assert run(precision).history.steps[0]["scale"] == 2.0**16


@pytest.mark.parametrize("late", [False, True])
def test_resume_goes_on_with_the_scale(late):
    "A state that is loaded before the fit, or by a callback while it begins."
    def fresh(*more):
        return Trainer(Tokens(), steep(1e5), token_batches(), Recipe(epochs=4), [MixedPrecision("fp16"), FitMemory(2), *more])

    class Load(Callback):
        order = 50

        def before_fit(self, trainer):
            trainer.load_state_dict(state)

    straight, first = fresh(), fresh()
    straight.fit()

    class Stop(Callback):
        def after_epoch(self, trainer):
            raise KeyboardInterrupt

    first.callbacks.append(Stop())
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    state = copy.deepcopy(first.state_dict())
    second = fresh(Load()) if late else fresh()
    if not late:
        second.load_state_dict(state)
    second.fit()
    assert [row["scale"] for row in second.history.steps] == [row["scale"] for row in straight.history.steps]
    assert_equal_run(second, straight)


def test_resume_keeps_the_format_that_auto_chose(monkeypatch):
    monkeypatch.setattr(scaling, "has_amx", lambda: True)
    first = run(MixedPrecision(), epochs=1)
    monkeypatch.setattr(scaling, "has_amx", lambda: False)
    second = Trainer(Tokens(), token_loss, token_batches(), Recipe(epochs=2), [MixedPrecision()])
    second.load_state_dict(first.state_dict())
    second.fit()
    assert first.callbacks[0].chosen == second.callbacks[0].chosen == "bf16"


# Memory


class Scarce:
    "A loss that has room for some rows; it draws, averages and adds before it fails."

    def __init__(self, room, error=torch.OutOfMemoryError("CUDA out of memory."), when="after"):
        self.room, self.error, self.when, self.calls = room, error, when, []

    def __call__(self, model, batch):
        rows = len(batch["input_ids"])
        self.calls.append(rows)
        loss, count = token_loss(model, batch) # dropout is drawn here
        if rows > self.room:
            raise self.error
        return loss, count


class Normed(Tokens):
    "With dropout, and with running means."

    def __init__(self):
        super().__init__(0.3)
        self.norm = nn.BatchNorm1d(16)
        self.layers[3] = nn.Identity()

    def forward(self, input_ids, attention_mask):
        states = self.layers[:3](input_ids)
        return SimpleNamespace(logits=self.layers[4](self.norm(states.flatten(0, 1)).view_as(states)))


@pytest.mark.parametrize("room, parts", [(16, 1), (8, 2), (5, 4), (1, 16)])
def test_result_is_that_of_a_run_with_as_many_parts(room, parts, capsys):
    loss, memory = Scarce(room), FitMemory()
    one, other = run(memory, model=Normed(), loss=loss), run(Accumulate(parts), model=Normed())
    assert memory.micro_batches == parts
    assert_equal_run(one, other)
    assert capsys.readouterr().out.count("out of memory") == int(math.log2(parts))


def test_memory_that_ends_within_a_batch():
    "The third part of a batch fails, when two have left gradients."
    fails, calls = [3], []

    def loss(model, batch):
        calls.append(len(batch["input_ids"]))
        value, count = token_loss(model, batch)
        if len(calls) in fails:
            raise torch.OutOfMemoryError
        return value, count

    one, other = run(FitMemory(4), model=Normed(), loss=loss), run(Accumulate(8), model=Normed())
    assert calls[:5] == [4, 4, 4, 2, 2]
    assert_equal_run(one, other)


def test_memory_that_ends_in_the_backward():
    class Fail(Callback):
        order, failed = -1, False

        def before_fit(self, trainer):
            inner = trainer.backward

            def backward(loss):
                inner(loss)
                if not self.failed:
                    self.failed = True
                    raise torch.OutOfMemoryError
            trainer.replace("backward", backward)

    assert_equal_run(run(Fail(), FitMemory(), model=Normed()), run(Accumulate(2), model=Normed()))


def test_memory_and_fp16_together():
    one, other = run(MixedPrecision("fp16"), FitMemory(), loss=Scarce(4)), run(MixedPrecision("fp16"), Accumulate(4))
    assert_equal_run(one, other)


def test_resume_goes_on_with_as_many_parts():
    first, second = run(FitMemory(), loss=Scarce(4)), Trainer(Tokens(), token_loss, token_batches(), Recipe(), [FitMemory()])
    second.load_state_dict(first.state_dict())
    assert second.callbacks[0].micro_batches == 4


def test_a_row_that_does_not_fit():
    with pytest.raises(torch.OutOfMemoryError, match="step 1: out of memory with a single row; lower max_length"):
        run(FitMemory(), loss=Scarce(0))


def test_another_error_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(FitMemory(), loss=Scarce(1, RuntimeError("shapes differ")))


def test_failed_activations_are_freed_before_the_next_try():
    import gc
    import weakref
    gc.disable()
    try:
        alive, kept = [], []

        def loss(model, batch):
            alive.append([reference() is not None for reference in kept])
            value, count = token_loss(model, batch)
            hidden = model.layers[0](batch["input_ids"])
            kept.append(weakref.ref(hidden))
            if len(batch["input_ids"]) > 4:
                raise torch.OutOfMemoryError
            return value + 0 * hidden.sum(), count

        run(FitMemory(), loss=loss, batches=token_batches((16,)), epochs=1)
        assert alive[1] == [False] and alive[2] == [False, False]
    finally:
        gc.enable()


def test_what_counts_as_out_of_memory():
    assert all(map(is_out_of_memory, (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when"))))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


REAL = """
import resource, torch
from torch import nn
from fmtut.scaling import FitMemory
from fmtut.training import Recipe, Trainer
def loss(model, batch): return model(batch).square().mean(), torch.tensor(len(batch))
torch.set_num_threads(1)
torch.manual_seed(0)
model, batch = nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 500_000)), torch.randn(64, 8)
loss(model, batch[:1])[0].backward()
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, -1)) # the whole batch needs 128 MB for one tensor
trainer = Trainer(model, loss, [batch], Recipe(epochs=2), [FitMemory()])
trainer.fit()
print('done', trainer.callbacks[0].micro_batches, trainer.skipped)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_memory_that_really_ends():
    result = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "out of memory; from here on 2 parts" in result.stdout, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("done"), result.stdout + result.stderr


# Nobody waits


class NoReading(TorchDispatchMode):
    "Raises where a tensor's value is asked for: item, float, int, bool, tolist, and a comparison in an `if`."

    reads = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero", "aten.equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(self.reads):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


class Guard(Callback):
    "Forbids reading from before the forward pass until the gradients are final; AdamW may look on a CPU, where nobody waits."

    order = -100

    def before_step(self, trainer):
        self.region = contextlib.ExitStack()
        self.region.enter_context(NoReading())

    def after_fit(self, trainer):
        self.region.close()


class Unguard(Callback):
    "The end of a guard's region."

    order = 100

    def __init__(self, guard):
        self.guard = guard

    def after_backward(self, trainer):
        self.guard.region.close()


def torch_loss(model, batch):
    "As token_loss by torch alone: ours looks at the labels where that costs nothing, on a CPU."
    labels = batch["labels"].flatten()
    count = (labels != IGNORE_INDEX).sum()
    logits = model(batch["input_ids"], None).logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / count.clamp(min=1), count


@pytest.fixture
def deaf(monkeypatch):
    "The copy of the scale reads at once on a CPU, not on a GPU."
    monkeypatch.setattr(scaling, "start_copy", lambda numbers: lambda: [1.0, 1.0])


ENGINES = [
    [Accumulate(1)], [Accumulate(4)], [FitMemory(2)], *([MixedPrecision(precision), Accumulate(4)] for precision in ("fp32", "tf32", "bf16", "fp16"))]


def names(engine):
    "For the list of tests."
    return "-".join(getattr(callback, "precision", type(callback).__name__) for callback in engine)


@pytest.mark.parametrize("engine", ENGINES, ids=names)
def test_nothing_is_read_within_a_step(engine, deaf):
    guard = Guard()
    trainer = run(guard, *engine, Unguard(guard), loss=torch_loss)
    assert len(trainer.history.steps) == 6 and trainer.skipped == 0


def test_the_guard_can_fail(deaf):
    class Curious(Callback):
        def after_backward(self, trainer):
            bool(trainer.model.layers[4].bias.grad.norm() > 1)

    guard = Guard()
    with pytest.raises(AssertionError, match="waits for the device"):
        run(guard, Curious(), Unguard(guard), loss=torch_loss)


@pytest.mark.parametrize("engine", ENGINES, ids=names)
def test_a_whole_step_without_any_values(engine, monkeypatch):
    "On the meta device tensors have shapes and no values: whoever asks for one gets an error."
    for module in (scaling, training):
        monkeypatch.setattr(module, "start_copy", lambda numbers: lambda: [1.0] * len(numbers))
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch, "_foreach_add_", lambda steps, number: [step.add_(number) for step in steps]) # meta's own way reads
    trainer = run(*engine, model=Tokens().to("meta"))
    assert trainer.step == len(trainer.history.steps) == 6
    with pytest.raises(RuntimeError, match="meta"):
        bool(next(trainer.model.parameters()).sum() > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_no_synchronisation_on_a_gpu(precision):
    class Strict(Callback):
        order = -100

        def before_step(self, trainer):
            if trainer.step > 2: # the first steps allocate
                torch.cuda.set_sync_debug_mode("error")

        def after_step(self, trainer):
            torch.cuda.set_sync_debug_mode("default")

    trainer = run(Strict(), MixedPrecision(precision), FitMemory(2), model=Tokens().cuda(), epochs=4)
    assert trainer.skipped == 0 and trainer.step == 12
    other = run(model=Tokens().cuda(), epochs=4)
    torch.testing.assert_close(column(trainer, "loss"), column(other, "loss"), rtol=0.02, atol=0)


@pytest.mark.gpu
def test_fp16_falls_and_recovers_on_a_gpu():
    trainer = run(MixedPrecision("fp16"), model=Tokens().cuda(), loss=steep(1e5), epochs=6)
    assert trainer.skipped > 3 and math.isfinite(trainer.history.steps[-1]["gradient_norm"])
    with pytest.raises(TrainingDiverged, match="fell below 1"):
        run(MixedPrecision("fp16"), model=Tokens().cuda(), loss=steep(1e12), epochs=20)


@pytest.mark.gpu
def test_memory_that_really_ends_on_a_gpu(capsys):
    def loss(model, batch):
        return model(batch).square().mean(), torch.tensor(len(batch), device=batch.device)

    torch.cuda.empty_cache()
    batches = [torch.randn(256, 64, generator=torch.Generator().manual_seed(0))]
    total = torch.cuda.get_device_properties(0).total_memory

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 1_000_000), nn.Dropout(0.1), nn.Linear(1_000_000, 1)).cuda()

    torch.cuda.set_per_process_memory_fraction(3e9 / total)
    try:
        memory = FitMemory()
        one = run(memory, model=network(), batches=batches, loss=loss)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert memory.micro_batches > 1 and "out of memory" in capsys.readouterr().out
    assert_same_run(one, run(Accumulate(memory.micro_batches), model=network(), batches=batches, loss=loss))


def test_a_buffer_that_the_forward_pass_sets_anew_is_taken_back_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.lin = nn.Linear(4, 2)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.lin(x)

    means = []
    for first in (FitMemory(1), Accumulate(2)):
        calls = []
        def loss(model, batch, calls=calls, first=first):
            out = model(batch).square().mean()
            calls.append(0)
            if isinstance(first, FitMemory) and len(calls) == 1:
                raise MemoryError
            return out, len(batch)
        means.append(run(first, model=Net(), loss=loss, batches=[torch.arange(16.0).reshape(4, 4)], epochs=1).model.mean)
    assert torch.equal(*means)


def test_targets_are_counted_in_full_whatever_the_loss_is_made_of():
    batch = [torch.rand(1027, 4).bfloat16()]
    for callbacks in ([], [Accumulate(1)], [Accumulate(2)]):
        loss = lambda model, batch: (model(batch).square().mean(), torch.tensor(len(batch)))
        assert run(*callbacks, model=nn.Linear(4, 1).bfloat16(), loss=loss, batches=batch, epochs=1).history.steps[0]["targets"] == 1027
