"""A run as its manifest keeps it: what was asked, steppers and observers by name and fields."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from equipoise import observers
from equipoise.errors import InputError
from equipoise.integrate.course import Course
from equipoise.integrate.goals import parse_goal
from equipoise.integrate.problem import Problem
from equipoise.integrate.run import KIND
from equipoise.integrate.steppers import STEPPERS, Stepper
from equipoise.observers import Observer

_PLAIN = (int, float, str, bool, type(None))


def manifest_of(
    course: Course, stepper: Stepper, observers: Sequence[Observer], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a run can be read and resumed from, but for its weights, and models and data of one's own.

    `arguments` holds what a flow cannot know: the recipe of the `network`, its `seed`, and the `command`.
    """
    problem = course.problem
    return {
        "kind": KIND,
        "network": arguments.get("network"),
        "layers": [{"weight": layer.weight, "bias": layer.bias, "kind": layer.kind} for layer in problem.chain or ()],
        "data": asdict(problem.data.provenance),
        "loss": problem.loss.name,
        "seed": arguments.get("seed"),
        "arguments": {
            "until": course.goal.describe(),
            "save_at": [point.describe() for point in course.save_at],
            "stepper": described(stepper),
            "observers": [described(observer) for observer in observers],
            "max_steps": course.max_steps,
            "example_weights": problem.example_weights,
            "dtype": str(problem.weights.dtype).removeprefix("torch."),
            "command": arguments.get("command"),
        },
    }


def course_from(problem: Problem, asked: Mapping[str, Any]) -> Course:
    """The course of the arguments of a manifest."""
    points, continuous = tuple(map(parse_goal, asked["save_at"])), stepper_from(asked["stepper"]).continuous
    return Course(problem, parse_goal(asked["until"]), points, asked["max_steps"], continuous)


def described(value: Any) -> dict[str, Any]:
    """`{"name": its class, **its fields}`; `"fields": None` where a field is nothing that JSON can hold.

    >>> described(observers.Spectrum(r=2))["r"]
    2
    """
    given = {field.name: _listed(getattr(value, field.name)) for field in fields(value)}
    plain = all(
        isinstance(one, _PLAIN) for each in given.values() for one in (each if isinstance(each, list) else [each])
    )
    return {"name": type(value).__name__, **(given if plain else {"fields": None})}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def stepper_from(told: Mapping[str, Any]) -> Stepper:
    """The stepper of a manifest. Raises `InputError` for one that holds a function."""
    given = dict(told)
    if given.get("fields", ()) is None:
        raise InputError(
            expected="a stepper whose fields the manifest holds",
            found=f"{given['name']} with a function",
            remedy="start the flow again, with its learning rates as a sequence",
        )
    return STEPPERS[given.pop("name", "EntropicMidpoint")](**given)


def observers_from(told: Sequence[Mapping[str, Any]], given: Sequence[Observer] | None) -> tuple[Observer, ...]:
    """The observers of a manifest; those that it cannot hold must be given, and those given must be the same.

    Raises `InputError` that says which were recorded.
    """
    if given is not None:
        if [described(each) for each in given] != list(told):
            raise _differ(told, ", ".join(type(each).__name__ for each in given) or "none")
        return tuple(given)
    return tuple(_observer(each, told) for each in told)


def _observer(one: Mapping[str, Any], told: Sequence[Mapping[str, Any]]) -> Observer:
    known = getattr(observers, one["name"], None)
    if known is None or "fields" in one:
        raise _differ(told, "none")
    return known(**{name: value for name, value in one.items() if name != "name"})


def _differ(told: Sequence[Mapping[str, Any]], found: str) -> InputError:
    names = ", ".join(each["name"] for each in told) or "none"
    return InputError(
        expected=f"the observers of the run, {names}, with the same fields",
        found=found,
        remedy="pass observe= as it was when the run was started",
    )
