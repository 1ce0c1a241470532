"""Planted gradient bugs: how many the laws catch, how often they cry wolf, and what they cannot see.

python benchmarks/planted_bugs.py            # the table
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.laws import Audit, Laws, invariances
from equipoise.laws.check import tolerance
from gpt2 import GPT2

Backward = Callable[..., tuple[Tensor | None, ...]]


def layer(backward: Backward) -> type[nn.Linear]:
    """A linear layer whose backward pass is written by hand: `(x, w, grad) -> (grad_x, grad_w, grad_b)`."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            return F.linear(x, weight, bias)

        @staticmethod
        def backward(ctx, grad):
            return backward(*ctx.saved_tensors, grad)

    class Layer(nn.Linear):
        def forward(self, x):
            return Function.apply(x, self.weight, self.bias)

    return Layer


def right(x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2), g.flatten(0, -2).sum(0)


def unary(name: str, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """An activation with a backward pass of its own."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return forward(x)

        @staticmethod
        def backward(ctx, grad):
            return backward(*ctx.saved_tensors, grad)

    class Activation(nn.Module):
        def forward(self, x):
            return Function.apply(x)

    Activation.__name__ = name
    return Activation()


def mlp(middle: type[nn.Linear] = nn.Linear, activation: nn.Module | None = None) -> nn.Module:
    """Five layers: two ReLU, then a linear tail; the middle one may have its own backward pass."""
    act = activation or nn.ReLU()
    return nn.Sequential(
        nn.Linear(6, 8), act, middle(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    )


class Attention(nn.Module):
    """Causal attention with hand-written scores, masked in forward and (if asked) not in backward."""

    def __init__(self, mask: Callable[[Tensor], Tensor], softmax: Callable[[Tensor], Tensor]):
        super().__init__()
        self.inward, self.outward = nn.Linear(6, 8), nn.Linear(8, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.mask, self.softmax = mask, softmax

    def forward(self, x):
        h = self.inward(x)
        weights = self.softmax(self.mask(self.q(h) @ self.k(h).mT / 8**0.5))
        return self.outward(h + self.o(weights @ self.v(h)))


def hidden(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool).triu(1)


def masked(scores: Tensor) -> Tensor:
    return scores.masked_fill(hidden(scores), -torch.inf)


def mask(x: Tensor) -> Tensor:
    """Every other unit."""
    return (torch.arange(x.shape[-1]) % 2).to(x)


def probabilities(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


def function(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]):
    module = unary("Own", forward, backward)
    return lambda x: module(x)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.d(torch.relu(self.b(h.detach()) + self.c(h)))


class Stopped(nn.Module):
    """A no_grad around part of the computation."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x)
        with torch.no_grad():
            skip = 0.5 * h
        return self.c(h + self.b(torch.relu(skip)))


class OwnNorm(nn.Module):
    """LayerNorm written out, its statistics cut from the graph."""

    def __init__(self, *, cut: bool):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.gain, self.cut = nn.Parameter(torch.rand(8) + 0.5), cut

    def forward(self, x):
        h = self.a(x)
        mean = h.mean(-1, keepdim=True)
        centred = h - (mean.detach() if self.cut else mean)
        normed = centred / centred.square().mean(-1, keepdim=True).add(1e-6).sqrt() * self.gain
        return self.c(torch.relu(self.b(normed)))


class Normed(nn.Module):
    """An embedding that is in no law but one that an eps breaks."""

    def __init__(self):
        super().__init__()
        self.e, self.n, self.f, self.o = nn.Embedding(9, 6), nn.RMSNorm(6, eps=1e-6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.o(torch.relu(self.f(self.n(self.e(x)))))


class Convolved(nn.Module):
    """Convolutions and BatchNorm."""

    def __init__(self):
        super().__init__()
        self.c, self.n, self.d = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2)
        self.o = nn.Linear(4, 3)

    def forward(self, x):
        return self.o(torch.relu(self.d(torch.relu(self.n(self.c(x))))).mean((2, 3)))


def rows(seed: int) -> Tensor:
    return torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(seed))


