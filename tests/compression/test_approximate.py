import copy

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.compression.approximate import Factorisation, NeuronSelection
from equipoise.compression.data import DataBatches, SecondMoment, visit
from equipoise.compression.structure import hidden_layers
from equipoise.graph.capture import capture


def trained(widths=(8, 48, 48, 3), n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, widths[0], generator=generator)
    y = (X @ torch.randn(widths[0], widths[-1], generator=generator)).argmax(1)
    torch.manual_seed(seed)
    layers = [
        nn.Linear(widths[0], widths[1]),
        nn.ReLU(),
        nn.Linear(widths[1], widths[2]),
        nn.ReLU(),
        nn.Linear(widths[2], widths[3]),
    ]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    return model, X, y


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Linear(10, 6), torch.randn(4, 10)),  # fewer samples than inputs: a singular covariance
        (nn.Linear(10, 6, bias=False), torch.randn(50, 10) @ torch.randn(10, 3) @ torch.randn(3, 10)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(5, 3, 7, 7)),
    ],
    ids=["few samples", "duplicated inputs", "convolution"],
)
def test_the_error_of_a_factorised_layer_is_the_discarded_squares(layer, inputs):
    model, inputs = nn.Sequential(copy.deepcopy(layer)).double(), inputs.double()
    moment = SecondMoment(model[0].weight[0].numel())
    visit(model, DataBatches(inputs, batch_size=3), {"0": moment})
    found = Factorisation.of("0", model[0], moment)
    for rank in range(1, 6):
        smaller = copy.deepcopy(model)
        found.apply(smaller, rank)
        error = float((smaller(inputs) - model(inputs)).detach().square().sum())
        expected = float(found.values[rank:].square().sum())
        total = float(found.values.square().sum())
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-12 * total)


def test_the_error_of_selected_neurons_is_that_of_least_squares():
    model, X, _ = trained()
    model, X = model.double(), X.double()
    hidden = hidden_layers(model, capture(model, X[:2]))[1]
    moment = SecondMoment(48)
    visit(model, DataBatches(X), {"4": moment})
    selection = NeuronSelection.of(model, hidden, moment)
    assert len(selection.sets) > 3
    active = model[3](model[2](model[1](model[0](X)))).detach()
    centred = active - active.mean(0)
    target = centred @ model[4].weight.detach().T
    for kept, error in list(zip(selection.sets, selection.errors, strict=True))[1:]:
        fit = torch.linalg.lstsq(centred[:, kept], target, driver="gelsd").solution
        assert error == pytest.approx(float((target - centred[:, kept] @ fit).square().sum()), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_the_outputs_stay_within_the_tolerance_and_the_predictions_as_they_are(tolerance):
    model, X, y = trained()
    y = y.clone()
    y[:10] = (y[:10] + 1) % 3  # mistakes are kept as they are
    holdout = torch.randn(100, 8), None
    small = eq.compress(model, (X, y), tolerance, holdout=holdout)
    assert small.ok
    assert not small.exact
    assert small.kept.output_change <= tolerance
    assert small.kept.changed == 0
    assert small.kept.accuracy_after == small.kept.accuracy_before < 1
    assert small.parameters_after < 0.7 * small.parameters_before
    again = small.recheck((X, y))
    assert again == small.kept
    assert small.held_out.examples == 100
    low, high = small.kept.margin_change
    old, new = model(X).detach(), small.model(X).detach()
    target = torch.arange(len(X))
    gaps = (new[target, y, None] - new) - (old[target, y, None] - old)
    assert low == pytest.approx(float(gaps.min()), abs=1e-5)
    assert high == pytest.approx(float(gaps.max()), abs=1e-5)


def test_a_larger_tolerance_leaves_no_more_parameters():
    model, X, y = trained()
    counts = [eq.compress(model, (X, y), each, keep_predictions=False).parameters_after for each in (0.01, 0.1, 0.3)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_a_plan_can_be_read_vetoed_and_applied():
    model, X, y = trained()
    plan = eq.compression.plan(model, (X, y), 0.1, keep_predictions=False)
    kinds = [(move.kind, move.layers) for move in plan.moves]
    assert len(kinds) >= 2
    without = plan.without(1)
    assert kinds[0] not in [(move.kind, move.layers) for move in without.moves]
    small = eq.compression.apply(without, model)
    assert small.kept.output_change <= 0.1
    with pytest.raises(eq.errors.InputError, match=r"expected numbers of moves, 1 … \d+; found 99"):
        plan.without(99)
    other = copy.deepcopy(model)
    other[0].weight.data[0, 0] += 1
    with pytest.raises(eq.errors.InputError, match="the model that the plan was made for; found other weights"):
        eq.compression.apply(plan, other)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = self.norm(x)
        weights = torch.softmax(self.query(h) @ self.key(h).mT / 4, -1)
        return x + self.out(weights @ self.value(h))


def test_layers_of_attention_are_factorised():
    torch.manual_seed(0)
    small = eq.compress(Block(), (torch.randn(20, 5, 16), None), 0.1)
    assert small.ok
    assert {move.kind for move in small.moves} == {"factorise"}
    assert small.parameters_after < 0.8 * small.parameters_before


def test_layers_whose_weights_others_read_are_not_factorised():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)  # reads linear1.weight itself
    small = eq.compress(layer, (torch.randn(20, 5, 16), None), 0.1)
    assert {move.kind for move in small.moves} == {"select"}  # fewer neurons, in the same modules
    assert small.ok


def test_a_saved_model_is_built_again_and_exported(tmp_path):
    model, X, y = trained()
    small = eq.compress(model, (X, y), 0.1)
    built = eq.compression.load(small.save(tmp_path / "small"), nn.Sequential(*map(copy.deepcopy, model)))
    torch.testing.assert_close(built(X), small.model(X), rtol=0, atol=0)
    exported = torch.export.export(small.model.eval(), (X,)).module()
    torch.testing.assert_close(exported(X), small.model(X))
    assert all(type(module).__module__.startswith("torch.nn") for module in small.model.modules())
    with pytest.raises(eq.errors.InputError, match="architecture that was compressed"):
        eq.compression.load(tmp_path / "small", nn.Linear(2, 2))
    with pytest.raises(eq.errors.StoreError, match=r"model\.safetensors and compression\.json"):
        eq.compression.load(tmp_path, model)
    assert min(small.latency(0.01)) > 0


def test_onnx_gives_the_same_outputs(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, X, y = trained()
    assert eq.compress(model, (X, y), 0.1).to_onnx(tmp_path / "small.onnx") < 1e-5
