"""More kinds of optimizers, models and calls: layer-wise rates, averages, shared weights, wrappers, compiled code."""

import copy
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

from equipoise.monitor.alarms import Excess
from loops.base import RECIPES, Loop, batch, loss_of, plain, recipe
from loops.models import Embedded, batch_normalised, convolutional, deep_linear, perceptron


class LARS(torch.optim.SGD):
    """Layer-wise rates, by changing the gradients before the step of SGD (You et al. 2017)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.1 * p.norm() / (p.grad.norm() + 1e-8))
        return super().step(closure)


class Lion(torch.optim.Optimizer):
    """Signs of a moving average (Chen et al. 2023)."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            p.sub_(1e-3 * mean.lerp(p.grad, 0.1).sign())
            mean.lerp_(p.grad, 0.01)


class Muon(torch.optim.Optimizer):
    """Orthogonalised steps of the matrices (Jordan et al. 2024)."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(0.01 * _orthogonal(p.grad))


def _orthogonal(gradient: Tensor) -> Tensor:
    if gradient.ndim < 2:
        return gradient
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    return left @ right


class Tied(nn.Module):
    """Input and output share a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(3, 8), nn.Linear(8, 3, bias=False)
        self.head.weight = self.table.weight
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.table((x[:, :3] > 0).long()).mean(1)).relu())


class Hyper(nn.Module):
    """Weights that a network makes, called functionally."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.seed = nn.Linear(4, 18), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(nn.Linear(6, 3, bias=False), {"weight": self.made(self.seed).view(3, 6)}, x)


class Shared(nn.Module):
    """One layer, called twice; parameters in lists and dicts; one that no call uses."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.layer = nn.Linear(6, 8), nn.Linear(8, 8)
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(8)) for _ in range(2)])
        self.parts = nn.ParameterDict(
            {"out": nn.Parameter(torch.randn(3, 8) / 3), "unused": nn.Parameter(torch.ones(2))}
        )
        self.empty, self.scalar = nn.Parameter(torch.empty(0)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        for gain in self.gains:
            x = self.layer(x * gain).relu()
        return F.linear(x, self.parts["out"]) * self.scalar


class Cycle(nn.Module):
    """Holds itself, and things that cannot be copied or pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()
        self.__dict__["parent"], self.weak = self, weakref.ref(self)
        self.stream, self.lines = open("/dev/null"), (line for line in "abc")  # noqa: SIM115

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Slotted(nn.Module):
    """`__getattr__`, `__setattr__` and `__call__` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("magic"):
            raise RuntimeError(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Own(torch.autograd.Function):
    """A right gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Own.apply(self.first(x)))


class Segments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint.checkpoint_sequential(self.inner, 2, x, use_reentrant=False)


class Experts(nn.Module):
    """Each example goes to one of two experts; an expert may get none, and no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList([perceptron(), perceptron()])

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).softmax(-1)
        out = torch.zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            mine = (chosen.argmax(-1) == number).nonzero()[:, 0]
            if len(mine):
                out = out.index_add(0, mine, expert(x[mine]) * chosen[mine, number, None])
        return out


Pair = namedtuple("Pair", ["logits", "aux"])


class Returns(nn.Module):
    """Results, and a loss, in a structure."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = perceptron(), wrap

    def forward(self, *, x: Tensor, y: Any = None, options: Any = None) -> Any:
        return self.wrap(self.inner(x))


def _returning(wrap: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> Loop:
    model = Returns(wrap)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(read(model(x=x, y=None, options={"deep": [1, "two", object()]})), y).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


def _by(make: Callable[[Any], Any]) -> Loop:
    model = perceptron()
    return plain(model, make(model.parameters()))


def _called(wrap: Callable[[nn.Module], Any], make: Callable[[], nn.Module] = perceptron) -> Loop:
    """The wrapper is called and watched."""
    model = make()
    called = wrap(model)
    loop = plain(model)
    optimizer = loop.optimizers

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, y = batch(number)
        F.cross_entropy(called(x), y).backward()
        optimizer.step()

    loop.step, loop.watched = step, called if isinstance(called, nn.Module) else model
    return loop


RECIPES |= {
    "optimizer: lars": lambda: _by(lambda p: LARS(p, lr=0.05)),
    "optimizer: lion": lambda: _by(Lion),
    "optimizer: muon": lambda: _by(Muon),
    "optimizer: adamw, decay": lambda: _by(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5)),
    "optimizer: sparse adam": lambda: (lambda m: plain(m, torch.optim.SparseAdam([m.table.weight], lr=0.01)))(
        Embedded(True)
    ),
    "optimizer: a rate that is a tensor": lambda: _by(lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01))),
    "optimizer: nadam, foreach": lambda: _by(lambda p: torch.optim.NAdam(p, lr=0.01, foreach=True)),
    "optimizer: no rate at all": lambda: _by(lambda p: torch.optim.SGD(p, lr=0.0)),
    "optimizer: names": lambda: (lambda m: plain(m, torch.optim.SGD(m.named_parameters(), lr=0.05)))(perceptron()),
    "model: tied": lambda: plain(Tied()),
    "model: hyper": lambda: plain(Hyper()),
    "model: shared": lambda: plain(Shared()),
    "model: cycle": lambda: plain(Cycle()),
    "model: slotted": lambda: plain(Slotted()),
    "model: own function": lambda: plain(OwnFunction()),
    "model: segments": lambda: plain(Segments()),
    "model: experts": lambda: plain(Experts()),
    "model: channels last": lambda: plain(convolutional().to(memory_format=torch.channels_last)),
    "model: one layer": lambda: plain(nn.Linear(6, 3)),
    "returns a named tuple": lambda: _returning(lambda out: Pair(out, None), lambda out: out.logits),
    "returns a dict": lambda: _returning(lambda out: {"logits": out, "n": 1}, lambda out: out["logits"]),
    "returns a generator": lambda: _returning(lambda out: iter([out]), next),
    "data parallel": lambda: _called(nn.DataParallel),
    "data parallel, normalised": lambda: _called(nn.DataParallel, batch_normalised),
    "compiled, aot": lambda: _called(lambda m: torch.compile(m, backend="aot_eager")),
    "compiled, inductor": lambda: _called(torch.compile),
    "compiled in place": lambda: (lambda loop: (loop.model.compile(backend="eager"), loop)[1])(plain(perceptron())),
    "traced": lambda: _called(lambda m: torch.jit.trace(m, batch(0)[0])),
    "called through a function": lambda: _called(lambda m: lambda x: m.forward(x)),
}


@recipe
def exponential_average() -> Loop:
    """An average of the weights, put in for each evaluation and taken out again."""
    model = perceptron()
    average = copy.deepcopy(model.state_dict())

    @torch.no_grad()
    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 0.1)
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict(average)
        model(batch(50)[0])
        model.load_state_dict(kept)

    return plain(model, after=after)


@recipe
def penalty_on_gradients() -> Loop:
    """A second backward pass through the first (Gulrajani et al. 2017)."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        x = batch(number)[0].requires_grad_()
        out = model(x).sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        (0.01 * out.square() + slope.square().sum()).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def divergence() -> Loop:
    """New weights that are thousands of times the old ones; no law is broken thereby."""
    model = deep_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step(number: int) -> None:
        optimizer.zero_grad()
        (batch(number)[0] @ model[0].weight.T @ model[1].weight.T @ model[2].weight.T).square().sum().backward()
        optimizer.step()

    return Loop(model, optimizer, step, {"alarms": [Excess()], "example_inputs": (batch(0)[0],)})


@recipe
def penalty_on_weights() -> Loop:
    """In the loss: no law holds, and that is said of each."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        (loss_of(model, number) + 0.1 * sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()

    return Loop(model, optimizer, step, alarmed=True)


@recipe
def distilled() -> Loop:
    """A teacher that no optimizer holds, in the same module."""
    model = nn.ModuleDict({"teacher": perceptron(), "student": perceptron()})
    optimizer = torch.optim.Adam(model["student"].parameters())

    def step(number: int) -> None:
        optimizer.zero_grad()
        x, _ = batch(number)
        with torch.no_grad():
            target = model["teacher"](x)
        F.mse_loss(model["student"](x), target).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def steps_skipped() -> Loop:
    """No gradient at first, and none now and then."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        if number % 2:
            loss_of(model, number).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def sizes_that_change() -> Loop:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, number, size=3 + number).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@recipe
