"The scalar engine and the gradient check on inputs that teach nothing and happen anyway."

import math
import random

import numpy as np
import pytest
import torch

from fmtut.autodiff import GradientError, Value, draw_graph, gradcheck, graph_layout, likely_bug, numerical_gradient


def double(*numbers):
    "A float64 tensor."
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("expression, slope", [
    (lambda x: x + 1, 1), (lambda x: 1 + x, 1), (lambda x: x - 1, 1), (lambda x: 1 - x, -1), (lambda x: x * 3, 3), (lambda x: 3 * x, 3),
    (lambda x: x / 4, 0.25), (lambda x: 4 / x, -1), (lambda x: -x, -1), (lambda x: x**3, 12), (lambda x: x**-1, -0.25), (lambda x: x**0, 0),
    (lambda x: x**0.5, 0.5 / 2**0.5), (lambda x: x.exp(), math.exp(2)), (lambda x: x.log(), 0.5), (lambda x: x.tanh(), 1 - math.tanh(2) ** 2),
    (lambda x: x.relu(), 1), (lambda x: (-x).relu(), 0), (lambda x: x * x * x, 12), (lambda x: x / x, 0), (lambda x: x - x, 0),
    (lambda x: np.float64(3) * x, 3), (lambda x: x * torch.tensor(3.0), 3), (lambda x: sum([x, x]), 2),
])
def test_slopes(expression, slope):
    x = Value(2)
    result = expression(x)
    result.backward()
    assert isinstance(result, Value) and math.isclose(x.grad, slope, abs_tol=1e-12)


def test_edges_of_operations():
    x = Value(0)
    (x**0).backward()
    (x**1).backward()
    x.relu().backward()
    assert x.grad == 1
    for error, bad in [(ValueError, lambda: Value(-1).log()), (ValueError, lambda: Value(-8) ** (1 / 3)), (ZeroDivisionError, lambda: 1 / Value(0)),
                       (OverflowError, lambda: Value(1000).exp()), (TypeError, lambda: Value(2) ** Value(2)), (TypeError, lambda: Value(None)),
                       (ValueError, lambda: Value(float("nan")).log()), (TypeError, lambda: Value(1) + "3"), (TypeError, lambda: "3" * Value(1))]:
        with pytest.raises(error):
            bad()


def test_a_million_numbers_in_a_chain_are_made_and_dropped():
    x = y = Value(1)
    for _ in range(300_000):
        y = y + x
    y.backward()
    assert x.grad == 300_001
    del y


def test_two_losses_share_a_part_as_in_torch():
    x, t = Value(3), torch.tensor(3.0, requires_grad=True)
    shared, same = x * x, t * t
    for loss in shared * 2, shared.log(), same * 2, same.log():
        loss.backward(**({"retain_graph": True} if isinstance(loss, torch.Tensor) else {}))
    assert math.isclose(x.grad, t.grad.item(), rel_tol=1e-6)


def test_order_has_inputs_first_and_each_once():
    a, b = Value(1), Value(2)
    c = a * b
    result = (c + a) * (c - b) + c
    order = result.order()
    assert len(order) == len(set(order)) and order[-1] is result
    assert all(order.index(before) < order.index(node) for node in order for before in node.inputs)


@pytest.mark.parametrize("value", [Value(1), Value(1) + 1, (lambda x: x * x)(Value(3)), sum(Value(n) for n in range(20))])
def test_drawings_have_a_box_for_each_value(value):
    import matplotlib.pyplot as plt

    axes = draw_graph(value)
    boxes = [text for text in axes.texts if "grad" in text.get_text()]
    assert len(boxes) == len(value.order())
    column, row = graph_layout(value)
    assert len({(c, r) for (_, c), r in row.items()}) == len(row) and all(column[i] < column[n] for n in column for i in n.inputs)
    plt.close(axes.figure)


def random_graph(seed):
    "A graph of at most 20 values."
    rng = random.Random(seed)
    values = [Value(round(rng.uniform(-2, 2), 2), name) for name in "abc"]
    for _ in range(12):
        u, v = rng.choice(values), rng.choice(values)
        values.append(rng.choice([u + v, u * v, u - v, u.tanh(), u.tanh().exp()]))
    result = sum(values[-4:])
    result.backward()
    return result


def crossings(column, row):
    "Pairs of lines between two neighbouring columns that change their order."
    lines = {(c, row[before, c], row[before if c + 1 < column[node] else node, c + 1])
             for node in column for before in node.inputs for c in range(column[before], column[node])}
    return sum(c == d and (p - q) * (r - s) < 0 for c, p, r in lines for d, q, s in lines) // 2


def test_sorting_removes_crossings():
    a, b, c = (Value(n, name) for n, name in zip((1, 2, 3), "abc"))
    assert crossings(*graph_layout(b + a * (b * c) * a)) == 0 # 3 unsorted
    assert sum(crossings(*graph_layout(random_graph(seed))) for seed in range(40)) < 250 # 192; 303 unsorted


