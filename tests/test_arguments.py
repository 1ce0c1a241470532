"""Wrong arguments of the public functions and classes: one line each, before anything is computed."""

import inspect
import typing
from functools import cache

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.arguments import _is, checked, hints_of
from equipoise.errors import InputError

NAMESPACES = ("data", "init", "networks", "optim", "parametrize", "sinks", "steppers", "testing")
UNCHECKED = {  # results and values that are not made by hand; protocols; names and numbers
    "equipoise": {"Alignment", "Certificate", "Decomposition", "Defect", "Drift", "Flip", "Run", "Separated", "Signs"}
    | {"Residual", "Status", "TrainingAlarm", "GradientNorm", "NuclearRatio", "ClassFeatures", "CriticalPoint"}
    | {"DataAlignment", "Bottleneck"}
    | {"Growth", "LogLoss", "Steps", "acts_like"},  # which refuse by their own words
    "data": {"Communities", "LowRankMatrix", "TrainTest", "Dataset", "Provenance", "rebuild", "validate"},
    "networks": {"DiagonalSkip", "ResidualBlock", "TransformerBlock"},
    "optim": {"CriticalPoint", "FederatedResult", "oracle"},
    "parametrize": {"UDV", "Factors", "Sparsity"},
    "sinks": {"Background", "Call", "Memory", "ReadableSink", "Sink", "WandB", "metric_name", "sink_name"},
    "steppers": {"State", "Step", "Stepper", "Update"},
}


def public():
    """All public callables, by where they are documented."""
    for name in eq.__all__:
        if callable(found := getattr(eq, name)):
            yield "equipoise", name, found
    for namespace in NAMESPACES:
        module = getattr(eq, namespace)
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            found = getattr(module, name)
            if callable(found) and getattr(found, "__module__", "").startswith(module.__name__):
                yield namespace, name, found


def checks(found):
    """The function that compares arguments with their annotations, if there is one."""
    function = found.__init__ if isinstance(found, type) else found
    return function if getattr(function, "__checked__", False) else None


OWN_WORDS = {("flow", "until"), ("flow", "save_at"), ("compress", "data"), ("compress", "tolerance")}
CALLS = [
    pytest.param(function, isinstance(found, type), parameter, id=f"{where}.{name}-{parameter}")
    for where, name, found in public()
    if (function := checks(found)) is not None
    for parameter, hint in hints_of(function).items()
    if parameter != "return"
    and (name, parameter) not in OWN_WORDS
    and hint not in (object, typing.Any)
    and not found.__module__.startswith("equipoise.observers")  # which beartype checks first, under pytest
]


def test_every_public_function_checks_its_arguments():
    missing = [
        f"{where}.{name}"
        for where, name, found in public()
        if checks(found) is None and name not in UNCHECKED.get(where, ()) and where == "equipoise"
    ]
    assert missing == []


@pytest.mark.parametrize(("function", "is_constructor", "parameter"), CALLS)
def test_an_argument_of_another_type_is_one_line(function, is_constructor, parameter):
    signature = inspect.signature(function)
    strange = object()
    if signature.parameters[parameter].kind is inspect.Parameter.VAR_POSITIONAL:
        args, kwargs = (strange,), {}
    else:
        required = [name for name, each in signature.parameters.items() if each.default is each.empty]
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        required = [name for name in required if signature.parameters[name].kind not in variable]
        args, kwargs = (), dict.fromkeys(required[is_constructor:]) | {parameter: strange}
        order = [name for name in signature.parameters if name in kwargs]
        hints = hints_of(function)
        for name in order[: order.index(parameter)]:
            kwargs[name] = _anything(hints.get(name, object))
        args = (object.__new__(object),) if is_constructor else ()
    with pytest.raises(InputError, match=rf"expected {parameter}= to be .*; found .*object.*; ") as refused:
        function(*args, **kwargs)
    assert "\n" not in str(refused.value)


def _anything(hint):
    """A value of a type that stands before the wrong one."""
    values = (nn.Linear(2, 1), torch.zeros(2, 2), "x", 1, 1.0, None, [1], (torch.zeros(2, 2), None), (8, 8), {}, len)
    values += (
        (torch.zeros(2, 2), torch.zeros(2)),
        [(torch.zeros(2, 2), torch.zeros(2))],
    )  # examples, and those of clients
    values += (torch.optim.SGD([torch.ones(1)]), eq.LogLoss(-1.0), eq.sinks.Memory(), torch.float64)
    return next((value for value in values if _is(value, hint)), None) if not _is(run(), hint) else run()


@cache
def run():
    return eq.flow(eq.networks.mlp([5, 3, 1]), eq.data.load("separable", n=8, d=5), until="steps=1")