def state_loaded_into_the_optimizer() -> Loop:
    loop = plain(perceptron())
    inner, optimizer = loop.step, loop.optimizers

    def step(number: int) -> None:
        inner(number)
        optimizer.load_state_dict(optimizer.state_dict())

    loop.step = step
    return loop


@recipe
def optimizer_made_anew() -> Loop:
    """The one that is watched steps no more."""
    model = perceptron()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for _ in range(2)]

    def step(number: int) -> None:
        model.zero_grad()
        loss_of(model, number).backward()
        optimizers[number > 2].step()

    return Loop(model, optimizers[0], step)


@recipe
def step_hooks_of_the_user() -> Loop:
    loop, seen = plain(perceptron()), []
    loop.optimizers.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(len(args)))
    loop.optimizers.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(len(kwargs)))
    loop.finish = lambda: seen
    return loop


@recipe
def hooks_on_gradients() -> Loop:
    """They scale every gradient alike, as some do for warm-up."""
    model = perceptron()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: 0.5 * gradient)
    return plain(model)


@recipe
def hooks_added_within() -> Loop:
    return plain(perceptron(), after=lambda m, o, n: m[0].register_forward_pre_hook(lambda module, args: None))


@recipe
def inference_in_between() -> Loop:
    def after(model: nn.Module, optimizer: Any, number: int) -> None:
        with torch.inference_mode():
            model.eval()(batch(9)[0])
        model.train()

    return plain(perceptron(), after=after)


@recipe
def anomaly_detection() -> Loop:
    return plain(perceptron(), around=lambda: torch.autograd.set_detect_anomaly(True))


@recipe
def deterministic_algorithms() -> Loop:
    loop = plain(batch_normalised())
    inner = loop.step

    def step(number: int) -> None:
        torch.use_deterministic_algorithms(True)
        inner(number)
        torch.use_deterministic_algorithms(False)

    loop.step = step
    return loop


@recipe
def default_dtype_double() -> Loop:
    loop = plain(perceptron())
    inner = loop.step

    def step(number: int) -> None:
        torch.set_default_dtype(torch.float64)
        inner(number)
        torch.set_default_dtype(torch.float32)

    loop.step = step
    return loop


@recipe
def nothing_of_gradients_outside() -> Loop:
    """The loop runs where gradients are off, and switches them on for the forward pass."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    @torch.no_grad()
    def step(number: int) -> None:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = loss_of(model, number)
        loss.backward()
        optimizer.step()

    return Loop(model, optimizer, step)
