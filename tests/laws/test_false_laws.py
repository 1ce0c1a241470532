"""Operations that drop, mix or tell apart coordinates: no law of theirs may be false, and those that hold are found."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.laws import invariances


class Net(nn.Module):
    """Parameters by name, and what is computed from them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.compute = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part)) if isinstance(part, tuple) else part)

    def forward(self, x):
        return self.compute(self, x)


def laws_and_residuals(model: nn.Module, x: Tensor):
    """At random weights, so that no law holds by the values of an initialisation."""
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    laws = invariances(model, x)
    output = model(x)
    (output.tanh() * torch.randn_like(output)).sum().backward()
    found = laws.residual(model) if len(laws) else {}
    for law, residual in zip(laws, found.values(), strict=True):
        assert float(residual) < (1e-12 if law.exact else 1e-3), f"{law.name} is false: {float(residual):.1e}"
    return {law.name: (law.kind, law.count) for law in laws}


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows)


def heads(equation: str, shape: tuple[int, ...], last: int) -> Net:
    forward = lambda s, x: s.o(torch.einsum(equation, s.a(x), s.w).flatten(2))  # noqa: E731
    return Net(forward, a=linear(6, 4), w=shape, o=linear(3, last))


def vectors(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("equation", "shape"), [("bih,hnd->bind", (6, 2, 3)), ("bih,ndh->bind", (2, 3, 6)), ("...h,hnd->...nd", (6, 2, 3))]
)
def test_einsum_with_a_weight_of_three_axes(equation, shape):
    found = laws_and_residuals(heads(equation, shape, 6), vectors(3, 4, 4))
    assert found == {"a.weight → w": ("linear", 21), "w → o.weight": ("linear", 21)}


@pytest.mark.parametrize("equation", ["bih,hnd->bind", "bhd,hnd->bnd", "bih,hnd->b", "bii,hno->bio"])
def test_one_weight_in_an_einsum_has_no_law(equation):
    size = {"b": 3, "i": 4, "h": 6, "n": 2, "d": 3, "o": 5}
    x, w = (tuple(size[axis] for axis in term) for term in equation.split("->")[0].split(","))
    assert laws_and_residuals(Net(lambda s, x: torch.einsum(equation, x, s.w), w=w), vectors(*x)) == {}


def test_einsum_of_three_operands_and_diagonals():
    three = Net(
        lambda s, x: s.o(torch.einsum("bi,oij,bj->bo", s.a(x), s.w, x)), a=linear(5, 4), w=(3, 5, 4), o=linear(2, 3)
    )
    assert laws_and_residuals(three, vectors(7, 4)) == {"a.weight → w": ("linear", 15), "w → o.weight": ("linear", 6)}
    diagonal = Net(lambda s, x: torch.einsum("bi,ii->bi", s.a(x), s.w), a=linear(5, 4), w=(5, 5))
    assert list(laws_and_residuals(diagonal, vectors(3, 4)).values()) == [("vertex", 5)]


def xlnet(s: Net, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("ibh,hnd->ibnd", s.f(x), w) for w in (s.q, s.k, s.v))
    scores = torch.softmax(torch.einsum("ibnd,jbnd->bnij", q, k), -1)
    return torch.einsum("ibnd,hnd->ibh", torch.einsum("bnij,jbnd->ibnd", scores, v), s.o)


def test_attention_written_with_einsum_has_a_law_for_each_head():
    model = Net(xlnet, f=linear(6, 4), **dict.fromkeys("qkvo", (6, 2, 3)))
    found = laws_and_residuals(model, vectors(3, 4, 4))
    assert found == {"f.weight → q + k + v": ("linear", 21), "q → k": ("blocks", 12), "v → o": ("blocks", 12)}


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_shift_of_a_grouped_convolution_stays_within_a_group(groups):
    model = Net(
        lambda s, x: s.f(s.n(s.dw(s.stem(x)).permute(0, 2, 3, 1))),
        stem=nn.Conv2d(3, 8, 1), dw=nn.Conv2d(8, 8, 3, groups=groups), n=nn.LayerNorm(8), f=linear(4, 8),
    )  # fmt: skip
    found = laws_and_residuals(model, vectors(2, 3, 5, 5))
    shift = {1: "shift of dw.weight + dw.bias"}.get(groups, "shift of dw.bias")
    assert shift in found
    assert sum(name.startswith("shift") for name in found) == 1


def test_what_a_group_norm_ignores_is_a_shift_of_all_places_at_once():
    model = Net(
        lambda s, x: s.o(F.relu(s.n(s.c(x)))),
        c=nn.Conv1d(4, 8, 3, groups=2),
        n=nn.GroupNorm(2, 8),
        o=nn.Conv1d(8, 2, 1),
    )
    assert laws_and_residuals(model, vectors(2, 4, 6))["shift of c.bias"] == ("shift", 2)


