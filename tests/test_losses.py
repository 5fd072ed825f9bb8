"Losses at their edges: strange memory layouts, several backwards, autocast, nothing to count, and the GPU."

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fmtut import losses
from fmtut.losses import (
    binary_cross_entropy,
    binary_cross_entropy_gradient,
    cross_entropy,
    cross_entropy_gradient,
    label_weights,
    logsumexp,
    mse,
    mse_gradient,
    nll,
    softmax,
)


def gradient(loss, z):
    "The logits' gradient of a loss."
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


@pytest.mark.parametrize("classes", [5, 40]) # short rows and long ones go different ways
@pytest.mark.parametrize("block", [1, 7, 170, 10**6])
def test_the_size_of_a_block_does_not_matter(monkeypatch, block, classes):
    monkeypatch.setattr(losses, "BLOCK", block)
    z, y = torch.randn(23, classes, dtype=torch.float64), torch.randint(0, classes, (23,))
    assert_close(cross_entropy(z, y), F.cross_entropy(z, y), rtol=0, atol=1e-12)
    assert_close(gradient(partial(cross_entropy, labels=y), z), cross_entropy_gradient(z, y), rtol=0, atol=1e-12)


def test_any_memory_layout():
    z, y = torch.randn(5, 30, 2, dtype=torch.float64)[..., 0].T, torch.randint(0, 5, (60,))[::2]
    assert not z.is_contiguous()
    assert_close(cross_entropy(z, y), F.cross_entropy(z, y), rtol=0, atol=1e-12)
    assert_close(gradient(partial(cross_entropy, labels=y), z), gradient(partial(F.cross_entropy, target=y), z), rtol=0, atol=1e-12)
    row = torch.randn(1, 5).expand(8, 5)
    assert_close(cross_entropy(row, y[:8]), F.cross_entropy(row, y[:8]))


def test_the_inputs_stay_as_they_are():
    z, y = torch.randn(6, 3, requires_grad=True), torch.tensor([0, -100, 2, 1, -100, 0])
    kept = z.detach().clone(), y.clone()
    cross_entropy(z, y).backward()
    assert torch.equal(z.detach(), kept[0]) and torch.equal(y, kept[1])


def test_backward_twice_but_no_second_derivative():
    z, y = torch.randn(6, 3, requires_grad=True), torch.randint(0, 3, (6,))
    loss = cross_entropy(z, y)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    kept = first.clone()
    first.zero_() # the gradient is its owner's
    second, third = (torch.autograd.grad(factor * loss, z, retain_graph=True)[0] for factor in (1, -3))
    assert torch.equal(second, kept)
    assert_close(third, -3 * kept)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


def test_a_loss_used_twice_and_gradients_that_add_up():
    z, y = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, -100, 2, 1, -100, 0])
    for _ in range(2):
        loss = cross_entropy(z, y)
        (loss**2 + cross_entropy(z, y, reduction="none").square().sum()).backward()
    ours, z.grad = z.grad, None
    (2 * (F.cross_entropy(z, y) ** 2 + F.cross_entropy(z, y, reduction="none").square().sum())).backward()
    assert_close(ours, z.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [4, 70])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_that_do_not_count_may_hold_anything(classes, reduction):
    z, y = torch.randn(9, classes), torch.randint(0, classes, (9,))
    y[::2] = -100
    spoiled = torch.where(y[:, None] < 0, torch.tensor([math.nan, math.inf, -math.inf] * 3)[:, None], z)
    loss = partial(cross_entropy, labels=y, reduction=reduction)
    assert_close(loss(spoiled), F.cross_entropy(z, y, reduction=reduction))
    assert_close(gradient(lambda x: loss(x).sum(), spoiled), gradient(lambda x: F.cross_entropy(x, y, reduction=reduction).sum(), z))


def test_without_a_gradient_none_is_made(monkeypatch):
    made, empty_like = [], torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: made.append(x.shape) or empty_like(x))
    z, y = torch.randn(6, 30), torch.randint(0, 30, (6,))
    assert_close(cross_entropy(z, y), F.cross_entropy(z, y))
    assert made == [(6,)]


@pytest.mark.parametrize("classes", [3, 100])
def test_large_equal_logits_keep_their_digits(classes):
    for level in (1e6, -1e6, 1e8):
        z, y = torch.full((2, classes), level), torch.tensor([0, classes - 1])
        assert_close(cross_entropy(z, y).item(), math.log(classes), rtol=1e-6, atol=0)
        assert_close(softmax(z), torch.full((2, classes), 1 / classes))
        assert_close(cross_entropy_gradient(z, y).sum(1), torch.zeros(2), rtol=0, atol=1e-7)


def test_many_classes_in_16_bits():
    z = torch.zeros(2, 100_000, dtype=torch.float16) # a sum of 100,000 ones is infinite in fp16
    assert_close(softmax(z).sum(1), torch.ones(2))
    assert_close(logsumexp(z), torch.full((2,), math.log(100_000)))