@pytest.mark.parametrize("seed", range(20))
def test_no_line_cuts_a_box_and_no_slope_touches_one(seed):
    import matplotlib.pyplot as plt
    from matplotlib.path import Path

    axes = draw_graph(random_graph(seed))
    renderer = axes.figure.canvas.get_renderer()
    axes.figure.canvas.draw()
    boxes = [text.get_bbox_patch().get_window_extent(renderer) for text in axes.texts if "grad" in text.get_text()]
    slopes = [text.get_window_extent(renderer) for text in axes.texts if "grad" not in text.get_text()]
    assert not [s for s in slopes for box in boxes if s.overlaps(box)]
    for line in axes.lines: # it ends inside the boxes of its own two values at most
        path = Path(axes.transData.transform(line.get_xydata()))
        cut = [box for box in boxes if path.intersects_bbox(box.padded(-2), filled=False)]
        assert len(cut) <= 2
        for box in cut:
            near = axes.transData.inverted().transform([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
            assert min(abs(line.get_xdata()[0] - near[0]), abs(line.get_xdata()[-1] - near[0])) < 0.5
    plt.close(axes.figure)


def test_f_may_return_a_number_keep_a_graph_or_change_its_input():
    x, weights = double(1, 2), double(3, 4).requires_grad_()
    assert torch.allclose(numerical_gradient(lambda x: float((x**2).sum()), x), 2 * x)
    assert torch.allclose(numerical_gradient(lambda x: (x * weights).sum(), x), weights)
    assert torch.allclose(numerical_gradient(lambda x: x.mul_(2).sum(), x), double(2, 2))
    assert x.tolist() == [1, 2]


def test_shapes_of_any_kind():
    assert gradcheck(lambda x: x**2, torch.tensor(3.0, dtype=torch.float64), torch.tensor(6.0)) < 1e-6
    matrix = torch.arange(6.0, dtype=torch.float64).view(2, 3).T
    assert gradcheck(lambda x: (x[0] ** 2).sum(), matrix, torch.cat([2 * matrix[:1], torch.zeros(2, 2, dtype=torch.float64)])) < 1e-6
    assert gradcheck(lambda x: (x**2).sum(), matrix.requires_grad_(), 2 * matrix) < 1e-6


def test_what_cannot_be_checked():
    for x, f, text in [(torch.ones(2), torch.sum, "float32"), (torch.ones(2, dtype=torch.int64), torch.sum, "int64"),
                       (double(), torch.sum, "no entries"), (double(-1.0), lambda x: x.log().sum(), "NaN")]:
        with pytest.raises(ValueError, match=text):
            gradcheck(f, x, torch.zeros(x.shape))


def test_what_rounding_hides_gets_no_slope():
    for x, f, text in [(torch.full((100, 1, 3), 1e3), lambda x: (x**2).sum(), "float32"), (double(1e11), lambda x: x.sin().sum(), "is x"),
                       (double(1.0), lambda x: x.float().sin().sum(), "f gives torch.float32"), (double(1.0), lambda x: x.bfloat16().sum(), "f gives")]:
        for look in numerical_gradient, lambda f, x: gradcheck(f, x, torch.zeros_like(x)):
            with pytest.raises(ValueError, match=text):
                look(f, x)
    for h in 1e-20, 1e-16, 0.0:
        with pytest.raises(ValueError, match="larger h"):
            gradcheck(lambda x: x.sin().sum(), double(1.0), double(0.0), h=h)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6, 1e9])
def test_a_right_gradient_passes_far_from_zero(size):
    x = size * double(0.3, 1.0, -1.7)
    assert gradcheck(lambda x: x.sin().sum(), x, x.cos()) < 1e-8


def test_a_constant_that_drowns_the_slope_is_named():
    x = double(1, 2)
    with pytest.raises(ValueError, match="leave constants out of f"):
        gradcheck(lambda x: x.sin().sum() + 1e5, x, x.cos())
    assert gradcheck(lambda x: 1e9 * x.sum(), x, torch.full_like(x, 1e9)) < 1e-6 # large with a slope as large


def test_a_missing_gradient_is_named():
    with pytest.raises(TypeError, match="has backward run"):
        gradcheck(torch.sum, double(1, 2), None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused(number):
    with pytest.raises(GradientError, match=r"entry \(1,\)"):
        gradcheck(lambda x: (x**2).sum(), double(1, 2), double(2, number))


def test_shapes_that_differ_are_refused():
    x = double(1, 2, 3)
    for claim, text in [(torch.ones(3, 1), "wrong shape"), (torch.full((4, 3), 0.25), "a sum is missing"), (torch.ones(2), "shape"), (torch.tensor(1.0), "shape")]:
        with pytest.raises(GradientError, match=text):
            gradcheck(torch.sum, x, claim.double())


def test_traces_of_bugs():
    right = double(1, -2, 3, 4).view(2, 2)
    assert likely_bug(right, right.sum(1, keepdim=True), 1e-6).startswith("a sum is missing")
    assert likely_bug(right.view(4), right, 1e-6) == "right numbers in a wrong shape"
    assert likely_bug(right + 1, right, 1e-6) == likely_bug(0 * right, right, 1e-6) == likely_bug(right, 0 * right, 1e-6) == ""
    assert likely_bug(double(3.0), double(2.0), 1e-6) == "" # one number is a multiple of any other
    assert likely_bug(double(1, 2, 3).view(1, 3), double(1, 2, 3), 1e-6) == "right numbers in a wrong shape"
    assert "1.000005 times" in likely_bug((1 + 5e-6) * right, right, 1e-6)
