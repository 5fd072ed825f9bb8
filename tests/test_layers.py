"Chapter 14's layers beyond the lesson: optimizers of torch, odd ids, axes in front, aliases, float32."

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fmtut.autodiff import GradientError, gradcheck
from fmtut.layers import GELU, Embedding, Layer, LayerNorm, Linear, ReLU, Sequential, Softmax
from fmtut.losses import binary_cross_entropy_gradient, cross_entropy, cross_entropy_gradient


@pytest.fixture(autouse=True)
def float64():
    "64 bits in every test, the usual 32 afterwards."
    torch.manual_seed(14)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair():
    "A network of ours and torch's twin with the same weights."
    net = Sequential(Linear(6, 8), LayerNorm(8), GELU(), Linear(8, 5), ReLU(), Linear(5, 1))
    twin = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1))
    for theirs, ours in zip(twin.parameters(), net.parameters(), strict=True):
        theirs.data = ours.t().clone()
    return net, twin


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)])
def test_any_optimizer_steps_the_parameters(make):
    (net, twin), X, y = pair(), torch.randn(40, 6), torch.randint(2, (40,)).double()
    ours, theirs = make(net.parameters()), make(list(twin.parameters()))
    for _ in range(50):
        ours.zero_grad()
        net.backward(binary_cross_entropy_gradient(net(X)[:, 0], y)[:, None])
        ours.step()
        theirs.zero_grad()
        F.binary_cross_entropy_with_logits(twin(X)[:, 0], y).backward()
        theirs.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(p.t(), q.data, rtol=0, atol=1e-8)


def test_three_classes_equal_torch():
    net, X, y = Sequential(Linear(4, 7), ReLU(), Linear(7, 3)), torch.randn(30, 4), torch.randint(3, (30,))
    leaves = [p.clone().requires_grad_() for p in net.parameters()]
    for _ in range(60):
        logits = net(X)
        for p in net.parameters():
            p.grad = None
        net.backward(cross_entropy_gradient(logits, y))
        loss = F.cross_entropy((X @ leaves[0] + leaves[1]).relu() @ leaves[2] + leaves[3], y)
        assert_close(cross_entropy(logits, y), loss.detach(), rtol=0, atol=1e-10)
        for p, leaf, gradient in zip(net.parameters(), leaves, torch.autograd.grad(loss, leaves), strict=True):
            assert_close(p.grad, gradient, rtol=0, atol=1e-10)
            p -= 0.5 * p.grad
            leaf.data -= 0.5 * gradient


@pytest.mark.parametrize("ids", [torch.tensor([], dtype=torch.int64), torch.tensor(3), torch.tensor([[1, 1]], dtype=torch.int32),
                                 torch.full((50,), 2), torch.arange(24).reshape(2, 3, 4) % 5], ids=str)
def test_embedding_takes_ids_of_any_shape(ids):
    table = Embedding(5, 3)
    E = table.E.clone().requires_grad_()
    Y = F.embedding(ids, E)
    R = torch.randn(Y.shape)
    assert_close(table(ids), Y.detach())
    assert table.backward(R) is None
    assert_close(table.E.grad, torch.autograd.grad(Y, E, R)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids, text", [
    ([-1], "id -1"), ([0, 5], "id 5"), ([1.0], "float64"), ([True], "bool"), (torch.tensor([1], dtype=torch.uint8), "uint8")])
def test_embedding_refuses_what_is_no_id(ids, text):
    with pytest.raises(ValueError, match=text):
        Embedding(5, 3)(torch.as_tensor(ids))


@pytest.mark.parametrize("layer", [Linear(4, 3), ReLU(), GELU(), Softmax(), LayerNorm(4)], ids=lambda layer: type(layer).__name__)
def test_rows_do_not_depend_on_their_batch(layer):
    for p in layer.parameters():
        p.data = p.data.double()
    X = torch.randn(2, 3, 4)
    Y = layer(X)
    R = torch.randn(Y.shape)
    dX = layer.backward(R)
    for i in range(2):
        for j in range(3):
            assert_close(layer(X[i, j]), Y[i, j])
            assert_close(layer.backward(R[i, j]), dX[i, j])
    layer(X[:0])
    assert layer.backward(R[:0]).shape == (0, 3, 4)