def test_grouped_transposed_and_unbatched_convolutions():
    up = Net(
        lambda s, x: s.o(F.relu(s.t(s.a(x)))),
        a=nn.Conv1d(4, 6, 1), t=nn.ConvTranspose1d(6, 4, 3, stride=2, groups=2), o=nn.Conv1d(4, 3, 1),
    )  # fmt: skip
    assert laws_and_residuals(up, vectors(2, 4, 5)) == {
        "a.weight → t.weight": ("blocks", 12),
        "t.weight → o.weight": ("vertex", 4),
    }
    one = Net(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Conv1d(4, 4, 1), b=nn.Conv1d(4, 3, 3, padding=1))
    assert laws_and_residuals(one, vectors(4, 4)) == {"a.weight → b.weight": ("vertex", 4)}


def shifted(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


MIXES = {
    "padded": lambda s, h: shifted(h),
    "padded at both ends": lambda s, h: F.pad(h, (0, 0, 2, 2)),
    "mixed with the token before": lambda s, h: shifted(h) * s.m + h * (1 - s.m),
    "the token before mixed in": lambda s, h: h * s.m + shifted(h) * (1 - s.m),
    "the larger of two": lambda s, h: torch.maximum(shifted(h), h),
    "pooled": lambda s, h: F.max_pool1d(F.pad(F.relu(h), (0, 0, 2, 2)).mT, 2).mT,
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_zeros_beside_a_layer_norm_do_not_free_its_scale(mix):
    model = Net(lambda s, x: s.f(mix(s, s.n(x))).tanh(), n=nn.LayerNorm(6), m=(6,), f=linear(3, 6))
    assert laws_and_residuals(model, vectors(2, 4, 6)) == {"n.weight → f.weight": ("vertex", 6)}


def overwritten(h: Tensor, how: str) -> Tensor:
    y = h.clone()
    places = torch.tensor([1, 2])
    if how == "slice":
        y[:, 1:, :3] = h[:, :-1, :3]
    elif how == "constant":
        y[:, 0] = 1.0
    elif how == "index_copy":
        y = h.index_copy(1, places, h[:, :2])
    elif how == "scatter":
        y = h.scatter(1, places.view(1, 2, 1).expand(2, 2, 6), h[:, :2])
    elif how == "index_put":
        y = h.index_put((torch.tensor([0, 1]), places), h[:, 0])
    else:
        y = torch.zeros_like(h).index_add(2, places, h[..., :2])
    return y


@pytest.mark.parametrize("how", ["slice", "constant", "index_copy", "scatter", "index_put", "index_add"])
def test_elements_written_in_place(how):
    laws_and_residuals(
        Net(lambda s, x: s.f(overwritten(s.n(x), how)).tanh(), n=nn.LayerNorm(6), f=linear(3, 6)), vectors(2, 4, 6)
    )


@pytest.mark.parametrize("drops", [{"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_autograd_does_not_return_the_gradient_of_some_embeddings(drops):
    tokens = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    model = Net(lambda s, i: s.o(F.relu(s.f(s.e(i)))), e=nn.Embedding(9, 6, **drops), f=linear(4, 6), o=linear(2, 4))
    assert laws_and_residuals(model, tokens) == {"f.weight → o.weight": ("vertex", 4)}
    assert next(iter(drops)) in str(invariances(model, tokens).coverage)


def test_sparse_gradients_are_those_of_the_function():
    model = Net(lambda s, i: s.o(s.e(i)), e=nn.Embedding(9, 6, sparse=True), o=linear(2, 6))
    assert laws_and_residuals(model, torch.arange(8).reshape(2, 4)) == {"e.weight → o.weight": ("linear", 21)}


def test_elements_gathered_from_places_of_their_own_do_not_mix():
    places = torch.randint(0, 4, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    model = Net(
        lambda s, x: s.b(s.a(x).gather(1, (x[:, :3, :1] > 0).long() + places)).tanh(), a=linear(6, 5), b=linear(3, 6)
    )
    assert laws_and_residuals(model, vectors(2, 5, 5)) == {"a.weight → b.weight": ("vertex", 6)}


def test_no_grad_cuts_off_what_it_computes():
    def forward(s, x):
        hidden = s.a(x)
        with torch.no_grad():
            skip = F.relu(hidden)
        return s.b(hidden + skip).tanh()

    model = Net(forward, a=linear(6, 4), b=linear(3, 6))
    assert laws_and_residuals(model, vectors(5, 4)) == {}
    assert [law.kind for law in invariances(model, vectors(5, 4), through_detach=True)] == ["vertex"]


def test_the_axis_of_an_order_statistic():
    model = Net(lambda s, x: s.b(s.a(x).kthvalue(1, -1)[0]).tanh(), a=linear(4, 4), b=linear(3, 4))
    assert laws_and_residuals(model, vectors(4, 4, 4)) == {"a.weight → b.weight": ("scalar", 1)}
