"""`equipoise balance` and `equipoise align`: models of the caller's, and whatever is wrong with them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from equipoise.cli import main

FACTORIES = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()


def other():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()


def wider():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double(), torch.randn(5, 3).double()


def spoiled():
    model, inputs = network()
    model[0].weight.data[0, 0] = float("nan")
    return model, inputs
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "balanced_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments, verb="balance"):
        with pytest.raises(SystemExit) as exit:
            main([verb, *arguments])
        return exit.value.code, *capsys.readouterr()

    return call


def test_a_model_is_balanced_and_saved(run, tmp_path):
    code, out, _ = run("--module", "balanced_nets:network", "--out", "new.safetensors", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert found["balanced"] is True
    assert found["norm_after"] < found["norm_before"]
    assert found["imbalance_after"] < 1e-8 < found["imbalance_before"]
    assert [law["law"] for law in found["laws"]] == ["0.weight → 2.weight"]
    assert found["immovable"] == [{"name": "2.bias", "reason": "no scaling of it leaves the function alone"}]
    assert [weight["name"] for weight in found["weights"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found["page"] is None
    weights = load_file(tmp_path / "new.safetensors")
    written = weights["0.weight"].square().sum(1) + weights["0.bias"].square()
    torch.testing.assert_close(written, weights["2.weight"].square().sum(0))


def test_the_table_names_the_laws(run):
    code, out, _ = run("--module", "balanced_nets:network", "--objective", "range")
    assert code == 0
    assert "0.weight → 2.weight" in out
    assert "largest ratio of ranges" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--module", "balanced_nets:spoiled"), "expected finite weights; found NaN or infinity in 0.weight"),
        (("--module", "balanced_nets:network", "--objective", "size"), 'Choose from: "norm", "range"'),
        (("--module", "balanced_nets:nothing"), "expected a function nothing in balanced_nets"),
        (("--module", "balanced_nets:network", "--out", "no/such/folder.safetensors"), "expected a folder no/such"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_model_is_aligned_with_another(run, tmp_path):
    modules = "--module", "balanced_nets:network", "--reference", "balanced_nets:other"
    code, out, _ = run(*modules, "--out", "new.safetensors", "--json", verb="align")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert found["cosine_after"] > found["cosine_before"]
    assert [(move["name"], move["kind"], move["size"]) for move in found["moves"]] == [
        ("0.weight → 2.weight", "permutation", 4)
    ]
    assert set(load_file(tmp_path / "new.safetensors")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    code, out, _ = run(*modules, "--page", "aligned.html", verb="align")
    assert (code, "distance" in out) == (0, True)
    assert "The page: file://" in out
    assert "0.weight → 2.weight" in (tmp_path / "aligned.html").read_text(encoding="utf-8")


def test_models_of_other_shapes_are_not_aligned(run):
    code, _, err = run("--module", "balanced_nets:network", "--reference", "balanced_nets:wider", verb="align")
    assert code == 2
    assert "found parameter 0.weight of shape (5, 3) in the reference" in err
