"Training at its edges: every bad setting, empty runs, and what callbacks see at the end."

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from fmtut.losses import cross_entropy
from fmtut.training import (
    Callback,
    CancelEpoch,
    CancelFit,
    CancelStep,
    History,
    Recipe,
    RecipeError,
    Stepper,
    Trainer,
    TrainingDiverged,
    is_broken,
    mean_loss,
    recipe_from_dict,
)

NASTY = {
    "epochs": [0, -1, 2.5, True, "3", None], "learning_rate": [0, -1.0, math.nan, math.inf, "1e-5"], "warmup": [1.5, -0.1],
    "seed": [-1, 2**32, 10**400], "batch_size": [0], "patience": [0], "max_grad_norm": [0.0, math.nan],
    "precision": ["fp8", "FP16", None, 16, []], "accumulate": [0, 1.0], "evaluate_every": [-1, True],
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


# Cancelled on purpose


def make(callbacks=(), number=6, batches=None, loss=loss, model=None, **settings):
    "A trainer for the small network."
    settings = {"epochs": 3, "learning_rate": 1e-2} | settings
    return Trainer(model or network(), loss, batches or some_batches(number), Recipe(**settings), callbacks)


class Raising(Callback):
    "Raises `error` at a moment of step `at`, once; notes the moments of all others."

    def __init__(self, moment, error, at=8):
        self.log, self.moment, self.error, self.at, self.done = [], moment, error, at, False
        for name in (name for name in vars(Callback) if name.startswith(("before_", "after_"))):
            setattr(self, name, lambda trainer, name=name: self.note(name, trainer))

    def note(self, name, trainer):
        "Called at each moment."
        if name == self.moment and not self.done and trainer.step >= self.at:
            self.done = True
            raise self.error
        self.log.append((name, trainer.step))


IN_A_STEP = ["before_step", "after_backward"]
IN_AN_EPOCH = ["before_epoch", *IN_A_STEP, "after_step"]


@pytest.mark.parametrize("moment", IN_A_STEP)
def test_cancelled_step_leaves_no_trace_but_its_number(moment):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    seen, raising = [], Raising(moment, CancelStep)
    trainer = make([raising], model=model)
    trainer.replace("loss", lambda model, batch: (seen.append([p.clone() for p in model.parameters()]), loss(model, batch))[1])
    trainer.fit()
    rows = [row["step"] for row in trainer.history.steps]
    assert rows == [step for step in range(1, 19) if step != 8] and trainer.step == trainer.schedule.count == 18
    assert model[0].num_batches_tracked == 17 and trainer.skipped == 0
    assert ("after_step", 8) in raising.log and len(trainer.history.epochs) == 3


def test_step_cancelled_by_the_loss():
    def picky(model, batch):
        if batch[0].abs().max() > 1e3:
            raise CancelStep
        return loss(model, batch)

    batches = some_batches()
    batches[2][0][0, 0] = 1e9
    trainer = make(model=nn.Linear(4, 3), batches=batches, loss=picky)
    trainer.fit()
    assert sorted({row["step"] % 6 for row in trainer.history.steps}) == [0, 1, 2, 4, 5]


def test_nan_of_a_cancelled_step_stays_out_of_running_means():
    class Watch(Callback):
        def after_backward(self, trainer):
            if not all(p.grad.isfinite().all() for p in trainer.model.parameters()):
                raise CancelStep

    batches = some_batches()
    batches[1][0][0, 0] = math.nan
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    trainer = make([Watch()], model=model, batches=batches, epochs=1)
    trainer.fit()
    assert model[0].running_mean.isfinite().all() and model[0].num_batches_tracked == 5 and len(trainer.history.steps) == 5


@pytest.mark.parametrize("moment", IN_AN_EPOCH)
def test_cancelled_epoch_is_scored_and_followed_by_the_next(moment):
    raising, at = Raising(moment, CancelEpoch), 6 if moment == "before_epoch" else 8
    trainer = make([raising])
    raising.at = at
    trainer.fit(lambda model: float(trainer.epoch))
    assert [row["epoch"] for row in trainer.history.epochs] == [1, 2, 3] and all("score" in row for row in trainer.history.epochs[::2])
    assert trainer.step == (12 if moment == "before_epoch" else 14) and trainer.epoch == 3 and trainer.position == 0
    assert sum(name == "after_epoch" for name, _ in raising.log) == 3
    assert sum(row["skipped"] for row in trainer.history.epochs) == 0


def test_empty_epoch_has_a_row_without_a_loss():
    trainer = make([Raising("before_epoch", CancelEpoch, at=6)])
    trainer.fit()
    assert math.isnan(trainer.history.epochs[1]["loss"]) and trainer.history.epochs[1]["tokens_per_second"] == 0


@pytest.mark.parametrize("moment", [*IN_AN_EPOCH, "after_epoch"])
def test_cancelled_fit_ends_with_a_whole_epoch(moment):
    raising = Raising(moment, CancelFit)
    trainer = make([raising], epochs=4)
    history = trainer.fit(lambda model: float(trainer.step))
    steps = {"before_step": 7, "after_backward": 7, "after_step": 8}.get(moment, 12) # before_epoch and after_epoch come after 12
    assert [row["step"] for row in history.steps] == list(range(1, steps + 1))
    assert len(history.epochs) == len(history.evaluations) == 2 and history.evaluations[-1]["best"] and trainer.position == 0
    assert raising.log[-1][0] == "after_fit" and sum(name == "after_epoch" for name, _ in raising.log) == (1 if moment == "after_epoch" else 2)
    assert all(torch.equal(value, trainer.best_weights[name]) for name, value in trainer.model.state_dict().items())


def test_fit_cancelled_again_at_the_end_of_its_epoch_still_ends():
    class Eager(Callback):
        def after_step(self, trainer):
            raise CancelFit

        after_epoch = after_step

    trainer = make([Eager()])
    trainer.fit(lambda model: 1.0)
    assert trainer.step == 1 and len(trainer.history.epochs) == 1


def test_cancels_are_errors_where_there_is_nothing_to_cancel():
    for moment, error in [("before_fit", CancelFit), ("after_epoch", CancelEpoch), ("after_step", CancelStep), ("after_fit", CancelFit)]:
        with pytest.raises(error):
            make([Raising(moment, error, at=0)]).fit()


# Scores by steps


def test_scores_by_steps_come_between_the_epochs_and_at_the_end():
    seen, log = [], []

    class Log(Callback):
        def after_step(self, trainer):
            log.append(len(trainer.history.evaluations))

    trainer = make([Log()], evaluate_every=4, patience=9)
    trainer.fit(lambda model: seen.append(model.training) or float(trainer.step))
    assert [row["step"] for row in trainer.history.evaluations] == [4, 8, 12, 16, 18] and not any(seen) and trainer.model.training
    assert log == [step // 4 for step in range(1, 19)] # the score of a step is there before its after_step
    assert ["score" in row for row in trainer.history.epochs] == [False, False, True]


def test_last_step_is_scored_once():
    trainer = make(evaluate_every=6, patience=9)
    trainer.fit(lambda model: 1.0)
    assert [row["step"] for row in trainer.history.evaluations] == [6, 12, 18]


def test_scores_by_steps_stop_in_mid_epoch():
    scores, weights = iter([0.5, 0.9, 0.4, 0.3]), []

    def scripted(model):
        weights.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    trainer = make(evaluate_every=2, patience=2)
    history = trainer.fit(scripted)
    assert trainer.step == 8 and [row["step"] for row in history.evaluations] == [2, 4, 6, 8]
    assert [row["best"] for row in history.evaluations] == [True, True, False, False] and trainer.stopping.best_score == 0.9
    assert len(history.epochs) == 2 and all(torch.equal(weights[1][name], value) for name, value in trainer.model.state_dict().items())
    trainer.fit(scripted)
    assert trainer.step == 8 # stopped is stopped


def test_scores_by_steps_change_no_weight():
    runs = [make(evaluate_every=every) for every in (0, 1, 5)]
    scores = itertools.count()
    for trainer in runs:
        trainer.fit(None if trainer is runs[0] else lambda model: next(scores)) # the last weights are the best
    assert equal_weights(runs[0].model, runs[1].model) and equal_weights(runs[0].model, runs[2].model)


# Stopped anywhere, and gone on


class Snapshots(Callback):
    "The state after each step or epoch, random numbers beside it."

    def __init__(self, moment):
        self.states = []
        setattr(self, moment, lambda trainer: self.states.append((copy.deepcopy(trainer.state_dict()), torch.get_rng_state())))


class Counter(Callback):
    "Counts steps in a state of its own."

    count = 0

    def after_backward(self, trainer):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Random(Callback):
    "Puts the random numbers of a state back when training begins."

    def __init__(self, state):
        self.before_fit = lambda trainer: torch.set_rng_state(state)


def normed():
    "A network with dropout and with buffers."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def loader():
    "Batches of chapter 21, an order for each epoch, as tuples for the loss."
    from fmtut.batching import TokenDataset, training_batches

    return training_batches(TokenDataset([{"input_ids": [i % 7 + 1] * (1 + i % 3), "labels": [i % 3] * (1 + i % 3)} for i in range(18)]), 4, 0)


def token_rows(model, batch):
    "The first piece of each row, one-hot, through the network."
    rows = nn.functional.one_hot(batch["input_ids"][:, 0] % 4, 4).float()
    return cross_entropy(model(rows), batch["labels"][:, 0]), len(rows)


def timeless(history):
    "A history without its seconds, as text: NaN is not equal to itself."
    epochs = [{name: value for name, value in row.items() if "second" not in name} for row in history.epochs]
    return str([history.steps, history.evaluations, epochs])


def check_resumed(moment, make_run, evaluate=None):
    "Every state of a run leads to the same end, bit for bit."
    snapshots = Snapshots(moment)
    straight = make_run([snapshots, Counter()])
    straight.fit(evaluate)
    for state, random_numbers in snapshots.states:
        for _ in range(2): # a state may be used twice
            torch.manual_seed(123)
            counter = Counter()
            resumed = make_run([Random(random_numbers), counter])
            resumed.load_state_dict(state)
            resumed.fit(evaluate)
            assert all(torch.equal(a, b) for a, b in zip(resumed.model.state_dict().values(), straight.model.state_dict().values()))
            assert timeless(resumed.history) == timeless(straight.history)
            assert counter.count == len(straight.history.steps) and resumed.stopping.state_dict() == straight.stopping.state_dict()
    return snapshots


@pytest.mark.parametrize("moment", ["after_step", "after_epoch"])
@pytest.mark.parametrize("every", [0, 1, 4])
@pytest.mark.parametrize("data", ["list", "loader"])
def test_resumed_anywhere_equals_the_straight_run(moment, every, data):
    def run(callbacks):
        batches = some_batches(5) if data == "list" else loader()
        return make(callbacks, batches=batches, loss=loss if data == "list" else token_rows, model=normed(), evaluate_every=every, patience=5)

    def evaluate(model):
        return math.sin(1e3 * model[0].weight.detach().norm()) # up and down, so that stopping is decided by the states

    snapshots = check_resumed(moment, run, evaluate)
    assert len(snapshots.states) >= 2


def test_resumed_after_skips_equals_the_straight_run():
    def run(callbacks):
        batches = some_batches(6)
        for i in (2, 3): batches[i][0][0, 0] = math.nan
        return make(callbacks, batches=batches, model=normed(), epochs=2)

    check_resumed("after_step", run)


def test_third_broken_step_counts_those_before_the_stop():
    batches = some_batches(6)
    for i in (2, 3, 4): batches[i][0][0, 0] = math.nan
    snapshots = Snapshots("after_step")
    with pytest.raises(TrainingDiverged, match="step 5: loss nan"):
        make([snapshots], batches=batches).fit()
    assert len(snapshots.states) == 4
    resumed = make(batches=batches)
    resumed.load_state_dict(snapshots.states[3][0])
    with pytest.raises(TrainingDiverged, match="step 5: loss nan"):
        resumed.fit()


def test_state_of_a_stopped_run_does_not_train():
    done = make()
    done.fit(lambda model: 1.0)
    again = make()
    again.load_state_dict(copy.deepcopy(done.state_dict()))
    again.fit(lambda model: 1 / 0)
    assert again.step == done.step and equal_weights(again.model, done.model)


def test_state_of_another_model_is_refused():
    with pytest.raises((ValueError, RuntimeError)):
        Trainer(nn.Linear(4, 3), loss, some_batches(), Recipe()).load_state_dict(make().state_dict())


def test_loading_forgets_what_was_on_its_way():
    trainer = make()
    state = copy.deepcopy(trainer.state_dict())
    trainer.waiting.append(({"step": 9, "learning_rate": 0.1}, lambda: [1.0, 1.0, 1.0]))
    trainer.load_state_dict(state)
    trainer.fit()
    assert [row["step"] for row in trainer.history.steps] == list(range(1, 19))


# Replaced for a fit


class Doubling(Callback):
    "Doubles every loss."

    def before_fit(self, trainer):
        old = trainer.loss
        trainer.replace("loss", lambda model, batch: tuple(part * factor for part, factor in zip(old(model, batch), (2, 1))))


def test_replaced_loss_is_used_and_gone():
    plain, doubled = make(epochs=1), make([Doubling(), Doubling()], epochs=1)
    plain.fit()
    doubled.fit()
    assert doubled.loss is loss and doubled.history.steps[0]["loss"] == 4 * plain.history.steps[0]["loss"]


@pytest.mark.parametrize("moment", ["before_fit", "before_epoch", "before_step", "after_backward", "after_step", "after_epoch", "after_fit"])
def test_exception_leaves_no_replaced_function(moment):
    trainer = make([Doubling(), Raising(moment, OSError("disk full"), at=0)])
    with pytest.raises(OSError, match="disk full"):
        trainer.fit()
    assert trainer.loss is loss and trainer.backward.__func__ is Stepper.backward
    trainer.callbacks = []
    trainer.fit()
    assert trainer.epoch == 3


def test_replaced_outside_a_fit_lasts_until_the_next_one_ends():
    trainer = make(epochs=1)
    trainer.replace("forward_backward", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    trainer.fit()
    assert trainer.epoch == 1 and len(trainer.history.steps) == 6 - 1 # the failed batch was taken from the epoch, and left no row


def test_name_that_does_not_exist_cannot_be_replaced():
    with pytest.raises(AttributeError, match="los"):
        make().replace("los", None)


# Losses, buffers, ends


def test_nan_at_the_last_step_is_in_the_history():
    batches = some_batches()
    batches[-1][0][0, 0] = math.nan
    trainer = make(batches=batches, epochs=1)
    history = trainer.fit()
    assert trainer.skipped == history.epochs[0]["skipped"] == 1 and len(history.steps) == 6 and math.isnan(history.steps[-1]["loss"])
    assert math.isfinite(history.epochs[0]["loss"]) and all(p.isfinite().all() for p in trainer.model.parameters())


def test_three_broken_at_the_end_are_not_missed():
    batches = some_batches()
    for x, _ in batches[-3:]: x[0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match="step 6"):
        make(batches=batches, epochs=1).fit()


def test_diverged_trainer_fails_again_at_once():
    trainer = make(loss=lambda model, batch: (loss(model, batch)[0] * math.nan, 1))
    for steps in (3, 4):
        with pytest.raises(TrainingDiverged):
            trainer.fit()
        assert trainer.step == steps


@pytest.mark.parametrize("scale, count", [(math.inf, 5), (math.nan, 5), (1, 0), (0, 0)])
def test_useless_batch_changes_nothing_at_all(scale, count):
    model = normed()
    before = copy.deepcopy(model.state_dict())
    trainer = make(model=model, number=2, loss=lambda model, batch: (loss(model, batch)[0] * scale, count), epochs=1)
    trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainer.skipped == (2 if count else 0) and not any(is_broken(row) for row in trainer.history.steps[:2 * (not count)])
    assert [row["targets"] for row in trainer.history.steps] == [count] * 2 and trainer.schedule.count == 2


@pytest.mark.parametrize("count", [5, 5.0, torch.tensor(5), torch.tensor(5, dtype=torch.int32), torch.tensor(5).numpy(), torch.tensor(5).numpy()[()]])
def test_number_of_targets_may_be_any_number(count):
    trainer = make(loss=lambda model, batch: (loss(model, batch)[0], count), epochs=1)
    trainer.fit()
    assert [row["targets"] for row in trainer.history.steps] == [5] * 6 and type(trainer.history.steps[0]["targets"]) is int


class Odd(nn.Module):
    "Buffers of every kind; one is replaced and not written into, one grows, one is nobody's."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float16))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(4, dtype=torch.bool))
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.mean = self.mean * 0.5 + x.detach().mean(0).half()
        self.calls += 1
        self.seen |= x.detach().isnan().any(0)
        self.cache = torch.zeros(int(self.calls) + 1)
        return self.layer(x)


