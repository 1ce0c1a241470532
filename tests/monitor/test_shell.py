"""What `eq.watch` reads is what the model computes: the copy has the laws of the original, and leaves it alone."""

from functools import partial, wraps

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.laws import invariances
from equipoise.monitor.unwrap import shell
from helpers.sampling import sampled

X = torch.randn(6, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SCALES = torch.tensor([1.0, 2.0, 2.0, 5.0], dtype=torch.float64)


class Scaled(nn.Module):
    """Two linear layers with a diagonal map between them, whose values decide which law there is."""

    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.keep()

    def keep(self):
        """Put the values somewhere."""

    def scales(self):
        """The values."""
        return SCALES

    def forward(self, x):
        return self.upper(self.lower(x) * self.scales().to(x))


class Buffer(Scaled):
    def keep(self):
        self.register_buffer("kept", SCALES)

    def scales(self):
        return self.kept


class NonPersistent(Buffer):
    def keep(self):
        self.register_buffer("kept", SCALES, persistent=False)


class Attribute(Buffer):
    def keep(self):
        self.kept = SCALES.clone()


class Computed(Buffer):
    """A tensor with history, which `copy.deepcopy` refuses."""

    def keep(self):
        self.kept = 1.0 * SCALES.clone().requires_grad_()


class Array(Scaled):
    def keep(self):
        self.kept = SCALES.numpy().copy()

    def scales(self):
        return torch.from_numpy(self.kept)


class Number(Scaled):
    def keep(self):
        self.kept = [float(scale) for scale in SCALES]

    def scales(self):
        return torch.tensor(self.kept)


class Nested(Scaled):
    def keep(self):
        self.kept = {"of": [({"all": SCALES.clone()},)]}

    def scales(self):
        return self.kept["of"][0][0]["all"]


class Holder:
    def __init__(self, values):
        self.values = values

    def __deepcopy__(self, memo):
        raise RuntimeError("copied")


class Object(Scaled):
    def keep(self):
        self.kept = Holder(SCALES.clone())

    def scales(self):
        return self.kept.values


class Listed(Scaled):
    """A parameter that the model does not know."""

    def keep(self):
        self.kept = [nn.Parameter(SCALES.clone())]

    def scales(self):
        return self.kept[0]


class Replaced(Scaled):
    """A `forward` of its own, decorated, as trainers put it there."""

    def keep(self):
        inner = self.forward

        @wraps(inner)
        def forward(x):
            return inner(x)

        self.forward = forward


class Bound(Replaced):
    def keep(self):
        self.forward = partial(lambda inner, x: inner(x), self.forward)


class Hooked(Scaled):
    """The scales come in by a hook."""

    def keep(self):
        scales = SCALES.clone()
        self.lower.register_forward_hook(lambda module, args, output: output * scales)

    def forward(self, x):
        return self.upper(self.lower(x))


class Parent(Scaled):
    """A child that knows its parent."""

    def keep(self):
        object.__setattr__(self.lower, "parent", self)


KINDS = [Scaled, Buffer, NonPersistent, Attribute, Computed, Array, Number, Nested, Object, Listed]
KINDS += [Replaced, Bound, Hooked, Parent]


@pytest.mark.parametrize("kind", sampled(KINDS, [NonPersistent, Attribute, Array, Bound]))
def test_constants_keep_their_values(kind):
    model = kind().double()
    expected = [(law.name, law.kind, law.count) for law in invariances(model, X)]
    assert [(law.name, law.kind, law.count) for law in invariances(shell(model), X)] == expected
    assert [count for _, _, count in expected] == [2, 3]  # of the two scales alike a matrix; without scales: 10


class Rotary(nn.Module):
    """Attention with rotary embedding, from a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 4, bias=False) for _ in range(3))
        self.o = nn.Linear(4, 1, bias=False)
        self.register_buffer("frequency", torch.tensor([1.0, 0.1]), persistent=False)

    def turn(self, x):
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.frequency.to(x)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x):
        score = (self.turn(self.q(x)) @ self.turn(self.k(x)).mT).softmax(-1)
        return self.o(score @ self.v(x)).mean(1)


def test_rotary_embedding_raises_no_alarm():
    model = Rotary().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    assert [(law.name, law.count) for law in log.laws] == [(law.name, law.count) for law in invariances(model, X)]
    assert ("q.weight → k.weight", 2) in {(law.name, law.count) for law in log.laws}
    assert log.alarms == []


def test_hooks_that_look_keep_what_they_saw():
    model, seen = Scaled().double(), []
    model.lower.register_forward_hook(lambda module, args, output: seen.append(output))
    model.upper.register_forward_hook(lambda module, args, output: seen.append(float(output.sum())))
    assert [law.count for law in invariances(shell(model), X)] == [2, 3]
    assert seen == []


def test_nothing_of_the_model_runs_or_moves_when_it_is_copied():
    class Careful(Buffer):
        def __deepcopy__(self, memo):
            raise RuntimeError("copied")

    model = Careful().double()
    twin = shell(model)
    assert type(twin) is Careful
    twin.kept += 1
    assert torch.equal(model.kept, SCALES)
    assert twin.lower.weight.shape == (4, 8)
    assert not twin.lower.weight.any()


def test_tied_parameters_stay_tied():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model["c"].weight = nn.Parameter(model["a"].weight.data)
    twin = shell(model)
    assert twin["a"].weight is twin["b"].weight is twin["c"].weight
