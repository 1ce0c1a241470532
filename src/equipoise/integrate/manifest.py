"""The manifest of a flow: its arguments in JSON; its network, data and problem read back from a folder."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from equipoise import observers
from equipoise.data import Dataset, Provenance, rebuild, validate
from equipoise.errors import EquipoiseError, InputError, StoreError, one_line
from equipoise.integrate.goals import Goal, parse_goal
from equipoise.integrate.problem import Problem, build_problem, trained_copy
from equipoise.integrate.steppers import STEPPERS, Stepper
from equipoise.losses import AdjustedCrossEntropy, Loss, adjustment_of, named_loss
from equipoise.networks import mlp
from equipoise.observers import Observer
from equipoise.store import Json, Store

KIND = "flow"  # of a run folder, in its manifest
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Origin:
    """The origin of a network: the recipe of `eq.networks.mlp`, the seed, and the command with all its options."""

    network: Mapping[str, object] | None = None
    seed: int | None = None
    command: str | None = None
    options: Mapping[str, object] | None = None


@dataclass(frozen=True)
class FlowArguments:
    """The arguments of a flow."""

    until: Goal
    save_at: tuple[Goal, ...]
    max_steps: int
    stepper: Stepper
    observers: tuple[Observer, ...]


def describe_flow(problem: Problem, asked: FlowArguments, origin: Origin) -> Json:
    """The manifest: all that a run is read and resumed from, except its weights, and models and data of one's own."""
    adjustment = adjustment_of(problem.loss)
    return {
        "kind": KIND,
        "network": None if origin.network is None else dict(origin.network),
        "layers": [{"weight": layer.weight, "bias": layer.bias, "kind": layer.kind} for layer in problem.chain or ()],
        "data": asdict(problem.data.provenance),
        "loss": problem.loss.name,
        "loss_adjustment": None if adjustment is None else dict(adjustment.description()),
        "seed": origin.seed,
        "options": None if origin.options is None else dict(origin.options),
        "arguments": {
            "until": asked.until.describe(),
            "save_at": [point.describe() for point in asked.save_at],
            "stepper": described(asked.stepper),
            "observers": [described(observer) for observer in asked.observers],
            "max_steps": asked.max_steps,
            "example_weights": None if problem.example_weights is None else problem.example_weights.tolist(),
            "dtype": str(problem.weights.dtype).removeprefix("torch."),
            "command": origin.command,
        },
    }


def arguments_from(asked: Json, observe: Sequence[Observer] | None) -> FlowArguments:
    """The arguments of a manifest. Raises `InputError` for observers or steppers that it cannot hold."""
    return FlowArguments(
        observers=observers_from(asked["observers"], observe),
        stepper=stepper_from(asked["stepper"]),
        until=parse_goal(asked["until"]),
        save_at=tuple(map(parse_goal, asked["save_at"])),
        max_steps=asked["max_steps"],
    )


def described(value: Any) -> Json:
    """`{"name": its class, **its fields}`; `"fields": None` where a field is nothing that JSON can hold.

    >>> described(observers.Spectrum(r=2))["r"]
    2
    """
    given = {field.name: _listed(getattr(value, field.name)) for field in fields(value)}
    plain = all(
        isinstance(one, _PLAIN) for each in given.values() for one in (each if isinstance(each, list) else [each])
    )
    return {"name": type(value).__name__, **(given if plain else {"fields": None})}


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def stepper_from(recorded: Json) -> Stepper:
    """The stepper of a manifest. Raises `InputError` for one that holds a function."""
    given = dict(recorded)
    if given.get("fields", ()) is None:
        raise InputError(
            expected="a stepper whose fields the manifest holds",
            found=f"{given['name']} with a function",
            remedy="start the flow again, with its learning rates as a sequence",
        )
    return STEPPERS[given.pop("name", "EntropicMidpoint")](**given)


def observers_from(recorded: Sequence[Json], given: Sequence[Observer] | None) -> tuple[Observer, ...]:
    """The observers of a manifest; those that it cannot hold must be given, and those given must be the same.

    Raises:
        InputError: that says which were recorded.
    """  # noqa: DOC501 - a helper makes the error
    if given is not None:
        if [described(each) for each in given] != list(recorded):
            raise _differ(recorded, ", ".join(type(each).__name__ for each in given) or "none")
        return tuple(given)
    return tuple(_observer(each, recorded) for each in recorded)


