"""The laws of a model, tested as soon as they are derived: one backward pass in float64 at random weights.

A law holds at every point and for every loss of the outputs (T1), so one random point refutes a false one. The graph is
what is differentiated, not the model: a backward pass of the user's own may be what the laws are meant to check.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from equipoise.errors import one_line
from equipoise.graph.capture import Captured, copied, placeholders
from equipoise.graph.coverage import Refuted
from equipoise.graph.ops import operation_name, operator_of
from equipoise.graph.ops.operator import Eps
from equipoise.laws.derive import DerivationOptions
from equipoise.laws.evaluate import LawPlan
from equipoise.laws.law import Law

LIMIT = 1 << 25
"""Parameters up to which a model is tested without being asked for: in float64 they and their gradient take 0.5 GB."""

REFUTED = 1e-6
"""The residual above which a law is false: rounding stays below 1e-13 where nothing is ill-conditioned, and false laws
reach 1e-4 at a random point."""

FAINT = 1e-8
"""Share of the whole gradient below which that of a law's members is rounding, and refutes nothing."""

PERIOD = 65_521
"""Random numbers that are drawn for one weight, and repeated in larger ones: a prime, so that no two rows are alike."""

EXAMPLES = 16  # of a batch, where its size is free


def self_test(
    laws: Sequence[Law],
    captured: Captured,
    options: DerivationOptions,
    weights: Mapping[str, Tensor],
    *,
    insist: bool = False,
) -> tuple[tuple[Refuted, ...], str]:
    """The laws that one random point refutes; and why they were not tested, empty if they were.

    `weights` that are on the meta device, or not finite, are replaced by random ones, others moved at random. Laws that
    the `eps` of a normalisation breaks are tested with that `eps` at zero.
    """
    own = {name: weights[name] for name in captured.parameters.values()}
    size = sum(weight.numel() for weight in own.values())
    if size > LIMIT and not insist:
        return (), f"{size / 1e6:.0f} million parameters, more than {LIMIT / 1e6:.0f} (verify=True tests them too)"
    devices = {weight.device for weight in own.values() if weight.is_cuda}
    reason = ""
    with torch.random.fork_rng(devices):
        for as_given in (False, True):
            torch.manual_seed(0)
            try:
                point = _point(laws, captured, options, own, as_given=as_given)
                found = LawPlan(laws).residuals(*point)
            except Exception as error:  # a test that cannot run refutes nothing
                reason = one_line(error)
                continue
            if np.isfinite(found).all():
                pairs = zip(laws, found.tolist(), strict=True)
                loud = [(law, residual) for law, residual in pairs if residual > REFUTED and not _faint(law, point[1])]
                false = [(law, residual) for law, residual in loud if _testable(law, captured)]
                return tuple(Refuted(law.name, residual, _operations(law, captured)) for law, residual in false), ""
            reason = "the gradient at a random point is not finite"
    return (), reason


def _faint(law: Law, gradients: Mapping[str, Tensor]) -> bool:
    """Whether the gradient of all members of a law is rounding beside the largest of all, or beside the outputs."""
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    return max(norms[name] for name in law.parameters) <= FAINT * max(1.0, *norms.values())  # outputs have size 1