MODEL = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: eq.watch(MODEL, 0.1), r"optimizer= to be an Optimizer.*; found 0.1; pass e.g. torch.optim.SGD"),
        (lambda: eq.watch(OPTIMIZER, MODEL), "model= to be a Module; found an SGD; pass it as optimizer="),
        (
            lambda: eq.watch(MODEL, OPTIMIZER, observe=eq.Spectrum()),
            r"found a Spectrum; pass observe=\[Spectrum\(…\)\]",
        ),
        (lambda: eq.watch(MODEL, OPTIMIZER, observe=["spectrum"]), "found 'spectrum' in it; pass e.g. eq.Spectrum"),
        (lambda: eq.watch(MODEL, OPTIMIZER, observe=[eq.Spectrum]), "found the class Spectrum in it; pass an instance"),
        (lambda: eq.watch(MODEL, OPTIMIZER, sinks=print), r"found the function print; pass sinks=\[print\]"),
        (lambda: eq.watch(MODEL, OPTIMIZER, every=1.5), "every= to be an int; found 1.5; see help"),
        (lambda: eq.watch(MODEL, OPTIMIZER, every=True), "every= to be an int; found True"),
        (lambda: eq.watch(MODEL, OPTIMIZER, full_every=0), "full_every .* at least 1; found 0"),
        (lambda: eq.Spectrum(r=0), "r to be a whole number, at least 1; found 0"),
        (lambda: eq.Activity(window=0.0), "window to be a finite number above 0; found 0"),
        (lambda: eq.Margin(kkt_every=0), "kkt_every .* at least 1; found 0"),
        (lambda: eq.watch(MODEL, []), "an optimizer of the model's parameters; found none; pass the optimizer made"),
        (lambda: eq.balance(MODEL, None), "found None; pass e.g. torch.as_tensor"),
        (lambda: eq.ClassFeatures((torch.ones(3, 2), torch.ones(2))), "a label for each of 3 examples; found 2"),
        (lambda: eq.DataAlignment((torch.ones(3, 2), torch.ones(2))), "a label for each of 3 examples; found 2"),
        (lambda: eq.Margin((torch.ones(3, 2), torch.ones(2))), "a label for each of 3 examples; found 2"),
        (lambda: eq.steppers.GradientDescent([]), "learning rates; found none; pass lr=0.1"),
        (lambda: eq.measure.effective_depth([0.1], epsilon=-1.0), "epsilon from 0 to below 1; found -1.0"),
        (lambda: eq.measure.distance_to_rank(torch.ones(2, 2), -1), "rank to be a whole number, at least 0; found -1"),
        (lambda: eq.optim.ProximalSGD(MODEL.parameters(), lr=-1.0, strength=1.0), "lr above 0; found -1.0"),
        (lambda: eq.certify(eq.networks.mlp([5, 1]), (torch.ones(2, 3), [-1, 1])), r"examples of shape \(3,\)"),
        (lambda: eq.balance(MODEL, torch.zeros(2, 2), objective="nrom"), "'norm' or 'range'; found 'nrom'"),
        (lambda: eq.flow(MODEL, None, stepper=eq.steppers.SGD), "found the class SGD; pass an instance"),
    ],
)
def test_what_people_mistype_is_one_line(call, said):
    with pytest.raises(InputError, match=said), call():
        pass


def test_figures_asked_for_by_another_name_are_listed():
    found = run()
    with pytest.raises(InputError, match="a quantity that spectrum recorded; found 'stable_rnk'; pass 'stable_rank'"):
        found.last("spectrum", "stable_rnk", "layer1.weight")
    with pytest.raises(InputError, match="an observer of this training; found 'spectra'; pass 'spectrum'"):
        found.last("spectra", "stable_rank", "layer1.weight")
    with pytest.raises(InputError, match="a place where spectrum recorded stable_rank; found ''; pass one of 'layer1"):
        found.last("spectrum", "stable_rank")
    with eq.watch(MODEL, OPTIMIZER, quiet=True) as log:
        assert log.last("spectrum", "stable_rnk") is None
        MODEL(torch.ones(4, 2)).sum().backward()
        OPTIMIZER.step()
    with pytest.raises(InputError, match="'stable_rank'"):
        log.last("spectrum", "stable_rnk", "0.weight")


def test_a_pair_is_asked_for_as_one():
    @checked
    def fit(data: tuple[torch.Tensor, torch.Tensor] | None):
        return data

    with pytest.raises(InputError, match=r"data= to be a tuple of Tensor or None; found a Tensor; pass data=\(X, y\)"):
        fit(torch.ones(2))
