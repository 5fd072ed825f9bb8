"Regularization beyond the lesson: early stopping inside the Trainer, saved states, module modes, types."

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmtut.regularization import Dropout, EarlyStopping, l2_penalty, label_smoothing
from fmtut.training import Recipe, Trainer

SCORES = [0.5, 0.7, math.nan, 0.7, 0.6, 0.9]


def trainer(patience=3):
    "A small network with our dropout, six epochs of two batches."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Dropout(0.5), nn.Linear(8, 3))
    batches = [(torch.randn(5, 4), torch.arange(5) % 3) for _ in range(2)]
    return Trainer(model, lambda m, b: (F.cross_entropy(m(b[0]), b[1]), torch.tensor(5)), batches, Recipe(epochs=6, patience=patience, learning_rate=1e-3))


def test_trainer_stops_and_names_the_best_epoch():
    one, scores = trainer(), iter(SCORES)
    one.fit(lambda model: next(scores))
    assert (one.epoch, one.stopping.best_epoch, one.stopping.best_score) == (5, 2, 0.7)


def test_trainer_takes_a_state_from_before_min_delta_and_mode():
    first, second, scores = trainer(), trainer(), iter(SCORES)
    for _ in range(3):
        first.fit_epoch(lambda model: next(scores))
    state = copy.deepcopy(first.state_dict())
    del state["stopping"]["min_delta"], state["stopping"]["mode"]
    second.load_state_dict(state)
    second.fit(lambda model: next(scores))
    assert (second.epoch, second.stopping.best_epoch, second.stopping.mode) == (5, 2, "max")


def test_state_survives_json_even_before_the_first_epoch():
    stopping, fresh = EarlyStopping(2, 0.1, "min"), EarlyStopping(5, mode="min")
    fresh.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert fresh.state_dict() == stopping.state_dict()
    stopping.update(torch.tensor(0.5), 1) # a tensor becomes a number
    assert json.loads(json.dumps(stopping.state_dict()))["best_score"] == 0.5


@pytest.mark.parametrize("mode, worst", [("max", -math.inf), ("min", math.inf)])
def test_the_worst_possible_score_is_never_best(mode, worst):
    stopping = EarlyStopping(2, mode=mode)
    assert not stopping.update(worst, 1) and not stopping.update(worst, 2)
    assert stopping.should_stop and stopping.best_epoch is None


@pytest.mark.parametrize("bad, text", [({"patience": 0}, "patience is 0"), ({"patience": math.nan}, "patience is nan"), ({"min_delta": math.nan}, "min_delta is nan")])
def test_a_state_obeys_the_constructor_and_changes_nothing_where_it_fails(bad, text):
    stopping = EarlyStopping(2)
    before = stopping.state_dict()
    with pytest.raises(ValueError, match=text):
        stopping.load_state_dict(before | bad)
    assert stopping.state_dict() == before


@pytest.mark.parametrize("number", [float, torch.tensor])
@pytest.mark.parametrize("mode, sign", [("max", 1), ("min", -1)])
def test_rounding_never_decides_an_exact_gain(mode, sign, number):
    for gain in range(1, 100):
        for start in range(101 - gain):
            stopping = EarlyStopping(1, gain / 100, mode)
            stopping.update(number(sign * start / 100), 1)
            assert not stopping.update(number(sign * (start + gain) / 100), 2)


def test_the_least_gain_counts_without_min_delta():
    stopping = EarlyStopping(1, mode="min")
    stopping.update(0.5, 1)
    assert stopping.update(math.nextafter(0.5, 0), 2)


def test_a_state_is_a_copy():
    stopping = EarlyStopping(2)
    state = stopping.state_dict()
    stopping.update(0.5, 1)
    assert state["best_epoch"] is None


def test_dropout_obeys_the_mode_of_the_whole_network():
    net, x = nn.Sequential(nn.Linear(20, 20), nn.Sequential(Dropout(0.5))), torch.randn(8, 20)
    assert (net(x) == 0).any() and torch.equal(net.eval()(x), net[0](x))
    assert not list(net[1].parameters()) and not net[1].state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dropout_keeps_the_type_and_the_share(dtype):
    out = Dropout(0.1)(torch.ones(400_000, dtype=dtype))
    share = (out > 0).double().mean().item()
    assert out.dtype == dtype and abs(share - 0.9) < 4 * math.sqrt(0.09 / 400_000)


def test_a_network_pays_through_its_parameters():
    net = nn.Linear(3, 2)
    l2_penalty(net.parameters(), 0.3).backward()
    torch.testing.assert_close(net.weight.grad, 0.3 * net.weight)
    torch.testing.assert_close(net.bias.grad, 0.3 * net.bias)


@pytest.mark.parametrize("labels", [torch.tensor([0, 7]), torch.tensor([0, -1])])
def test_smoothing_refuses_labels_that_are_no_class(labels):
    with pytest.raises(ValueError, match="none of the 3 classes"):
        label_smoothing(torch.zeros(2, 3), labels, 0.1)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_a_masked_right_class_costs_infinitely_much_and_has_a_finite_gradient(smoothing):
    z = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, 2.0]], requires_grad=True)
    loss = label_smoothing(z, torch.tensor([2, 1]), smoothing)
    loss.backward()
    assert loss == math.inf and z.grad.isfinite().all()


@pytest.mark.parametrize("left_out", [math.nan, math.inf, -math.inf])
def test_an_ignored_row_may_hold_anything(left_out):
    z = torch.tensor([[0.0, 1.0, 2.0], [left_out, 0.0, 1.0]])
    alone = label_smoothing(z[:1], torch.tensor([1]), 0.1)
    assert label_smoothing(z, torch.tensor([1, -100]), 0.1) == alone


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match="give a share from 0 to 1"):
        label_smoothing(torch.zeros(2, 3), torch.tensor([0, 1]), smoothing)