def test_buffers_of_every_kind_are_put_back():
    model, batches = Odd(), some_batches()
    batches[3][0][:, 2] = math.nan
    make(model=model, batches=batches, epochs=2).fit()
    assert model.mean.dtype == torch.float16 and model.mean.isfinite().all() and not model.seen.any() and model.calls == 10


def test_history_is_whole_after_fit():
    trainer = make(evaluate_every=5, patience=9)
    history = trainer.fit(lambda model: 0.5)
    assert [row["step"] for row in history.steps] == list(range(1, 19)) and not trainer.waiting
    assert set(history.steps[0]) == {"step", "learning_rate", "loss", "targets", "gradient_norm"}
    assert [row["epoch"] for row in history.epochs] == [1, 2, 3] and sum(row["seconds"] for row in history.epochs) == pytest.approx(trainer.seconds)
    assert dataclasses.asdict(history) == dataclasses.asdict(History(**trainer.state_dict()["history"]))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_trainer_goes_on(error):
    raising = Raising("after_step", error, at=8)
    trainer, straight = make([raising]), make()
    with pytest.raises(error):
        trainer.fit()
    state = torch.get_rng_state()
    straight.fit()
    torch.set_rng_state(state)
    trainer.fit()
    assert equal_weights(trainer.model, straight.model) and [row["step"] for row in trainer.history.steps] == list(range(1, 19))


