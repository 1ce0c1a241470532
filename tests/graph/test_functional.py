"""Graphs that are made functional operation by operation, beside those that torch decomposes by a second trace."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.graph.capture import Captured, capture
from equipoise.graph.export import program
from equipoise.graph.ops import operation_name
from equipoise.laws.derive import DerivationOptions, derive


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.function, self.enter, self.norm = function, nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.leave = nn.LazyLinear(3)

    def forward(self, x):
        return self.leave(self.function(self, self.enter(x)))


def without_gradients(function):
    """The same with gradients off inside."""

    def run(model, x):
        with torch.no_grad():
            held = function(model, x)
        return x + held

    return run


REWRITTEN = {
    "relu in place": lambda m, x: torch.relu_(x),
    "two in place": lambda m, x: x.add_(1.0).relu_(),
    "norm, relu in place": lambda m, x: torch.relu_(m.norm(x)),
    "norm of the batch": lambda m, x: F.batch_norm(x, None, None, training=True),
    "norm in evaluation": lambda m, x: F.batch_norm(x, m.norm.running_mean, m.norm.running_var, m.norm.weight),
    "flatten": lambda m, x: x.view(-1, 2, 3).relu().flatten(1),
    "unflatten": lambda m, x: x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1),
    "chunk": lambda m, x: F.relu(x.chunk(2, 1)[0]) * x.chunk(2, -1)[1],
    "casts": lambda m, x: x.double().relu().float().to(x.device),
    "dropout, off": lambda m, x: F.dropout(x, 0.5, False).relu(),
    "dropout of nothing": lambda m, x: F.dropout(x, 0.0, True).relu(),
    "contiguous": lambda m, x: x.view(-1, 2, 3).transpose(1, 2).contiguous().view(-1, 6),
    "expand": lambda m, x: x + x[:1].expand_as(x),
    "without gradients": without_gradients(lambda m, x: x.relu().unflatten(1, (2, 3)).flatten(1).view_as(x)),
}
TRACED = {  # an update that something else sees
    "through a view": lambda m, x: (x[:, :3].relu_(), x)[1],
    "a view before it": lambda m, x: (x.t(), x.relu_())[0].t(),
    "an argument": lambda m, x: m.norm.running_var.mul_(0.5) + x,
    "a norm twice": lambda m, x: m.norm(m.norm(x)),
    "composed, in place": lambda m, x: F.dropout(F.relu6(x, inplace=True), 0.0, inplace=True),
    "in autocast": lambda m, x: _autocast(m, x),
}


def _autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        return model.enter(x).relu_().float()


@pytest.mark.parametrize("name", [*REWRITTEN, *TRACED])
def test_the_graph_is_that_of_a_second_trace(name, monkeypatch):
    model, x = Between((REWRITTEN | TRACED)[name]), torch.randn(4, 6)
    model(x)
    rewritten, found = [], program.make_functional
    monkeypatch.setattr(program, "make_functional", lambda *args: rewritten.append(found(*args)) or rewritten[-1])
    ours = capture(model, x)
    monkeypatch.setattr(program, "make_functional", lambda *args: None)
    traced = capture(model, x)
    assert any(rewritten) == (name in REWRITTEN)
    assert operations(ours) == operations(traced)
    assert (ours.parameters, ours.buffers, ours.inputs) == (traced.parameters, traced.buffers, traced.inputs)
    assert (ours.casts, ours.mutates_buffers) == (traced.casts, traced.mutates_buffers)
    weights = dict(model.named_parameters())
    fresh = torch.randn(7, 6)
    torch.testing.assert_close(ours.run(weights, fresh), traced.run(weights, fresh), rtol=0, atol=0)
    laws, theirs = (derive(each, DerivationOptions())[0] for each in (ours, traced))
    assert [law.statement for law in laws] == [law.statement for law in theirs]


def test_dropout_in_training_draws_as_in_a_second_trace(monkeypatch):
    model, x = Between(lambda m, x: F.dropout(x, 0.5, True)), torch.randn(4, 6)
    model(x)
    ours = capture(model, x)
    monkeypatch.setattr(program, "make_functional", lambda *args: None)
    traced = capture(model, x)
    assert operations(ours) == operations(traced)
    assert operations(ours)["aten.native_dropout.default"] == 1


def operations(captured: Captured) -> Counter[str]:
    """How often each operation occurs, but for copies, and for sizes, which the two read from different tensors."""
    names = [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]
    alike = {"aten._unsafe_view.default": "aten.reshape.default"}
    return Counter(alike.get(name, name) for name in names if name not in ("aten.sym_size.int", "aten.clone.default"))


def test_free_sizes_are_read_off_the_inputs():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 1))
    graph = capture(model, torch.ones(2, 1, 8, 8)).graph
    read = [node.args[0] for node in graph.nodes if operation_name(node.target) == "sym_size"]
    assert read
    assert all(node.op == "placeholder" for node in read)
