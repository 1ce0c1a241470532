"""One row for the weight that is used, whatever it is computed from: a model and its file give the same."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import equipoise as eq

old_weight_norm, old_spectral_norm = nn.utils.weight_norm, nn.utils.spectral_norm
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def rows(source, **options):
    return {row["name"]: row for row in eq.analyze(source, heavy_tail=False, **options).to_dict("records")}


def values(matrix):
    return torch.linalg.svdvals(matrix.detach().double().flatten(1))[:5].tolist()


def trained(layer, inputs):
    """Some steps in training mode, so that no factor is what it began as; then evaluation, with its weight computed."""
    layer.train()
    for _ in range(3):
        layer(inputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    layer.eval()
    for _ in range(2):  # hooks compute in the order in which they came: a pruned direction is a pass late
        layer(inputs)
    return layer


def pruned():
    return prune.random_unstructured(nn.Linear(6, 4), "weight", 0.3)


def pruned_weight_norm():
    layer = old_weight_norm(nn.Linear(6, 4))
    return prune.random_unstructured(layer, "weight_v", 0.5)


FLAT, IMAGE, LINE = torch.randn(2, 6), torch.randn(2, 6, 5, 5), torch.randn(2, 6, 9)
LAYERS = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 4)), FLAT),
    "weight_norm of all": (lambda: parametrizations.weight_norm(nn.Linear(6, 4), dim=None), FLAT),
    "weight_norm of columns": (lambda: parametrizations.weight_norm(nn.Linear(6, 4), dim=1), FLAT),
    "weight_norm of taps, grouped": (lambda: parametrizations.weight_norm(nn.Conv1d(6, 4, 3, groups=2), dim=2), LINE),
    "weight_norm, transposed": (lambda: parametrizations.weight_norm(nn.ConvTranspose1d(6, 4, 3)), LINE),
    "old weight_norm": (lambda: old_weight_norm(nn.Conv2d(6, 4, 3, groups=2)), IMAGE),
    "old weight_norm of taps": (lambda: old_weight_norm(nn.Conv1d(6, 4, 3, groups=2), dim=2), LINE),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(6, 4, 3)), IMAGE),
    "spectral_norm, transposed": (lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(6, 6, 3)), LINE),
    "spectral_norm, square": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), FLAT),
    "old spectral_norm": (lambda: old_spectral_norm(nn.Linear(6, 4)), FLAT),
    "old spectral_norm, transposed": (lambda: old_spectral_norm(nn.ConvTranspose2d(6, 6, 3)), IMAGE),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(6, 4), "weight", 0.6), FLAT),
    "pruned twice": (lambda: prune.ln_structured(pruned(), "weight", 0.5, 2, 0), FLAT),
    "pruned direction": (pruned_weight_norm, FLAT),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_is_that_of_the_layer_in_memory_and_on_disk(name, tmp_path):
    make, inputs = LAYERS[name]
    layer = trained(make(), inputs)
    as_stored = layer.weight.detach().clone()
    weight = as_stored.transpose(0, 1) if "transposed" in name else as_stored
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for mode in (False, True):
        found = rows(layer.train(mode))
        assert set(found) == {"weight", "bias"}
        assert found["weight"]["shape"] == tuple(weight.shape)
        assert found["weight"]["singular_values"] == pytest.approx(values(weight), rel=1e-5, abs=1e-6)
        assert layer.training is mode
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())  # only read
    save_file({f"net.{key}": value.contiguous() for key, value in before.items()}, tmp_path / "m.safetensors")
    found = rows(tmp_path / "m.safetensors")
    assert set(found) == {"net.weight", "net.bias"}
    assert found["net.weight"]["type"] == ("linear" if inputs is FLAT else f"conv{inputs.dim() - 2}d")
    # a file does not say that a convolution is transposed; float32 keeps σ_i to rounding of σ_1
    assert found["net.weight"]["singular_values"] == pytest.approx(values(as_stored), rel=1e-5, abs=1e-6)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 6))

    def forward(self, weight):
        return weight + self.a @ self.b


def test_any_parametrization_in_memory_and_a_reason_on_disk():
    layer = nn.Linear(6, 6)
    for step in (Symmetric(), LowRank()):
        parametrize.register_parametrization(layer, "weight", step)
    found = rows(layer)
    assert set(found) == {"weight", "bias"}
    assert found["weight"]["singular_values"] == pytest.approx(values(layer.weight), rel=1e-5)
    assert found["weight"]["note"] == "parametrized by Symmetric, LowRank"
    entry = rows(layer.state_dict())
    assert set(entry) == {"weight", "bias"}
    assert "a parametrization that is not in the file: load the model" in entry["weight"]["reason"]
    orthogonal = parametrizations.orthogonal(nn.Linear(6, 4))
    assert rows(orthogonal)["weight"]["singular_values"] == pytest.approx([1.0] * 4, rel=1e-5)
    assert "parametrization" in rows(orthogonal.state_dict())["weight"]["reason"]


def test_several_names_of_one_layer_and_recurrent_weights():
    model = nn.ModuleDict({"a": parametrizations.weight_norm(nn.Linear(6, 4))})
    model["b"] = model["a"]
    table = eq.analyze(model, heavy_tail=False).set_index("name")
    assert table.index.tolist() == ["a.bias", "a.weight"]
    assert table.loc["a.weight", "aliases"] == ["b.weight"]
    entry = eq.analyze(model.state_dict(), heavy_tail=False).set_index("name")
    assert entry.loc["a.weight", "aliases"] == ["b.weight"]
    lstm = nn.LSTM(3, 5)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        old_weight_norm(lstm, name)
    gates = rows(lstm)
    assert gates.keys() == rows(lstm.state_dict()).keys()
    forget = lstm.weight_hh_l0[5:10]
    assert gates["weight_hh_l0[forget]"]["singular_values"] == pytest.approx(values(forget), rel=1e-5)


def test_names_that_only_look_like_factors_stay():
    state = {"attention_v": torch.randn(3, 4), "attention_g": torch.randn(3, 4), "w_orig": torch.randn(3, 3)}
    assert set(rows(state)) == set(state)
    assert all(row["reason"] is None for row in rows(state).values())


def test_what_is_no_parameter_says_so_and_does_not_pass_for_a_weight():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("basis", torch.eye(4))
            self.register_buffer("hidden", torch.eye(4), persistent=False)
            self.table = torch.eye(4)

    reasons = {name: row["reason"] for name, row in rows(Model()).items()}
    assert reasons.pop("layer.weight") is None
    assert "a vector" in reasons.pop("layer.bias")
    assert reasons == {
        "basis": "a buffer, not a weight",
        "hidden": "a buffer that is not saved",
        "table": "an attribute, no parameter",
    }
