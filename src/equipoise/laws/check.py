"""An exact check of a gradient by the laws it must satisfy (T1), and the parameter to suspect if it fails.

What a check differentiates is a loss of the outputs, by name or callable, or a fixed combination of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from equipoise.errors import InputError, one_line
from equipoise.graph.precision import narrowest
from equipoise.laws.evaluate import LawPlan
from equipoise.laws.law import Law, gradients_of
from equipoise.losses import LOSSES, Loss, NamedLoss, adjustment_of
from equipoise.models import call_model, copied_model

ALARM = 16.0
"""An alarm is raised where the relative residual exceeds `ALARM` units of rounding (`torch.finfo(dtype).eps`).

The residual divides by products of norms, so that independent rounding errors average out: on sound models it stays
below a tenth of this in float64 and float32, and below a third in half precision (`benchmarks/planted_bugs.py`)."""

CANCELLED = 4.0
"""Where gradients are what is left of terms that cancel, the limit is that many times the rounding found in them
(`gradient_rounding`), and at most the root of the limit elsewhere: half of the digits have to be right."""

SMALL_UNIT = 1e-4  # of bfloat16, float16 and what is narrower


def tolerance(*dtypes: torch.dtype | None) -> float:
    """The relative residual above which a gradient computed in these dtypes is called wrong: that of the narrowest.

    They are the dtype of the gradient, `law.precision`, and that of autocast if it is on; None for no narrower
    one.

    >>> tolerance(torch.float64) < 1e-13 < tolerance(torch.float32) < 1e-4
    True
    >>> tolerance(torch.float64, None, torch.float32) == tolerance(torch.float32)
    True
    """
    narrow = narrowest(*dtypes)
    assert narrow is not None
    unit = float(torch.finfo(narrow).eps)
    return (1.5 if unit > SMALL_UNIT else ALARM) * unit


@dataclass(frozen=True)
class LawCheck:
    """One law and its residual; `exact` if it should be at rounding: nothing breaks the law, or its defect is known."""

    law: str
    residual: float
    tolerance: float
    exact: bool = True

    @property
    def passed(self) -> bool:
        """A law that an `eps` breaks raises no alarm; NaN always does."""
        return self.residual <= self.tolerance or (not self.exact and self.residual == self.residual)


@dataclass(frozen=True)
class Audit:
    """The residual of every law, and the parameters whose gradient to suspect first.

    `suspects` are the members of the failing laws (those in most of them, where several fail), the likeliest first.
    `unjudged` names the laws that an `eps` breaks by an amount that is not known, `unseen` the trained parameters that
    are in no law: of these nothing is said.
    """

    findings: tuple[LawCheck, ...]
    suspects: tuple[str, ...]
    unseen: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no law raised an alarm."""
        return all(finding.passed for finding in self.findings)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Laws that raise no alarm for any gradient."""
        return tuple(finding.law for finding in self.findings if not finding.exact)

    def __str__(self) -> str:
        failed = [finding for finding in self.findings if not finding.passed]
        judged = [finding for finding in self.findings if finding.exact]
        notes = [("not judged, for an eps breaks them", self.unjudged), ("in no law", self.unseen)]
        said = "".join(f"; {label}: {_listed(names, SHOWN)}" for label, names in notes if names)
        if not failed:
            worst = max((finding.residual for finding in judged), default=0.0)
            return f"{len(judged)} laws hold; largest residual {worst:.1e}{said}"
        lines = [f"  {f.law}: residual {f.residual:.1e}, expected below {f.tolerance:.1e}" for f in failed]
        first, *others = self.suspects
        then = f", then of {_listed(others, SHOWN)}" if others else ""
        head = f"{len(failed)} of {len(judged)} laws fail; suspect the gradient of {first}{then}{said}"
        return "\n".join([head, *lines])


SHOWN = 8  # names in one line


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def audit(
    laws: Sequence[Law],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    eps_bias: Mapping[str, Tensor] | None = None,
    casts: Iterable[torch.dtype] = (),
    slack: float = 0.0,
    rounding: Mapping[str, Tensor] | None = None,
) -> Audit:
    """Compare every law's residual with rounding, a known `eps_bias` taken off.

    Rounding is that of the narrowest among the gradients' dtypes, the law's own `precision` and `casts`; or what
    `gradient_rounding` has found in the gradients, where that is more. Where the bias is known of a part of the
    gradient only, a law may be off by `slack` times its own.

    >>> from torch import nn
    >>> from equipoise.laws import invariances
    >>> _ = torch.manual_seed(1)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    >>> weights = dict(model.named_parameters())
    >>> model(torch.randn(8, 3).double()).sum().backward()
    >>> gradients = {name: weight.grad for name, weight in weights.items()}
    >>> laws = invariances(model, torch.ones(2, 3).double())
    >>> audit(laws, weights, gradients).passed
    True
    >>> audit(laws, weights, gradients | {"2.weight": 2 * gradients["2.weight"]}).suspects
    ('2.weight',)
    """
    parameters = {name: weight.detach() for name, weight in parameters.items()}
    eps_bias, findings = eps_bias or {}, []
    for law, residual in zip(laws, LawPlan(laws).residuals(parameters, gradients, eps_bias).tolist(), strict=True):
        limit = tolerance(law.precision, *(gradients[name].dtype for name in law.parameters), *casts)
        bias = eps_bias.get(law.name)
        if slack and bias is not None and float(scale := law.scale(parameters, gradients)) > 0:
            limit = max(limit, slack * float(bias.norm() / scale))
        if rounding is not None and float(scale := law.scale(parameters, gradients)) > 0:
            found = CANCELLED * float(law.scale(parameters, rounding) / scale)
            limit = max(limit, min(found, limit**0.5))
        findings.append(LawCheck(law.name, residual, limit, law.exact or bias is not None))
    failed = [law for law, finding in zip(laws, findings, strict=True) if not finding.passed]
    judged = [law for law, finding in zip(laws, findings, strict=True) if finding.exact]
    members = {name for law in laws for name in law.parameters}
    unseen = tuple(name for name in gradients if name not in members)
    return Audit(tuple(findings), _suspects(judged, failed, parameters, gradients), unseen)


def _suspects(
    laws: Sequence[Law], failed: Sequence[Law], parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Parameters in most of the failing laws: those in fewest others first, then those whose terms resemble the defect.

    A gradient off by a factor makes the defect of every law proportional to its own term.
    """
    counts = Counter(name for law in failed for name in law.parameters)
    names = [name for name, count in counts.items() if count == max(counts.values())]
    rank = {name: (_incidence(name, laws, failed), _likeness(name, failed, parameters, gradients)) for name in names}
    return tuple(sorted(names, key=lambda name: [-round(figure, 6) for figure in rank[name]]))