def images(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def vectors(seed: int) -> Tensor:
    return torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 32, (4, 16), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Bug:
    """A model with a wrong gradient, or a change made to right gradients; the parameter to blame, if there is one.

    Where an operation has no parameter, those on both sides of it are to blame, and one of them is to be named.
    """

    @property
    def blamed(self) -> tuple[str, ...]:
        """The parameters of which one is to be among the suspects."""
        return (self.suspect,) if isinstance(self.suspect, str) else self.suspect or ()

    name: str
    build: Callable[[], nn.Module]
    tamper: Callable[[dict[str, Tensor], nn.Module, Tensor], None] | None = None
    suspect: str | tuple[str, ...] | None = None
    visible: bool = True
    batch: Callable[[int], Tensor] = vectors


def _scaled(name: str, factor: float):
    def tamper(gradients, model, x):
        gradients[name].mul_(factor)

    return tamper


def _changed(name: str, change: Callable[[Tensor], Tensor]):
    def tamper(gradients, model, x):
        gradients[name].copy_(change(gradients[name]))

    return tamper


def _all(factor: float):
    def tamper(gradients, model, x):
        for gradient in gradients.values():
            gradient.mul_(factor)

    return tamper


def _noise(name: str, size: float):
    def tamper(gradients, model, x):
        noise = torch.randn(gradients[name].shape, generator=torch.Generator().manual_seed(0)).to(gradients[name])
        gradients[name].add_(size * gradients[name].norm() / noise.norm() * noise)

    return tamper


def wrong(**changes: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[nn.Linear]:
    """A hand-written linear layer in which some of `x`, `w`, `b`'s gradients are computed wrongly."""

    def backward(x, w, g):
        parts = dict(zip(("x", "w", "b"), right(x, w, g), strict=True))
        return tuple((changes[key](x, w, g) if key in changes else value) for key, value in parts.items())

    return layer(backward)


def _last_row(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    out = right(x, w, g)[1].clone()
    out[out.norm(dim=1).argmax()] = 0
    return out


MIDDLE = "2.weight"
BEFORE = ("0.weight", "0.bias", "2.weight")  # on both sides of the first activation
AROUND = ("0.weight", "0.bias", "2.weight", "2.bias")  # what reads and writes the input of the middle layer
SCORES = ("q.weight", "q.bias", "k.weight", "k.bias")
BUGS: tuple[Bug, ...] = (
    Bug("weight gradient off by 2", lambda: mlp(wrong(w=lambda x, w, g: 2 * right(x, w, g)[1])), suspect=MIDDLE),
    Bug("weight gradient off by 1%", lambda: mlp(wrong(w=lambda x, w, g: 1.01 * right(x, w, g)[1])), suspect=MIDDLE),
    Bug("weight gradient of the wrong sign", lambda: mlp(wrong(w=lambda x, w, g: -right(x, w, g)[1])), suspect=MIDDLE),
    Bug(
        "missing transpose in the weight gradient",
        lambda: mlp(wrong(w=lambda x, w, g: right(x, w, g)[1].T)),
        suspect=MIDDLE,
    ),
    Bug("missing transpose in the input gradient", lambda: mlp(wrong(x=lambda x, w, g: g @ w.T)), suspect=AROUND),
    Bug("input gradient off by 2", lambda: mlp(wrong(x=lambda x, w, g: 2 * g @ w)), suspect=AROUND),
    Bug("input gradient dropped", lambda: mlp(wrong(x=lambda x, w, g: torch.zeros_like(g @ w))), suspect=AROUND),
    Bug(
        "mean instead of sum in the weight gradient",
        lambda: mlp(wrong(w=lambda x, w, g: right(x, w, g)[1] / x[..., 0].numel())),
        suspect=MIDDLE,
    ),
    Bug(
        "first example only in the weight gradient", lambda: mlp(wrong(w=lambda x, w, g: g[0].T @ x[0])), suspect=MIDDLE
    ),
    Bug("bias gradient dropped", lambda: mlp(wrong(b=lambda x, w, g: torch.zeros_like(g[0, 0]))), suspect="2.bias"),
    Bug("bias gradient averaged", lambda: mlp(wrong(b=lambda x, w, g: g.flatten(0, -2).mean(0))), suspect="2.bias"),
    Bug("one output row forgotten", lambda: mlp(wrong(w=_last_row)), suspect=MIDDLE),
    Bug(
        "ReLU backward uses x > 0.1",
        lambda: mlp(activation=unary("R", F.relu, lambda x, g: g * (x > 0.1))),
        suspect=BEFORE,
    ),
    Bug("ReLU backward passes everything", lambda: mlp(activation=unary("R", F.relu, lambda x, g: g)), suspect=BEFORE),
    Bug(
        "leaky slope forgotten in backward",
        lambda: mlp(activation=unary("L", lambda x: F.leaky_relu(x, 0.2), lambda x, g: g * (x > 0))),
        suspect=BEFORE,
    ),
    Bug(
        "mask applied only forward",
        lambda: mlp(activation=unary("M", lambda x: F.relu(x) * mask(x), lambda x, g: g * (x > 0))),
        suspect=BEFORE,
    ),
    Bug(
        "softmax backward without its correction",
        lambda: Attention(masked, function(probabilities, lambda s, g: probabilities(s) * g)),
        suspect=SCORES,
    ),
    Bug(
        "softmax backward sums over the wrong axis",
        lambda: Attention(
            masked,
            function(probabilities, lambda s, g: probabilities(s) * (g - (g * probabilities(s)).sum(-2, keepdim=True))),
        ),
        suspect=SCORES,
    ),
    Bug("detached branch", Detached, suspect=("a.weight", "a.bias", "b.weight", "c.weight")),
    Bug("no_grad around a skip", Stopped, suspect=("a.weight", "a.bias", "b.weight", "c.weight")),
    Bug("detached mean in a LayerNorm", lambda: OwnNorm(cut=True), suspect=("a.weight", "a.bias")),
    Bug("one worker's gradient not reduced", mlp, _scaled(MIDDLE, 0.5), MIDDLE),
    Bug("gradient transposed in place", mlp, _changed(MIDDLE, lambda g: g.T.clone()), MIDDLE),
    Bug("rows of a sharded gradient swapped", mlp, _changed(MIDDLE, lambda g: g.roll(4, 0)), MIDDLE),
    Bug("gradient clipped for one layer only", mlp, _changed(MIDDLE, lambda g: g.clamp(-0.01, 0.01)), MIDDLE),
    Bug("1e-3 of noise in one gradient", mlp, _noise(MIDDLE, 1e-3), MIDDLE),
    Bug(
        "two layers' gradients exchanged",
        mlp,
        lambda g, m, x: (lambda a: (g["4.weight"].copy_(g["5.weight"]), g["5.weight"].copy_(a)))(g["4.weight"].clone()),
    ),
    Bug(
        "embedding gradient of another batch",
        Normed,
        _changed("e.weight", lambda g: g.roll(1, 0)),
        "e.weight",
        batch=rows,
    ),
    Bug("embedding gradient dropped", Normed, _changed("e.weight", torch.zeros_like), "e.weight", batch=rows),
    Bug(
        "convolution's gradient flipped",
        Convolved,
        _changed("c.weight", lambda g: g.flip(-1)),
        "c.weight",
        batch=images,
    ),
    Bug("gain of a BatchNorm off by 2", Convolved, _scaled("n.weight", 2.0), "n.weight", batch=images),
    Bug("all gradients off by 2", mlp, _all(2.0), visible=False),
    Bug("last bias off by 2 (in no law)", mlp, _scaled("6.bias", 2.0), visible=False),
    Bug("gradient of another loss", mlp, None, visible=False),
    Bug(
        "mask hides wrong positions in both passes",
        lambda: Attention(lambda s: s.masked_fill(hidden(s).mT, -torch.inf), probabilities),
        visible=False,
    ),
)


def audited(bug: Bug, dtype: torch.dtype = torch.float64, seed: int = 0, laws: Laws | None = None) -> Audit:
    """The audit of one buggy gradient; `laws`, if the model's are known already."""
    torch.manual_seed(seed)
    model, x = bug.build().to(dtype), bug.batch(seed)
    x = x.to(dtype) if x.is_floating_point() else x

    def backward(model: nn.Module) -> None:
        output = model(x)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
        ((output - target) ** 2).sum().backward()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if bug.tamper is not None:
            bug.tamper({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model, x)

    return (laws or laws_of(bug)).check_in_place(model, x, None, backward)


def laws_of(bug: Bug) -> Laws:
    """The laws of the function that a model computes forward."""
    return invariances(bug.build(), bug.batch(0), through_detach=True)


def sound() -> tuple[Bug, ...]:
    """Models without a bug, up to eight transformer blocks deep."""
    return (
        Bug("mlp", mlp),
        Bug("hand-written layer", lambda: mlp(layer(right))),
        Bug("hand-written ReLU", lambda: mlp(activation=unary("R", F.relu, lambda x, g: g * (x > 0)))),
        Bug("attention", lambda: Attention(masked, probabilities)),
        Bug("LayerNorm", lambda: OwnNorm(cut=False)),
        Bug("embedding and RMSNorm", Normed, batch=rows),
        Bug("convolutions and BatchNorm", Convolved, batch=images),
        Bug("eight blocks of GPT-2's kind", lambda: GPT2(64, 4, 8, 32, 16), batch=tokens),
    )


SEEDS = 20


def false_alarms(dtype: torch.dtype, laws: Mapping[str, Laws]) -> tuple[int, float]:
    """How many sound gradients raise one, and the largest residual in units of the alarm."""
    audits = [audited(bug, dtype, seed, laws[bug.name]) for bug in sound() for seed in range(SEEDS)]
    residuals = [f.residual / f.tolerance for audit in audits for f in audit.findings if f.exact]
    return sum(not audit.passed for audit in audits), max(residuals)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "off by 2": lambda g: 2 * g,
    "off by 1%": lambda g: 1.01 * g,
    "of the wrong sign": torch.neg,
    "dropped": torch.zeros_like,
    "with one row dropped": lambda g: torch.cat([torch.zeros_like(g[:1]), g[1:]]),
    "with rows exchanged": lambda g: g.roll(1, 0),
    "clamped": lambda g: g.clamp(-g.abs().mean(), g.abs().mean()),
    "with noise": lambda g: g + 1e-3 * g.norm() * torch.randn_like(g) / g.numel() ** 0.5,
}


def one_by_one(bug: Bug, laws: Laws) -> Iterator[tuple[str, str, bool, Audit]]:
    """Every parameter's gradient changed in every way: both, whether a law's own terms change by it, and the audit.

    A law sees a change if `‖P(Σ ΔG Wᵀ)‖` exceeds twice the alarm, over the scale of the law: without regard to the
    audit. A scale law sees no factor, and nothing sees a bias that no law holds.
    """
    for name, change in ((name, change) for name, _ in bug.build().named_parameters() for change in CHANGES):
        torch.manual_seed(0)
        model = bug.build().double()
        weights = {key: weight.detach() for key, weight in model.named_parameters()}
        seen: list[bool] = []

        def tamper(gradients, model, x, name=name, change=change, weights=weights, seen=seen):
            wrong = CHANGES[change](gradients[name])
            difference = {key: torch.zeros_like(g) for key, g in gradients.items()} | {name: wrong - gradients[name]}
            gradients[name].copy_(wrong)
            for law in (law for law in laws if name in law.parameters):
                share = law.identity(weights, difference).norm() / law.scale(weights, gradients)
                seen.append(bool(share > (2 * tolerance(torch.float64) if law.exact else 1e-2)))

        found = audited(replace(bug, tamper=tamper), laws=laws)
        yield name, change, any(seen), found


def campaign(known: Mapping[str, Laws]) -> None:
    """Of all single changes that some law can see, how many are caught, and the parameter named."""
    small = [bug for bug in sound() if "GPT" not in bug.name and "hand" not in bug.name]
    rows = [row for bug in small for row in one_by_one(bug, known[bug.name])]
    visible = [row for row in rows if row[2]]
    caught = [row for row in visible if not row[3].passed]
    named = [row for row in caught if row[0] in row[3].suspects]
    first = [row for row in named if row[3].suspects[0] == row[0]]
    listed = sum(len(row[3].suspects) for row in named) / max(len(named), 1)
    print(
        f"every parameter of {len(small)} models in {len(CHANGES)} ways: {len(rows)} changes, "
        f"{len(visible)} that a law can see; caught {len(caught)}, the parameter among the suspects {len(named)}, "
        f"the first of them {len(first)}; {listed:.1f} suspects on average"
    )


def main() -> None:
    known = {bug.name: laws_of(bug) for bug in (*sound(), *BUGS)}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        audits = {bug: audited(bug, dtype, laws=known[bug.name]) for bug in BUGS if bug.visible}
        caught = [bug for bug, found in audits.items() if not found.passed]
        named = [bug for bug in caught if set(bug.blamed) & set(audits[bug].suspects)]
        first = [bug for bug in named if audits[bug].suspects[0] in bug.blamed]
        alarms, worst = false_alarms(dtype, known)
        blamable = sum(bool(bug.blamed) for bug in caught)
        print(
            f"{dtype}: caught {len(caught)}/{len(audits)}, parameter among the suspects {len(named)}/{blamable}, "
            f"the first of them {len(first)}, false alarms {alarms}/{len(sound()) * SEEDS}, "
            f"largest sound residual {worst:.2g} of the alarm"
        )
        for bug in audits:
            if bug not in caught:
                print(f"   missed: {bug.name}")
            elif bug.blamed and bug not in named:
                print(f"   named {audits[bug].suspects} for: {bug.name}")
    campaign(known)
    print("errors that no law can see:")
    for bug in BUGS:
        if not bug.visible:
            print(f"   {bug.name}: {'not seen' if audited(bug, laws=known[bug.name]).passed else 'seen'}")


if __name__ == "__main__":
    main()
