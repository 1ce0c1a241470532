"""Optimizers of every kind: torch's, wrapped ones, and some that only look like one."""

from collections.abc import Callable
from typing import Any

import torch


class Lookalike:
    """Looks like an optimizer, and is none."""

    def __init__(self, parameters: Any, lr: float = 0.05):
        self.param_groups = [{"params": list(parameters), "lr": lr}]

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)


class Wrapper:
    """Passes on everything, as apex, deepspeed and accelerate do in one way or another."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)


class Hollow(torch.optim.Optimizer):
    """An `Optimizer` that never was initialised as one, as accelerate's."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()


class Lookahead(torch.optim.Optimizer):
    """Slow weights follow the fast ones (Zhang et al. 2019)."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 2):
        super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})
        self.optimizer, self.every, self.count = optimizer, every, 0
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for slow, fast in zip(self.slow, self.param_groups[0]["params"], strict=True):
                fast.copy_(slow.add_(0.5 * (fast - slow)))
        return loss


class ScheduleFree(torch.optim.Optimizer):
    """Gradients at an interpolation of iterate and average (Defazio et al. 2024)."""

    def __init__(self, parameters: Any, lr: float = 0.05, beta: float = 0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            share = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                x = self.state[p].setdefault("x", p.clone())
                z.sub_(group["lr"] * p.grad)
                x.lerp_(z, share)
                p.copy_(x.lerp(z, 1 - group["beta"]))
            group["k"] += 1


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation: the gradient of another point (Foret et al. 2021)."""

    def __init__(self, parameters: Any, lr: float = 0.05, rho: float = 0.05):
        super().__init__(parameters, {"rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self) -> None:
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.defaults["rho"] / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if "old" in self.state[p]:
                    p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        closure()
        self.first_step()
        closure()
        self.second_step()


def accelerated(parameters: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(torch.optim.SGD(list(parameters), lr=0.05))


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.05, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "lookalike": Lookalike,
    "wrapper": lambda p: Wrapper(torch.optim.SGD(p, lr=0.05)),
    "wrapped_twice": lambda p: Wrapper(Wrapper(torch.optim.Adam(p, lr=0.01))),
    "hollow": lambda p: Hollow(torch.optim.SGD(p, lr=0.05)),
    "lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.05)),
    "schedule_free": ScheduleFree,
    "accelerated": accelerated,
}