def test_gradients_add_up_and_share_no_memory():
    layer, dY = LayerNorm(4), torch.ones(4)
    for times in 1, 2:
        layer(torch.randn(4))
        layer.backward(dY)
        assert layer.beta.grad.tolist() == [times] * 4
    layer.beta.grad.mul_(0)
    assert dY.tolist() == [1, 1, 1, 1]


def test_forward_twice_answers_for_the_last():
    layer, X = ReLU(), torch.tensor([-1.0, 1.0])
    layer(X)
    layer(-X)
    assert layer.backward(torch.ones(2)).tolist() == [1, 0]


def test_empty_row_of_layers_and_new_layer():
    net, X = Sequential(), torch.randn(2)
    assert net(X).equal(X) and net.backward(X).equal(X) and net.parameters() == []
    with pytest.raises(NotImplementedError):
        Layer()(X)
    with pytest.raises(NotImplementedError):
        Layer.vjp(net, X)


def test_float32_stays_float32():
    torch.set_default_dtype(torch.float32)
    net, _ = pair()
    X = torch.randn(3, 6)
    assert net(X).dtype == net.backward(torch.ones(3, 1)).dtype == net.parameters()[0].grad.dtype == torch.float32


def test_weights_start_like_torchs():
    layer = Linear(100, 2000)
    for p in layer.parameters():
        assert p.abs().max() <= 0.1 and abs(p.std() - 0.1 / 3**0.5) < 0.003


def test_a_net_of_all_layers_reads_sentences_of_ids():
    net = Sequential(Embedding(9, 4), Linear(4, 6), GELU(), LayerNorm(6), Linear(6, 5), ReLU(), Linear(5, 3), Softmax())
    ids, R = torch.randint(9, (2, 7)), torch.randn(2, 7, 3)
    E, W1, b1, gamma, beta, W2, b2, W3, b3 = leaves = [p.clone().requires_grad_() for p in net.parameters()]
    H = F.layer_norm(F.gelu(E[ids] @ W1 + b1), (6,), gamma, beta)
    Y = F.softmax(F.relu(H @ W2 + b2) @ W3 + b3, -1)
    assert_close(net(ids), Y.detach())
    assert net.backward(R) is None
    for p, gradient in zip(net.parameters(), torch.autograd.grad(Y, leaves, R), strict=True):
        assert_close(p.grad, gradient, rtol=0, atol=1e-12)


class Forgets(LayerNorm):
    "A LayerNorm whose backward lacks one of the ways by which an input acts."

    way = "mean"

    def vjp(self, dY, X_hat, s):
        g = dY * self.gamma
        missing = g.mean(-1, keepdim=True) if self.way == "mean" else X_hat * (g * X_hat).mean(-1, keepdim=True)
        return super().vjp(dY, X_hat, s) + missing / s


@pytest.mark.parametrize("way", ["mean", "spread"])
def test_differences_reject_a_backward_that_forgets_a_way(way):
    layer, X, R = Forgets(8), torch.randn(3, 8), torch.randn(3, 8)
    layer.way = way
    layer(X)
    with pytest.raises(GradientError):
        gradcheck(lambda X: (R * layer(X)).sum(), X, layer.backward(R))


def test_refused_gradient_does_not_use_up_the_forward():
    layer, X = ReLU(), torch.randn(3, 2)
    layer(X)
    with pytest.raises(ValueError, match="would broadcast"):
        layer.backward(torch.ones(3, 1))
    assert layer.backward(torch.ones(3, 2)).equal((X > 0).double())


def test_softmax_and_logarithm_give_the_joined_gradient():
    z, y, layer = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0]), Softmax()
    P, dP = layer(z), torch.zeros(6, 4)
    dP[range(6), y] = -1 / P[range(6), y] / 6
    assert_close(layer.backward(dP), cross_entropy_gradient(z, y))