def test_small_and_whole_numbers_are_lifted():
    far, zero = torch.tensor([60_000.0]).half(), torch.zeros(1).half()
    assert mse_gradient(far, zero).item() == 120_000 and binary_cross_entropy_gradient(far, zero).item() == 1
    z = torch.randn(1000).half()
    assert torch.equal(binary_cross_entropy_gradient(z, 0 * z), binary_cross_entropy_gradient(z.float(), 0 * z.float()))
    assert mse(torch.tensor([100], dtype=torch.int8), torch.tensor([-100], dtype=torch.int8)).item() == 40_000
    assert binary_cross_entropy(torch.tensor([200], dtype=torch.uint8), torch.tensor([1], dtype=torch.uint8)).item() == 0
    assert_close(cross_entropy(torch.tensor([[0, 3]]), torch.tensor([0])), F.cross_entropy(torch.tensor([[0.0, 3.0]]), torch.tensor([0])))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_of_any_whole_type(dtype):
    z, y = torch.randn(20, 200), torch.arange(90, 110)
    for loss in (cross_entropy, nll, cross_entropy_gradient):
        assert_close(loss(z, y.to(dtype)), loss(z, y))
    bytes = torch.tensor([156, 0], dtype=torch.uint8) # as an unsigned byte, -100 is 156
    assert_close(cross_entropy(z[:2], bytes), cross_entropy(z[:2], bytes.long()))


def test_the_loss_has_the_type_of_the_logits():
    z, weight = torch.randn(4, 3), torch.tensor([1, 2, 3], dtype=torch.float64)
    for loss in (cross_entropy, nll):
        assert loss(z, torch.tensor([0, 1, 2, -100]), weight).dtype == torch.float32


def test_nothing_to_count():
    y = torch.full((4,), -100)
    assert cross_entropy(torch.randn(4, 3), y).isnan() and cross_entropy(torch.randn(4, 3), y, reduction="sum") == 0
    assert cross_entropy(torch.zeros(0, 3), y[:0]).isnan() and cross_entropy(torch.zeros(0, 3), y[:0], reduction="none").shape == (0,)
    for reduction in ("mean", "sum"):
        assert (gradient(partial(cross_entropy, labels=y, reduction=reduction), torch.full((4, 3), math.nan)) == 0).all()


def test_a_row_that_counts_passes_its_nan_on():
    z = torch.tensor([[math.nan, 0.0], [1.0, 2.0]])
    assert cross_entropy(z, torch.tensor([0, 1])).isnan() and binary_cross_entropy(z, torch.zeros(2, 2)).isnan()
    assert mse(z, torch.zeros(2, 2)).isnan()


def test_a_masked_class():
    z, y = torch.tensor([[0.0, -math.inf, 1.0], [2.0, 0.5, -math.inf]]), torch.tensor([2, 0])
    assert_close(cross_entropy(z, y), F.cross_entropy(z, y))
    assert_close(gradient(partial(cross_entropy, labels=y), z), gradient(partial(F.cross_entropy, target=y), z))
    assert cross_entropy(z, torch.tensor([1, 0])) == math.inf


def test_another_label_to_ignore():
    z, y = torch.randn(5, 3), torch.tensor([0, -1, 2, -1, 1])
    assert_close(cross_entropy(z, y, ignore_index=-1), F.cross_entropy(z, y, ignore_index=-1))
    assert_close(cross_entropy(z, y.clamp(min=0), ignore_index=0), F.cross_entropy(z, y.clamp(min=0), ignore_index=0))
    with pytest.raises(ValueError, match="label -1 is none of the 3 classes"):
        cross_entropy(z, y)


def test_a_class_of_weight_zero_is_left_out():
    z, weight = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    assert_close(cross_entropy(z, y, weight), F.cross_entropy(z, y, weight))
    assert label_weights(z, y, weight, -100)[1].tolist() == [0, 2, 1, 0]


def test_shapes_and_types_that_are_refused():
    with pytest.raises(ValueError, match=r"give \(n, C\) and \(n,\)"):
        cross_entropy(torch.zeros(3), torch.tensor(0))
    with pytest.raises(ValueError, match="flatten the other axes"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64))
    for loss in (nll, cross_entropy, cross_entropy_gradient):
        for shape in ((2,), (1,), (4, 1)): # two labels would be averaged, one would broadcast
            with pytest.raises(ValueError, match="flatten the other axes"):
                loss(torch.zeros(4, 3), torch.zeros(shape, dtype=torch.int64))
        with pytest.raises(ValueError, match="flatten the other axes"):
            loss(torch.zeros(2, 2, 3), torch.zeros(2, 2, dtype=torch.int64))
        with pytest.raises(ValueError, match="give whole numbers"):
            loss(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="give 'mean', 'sum' or 'none'"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), reduction="average")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast(dtype):
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    layer = torch.nn.Linear(6, 4)
    with torch.autocast("cpu", dtype):
        logits = layer(x)
        ours, theirs = cross_entropy(logits, y), F.cross_entropy(logits.float(), y)
    assert logits.dtype == dtype and ours.dtype == torch.float32
    assert_close(ours, theirs)
    ours.backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.gpu
def test_on_the_gpu():
    z, y = torch.randn(300, 70, dtype=torch.float64), torch.randint(0, 70, (300,))
    y[::3] = -100
    z[::3] = math.nan
    there = partial(cross_entropy, labels=y.cuda())
    assert_close(there(z.cuda()).cpu(), cross_entropy(z, y), rtol=0, atol=1e-12)
    assert_close(gradient(there, z.cuda()).cpu(), gradient(partial(cross_entropy, labels=y), z), rtol=0, atol=1e-12)
