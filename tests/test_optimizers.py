"Optimizers at their edges: dtypes, memory order, hostile states, and what the notebook has no room for."

import math
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from fmtut.optimizers import SGD, Adam, AdamW, Optimizer, Schedule, clip_gradients, cosine, find_learning_rate, gradient_norm, linear_warmup


def trained(make, grads, start=None, **settings):
    "A tensor after one step for each gradient; None is a missing one."
    theta = torch.ones_like(grads[-1]) if start is None else start.clone()
    optimizer = make([theta], **settings)
    for g in grads:
        theta.grad = g
        optimizer.step()
    return theta, optimizer


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.bfloat16, 0)])
def test_other_dtypes_equal_torch(dtype, atol):
    grads = [torch.randn(40, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(20)]
    ours, _ = trained(AdamW, grads, lr=0.01)
    theirs, _ = trained(torch.optim.AdamW, grads, lr=0.01, fused=True)
    assert_close(ours, theirs, rtol=0, atol=atol)


def test_clip_in_float64_and_in_mixed_dtypes():
    parameters = [torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.bfloat16), torch.ones(4)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    assert float(AdamW(parameters, lr=0.1).step(1.5)) == pytest.approx(3, rel=1e-3)
    assert_close(parameters[0].grad, torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-3, atol=0)
    assert_close(parameters[2].grad, torch.full((4,), 0.5), rtol=1e-3, atol=0)


def test_twenty_steps_with_a_zero_gradient_equal_torch():
    grads = [torch.tensor([0.0, 1.0, -3.0]) * (i + 1) for i in range(20)]
    for ours, theirs in (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD):
        assert_close(trained(ours, grads, lr=0.1)[0], trained(theirs, grads, lr=0.1)[0], rtol=0, atol=1e-6)
    assert trained(Adam, grads, lr=0.1)[0][0] == 1


def test_missing_gradients_leave_no_state():
    theta, optimizer = trained(AdamW, [None, None, torch.ones(2)])
    assert optimizer.state[theta]["step"] == 1
    unused = torch.ones(2)
    optimizer = AdamW([unused])
    assert optimizer.step() == 0 and optimizer.state == {} and torch.equal(unused, torch.ones(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [1.0, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, max_norm):
    sound, broken = torch.ones(3), torch.ones(2)
    sound.grad, broken.grad = torch.full((3,), 5.0), torch.tensor([1.0, bad])
    optimizer = AdamW([sound, broken], lr=0.1)
    assert not optimizer.step(max_norm).isfinite()
    assert torch.equal(sound, torch.ones(3)) and torch.equal(broken, torch.ones(2)) and torch.equal(sound.grad, torch.full((3,), 5.0))
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())
    broken.grad = torch.ones(2)
    optimizer.step(max_norm)
    assert all(state["step"] == 1 for state in optimizer.state.values())


@pytest.mark.parametrize("shape, order", [((3, 4), (1, 0)), ((2, 3, 4, 5), (0, 2, 3, 1))])
def test_order_of_memory_does_not_matter(shape, order):
    back = [order.index(axis) for axis in range(len(order))]
    grads = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    turned = [g.permute(order).contiguous().permute(back) for g in grads]
    assert turned[0].stride() != grads[0].stride() and torch.equal(turned[0], grads[0])
    assert torch.equal(trained(AdamW, turned)[0], trained(AdamW, grads, start=torch.ones(shape))[0])


def test_a_part_of_a_tensor_is_refused_by_the_fused_kernel_only():
    whole = torch.ones(4, 4)
    part = whole[:, :2]
    part.grad = torch.ones(4, 2)
    with pytest.raises(ValueError, match="part of a larger tensor"):
        AdamW([part]).step()
    assert torch.equal(whole, torch.ones(4, 4))
    Adam([part], lr=0.1).step()
    assert (whole[:, :2] < 1).all() and (whole[:, 2:] == 1).all()


@pytest.mark.parametrize("params, error, text", [
    (torch.ones(2), TypeError, "write"), ([], ValueError, "generator"), ([torch.ones(1, requires_grad=True) + 1], TypeError, "leaf"),
    ({torch.ones(1)}, TypeError, "no order"), ([{"params": torch.ones(2)}], TypeError, "write"), (["weight"], TypeError, "leaf"), ([("weight", torch.ones(1))], TypeError, "leaf")])
def test_bad_parameters_are_refused(params, error, text):
    with pytest.raises(error, match=text):
        Optimizer(params)


def test_a_parameter_in_two_groups_is_refused():
    p = torch.ones(1)
    with pytest.raises(ValueError, match="stepped twice"):
        SGD([{"params": [p]}, {"params": [torch.ones(1), p]}], lr=1)


@pytest.mark.parametrize("settings, name", [({"amsgrad": True}, "amsgrad"), ({"maximize": True}, "maximize")])
def test_settings_that_we_lack_are_refused(settings, name):
    _, theirs = trained(torch.optim.AdamW, [torch.ones(2)], **settings)
    ours = AdamW([torch.ones(2)])
    with pytest.raises(ValueError, match=name):
        ours.load_state_dict(theirs.state_dict())
    assert ours.state == {} and ours.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("settings", [{"nesterov": True, "momentum": 0.9}, {"dampening": 0.5, "momentum": 0.9}])
def test_other_kinds_of_momentum_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SGD([torch.ones(2)], lr=1).load_state_dict(trained(torch.optim.SGD, [torch.ones(2)], lr=0.1, **settings)[1].state_dict())


def test_a_state_of_other_shapes_is_refused_and_a_loaded_one_is_a_copy():
    theta, first = trained(AdamW, [torch.ones(2)])
    big = AdamW([torch.ones(1000, 2)])
    with pytest.raises(ValueError, match=r"shape \(2,\), its parameter \(1000, 2\)"):
        big.load_state_dict(first.state_dict())
    other = torch.ones(2)
    second = AdamW([other])
    second.load_state_dict(first.state_dict())
    other.grad = torch.ones(2)
    second.step()
    assert first.state[theta]["step"] == 1 and second.state[other]["step"] == 2
    assert not torch.equal(first.state[theta]["exp_avg"], second.state[other]["exp_avg"])


def test_a_loaded_state_takes_the_parameter_s_dtype_and_order():
    _, optimizer = trained(AdamW, [torch.randn(2, 3, 4, 5)])
    p = torch.ones(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    other = AdamW([p])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[p]["exp_avg"].dtype == torch.float64 and other.state[p]["exp_avg"].stride() == p.stride()
    assert other.state[p]["step"].dtype == torch.float32
    p.grad = torch.ones_like(p)
    other.step()


def test_a_state_survives_a_file(tmp_path):
    _, optimizer = trained(AdamW, [torch.ones(2)], lr=0.3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = AdamW([torch.ones(2)])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["lr"] == 0.3 and other.state_dict()["state"][0]["step"] == 1


def test_clip_gradients_equals_torch():
    for max_norm in (0.1, 1.0, 100.0):
        ours, theirs = ([torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))] for _ in range(2))
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        norm = gradient_norm(ours)
        assert_close(clip_gradients(iter(ours), max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm), rtol=1e-6, atol=0)
        assert norm == pytest.approx(float(torch.nn.utils.get_total_norm([p.grad / min(1, max_norm / float(norm)) for p in ours])), rel=1e-3)
        for p, q in zip(ours, theirs):
            assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_norm", [0.05, math.inf])
def test_a_sparse_gradient_gives_the_steps_of_a_dense_one(max_norm):
    "A table of 5,000 rows, three blocks; rows at their borders, used twice, once, never, in all blocks and in one only."
    torch.manual_seed(0)
    dense = torch.nn.ModuleList([torch.nn.Embedding(5000, 6), torch.nn.Linear(6, 3)])
    sparse = deepcopy(dense)
    sparse[0].sparse = True
    optimizers = [AdamW([{"params": net[0].parameters(), "weight_decay": 0.3}, {"params": net[1].parameters()}], lr=0.05) for net in (dense, sparse)]
    for ids in ([3, 3, 2047, 2048, 4095, 4096, 4999], [3000], [0, 3, 4999, 3000], [7, 7, 7]):
        norms = []
        for net, optimizer in zip((dense, sparse), optimizers):
            optimizer.zero_grad()
            net[1](net[0](torch.tensor(ids))).square().sum().backward()
            assert net[0].weight.grad.is_sparse == (net is sparse)
            norms.append(optimizer.step(max_norm))
        assert_close(*norms, rtol=1e-6, atol=0)
        assert_close(list(sparse.parameters()), list(dense.parameters()), rtol=0, atol=1e-6)
    assert_close([state["exp_avg_sq"] for state in optimizers[1].state.values()], [state["exp_avg_sq"] for state in optimizers[0].state.values()], rtol=1e-5, atol=1e-12)
    before = deepcopy(list(sparse.parameters()))
    sparse[0].weight.grad = sparse[0].weight.grad * math.nan
    assert not optimizers[1].step(max_norm).isfinite()
    assert_close(list(sparse.parameters()), before, rtol=0, atol=0)


def test_every_optimizer_takes_sparse_gradients():
    for kind in (SGD, Adam, AdamW):
        tables = [torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
        tables[0].grad = torch.sparse_coo_tensor([[2, 2]], [[1.0, 2.0], [3.0, 4.0]], (4, 2), check_invariants=True)
        tables[1].grad = tables[0].grad.to_dense()
        for p in tables:
            clip_gradients([p], 3.0)
            kind([p], lr=0.1).step()
        assert_close(*tables, rtol=0, atol=1e-7)


@pytest.mark.parametrize("max_norm", [math.nan, -1.0, -math.inf])
def test_a_clip_below_zero_is_refused_and_changes_nothing(max_norm):
    p = torch.ones(2)
    p.grad = torch.ones(2)
    optimizer = AdamW([p], lr=0.1)
    for work in (lambda: clip_gradients([p], max_norm), lambda: optimizer.step(max_norm)):
        with pytest.raises(ValueError, match="max_norm must be 0 or more"):
            work()
    assert torch.equal(p, torch.ones(2)) and torch.equal(p.grad, torch.ones(2)) and optimizer.state == {}


def test_a_clip_to_zero_leaves_decay_only():
    p = torch.ones(2)
    p.grad = torch.ones(2)
    assert AdamW([p], lr=0.1, weight_decay=0.5).step(0.0) == pytest.approx(2**0.5)
    assert_close(p, torch.full((2,), 0.95))
    p.grad = torch.ones(2)
    clip_gradients([p], 0.0)
    assert not p.grad.any()


@pytest.mark.parametrize("work", [gradient_norm, lambda p: clip_gradients(p, 1.0)])
def test_one_tensor_is_no_list_of_parameters(work):
    p = torch.ones(2, 3)
    p.grad = torch.full((2, 3), 9.0)
    with pytest.raises(TypeError, match=r"write \[tensor\]"):
        work(p)
    assert torch.equal(p.grad, torch.full((2, 3), 9.0)) and gradient_norm([p]) > 1


@pytest.mark.parametrize("lr", [-1.0, math.nan])
def test_a_rate_below_zero_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be 0 or more"):
        AdamW([torch.ones(2)], lr=lr)
    with pytest.raises(ValueError, match="lr must be 0 or more"):
        SGD([{"params": [torch.ones(2)]}, {"params": [torch.ones(2)], "lr": lr}], lr=0.1)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("ours", [SGD, Adam, AdamW])
@pytest.mark.parametrize("other", [SGD, Adam, AdamW, torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_only_a_state_of_the_same_kind_is_taken(ours, other, steps):
    theta = torch.ones(2)
    theta.grad = torch.ones(2)
    saved = other([theta], lr=0.1, **({"momentum": 0.9} if other.__name__ == "SGD" else {}))
    for _ in range(steps):
        saved.step()
    p = torch.ones(2)
    p.grad = torch.ones(2)
    optimizer = ours([p], lr=0.2)
    if ours.__name__ == other.__name__:
        optimizer.load_state_dict(saved.state_dict())
    else:
        with pytest.raises(ValueError, match=f"not that of {ours.__name__}"):
            optimizer.load_state_dict(saved.state_dict())
        assert optimizer.state == {} and optimizer.param_groups[0]["lr"] == 0.2
    optimizer.step()


def test_a_state_that_is_damaged_is_refused():
    theta, optimizer = trained(AdamW, [torch.ones(2)], lr=0.1)
    fresh = AdamW([torch.ones(2)])
    for key in ("exp_avg", "exp_avg_sq", "step"):
        state = deepcopy(optimizer.state_dict())
        del state["state"][0][key]
        with pytest.raises(ValueError, match="not complete"):
            fresh.load_state_dict(state)
    for name, value in ("betas", (1.0, 1.0)), ("betas", (0.9, math.nan)), ("lr", math.nan):
        state = deepcopy(optimizer.state_dict())
        state["param_groups"][0][name] = value
        with pytest.raises(ValueError, match="betas must lie in"):
            fresh.load_state_dict(state)
    assert fresh.state == {} and fresh.param_groups[0]["betas"] == (0.9, 0.999)


def test_an_older_state_and_an_empty_one_are_taken():
    for kind in (Adam, AdamW):
        theta, optimizer = trained(kind, [torch.ones(2)], lr=0.1)
        state = optimizer.state_dict()
        assert state["param_groups"][0].pop("decoupled_weight_decay") is (kind is AdamW)
        fresh = kind([torch.ones(2)])
        fresh.load_state_dict(state)
        assert fresh.param_groups[0]["lr"] == 0.1 and fresh.state_dict()["state"][0]["step"] == 1
        fresh.load_state_dict({**state, "state": {0: {}}})
        assert fresh.state == {}


def test_a_part_of_a_tensor_in_the_second_group_leaves_the_first_alone():
    first, part = torch.ones(2), torch.ones(4, 4)[:, :2]
    first.grad, part.grad = torch.ones(2), torch.ones(4, 2)
    optimizer = AdamW([{"params": [first]}, {"params": [part]}], lr=0.1)
    with pytest.raises(ValueError, match="part of a larger tensor"):
        optimizer.step()
    assert torch.equal(first, torch.ones(2)) and not optimizer.state[first]["step"]


@pytest.mark.parametrize("warmup", [-0.1, 1.01, 100, math.nan])
def test_warmup_is_a_share(warmup):
    for factor in (linear_warmup, cosine):
        with pytest.raises(ValueError, match="share of all steps"):
            factor(0, 1000, warmup)


def test_a_schedule_of_other_groups_is_refused():
    p, q = torch.ones(1), torch.ones(1)
    two = Schedule(SGD([{"params": [p]}, {"params": [q]}], lr=0.5), lambda step: 0.5)
    one = Schedule(SGD([p], lr=0.5), lambda step: 1.0)
    with pytest.raises(ValueError, match="1 groups, the optimizer 2"):
        two.load_state_dict(one.state_dict())
    assert two.count == 0 and two.highest == [0.5, 0.5]


def test_schedules_equal_torch_s():
    theirs = torch.optim.SGD([torch.ones(1)], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 80)
    for t in range(80):
        assert cosine(20 + t, 100, 0.2) == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        theirs.step()
        torchs.step()
    assert all(0 <= factor(t, 7, w) <= 1 for factor in (cosine, linear_warmup) for t in range(10) for w in (0, 0.1, 0.5, 1))
    assert cosine(7, 7, 0.1) == linear_warmup(7, 7, 0.1) == 0


def test_a_schedule_goes_on_where_it_was():
    def schedule():
        return Schedule(SGD([torch.ones(1)], lr=0.5), lambda step: 1 / (1 + step))
    first, second = schedule(), schedule()
    for _ in range(3):
        first.step()
    second.optimizer.load_state_dict(deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(first.state_dict())
    second.step()
    first.step()
    assert first.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("batches, settings, text", [
    ([], {}, "no batches"), (iter([1.0] * 3), {}, "generator"), ([1.0], {"count": 1}, "1 rates are too few"), ([math.nan], {}, "0 rates are too few")])
def test_a_range_test_without_an_answer_says_why(batches, settings, text):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=text):
        find_learning_rate(model, lambda model, batch: (model(torch.ones(1)) * batch).square().sum(), batches, **settings)


def test_a_range_test_finds_the_decade():
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 1)
    X = torch.randn(64, 10)
    y = X @ torch.arange(10.0)[:, None]
    found = find_learning_rate(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), [(X, y)], low=1e-5, high=10)
    assert 0.03 < found.suggestion <= 10 and len(found.rates) == len(found.losses)


def regression(rows=64):
    "A linear model, its loss, and one batch."
    torch.manual_seed(0)
    model, X = torch.nn.Linear(10, 1), torch.randn(rows, 10)
    return model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), (X, X @ torch.arange(10.0)[:, None])


class NanBackward(torch.autograd.Function):
    "Forward the same, backward NaN."

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * math.nan


def test_a_range_test_where_nothing_falls_is_refused():
    model, loss, batch = regression()
    with pytest.raises(ValueError, match="faster than it wavers"):
        find_learning_rate(model, lambda model, batch: 0 * loss(model, batch) + 2, [batch])
    with pytest.raises(ValueError, match="too few"):
        find_learning_rate(model, lambda model, batch: NanBackward.apply(loss(model, batch)), [batch])
    noise = torch.Generator().manual_seed(1)
    noisy = [(torch.randn(4, 10, generator=noise), torch.randn(4, 1, generator=noise)) for _ in range(100)]
    with torch.no_grad():
        model.weight.zero_() # the best there is
        model.bias.zero_()
    with pytest.raises(ValueError, match="faster than it wavers"):
        find_learning_rate(model, loss, noisy, high=0.01)


def test_a_range_test_leaves_model_and_random_state_alone():
    model, loss, batch = regression()
    model = torch.nn.Sequential(torch.nn.Dropout(0.1), model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), 32, shuffle=True)
    before, weights = torch.get_rng_state(), deepcopy(model.state_dict())
    find_learning_rate(model, loss, loader, high=10.0)
    assert torch.equal(before, torch.get_rng_state())
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_range_test_begins_the_batches_again():
    model, loss, (X, y) = regression()
    seen = []

    def noted(model, batch):
        seen.append(batch)
        return loss(model, ((X, y)))
    find_learning_rate(model, noted, ["a", "b", "c"], count=40, high=0.5)
    assert seen == [*"abc"] * 13 + ["a"]


@pytest.mark.gpu
def test_on_a_gpu_a_state_from_the_cpu_goes_on_without_waiting():
    _, optimizer = trained(AdamW, [torch.ones(8)])
    p = torch.ones(8, device="cuda")
    other = AdamW([p])
    other.load_state_dict(optimizer.state_dict())
    p.grad = torch.full_like(p, 9.0)
    other.step(1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        other.step(1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert other.state[p]["step"].item() == 3