def _observer(one: Json, recorded: Sequence[Json]) -> Observer:
    known = getattr(observers, one["name"], None)
    if known is None or "fields" in one:
        raise _differ(recorded, "none")
    return known(**{name: value for name, value in one.items() if name != "name"})


def _differ(recorded: Sequence[Json], found: str) -> InputError:
    names = ", ".join(each["name"] for each in recorded) or "none"
    return InputError(
        expected=f"the observers of the run, {names}, with the same fields",
        found=found,
        remedy="pass observe= as it was when the run was started",
    )


# ---- reading a folder ----


@contextmanager
def flow_manifest(store: Store) -> Iterator[None]:
    """Raises `StoreError` for the folder of anything but a flow, and where the manifest lacks what the block reads."""
    kind = store.manifest.get("kind")
    if kind != KIND:
        raise StoreError(
            expected=f"a run of eq.flow in {store.folder}",
            found="a watched training" if kind == "watch" else f"kind {kind!r}",
            remedy="pass the folder of a flow; equipoise.store.Store.open(folder).table() reads any",
        )
    try:
        yield
    except EquipoiseError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise StoreError(
            expected=f"the manifest of a flow in {store.folder}",
            found=one_line(error),
            remedy="restore manifest.json, or run again in another folder",
        ) from None


@dataclass(frozen=True)
class StoredInputs:
    """The inputs of a flow as its folder has them: the model with its initial weights, the data, the loss."""

    model: nn.Module
    data: Dataset
    loss: Loss
    example_weights: list[float] | None
    dtype: torch.dtype

    @classmethod
    def read(cls, store: Store, model: nn.Module | None, data: object) -> "StoredInputs":
        """From a run folder; a model or data of one's own, which are not in it, must be passed.

        Raises:
            InputError: without them, and for others than those of the run.
        """
        manifest = store.manifest
        own = _recorded_network(manifest.get("network")) if model is None else copy.deepcopy(model)
        _set_weights(own, _initial_weights(store, own))
        given = data if data is not None else rebuild(Provenance.from_json(manifest["data"]))
        asked, loss = manifest["arguments"], _recorded_loss(manifest)
        dtype = {"float32": torch.float32}.get(asked.get("dtype", ""), torch.float64)
        checked = validate(given, multiclass=loss.multiclass)
        if checked.provenance.sha256 != manifest["data"]["sha256"]:
            raise InputError(
                expected=f"the data of the run, SHA-256 {manifest['data']['sha256'][:12]}…",
                found=f"{checked.provenance.sha256[:12]}…",
                remedy="pass the data that the run was trained on",
            )
        return cls(own, checked, loss, asked.get("example_weights"), dtype)

    def problem(self) -> Problem:
        """The problem of the flow, read from the model anew."""
        return build_problem(self.model, self.data, self.loss, self.example_weights, self.dtype)

    def trained(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the model in the precision of the flow, with these weights."""
        return trained_copy(self.model.to(self.dtype), weights)


def _initial_weights(store: Store, model: nn.Module) -> dict[str, Tensor]:
    """Those of the folder; where they are lost, those of the model if the manifest's hash says they are the same."""
    if not isinstance(model, nn.Module):
        raise InputError(expected="a model", found=type(model).__name__, remedy="pass model= as a torch.nn.Module")
    try:
        return store.load_weights("initial")[0]
    except StoreError:
        dtype = getattr(torch, store.manifest["arguments"]["dtype"])
        own = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
        if not store.wrote("initial", own):
            raise
        return own


def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model the weights of the run, in their precision."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = {name: tuple(weight.shape) for name, weight in weights.items()}
    if shapes != stored:
        differs = next(name for name in [*stored, *shapes] if shapes.get(name) != stored.get(name))
        raise InputError(
            expected=f"the model of the run, with {differs} of shape {stored.get(differs, 'none')}",
            found=f"{differs} of shape {shapes.get(differs, 'none')}",
            remedy="pass model= with the architecture that was trained",
        )
    model.to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights, strict=False)


def _recorded_loss(manifest: Json) -> Loss:
    adjustment = manifest.get("loss_adjustment")
    if adjustment is None:
        return named_loss(manifest["loss"])
    scale, shift = (torch.tensor(adjustment[part], dtype=torch.float64) for part in ("scale", "shift"))
    return AdjustedCrossEntropy(scale, shift, manifest["loss"])


def _recorded_network(recipe: Json | None) -> nn.Module:
    if recipe is None:
        raise InputError(
            expected="the model of this run, which is not in its folder",
            found="none",
            remedy="pass model= with the architecture that was trained",
        )
    return mlp(**recipe)
