import copy

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.compression import approximate
from equipoise.compression import selection as selection_module
from equipoise.compression.approximate import Factorisation
from equipoise.compression.costs import CostModel, operations
from equipoise.compression.data import DataBatches, SecondMoment, outputs, visit
from equipoise.compression.exact import relative_change
from equipoise.compression.selection import ChannelSelection, HiddenChannels
from equipoise.compression.structure import hidden_layers
from equipoise.compression.verification import OutputReference
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


def convnet():
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, stride=2, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(40, 3)), torch.randn(60, 2, 9, 9)


@pytest.mark.parametrize("place", [0, 1], ids=["a kernel reads them", "positions are flattened"])
def test_the_error_of_selected_channels_is_that_of_least_squares(place):
    model, X = convnet()
    model, X = model.double(), X.double()
    channels = HiddenChannels.of(model, hidden_layers(model, capture(model, X[:2]))[place])
    reader = model.get_submodule(channels.reader)
    moment = SecondMoment(reader.weight[0].numel())
    visit(model, DataBatches(X), {channels.reader: moment})
    selection = ChannelSelection.of(model, channels, moment)
    assert len(selection.sets) > 3
    before = model[: int(channels.reader)](X).detach()
    read = before if isinstance(reader, nn.Linear) else nn.functional.unfold(before, 3, stride=2).mT.flatten(0, 1)
    read = read - read.mean(0) if reader.bias is not None else read
    target = read @ reader.weight.detach().flatten(1).T
    for kept, error in list(zip(selection.sets, selection.errors, strict=True))[1:]:
        own = read[:, channels.inputs[kept].flatten()]
        fit = torch.linalg.lstsq(own, target, driver="gelsd").solution
        assert error == pytest.approx(float((target - own @ fit).square().sum()), rel=1e-5, abs=1e-9)
        smaller = copy.deepcopy(model)
        change = selection.apply(smaller, len(kept), moment.mean)
        assert (change.kind, change.after) == ("select", len(kept))
        assert smaller.get_submodule(channels.hidden.writer).weight.shape[0] == len(kept)
        assert smaller(X).shape == (60, 3)


@pytest.mark.parametrize("wide", [1000, 8])  # neurons, above which their contributions decide
def test_the_error_of_selected_neurons_is_that_of_least_squares(wide, monkeypatch):
    monkeypatch.setattr(selection_module, "_WIDE", wide)
    model, X, _ = trained()
    model, X = model.double(), X.double()
    hidden = hidden_layers(model, capture(model, X[:2]))[1]
    moment = SecondMoment(48)
    visit(model, DataBatches(X), {"4": moment})
    selection = ChannelSelection.of(model, HiddenChannels.of(model, hidden), moment)
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