def _point(
    laws: Sequence[Law], captured: Captured, options: DerivationOptions, own: Mapping[str, Tensor], *, as_given: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights and the gradient there of a random function of the outputs."""
    weights = {name: _moved(weight) for name, weight in own.items()}
    members = list(dict.fromkeys(name for law in laws for name in law.parameters))
    for name in members:
        weights[name].requires_grad_()
    known: dict[str, Tensor] = {placeholder: weights[name] for placeholder, name in captured.parameters.items()}
    known |= {placeholder: _constant(value) for placeholder, value in captured.constants.items()}
    known |= _inputs(captured, as_given=as_given)
    broken = frozenset() if as_given else frozenset(place for law in laws for place, _ in law.interface.breaks)
    run = _InFloat64(captured.module, options, broken)
    outputs = run.run(*(known[node.name] for node in placeholders(captured.graph)))
    value = _combination(outputs, softmax=options.softmax)
    slopes = torch.autograd.grad(value, [weights[name] for name in members], allow_unused=True)
    gradients = {
        name: torch.zeros_like(weights[name]) if slope is None else slope.to_dense() if slope.is_sparse else slope
        for name, slope in zip(members, slopes, strict=True)
    }
    return {name: weight.detach() for name, weight in weights.items()}, gradients


def _moved(weight: Tensor) -> Tensor:
    """A point near a weight; where it has no value, one of the size that initialisations give."""
    given = None if weight.is_meta else weight.detach()
    size = 0.0 if given is None else float(torch.linalg.vector_norm(given, dtype=torch.float64))
    drawn = torch.empty(min(weight.numel(), PERIOD), dtype=torch.float64)
    if given is None or not math.isfinite(size):
        return _repeated(drawn.normal_().div_(max(1.0, math.prod(weight.shape[1:])) ** 0.5), weight.shape)
    reach = (0.3 * size / max(1, weight.numel()) ** 0.5 + 0.05) * 3**0.5  # a deviation times √3
    return _repeated(drawn.uniform_(-reach, reach), weight.shape).to(given.device).add_(given)


def _repeated(numbers: Tensor, shape: torch.Size) -> Tensor:
    """Numbers over and over, until a tensor of a shape is full."""
    size = shape.numel()
    return numbers.repeat(-(-size // max(1, len(numbers))))[:size].view(shape)


def _constant(value: Tensor) -> Tensor:
    if not value.is_meta:
        return value
    return (
        torch.rand(value.shape).to(value.dtype) if value.is_floating_point() else torch.zeros_like(value, device="cpu")
    )


def _inputs(captured: Captured, *, as_given: bool) -> dict[str, Tensor]:
    """The examples; those that say nothing, as zeros or ones do, are replaced by random numbers."""
    nodes = {node.name: node for node in placeholders(captured.graph)}
    found = {}
    for name, example in zip(captured.inputs, captured.examples, strict=True):
        example = _fitted(example.detach(), nodes[name].meta["val"], as_given=as_given)
        telling = as_given or (
            not example.is_meta and example.numel() > 1 and bool((example != example.flatten()[0]).any())
        )
        rows = None if telling else _rows(nodes[name])
        if example.is_floating_point():
            found[name] = (
                example.double() if telling else torch.randn(example.shape, dtype=torch.float64).to(_real(example))
            )
        elif rows and example.dtype is not torch.bool:
            found[name] = torch.randint(0, rows, example.shape).to(example.dtype).to(_real(example))
        else:
            found[name] = torch.ones_like(example, device=_real(example)) if example.is_meta else example
    return found


def _real(example: Tensor) -> torch.device:
    return torch.device("cpu") if example.is_meta else example.device


def _fitted(example: Tensor, like: Tensor, *, as_given: bool) -> Tensor:
    """An example with the batch that the graph was read with: a few where it is free, repeated where it is not."""
    if example.ndim == 0:
        return example
    size, free = len(example), not isinstance(like.shape[0], int)
    wanted = (size if as_given else min(size, EXAMPLES)) if free else int(like.shape[0])
    return example if wanted == size else example[torch.arange(wanted, device=example.device) % size]


def _rows(node: fx.Node) -> int | None:
    """How many rows the smallest table has that a tensor of positions chooses from."""
    sizes, queue = [], [node]
    while queue:
        source = queue.pop()
        for user in source.users:
            name = operation_name(user.target)
            if name == "embedding" and user.args[1] is source:
                sizes.append(int(user.args[0].meta["val"].shape[0]))  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            elif operator_of(user).moves:
                queue.append(user)
    return min(sizes, default=None)


def _combination(outputs: Any, *, softmax: bool) -> Tensor:
    """A scalar that depends on every output that has a gradient."""
    total: Any = 0.0
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            output = leaf.log_softmax(-1) if softmax and leaf.ndim else leaf
            finite = torch.where(torch.isfinite(output), output, 0.0)
            size = finite.detach().square().mean().sqrt() + 1e-30
            total = total + ((finite / size).tanh() * torch.randn(leaf.shape, dtype=torch.float64).to(leaf)).sum()
    return total


class _InFloat64(fx.Interpreter):
    """The graph with every number in float64, no `eps` where one breaks a law, and references for what is declared."""

    def __init__(self, module: fx.GraphModule, options: DerivationOptions, broken: Iterable[str]):
        super().__init__(module)
        self.options, self.broken = options, frozenset(broken)
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Remember which node it is."""
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In float64 throughout."""
        name = operation_name(target)
        if name == "detach" and self.options.through_detach:
            return args[0]
        args, kwargs = pytree.tree_map(_wide, (args, kwargs))
        eps = None if self.node is None else operator_of(self.node).eps
        if eps is not None and self.node is not None and self.node.name in self.broken:
            args = _without_eps(eps, args)
        compute: Callable[..., Any] = self.options.references.get(name, copied if name == "copy" else target)
        return pytree.tree_map(_wide, compute(*args, **kwargs))


def _wide(leaf: Any) -> Any:
    if isinstance(leaf, torch.dtype):
        return torch.float64 if leaf.is_floating_point else leaf
    narrow = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype is not torch.float64
    return leaf.double() if narrow else leaf


def _without_eps(eps: Eps, args: tuple[Any, ...]) -> tuple[Any, ...]:
    missing = max(0, eps.place - len(args))
    filled = (*args, *eps.defaults[len(eps.defaults) - missing :])
    return (*filled[: eps.place], 0.0, *filled[eps.place + 1 :])


def _testable(law: Law, captured: Captured) -> bool:
    """Whether every `eps` that breaks it can be taken away."""
    removable = {node.name for node in captured.graph.nodes if operator_of(node).eps is not None}
    return all(place in removable for place, _ in law.interface.breaks)


def _operations(law: Law, captured: Captured) -> tuple[str, ...]:
    """The operations between the members of a law, one of which is read wrongly."""
    nodes = list(captured.graph.nodes)
    of_name = {name: placeholder for placeholder, name in captured.parameters.items()}
    members = {of_name[name] for name in law.parameters}
    ends = {place for place, _ in law.interface.breaks}
    below: set[fx.Node] = set()
    for node in nodes:
        if node.name in members or any(source in below for source in node.all_input_nodes):
            below.add(node)
    above: set[fx.Node] = set()
    for node in reversed(nodes):
        reads = any(source.name in members for source in node.all_input_nodes)
        if reads or node.name in ends or any(user in above for user in node.users):
            above.add(node)
    between = [operation_name(node.target) for node in nodes if node in below & above and node.op == "call_function"]
    return tuple(dict.fromkeys(between))
