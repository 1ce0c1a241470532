"""What is stated rather than read: interfaces by hand, and operators that act like something known."""

import ctypes
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import CaptureError, InputError
from equipoise.laws import Between, Blocks, ComplexPlanes, Diagonal, Full, Intersection, Product, Scalar

# Interfaces


def interleaved(x: Tensor, partial: int) -> Tensor:
    """Rotary embedding of neighbouring coordinates; the last `partial` stay."""
    planes, kept = x[..., : x.shape[-1] - partial].unflatten(-1, (-1, 2)), x[..., x.shape[-1] - partial :]
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), 1.0 / torch.arange(1, planes.shape[-2] + 1))
    a, b = planes.unbind(-1)
    turned = torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)
    return torch.cat([turned.flatten(-2), kept], -1)


class Rotated(nn.Module):
    def __init__(self, width, partial):
        super().__init__()
        self.q, self.k, self.partial = nn.Linear(3, width, bias=False), nn.Linear(3, width, bias=False), partial

    def forward(self, x):
        q, k = (interleaved(layer(x), self.partial) for layer in (self.q, self.k))
        return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ x


def stated(model, x, commutant, producers=("q.weight",), consumers=(("k.weight", 0),)):
    return eq.invariances(model, x, interfaces=[Between(producers, consumers, commutant)])


@pytest.mark.parametrize(
    ("commutant", "partial"), [(ComplexPlanes(3), 0), (Product((ComplexPlanes(2), Full(2))), 2), (Diagonal(3), 0)]
)
def test_rotations_commute_with_complex_numbers(commutant, partial):
    torch.manual_seed(0)
    model, x = Rotated(6, partial).double(), torch.randn(2, 5, 3).double()
    assert stated(model, x, commutant).check(model, x).passed


@pytest.mark.parametrize("commutant", [Full(6), Diagonal(6), Blocks(3, 2), Product((ComplexPlanes(1), Full(4)))])
def test_nothing_more_commutes_with_rotations(commutant):
    torch.manual_seed(0)
    model, x = Rotated(6, 0).double(), torch.randn(2, 5, 3).double()
    assert not stated(model, x, commutant).check(model, x).passed


def test_stated_laws_are_the_derived_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3).double()
    derived = eq.invariances(model, x)
    by_hand = stated(model, x, Diagonal(4), ("0.weight", "0.bias"), ("2.weight",))
    assert [law.name for law in by_hand] == [law.name for law in derived]
    assert torch.equal(by_hand[0].value(model), derived[0].value(model))
    assert by_hand[0].statement == derived[0].statement


@pytest.mark.parametrize("commutant", [Scalar(), Intersection((Blocks(2, 2), Diagonal(4)))])
def test_less_than_the_commutant_holds_too(commutant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    laws = stated(model, torch.ones(2, 3), commutant, ("0.weight", "0.bias"), ("2.weight",))
    assert laws.check(model, torch.randn(5, 3)).passed
    assert len(laws.explain().splitlines()) > 2


# Operators


@torch.library.custom_op("equipoise_tests::affine", mutates_args=())
def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


@affine.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    return grad @ weight, ctx.factor * grad.T @ x, grad.sum(0)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.factor = FACTOR["of the weight's gradient"]


affine.register_autograd(_backward, setup_context=_setup)
FACTOR = {"of the weight's gradient": 1.0}


class Readable(torch.autograd.Function):
    """A forward that export can follow; a backward of its own."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.factor = FACTOR["of the weight's gradient"]
        return F.linear(x, weight, bias)

    backward = staticmethod(_backward)


class Opaque(Readable):
    """A forward by raw memory, as of a kernel in another language."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        source = Readable.forward(ctx, x, weight, bias)
        out = torch.empty_like(source)
        ctypes.memmove(out.data_ptr(), source.data_ptr(), out.numel() * out.element_size())
        return out


class Layer(nn.Linear):
    def __init__(self, call, *sizes):
        super().__init__(*sizes)
        self.call = call

    def forward(self, x):
        return self.call(x, self.weight, self.bias)


def network(call):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Layer(call, 4, 4), nn.ReLU(), nn.Linear(4, 2)).double()


X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KINDS = {  # how a layer calls it, and what is declared
    "operator": (lambda *tensors: affine(*tensors), affine),
    "readable": (lambda *tensors: Readable.apply(*tensors), None),
    "opaque": (lambda *tensors: Opaque.apply(*tensors), Opaque),
}


def laws_of(kind):
    call, declared = KINDS[kind]
    if declared is None:
        return eq.invariances(network(call), X)
    with eq.acts_like(declared, F.linear):
        return eq.invariances(network(call), X)


@pytest.mark.parametrize("kind", KINDS)
def test_a_declared_operator_has_the_laws_of_its_reference(kind):
    plain = eq.invariances(network(F.linear), X)
    assert [(law.name, law.statement) for law in laws_of(kind)] == [(law.name, law.statement) for law in plain]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_its_own_backward_is_what_is_checked(kind, factor, monkeypatch):
    laws = laws_of(kind)
    monkeypatch.setitem(FACTOR, "of the weight's gradient", factor)
    found = laws.check(network(KINDS[kind][0]), X)
    assert found.passed is (factor == 1.0)
    assert found.suspects[:1] == (() if found.passed else ("2.weight",))


def test_undeclared_operators_are_listed_and_give_no_law():
    laws = eq.invariances(network(KINDS["operator"][0]), X)
    assert [missing.operation for missing in laws.coverage.unmatched] == ["equipoise_tests::affine"]
    assert not laws.coverage.complete
    assert "not read: equipoise_tests::affine at affine (touches" in str(laws.coverage)
    assert list(laws) == []
    with pytest.raises(CaptureError, match="data pointer"):
        eq.invariances(network(KINDS["opaque"][0]), X)


def test_a_declaration_ends_with_its_block_or_stays():
    with eq.acts_like(affine, F.linear):
        assert len(eq.invariances(network(KINDS["operator"][0]), X)) == 2
    assert len(eq.invariances(network(KINDS["operator"][0]), X)) == 0
    lasting = eq.acts_like(torch.ops.equipoise_tests.affine, F.linear)
    assert len(eq.invariances(network(KINDS["operator"][0]), X)) == 2
    lasting.__exit__()
    assert Opaque.apply is not F.linear


def test_only_operators_can_be_declared():
    with pytest.raises(InputError, match="a subclass of torch"):
        eq.acts_like(F.linear, F.linear)


def test_assert_laws_is_public(monkeypatch):
    assert eq.testing.assert_laws(network(F.linear), X).passed
    monkeypatch.setitem(FACTOR, "of the weight's gradient", 2.0)
    with eq.acts_like(affine, F.linear), pytest.raises(AssertionError, match=r"suspect the gradient of 2\.weight"):
        eq.testing.assert_laws(network(KINDS["operator"][0]), X)