def test_score_that_fails_leaves_a_usable_trainer():
    trainer = make()
    with pytest.raises(ZeroDivisionError):
        trainer.fit(lambda model: 1 / 0)
    assert not trainer.model.training
    trainer.fit(lambda model: 0.5)
    assert trainer.model.training and len(trainer.history.evaluations) == 2 # epoch 1 is lost for scoring, not for training


def test_score_that_is_nan_is_never_the_best():
    trainer = make(patience=2)
    trainer.fit(lambda model: math.nan)
    assert trainer.epoch == 2 and trainer.best_weights is None


@pytest.mark.gpu
@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
def test_no_step_waits_for_the_gpu(device):
    class Strict(Callback):
        def before_epoch(self, trainer):
            torch.cuda.set_sync_debug_mode("error")

        def after_step(self, trainer):
            if trainer.position == 6:
                torch.cuda.set_sync_debug_mode("default")

        def after_fit(self, trainer):
            torch.cuda.set_sync_debug_mode("default")

    count = torch.tensor(5, device=device) if device else 5
    trainer = make([Strict()], model=normed().cuda(), loss=lambda model, batch: (loss(model, batch)[0], count))
    trainer.fit()
    assert [row["step"] for row in trainer.history.steps] == list(range(1, 19))


class Poison(Callback):
    "One gradient of each step is NaN, though the loss is finite."

    def after_backward(self, trainer):
        next(p for p in trainer.model.parameters() if p.requires_grad).grad.view(-1)[0] = math.nan