def _incidence(name: str, laws: Sequence[Law], failed: Sequence[Law]) -> float:
    among = sum(name in law.parameters for law in failed)
    total = sum(name in law.parameters for law in laws)
    return among / len(failed) * among / max(total, 1)


def _likeness(
    name: str, failed: Sequence[Law], parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> float:
    """Squared cosine between the defects of the failing laws and one parameter's terms in them."""
    own, whole = [], []
    for law in failed:
        terms = law.contributions(parameters, gradients)
        whole.append(torch.stack([term for _, term in terms]).sum(0).reshape(-1).double())
        mine = [term for parameter, term in terms if parameter == name]
        own.append(torch.stack(mine).sum(0).reshape(-1).double() if mine else torch.zeros_like(whole[-1]))
    a, b = torch.cat(own), torch.cat(whole)
    scale = a.norm() * b.norm()
    return float((a @ b / scale) ** 2) if float(scale) > 0 else 0.0


# What is differentiated ---------------------------------------------------------------------------------------------

LossLike = str | Loss | Callable[..., Tensor] | None


def run_backward(model: nn.Module, data: object, loss: LossLike) -> None:
    """`loss(model(input)[, target]).backward()`; see `Laws.check`."""
    inputs, function = objective(data, loss)
    try:
        value = function(call_model(model, inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            expected="data that the model and the loss accept",
            found=one_line(error),
            remedy="pass the input, or (input, target) and a loss of both",
        ) from error
    value.backward()


def gradient_rounding(
    model: nn.Module, data: object, loss: LossLike, aliases: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Tensor]:
    """By parameter, how its gradient changes when every weight is off by a unit of rounding.

    That is a few units in most gradients, and far more where a gradient is what is left of terms that cancel, as behind
    a BatchNorm that sees two values a channel.

    >>> model = nn.Sequential(nn.Linear(3, 1), nn.Tanh()).double()
    >>> found = gradient_rounding(model, torch.rand(4, 3).double(), None)
    >>> 0 < float(found["0.weight"].norm()) < 1e-14
    True
    """
    found: list[dict[str, Tensor]] = []
    for units in (0.0, 1.0):
        twin = copied_model(model)
        twin.zero_grad()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for weight in (each for each in twin.parameters() if each.is_floating_point()):
                signs = torch.randint(2, weight.shape).to(weight) * 2 - 1
                weight.mul_(1 + units * torch.finfo(weight.dtype).eps * signs)
            with torch.enable_grad():
                run_backward(twin, data, loss)
        found.append(gradients_of(twin, aliases))
    return {name: found[1][name] - gradient for name, gradient in found[0].items()}


class OutputGradients:
    """A forward hook that records, of each call of a model, its inputs and the gradient that reaches its outputs.

    `⟨output, gradient⟩` then is a loss with the same backward pass, however it was computed.
    """

    def __init__(self, model: nn.Module):
        self.calls: list[tuple[object, list[Tensor | None]]] = []
        self.handle = model.register_forward_hook(self._record, with_kwargs=True)

    def __enter__(self) -> "OutputGradients":
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _record(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor)]
        found: list[Tensor | None] = [None] * len(leaves)
        for place, leaf in enumerate(leaves):
            if leaf.requires_grad:
                leaf.register_hook(partial(_keep, found, place))
        inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        self.calls.append((inputs, found))

    def losses(self) -> Iterator[tuple[object, Callable[[object], Tensor]]]:
        """The inputs of each call and a function of its outputs."""
        for inputs, found in self.calls:
            if any(gradient is not None for gradient in found):
                yield inputs, partial(_against, found)


def _keep(found: list[Tensor | None], place: int, gradient: Tensor) -> None:
    before = found[place]
    found[place] = gradient.detach() if before is None else before + gradient.detach()


def _against(found: Sequence[Tensor | None], output: object) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if len(leaves) != len(found):
        raise InputError(
            expected=f"{len(found)} outputs, as the model returns",
            found=str(len(leaves)),
            remedy="derive the laws with the inputs that the backward pass uses",
        )
    pairs = zip(leaves, found, strict=True)
    return torch.stack([(leaf * gradient.to(leaf)).sum() for leaf, gradient in pairs if gradient is not None]).sum()


def objective(data: object, loss: LossLike) -> tuple[object, Callable[[object], Tensor]]:
    """The inputs of the model, and what is differentiated as a function of its output."""
    paired = isinstance(data, (tuple, list)) and len(data) == 2 and loss is not None
    inputs, target = data if isinstance(data, (tuple, list)) and paired else (data, None)
    function = _function(loss)
    return inputs, lambda output: function(output, *(() if target is None else (target,)))


def _function(loss: LossLike) -> Callable[..., Tensor]:
    """The loss as a function of outputs and target; without one, a fixed combination of the outputs."""
    chosen = _named(loss)
    if isinstance(chosen, NamedLoss):
        return chosen.mean
    if isinstance(chosen, Loss) and not callable(chosen):
        raise InputError(
            expected=f"a loss among {', '.join(LOSSES)}",
            found=f"the {chosen.name} loss, of margins",
            remedy="or pass a callable of the outputs and the target",
        )
    return chosen or _random_combination


def _named(loss: LossLike) -> Loss | Callable[..., Tensor] | None:
    """The loss of that name; everything else as it is. Raises `InputError` for an unknown name."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise InputError(expected=f"a loss among {', '.join(LOSSES)}", found=repr(loss), remedy="or pass a callable")
    return LOSSES[loss]


def ignores_shift(loss: LossLike) -> bool:
    """Whether a loss takes the softmax of the outputs, so that a common shift of them changes nothing."""
    chosen = _named(loss)
    if (adjustment := adjustment_of(chosen)) is not None:
        return adjustment.ignores_shift
    if isinstance(chosen, Loss):
        return chosen.multiclass
    plain = isinstance(chosen, nn.CrossEntropyLoss) and chosen.label_smoothing == 0
    return chosen is F.cross_entropy or plain


def _random_combination(output: object) -> Tensor:
    """A linear combination of every element of every floating output, the same at each call.

    Nothing that saturates: outputs of any size leave gradients to judge.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
    generator = torch.Generator().manual_seed(0)
    for leaf in leaves:
        weights = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        total = total + (leaf * weights.to(leaf)).sum()
    return total


def _plain(output: object) -> object:
    return dict(output) if isinstance(output, Mapping) else output