class Grouped(nn.Module):
    """Attention on a residual stream, of which one group of heads hardly matters; named as the trade does."""

    def __init__(self, by_attributes=True):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 6, 3, 4
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 24), nn.Linear(16, 12), nn.Linear(16, 12)
        self.o_proj, self.by_attributes = nn.Linear(24, 16), by_attributes
        self.o_proj.weight.data[:, 8:16] *= 1e-3

    def forward(self, x):
        q, k, v = (
            layer(x).view(*x.shape[:-1], count if self.by_attributes else fixed, self.head_dim).transpose(1, 2)
            for layer, count, fixed in (
                (self.q_proj, self.num_heads, 6),
                (self.k_proj, self.num_key_value_heads, 3),
                (self.v_proj, self.num_key_value_heads, 3),
            )
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.o_proj(mixed.transpose(1, 2).flatten(2))


def test_heads_are_left_out_with_what_they_share(tmp_path):
    torch.manual_seed(0)
    model, X = Grouped(), torch.randn(60, 5, 16)
    plan = eq.compression.plan(model, (X, None), 0.01)
    heads = [move for move in plan.moves if move.kind == "heads"]
    assert [(move.before, move.after) for move in heads] == [(3, 2)]
    small = eq.compression.apply(plan, model)
    assert small.ok
    assert (small.model.num_heads, small.model.num_key_value_heads, small.model.head_dim) == (4, 2, 4)
    built = eq.compression.load(small.save(tmp_path / "small"), Grouped())
    torch.testing.assert_close(built(X), small.model(X), rtol=0, atol=0)


def test_heads_whose_number_is_written_in_the_code_stay():
    torch.manual_seed(0)
    small = eq.compress(Grouped(by_attributes=False), (torch.randn(60, 5, 16), None), 0.01)
    assert "heads" not in {move.kind for move in small.moves}
    assert small.ok


def test_operations_and_latency_are_made_small_too():
    model, X = convnet()
    plans = {cost: eq.compression.plan(model, (X, None), 0.3, cost=cost) for cost in ("parameters", "flops", "latency")}
    sizes = {}
    for cost, plan in plans.items():
        small = eq.compression.apply(plan, model)
        assert small.ok
        sizes[cost] = small.parameters_after, operations(small.model, X)
    assert sizes["parameters"][0] < sum(each.numel() for each in model.parameters())
    assert sizes["flops"][1] < operations(model, X)
    assert sizes["flops"][1] <= sizes["parameters"][1]
    with pytest.raises(eq.errors.InputError, match="cost"):
        eq.compress(model, (X, None), 0.1, cost="money")


def test_latency_is_interpolated_between_measured_sizes():
    model, X = convnet()
    like = model[0].weight.detach()
    costs = CostModel.of("latency", model, ["2"], DataBatches(X), like)
    sizes = list(range(1, 40))
    prices = costs.curve(sizes, lambda size: [(nn.Conv2d(12, size, 3, device="meta"), costs.shapes["2"])])
    assert len(prices) == 39
    assert prices == sorted(prices)
    assert prices[0] > 0


def test_the_path_metric_bounds_the_change_at_any_input():
    torch.manual_seed(0)
    model, X = (
        nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 2)),
        torch.rand(50, 3),
    )
    with torch.no_grad():
        model[0].bias[5:] -= 3.0  # dead on the data, not everywhere
        model[2].weight[:, 5:] *= 0.1
    plan = eq.compression.plan(model, (X, None))
    small = eq.compression.apply(plan.without(*[move.number for move in plan.moves if move.kind == "merge"]), model)
    assert {move.kind for move in small.moves} == {"remove"}
    far = 30 * torch.randn(400, 3)
    change = (small.model(far) - model(far)).detach().abs().sum(1)
    bound = small.bound(far)
    assert bool((change <= bound).all())
    assert float(change.max()) > 1e-3 * float(bound.max()) > 0
    with pytest.raises(eq.errors.InputError, match="moves of kind merge"):
        eq.compression.apply(plan, model).bound(far)


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


def test_a_search_on_some_examples_first_ends_where_one_on_all_of_them_does(monkeypatch):
    model, X, y = trained()
    order = y.sort().indices  # the first hundred are of one class
    whole = []
    for few in (100, 300):
        monkeypatch.setattr(approximate, "PROBES", few)
        small = eq.compress(model, (X[order], y[order]), 0.05, keep_predictions=False)
        assert small.ok
        whole.append(small)
    assert whole[0].parameters_after == pytest.approx(whole[1].parameters_after, rel=0.03)


def test_a_smaller_model_is_accepted_where_the_outputs_and_the_classes_say_so():
    torch.manual_seed(0)
    model, X = nn.Linear(4, 3), torch.randn(50, 4)
    before = outputs(model, DataBatches(X))
    for scale in (0.0, 0.01, 0.1, 1.0):
        other = copy.deepcopy(model)
        other.weight.data += scale * torch.randn(3, 4)
        after = outputs(other, DataBatches(X))
        near = relative_change(before, after) <= 0.05
        same = bool((before.argmax(1) == after.argmax(1)).all())
        for keep in (False, True):
            reference = OutputReference(DataBatches(X, batch_size=7), before, 0.05, keep)
            assert reference.accepts(other) == (near and (same or not keep))
    assert not reference.accepts(nn.Linear(5, 3))  # it does not run


def test_channels_that_are_left_keep_the_classes_that_they_had():
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 1)).double(), torch.randn(4, 3).double()
    model[0].bias.data[::3] = -100.0  # dead, among those that are merged
    small = eq.compress(model, (X, None))
    assert [move.kind for move in small.moves] == ["remove", "merge"]
    assert small.notes == ()
    assert small.kept.output_change < 1e-12
