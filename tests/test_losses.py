"Losses at their edges: strange memory layouts, several backwards, autocast, nothing to count, and the GPU."

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fmtut import losses
from fmtut.losses import binary_cross_entropy, cross_entropy, cross_entropy_gradient, label_weights, mse, nll


def gradient(loss, z):
    "The logits' gradient of a loss."
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


@pytest.mark.parametrize("block", [1, 7, 40, 10**6])
def test_the_size_of_a_block_does_not_matter(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK", block)
    z, y = torch.randn(23, 5, dtype=torch.float64), torch.randint(0, 5, (23,))
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
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


def test_nothing_to_count():
    y = torch.full((4,), -100)
    assert cross_entropy(torch.randn(4, 3), y).isnan() and cross_entropy(torch.randn(4, 3), y, reduction="sum") == 0
    assert cross_entropy(torch.zeros(0, 3), y[:0]).isnan() and cross_entropy(torch.zeros(0, 3), y[:0], reduction="none").shape == (0,)
    assert (gradient(partial(cross_entropy, labels=y, reduction="sum"), torch.full((4, 3), math.nan)) == 0).all()


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
    assert label_weights(y, 3, weight, -100, z)[1].tolist() == [0, 2, 1, 0]


def test_shapes_and_types_that_are_refused():
    with pytest.raises(ValueError, match=r"give \(n, C\) and \(n,\)"):
        cross_entropy(torch.zeros(3), torch.tensor(0))
    with pytest.raises(ValueError, match="flatten the other axes"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="int64"):
        nll(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))


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