@pytest.mark.parametrize("callbacks, plus", [([], math.inf), ([Poison()], 0)])
def test_loss_and_gradient_are_both_looked_at(callbacks, plus):
    model = normed()
    before = copy.deepcopy(model.state_dict())
    trainer = make(callbacks, model=model, number=2, epochs=1, loss=lambda model, batch: (loss(model, batch)[0] + plus, 5))
    trainer.fit()
    assert trainer.skipped == 2 and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    row = trainer.history.steps[0]
    assert math.isfinite(row["loss"]) == (not plus) and math.isfinite(row["gradient_norm"]) == bool(plus)


def test_two_callbacks_of_a_class_keep_their_own_states():
    class Mean(Callback):
        def __init__(self, decay): self.decay, self.value = decay, 0.0
        def after_step(self, trainer): self.value += (1 - self.decay) * (trainer.step - self.value)
        def state_dict(self): return {"value": self.value}
        def load_state_dict(self, state): self.value = state["value"]

    def trainer(*callbacks):
        return Trainer(nn.Linear(2, 1), lambda model, batch: (model(batch).square().mean(), len(batch)), [torch.ones(3, 2)] * 5, Recipe(epochs=1), callbacks)

    class Mean1(Mean): "Its name is that of no other callback's state."

    first = [Mean(0.1), Mean(0.9), Mean1(0.5)]
    (run := trainer(*first)).fit()
    second = [Mean(0.1), Mean(0.9), Mean1(0.5)]
    trainer(*second).load_state_dict(run.state_dict())
    assert [mean.value for mean in second] == [mean.value for mean in first] and first[0].value != first[1].value
