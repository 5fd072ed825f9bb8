"Training at its edges: every bad setting, empty runs, and what callbacks see at the end."

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from fmtut.losses import cross_entropy
from fmtut.training import Callback, Recipe, RecipeError, Trainer, mean_loss, recipe_from_dict

NASTY = {
    "epochs": [0, -1, 2.5, True, "3", None], "learning_rate": [0, -1.0, math.nan, math.inf, "1e-5"], "warmup": [1.5, -0.1],
    "seed": [-1, 2**32, 10**400], "batch_size": [0], "patience": [0], "max_grad_norm": [0.0, math.nan],
}


def network():
    "Two layers with dropout, from a fixed seed."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def loss(model, batch):
    "Cross-entropy, and one target a row."
    return cross_entropy(model(batch[0]), batch[1]), torch.tensor(len(batch[1]))


def some_batches(number=6):
    "Random batches of five rows."
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, 4, generator=generator), torch.arange(5) % 3) for _ in range(number)]


@pytest.mark.parametrize("name, value", [(name, value) for name, values in NASTY.items() for value in values])
def test_nasty_setting_is_named(name, value):
    with pytest.raises(RecipeError) as caught:
        Recipe(**{name: value})
    assert f"{name} is {value!r}" in str(caught.value)


def test_whole_numbers_are_numbers():
    assert Recipe(learning_rate=1).learning_rate == 1


def test_recipe_from_dict_gives_back_its_own_values():
    assert recipe_from_dict(dataclasses.asdict(Recipe(seed=3))) == Recipe(seed=3)


def test_unknown_setting_like_none_lists_all():
    with pytest.raises(RecipeError, match="did you mean epochs, learning_rate, "):
        recipe_from_dict({"zzz": 1})


def test_mean_of_nothing_is_nan():
    assert math.isnan(mean_loss([]))


def test_nothing_to_train_on_is_named():
    with pytest.raises(ValueError, match="no batches to train on"):
        Trainer(network(), loss, [], Recipe())
    with pytest.raises(ValueError, match="unfreeze some"):
        Trainer(nn.ReLU(), loss, some_batches(), Recipe())


def test_best_weights_are_back_before_after_fit():
    class Final(Callback):
        def after_fit(self, trainer):
            self.weights = copy.deepcopy(trainer.model.state_dict())

    seen, scores, final = [], iter([0.9, 0.5, 0.4, 0.3]), Final()

    def scripted(model):
        seen.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    Trainer(network(), loss, some_batches(), Recipe(epochs=4, patience=2, learning_rate=3e-3), [final]).fit(scripted)
    assert len(seen) == 3 and all(torch.equal(seen[0][name], value) for name, value in final.weights.items())


def test_every_after_fit_runs_though_one_fails():
    class Failing(Callback):
        order = -1

        def after_fit(self, trainer):
            raise OSError("disk full")

    class Late(Callback):
        order, closed = 2, False

        def after_fit(self, trainer):
            self.closed = True

    late = Late()
    with pytest.raises(OSError, match="disk full"):
        Trainer(network(), loss, some_batches(), Recipe(epochs=1), [Failing(), late]).fit()
    assert late.closed


def straight_and_resumed(evaluate=None):
    "Four epochs in a row, and two epochs plus two in a fresh Trainer; without dropout, so that both can be equal."
    trainers = []
    for _ in range(3):
        model = network()
        model[1].p = 0.0
        trainers.append(Trainer(model, loss, some_batches(), Recipe(epochs=4, learning_rate=1e-2)))
    straight, first, second = trainers
    straight.fit(evaluate)
    for _ in range(2):
        first.fit_epoch(evaluate)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.fit(evaluate)
    return straight, second


def equal_weights(one, other):
    "Whether two models have the same weights, bit for bit."
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_resumed_stopping_equals_the_straight_one():
    straight, resumed = straight_and_resumed(lambda model: 1.0)
    assert resumed.stopping.state_dict() == straight.stopping.state_dict()


def test_resumed_weights_equal_the_straight_ones():
    straight, resumed = straight_and_resumed()
    assert equal_weights(straight.model, resumed.model)


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule"])
def test_resumed_weights_need_every_part(part, monkeypatch):
    monkeypatch.setattr(Trainer, "STATEFUL", [name for name in Trainer.STATEFUL if name != part])
    straight, resumed = straight_and_resumed()
    assert not equal_weights(straight.model, resumed.model)


def test_running_means_are_put_back_after_a_skip():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), some_batches()
    trainer = Trainer(model, loss, [(batches[0][0] * math.nan, batches[0][1]), *batches], Recipe(epochs=1))
    trainer.fit()
    assert trainer.skipped == 1 and model[0].running_mean.isfinite().all() and model[0].num_batches_tracked == len(batches)


def test_gradients_left_before_are_forgotten():
    touched, fresh = network(), network()
    loss(touched, some_batches()[0])[0].backward()
    for model in (touched, fresh):
        Trainer(model, loss, some_batches(), Recipe(epochs=1)).fit()
    assert equal_weights(touched, fresh)
