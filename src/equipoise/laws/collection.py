"""The laws of a model together, and what can be done with them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast, overload

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from equipoise.errors import EquipoiseError, InputError, one_line
from equipoise.graph.capture import Captured, Inputs, capture, placeholders
from equipoise.graph.coverage import Coverage
from equipoise.graph.evaluate import rectifiers
from equipoise.graph.precision import narrowest, result_dtype
from equipoise.laws import formatting
from equipoise.laws.check import (
    Audit,
    LossLike,
    OutputGradients,
    audit,
    gradient_rounding,
    objective,
    run_backward,
)
from equipoise.laws.custom_ops import functions_read_as_declared
from equipoise.laws.derive import DerivationOptions, derive
from equipoise.laws.evaluate import LawPlan
from equipoise.laws.law import Law, Parameters, gradients_of, named
from equipoise.laws.norm_eps import defects
from equipoise.laws.predict import Prediction, predict_drift
from equipoise.models import copied_model
from equipoise.modes import default_modes

SLACK = 100.0
"""How far a law that an `eps` breaks may be off, in units of what the `eps` is known to add in one process."""


@dataclass(frozen=True, eq=False)
class Laws(Sequence[Law]):
    """The laws of one network, and the proof that every use of every parameter was looked at.

    `dropped` maps the name of each law that training all parameters would have had to the frozen ones it involves.

    >>> from equipoise.laws import invariances
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1)).double()
    >>> laws = invariances(model, torch.ones(2, 3).double())
    >>> [(law.name, law.kind, law.count) for law in laws]
    [('0.weight → 2.weight', 'vertex', 4), ('2.weight → 3.weight', 'linear', 10)]
    >>> model(torch.ones(2, 3).double()).sum().backward()
    >>> all(residual < 1e-15 for residual in laws.residual(model).values())
    True
    """

    laws: tuple[Law, ...]
    coverage: Coverage
    captured: Captured | None = None
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: DerivationOptions = field(default_factory=DerivationOptions)

    @overload
    def __getitem__(self, index: int) -> Law: ...
    @overload
    def __getitem__(self, index: slice) -> "Laws": ...
    def __getitem__(self, index: int | slice) -> "Law | Laws":
        return replace(self, laws=self.laws[index]) if isinstance(index, slice) else self.laws[index]

    def __len__(self) -> int:
        return len(self.laws)

    def __str__(self) -> str:
        return "\n".join(f"{law.name}: {law.kind}, {law.count} conserved" for law in self.laws)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)

    @property
    def conserved(self) -> int:
        """Linearly independent conserved quantities of all laws together."""
        return sum(law.count for law in self.laws)

    def named(self, name: str) -> Law:
        """The law of that name; raises `InputError` naming the others."""
        for law in self.laws:
            if law.name == name:
                return law
        raise InputError(
            expected=f"the name of a law, among {', '.join(law.name for law in self.laws)}",
            found=repr(name),
            remedy="print the laws to see their names",
        )

    # Numbers --------------------------------------------------------------------------------------------------------

    @default_modes()
    def value(self, parameters: Parameters) -> dict[str, Tensor]:
        """Every conserved quantity, by the name of its law, of a module or of a mapping of names to tensors.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> {name: value.shape for name, value in invariances(model, torch.ones(4, 3)).value(model).items()}
        {'0.weight → 2.weight': torch.Size([2])}
        """
        weights = named(parameters)
        return self.plan.layout.tensors(self.plan(weights).values, weights)

    @default_modes(autocast=True)
    def residual(
        self,
        parameters: Parameters,
        gradients: Mapping[str, Tensor] | None = None,
        *,
        defects: Mapping[str, Tensor] | None = None,
        sketch: int | None = None,
        seed: int = 0,
    ) -> dict[str, Float[Tensor, ""]]:
        """The relative residual of T1 of every law: an exact check of the gradient.

        After `backward()` on a module, or from `gradients` by name. A parameter without a gradient counts as zero
        when others have one.

        Raises:
            InputError: if there are no gradients at all.

        `defects` are taken off first (see there). With `sketch=k` the moments of matrix-wise laws wider than `k` are
        seen through `k` seeded Gaussian probes: without bias in the square, at a fraction of the cost of the products
        (`benchmarks/laws_cost.py`).
        """
        slopes = gradients_of(parameters, self._aliases) if gradients is None else gradients
        weights = named(parameters)
        if sketch is not None and sketch < 1:
            raise InputError(
                expected="sketch=k, k probes, at least one", found=f"sketch={sketch}", remedy="pass sketch=8"
            )
        plan = self.plan if sketch is None else LawPlan(self.laws, sketch, seed)
        found = plan.residuals(weights, slopes, defects)
        known = zip(self.laws, found.tolist(), strict=True)
        return {law.name: _figure(residual, [weights[name] for name in law.parameters]) for law, residual in known}

    @default_modes(autocast=True)
    def defects(self, model: nn.Module, data: object, loss: LossLike = None) -> dict[str, Tensor]:
        """The bias that the `eps` of normalisations adds to each law that is not exact, unit by unit.

        `-2 eps ∂L/∂eps`, and for BatchNorm so `eps/(σ² + eps) · γ G_γ`: with this taken off, the residual is at
        rounding. `data` and `loss` as for `check`. Laws whose units cannot be matched with those of a normalisation are
        left out, and all of them where the model draws random numbers. Raises `InputError` for data of shapes other
        than those that the model was read with.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1)).double()
        >>> x, square = torch.randn(5, 3).double(), lambda output: output.square().mean()
        >>> laws = invariances(model, x)
        >>> square(model(x)).backward()
        >>> broken, defects = "scale of 0.weight", laws.defects(model, x, square)
        >>> float(laws.residual(model)[broken]) > 1e-9 > 1e-15 > float(laws.residual(model, defects=defects)[broken])
        True
        """
        return self._defects(model, *objective(data, loss))

    def _defects(self, model: nn.Module, inputs: object, function: Callable[[object], Tensor]) -> dict[str, Tensor]:
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        try:
            return defects(self.laws, self._graph, named(model), tensors, function)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                expected="data of the shapes that the model was read with",
                found=one_line(error),
                remedy="derive the laws with these inputs",
            ) from error

    @default_modes(autocast=True)
    def by_unit(self, parameters: Parameters, gradients: Mapping[str, Tensor] | None = None) -> pd.DataFrame:
        """One row for each head, neuron or group of every law: its number in the law, its count and its own residual.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> model(torch.ones(1, 3).double()).exp().sum().backward()
        >>> invariances(model, torch.ones(4, 3).double()).by_unit(model)[["law", "unit", "count"]]
                           law  unit  count
        0  0.weight → 2.weight     0      1
        1  0.weight → 2.weight     1      1
        """
        slopes = gradients_of(parameters, self._aliases) if gradients is None else gradients
        return formatting.by_unit(self.laws, named(parameters), slopes)

    @default_modes()
    def predict_drift(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Prediction]:
        """The change of every conserved quantity that the next `optimizer.step()` will make (T2.2).

        Exact for SGD with weight decay, from the gradients alone: `((1-ηλ)² - 1) C + η² (Σ_p G_p G_pᵀ - Σ_c G_cᵀ G_c)`,
        full batch or mini-batch, where all members of a law share `η` and `λ`. For any other optimizer, and for laws
        that are not exact, from stepping a copy, and labelled so.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        >>> laws, optimizer = invariances(model, torch.ones(4, 3).double()), torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(4, 3).double()).sum().backward()
        >>> before, predicted = laws[0].value(model), laws.predict_drift(model, optimizer)[laws[0].name]
        >>> optimizer.step()
        >>> predicted.exact, torch.allclose(laws[0].value(model) - before, predicted.change, atol=1e-15)
        (True, True)
        """
        return predict_drift(self.laws, model, optimizer, self._aliases)

    @default_modes(autocast=True)
    def audit(self, model: nn.Module, *, defects: Mapping[str, Tensor] | None = None) -> Audit:
        """Compare the residual of every law with rounding, after `backward()`; name the parameter to suspect.

        A law that an `eps` breaks can raise an alarm only where its defect is known. Rounding is that of the narrowest
        dtype between the members of a law (`law.precision`); where the weights have become wider since the model was
        read, that of the narrowest dtype that its code casts to.
        """
        return self._audit(model, defects or {})

    def _audit(
        self,
        model: nn.Module,
        defects: Mapping[str, Tensor],
        slack: float = 0.0,
        rounding: Mapping[str, Tensor] | None = None,
    ) -> Audit:
        weights, slopes = named(model), gradients_of(model, self._aliases)
        trained = {self._aliases.get(name, name) for name, weight in model.named_parameters() if weight.requires_grad}
        found = audit(self.laws, weights, slopes, defects, self._casts_below(weights), slack, rounding)
        return replace(found, unseen=tuple(name for name in found.unseen if name in trained))

    def _casts_below(self, weights: Mapping[str, Tensor]) -> frozenset[torch.dtype]:
        """The dtypes that the code casts to, where casts that changed nothing when it was read may change something."""
        if self.captured is None or not self.captured.casts:
            return frozenset()
        own = self.captured.parameters
        read = narrowest(*(result_dtype(node) for node in placeholders(self.captured.graph) if node.name in own))
        now = narrowest(*(weight.dtype for weight in weights.values()))
        return frozenset() if narrowest(read, now) == now else self.captured.casts

    def _read_again(self, twin: nn.Module, inputs: Inputs) -> "Laws":
        """The same laws, read from a copy of the model in another dtype, if its code may then compute in others."""
        if not self._casts_below(dict(twin.named_parameters())):
            return self
        try:
            with functions_read_as_declared():
                captured = capture(twin, inputs)
        except EquipoiseError:
            return self
        known = {law.name: law for law in derive(captured, self.options)[0]}
        return replace(self, laws=tuple(known.get(law.name, law) for law in self.laws), captured=captured)

    @default_modes(autocast=True)
    def check(
        self,
        model: nn.Module,
        data: object,
        loss: LossLike = None,
        *,
        backward: Callable[[nn.Module], object] | None = None,
    ) -> Audit:
        """One backward pass in float64 on a copy of the model, and its audit.

        `data` is the input, or `(input, target)` with a loss that takes both: `"cross_entropy"`, `"logistic"`,
        `"exponential"`, `"multiclass_exponential"` or a callable. Without a loss a fixed random combination of the
        outputs is differentiated. `backward(copy)` may instead fill `.grad` in its own way. Laws that an `eps` breaks
        are judged by what it adds to them; the audit names those of which that is not known, and parameters in no law.

        >>> from equipoise.laws import invariances
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> audit = invariances(model, torch.ones(4, 3)).check(model, torch.ones(4, 3))
        >>> audit.passed, audit.unseen
        (True, ('2.bias',))
        """
        named(model)
        twin = copied_model(model).double()
        twin.zero_grad()
        double = lambda leaf: leaf.detach().to(torch.float64, copy=True) if leaf.is_floating_point() else leaf  # noqa: E731
        data = pytree.tree_map_only(Tensor, double, data)
        laws = self._read_again(twin, cast(Inputs, objective(data, loss)[0]))
        return laws.check_in_place(twin, data, loss, backward)

    @default_modes(autocast=True)
    def check_in_place(
        self, model: nn.Module, data: object, loss: LossLike, backward: Callable[[nn.Module], object] | None
    ) -> Audit:
        """The same in the model's own dtype, filling its `.grad`.

        Of a `backward` of one's own, what an `eps` adds is known from the gradients that reach the outputs of the calls
        of this copy: up to a factor, where other processes take part. Laws may then be off by `SLACK` times that.
        """
        if backward is None:
            run_backward(model, data, loss)
            losses, slack = [objective(data, loss)], 0.0
        else:
            with OutputGradients(model) as seen:
                backward(model)
            losses, slack = list(seen.losses()), SLACK
        defects = self._total_defects(model, losses)
        found = self._audit(model, defects, slack)
        if found.passed or backward is not None:
            return found
        return self._audit(model, defects, slack, gradient_rounding(model, data, loss, self._aliases))

    def _total_defects(
        self, model: nn.Module, losses: Sequence[tuple[object, Callable[[object], Tensor]]]
    ) -> dict[str, Tensor]:
        """Those of a sum of losses; none where one of them cannot be computed, as for shapes other than those read."""
        total: dict[str, Tensor] = {}
        try:
            for inputs, function in losses:
                for name, defect in self._defects(model, inputs, function).items():
                    total[name] = total[name] + defect if name in total else defect
        except InputError:
            return {}
        return total

    @default_modes()
    def given(self, activity: Mapping[str, Tensor]) -> "Laws":
        """The laws of the piece that the training set stays on: co-active neurons may mix (T2, T2.1).

        `activity` maps the name of a ReLU's node (or of the node it reads) to its on/off state on the whole training
        set, of the node's shape but for the examples: (n, units), (n, tokens, units), (n, channels, height, width).
        Neurons with equal patterns at every position form a class; the law of each class is full.
        These laws hold as long as the patterns do.

        Raises:
            InputError: for a name that is no such node, and for a state of another shape.
        """
        captured = self._graph
        nodes = {node.name: node for node in captured.graph.nodes}
        patterns = {}
        for name, states in activity.items():
            if name not in nodes or states.shape[1:] != nodes[name].meta["val"].shape[1:] or not len(states):
                raise InputError(
                    expected=f"on/off states of all units of a node, such as {', '.join(kink_names(captured))}",
                    found=f"{name!r} of shape {tuple(states.shape)}",
                    remedy="use laws.activity(model, inputs)",
                )
            patterns |= {user: states.bool().cpu() for user in kink_names(captured) if _is_about(nodes[user], name)}
        laws, coverage = derive(captured, replace(self.options, patterns=patterns))
        false = {each.law for each in self.coverage.refuted}
        coverage = replace(coverage, refuted=self.coverage.refuted, untested=self.coverage.untested)
        return replace(self, laws=tuple(law for law in laws if law.name not in false), coverage=coverage)

    @default_modes()
    def activity(self, model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
        """The on/off state of every piecewise linear unit on these inputs, by the name of its node."""
        captured, states = self._graph, {}
        kinks = set(kink_names(captured))

        def record(node: fx.Node, args: tuple[object, ...]) -> object:
            if node.name in kinks:
                states[node.name] = torch.as_tensor(args[0]) > 0
            return NotImplemented

        with torch.no_grad():
            captured.run(dict(model.named_parameters()), *inputs, intercept=record)
        return states

    @default_modes()
    def completeness(self, *, seed: int = 0) -> object:
        """How many independent laws there can be, by T2.3, beside how many these are; for small models only."""
        from equipoise.laws.completeness import completeness

        return completeness(self._graph, self.laws, softmax=self.options.softmax, seed=seed)

    # Words ----------------------------------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """One row for each law: name, kind, count, exact, and the formula of what is conserved."""
        return formatting.table(self.laws)

    def explain(self) -> str:
        """Every law in words, with its formula and its source, and what was read of the model."""
        return "\n\n".join([*(law.explain() for law in self.laws), str(self.coverage)])

    def to_latex(self) -> str:
        """A LaTeX `tabular`."""
        return formatting.to_latex(self.laws)

    def to_json(self) -> str:
        """A JSON array, one object for each law."""
        return formatting.to_json(self.laws)

    @cached_property
    def plan(self) -> LawPlan:
        """These laws, to be evaluated over and over."""
        return LawPlan(self.laws)

    @property
    def _aliases(self) -> Mapping[str, str]:
        return self.captured.aliases if self.captured is not None else {}

    @property
    def _graph(self) -> Captured:
        if self.captured is None:
            raise InputError(
                expected="laws derived from a model",
                found="interfaces stated by hand",
                remedy="call invariances(model, example_inputs) without interfaces=",
            )
        return self.captured


def _figure(number: float, members: Sequence[Tensor]) -> Tensor:
    """A number on the device of the members, in their dtype, in float32 at least."""
    dtype = functools.reduce(torch.promote_types, (member.dtype for member in members), torch.float32)
    return torch.tensor(number, dtype=dtype, device=members[0].device)


def kink_names(captured: Captured) -> list[str]:
    """The nodes of a graph that act on each unit by itself, with one slope below zero and one above (ReLU, abs, …)."""
    return [node.name for node in rectifiers(captured)]


def _is_about(kink: fx.Node, name: str) -> bool:
    return kink.name == name or kink.all_input_nodes[0].name == name