def test_layer_norm_of_a_constant_row_is_finite():
    norm = LayerNorm(8)
    assert norm(torch.full((1, 8), 3.0)).eq(0).all() and norm.backward(torch.randn(1, 8)).isfinite().all()


def test_loss_of_the_wrong_shape_is_refused():
    net, _ = pair()
    logits = net(torch.randn(5, 6))
    with pytest.raises(ValueError, match="reshape"):
        binary_cross_entropy_gradient(logits, torch.ones(5))
    with pytest.raises(ValueError, match="reshape"):
        net.backward(torch.randn(5))


class Fails(Layer):
    "Fails on request, as a layer does that gets ids which are none."

    failing = False

    def compute(self, X):
        if self.failing:
            raise ValueError("as asked for")
        return X, ()

    def vjp(self, dY):
        return dY


def test_failed_forward_leaves_no_way_back():
    first, second = Linear(3, 2), Fails()
    net, X = Sequential(first, second), torch.randn(4, 3)
    net(X)
    second.failing = True
    with pytest.raises(ValueError, match="as asked for"):
        net(X)
    with pytest.raises(RuntimeError, match="no forward"):
        net.backward(torch.ones(4, 2))
    assert first.W.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameters", ["same", "float32"])
def test_layer_norm_of_16_bits_equals_torch(dtype, parameters):
    layer, X, R = LayerNorm(8), (300 * torch.randn(5, 8)).to(dtype), torch.randn(5, 8).to(dtype)
    kind = dtype if parameters == "same" else torch.float32
    layer.gamma, layer.beta = torch.randn(8).to(kind), torch.randn(8).to(kind)
    leaves = [t.double().requires_grad_() for t in (X, layer.gamma, layer.beta)]
    Y = F.layer_norm(leaves[0], (8,), *leaves[1:])
    ours = [layer(X), layer.backward(R), layer.gamma.grad, layer.beta.grad]
    theirs = [Y.detach(), *torch.autograd.grad(Y, leaves, R.double())]
    for mine, its, like in zip(ours, theirs, (X, X, layer.gamma, layer.beta), strict=True):
        assert mine.dtype == like.dtype
        assert (mine.double() - its).abs().max() <= 2 * torch.finfo(like.dtype).eps * its.abs().max()


def test_relu_passes_and_stops_blame_as_torch_does():
    X, R = torch.tensor([-1.0, 0.0, float("nan"), 2.0, -float("inf")]), torch.tensor([float("inf"), float("nan"), 3.0, 4.0, 5.0])
    leaf, layer = X.clone().requires_grad_(), ReLU()
    assert_close(layer(X), F.relu(X), equal_nan=True)
    assert_close(layer.backward(R), torch.autograd.grad(F.relu(leaf), leaf, R)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_of_16_bits_stays_in_16_bits(dtype):
    layer, X, R = Softmax(), torch.randn(5, 8).to(dtype), torch.randn(5, 8).to(dtype)
    leaf = X.double().requires_grad_()
    P = F.softmax(leaf, -1)
    for mine, its in zip((layer(X), layer.backward(R)), (P.detach(), *torch.autograd.grad(P, leaf, R.double())), strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - its).abs().max() <= 2 * torch.finfo(dtype).eps * its.abs().max()


def test_softmax_of_large_float32_logits_keeps_its_digits():
    z = (1e4 + torch.randn(4, 1000)).float()
    assert_close(Softmax()(z).double(), F.softmax(z.double(), -1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layer", [Softmax(), LayerNorm(4)], ids=lambda layer: type(layer).__name__)
def test_whole_numbers_give_floats(layer):
    X, R = torch.tensor([[1, 2, 3, 5]]), torch.tensor([[1, 0, 0, 2]])
    Y, dX = layer(X), layer.backward(R)
    assert Y.dtype == dX.dtype == torch.float64
    assert_close(Y, layer(X.double()), rtol=1e-5, atol=1e-6)
    assert_close(dX, layer.backward(R.double()), rtol=1e-5, atol=1e-6)
