"""What `eq.resume` and `eq.Run.load` refuse changes nothing; what they take is complete."""

import shutil

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError, Interrupted, StoreError
from equipoise.store import Store
from equipoise.store.files import place_json, read_json

NETWORK = {"widths": [4, 5, 1], "linear_tail": 1, "seed": 0}


def network(seed=0, widths=(4, 5, 1)):
    return eq.networks.mlp(list(widths), linear_tail=1, seed=seed)


def own(folder, **options):
    """A run of a model and data of one's own."""
    torch.manual_seed(0)
    inputs = torch.randn(12, 4).double()
    data = inputs, inputs[:, 0].sign()
    return eq.flow(network(), data, out=folder, **{"until": eq.Steps(3), **options}), data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of three steps on one's own model and data, and those data."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    return folder, own(folder)[1]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", finished[1]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the model of this run, which is not in its folder"),
        ({"model": network()}, "a named data set; found data 'user'"),
        (
            {"model": network(widths=(4, 6, 1))},
            r"layer1.weight of shape \(5, 4\); found layer1.weight of shape \(6, 4\)",
        ),
        ({"model": torch.nn.Linear(4, 1)}, "the model of the run, with layer1.weight of shape"),
        ({"model": "mlp"}, "model= to be a Module or None; found 'mlp'"),
        ({"model": network(), "data": (torch.eye(4), [1, -1, 1, -1])}, "the data of the run, SHA-256"),
        ({"model": network(), "data": (torch.eye(4), [1, -1])}, "labels"),
        ({"model": network(), "observe": [eq.Spectrum()]}, "the observers of the run, Spectrum, .*found Spectrum"),
    ],
)
def test_a_refused_resume_changes_nothing(run, given, message):
    folder, data = run
    before = contents(folder)
    with pytest.raises(InputError, match=message):
        eq.resume(folder, **({"data": data} if "observe" in given else {}), **given)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": None}, "the manifest of a flow in .*; found (TypeError|AttributeError)"),
        ({"arguments": {}}, "the manifest of a flow in .*; found KeyError: 'observers'|a finished run"),
        ({"data": {"name": "separable"}}, "the manifest of a flow in .*; found TypeError"),
        ({"loss": "hinge"}, "a loss"),
        ({"kind": None}, r"a run of eq.flow in .*; found kind None"),
        ({"network": {"widths": "many"}}, "found"),
    ],
)
@pytest.mark.parametrize("read", [eq.resume, eq.Run.load])
def test_an_edited_manifest_is_refused_and_nothing_changes(run, change, message, read):
    """With the right hash: what only a careful hand would write."""
    folder, data = run
    (folder / "result.json").unlink()
    manifest = read_json(folder / "manifest.json")
    place_json(folder / "manifest.json", manifest | {"network": NETWORK} | change)
    before = contents(folder)
    with pytest.raises((StoreError, InputError), match=message) as refusal:
        read(folder, data=data if "data" not in change else None)
    assert "\n" not in str(refusal.value)
    assert contents(folder) == before


def test_a_run_goes_on_from_its_own_weights_whatever_the_model_given(finished, tmp_path):
    folder, data = finished
    whole = eq.Run.load(folder, network(), data)
    own(tmp_path / "cut", max_steps=1)
    again = eq.resume(tmp_path / "cut", network(seed=7), data, max_steps=10)
    assert again.steps == 3
    for name, weights in whole.final.items():
        assert torch.equal(again.initial[name], whole.initial[name])
        assert torch.equal(again.final[name], weights)
    loaded = eq.Run.load(tmp_path / "cut", network(seed=7), data)
    assert all(torch.equal(loaded.initial[name], weights) for name, weights in whole.initial.items())


def test_a_run_goes_on_to_another_goal(run):
    folder, data = run
    again = eq.resume(folder, network(), data, until="steps=5")
    assert (again.steps, again.status.value) == (5, "reached")
    with Store.open(folder) as store:
        assert store.manifest["arguments"]["until"] == "steps=5"


def test_lost_initial_weights_are_those_of_the_model_where_it_has_them(run):
    folder, data = run
    file = folder / "weights" / "initial.safetensors"
    whole = file.read_bytes()
    file.unlink()
    eq.resume(folder, network(), data)
    assert file.read_bytes() == whole
    assert eq.Run.load(folder, network(seed=7), data).status == "reached"


def test_a_flow_without_its_initial_weights_is_refused_unchanged(run):
    folder, data = run
    (folder / "weights" / "initial.safetensors").unlink()
    before = contents(folder)
    with pytest.raises(StoreError, match=r"weights in .*initial.safetensors; found nothing there"):
        eq.resume(folder, network(seed=7), data)
    assert contents(folder) == before


def test_an_interrupted_flow_says_how_to_go_on(tmp_path):
    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"interrupted after step 1; go on with equipoise flow --resume .*run, or"):
        own(tmp_path / "run", until=eq.Steps(6), callback=stop)
    with pytest.raises(Interrupted, match="nothing is kept without a folder"):
        own(None, until=eq.Steps(6), callback=stop)
    whole, data = own(tmp_path / "whole", until=eq.Steps(6))
    again = eq.resume(tmp_path / "run", network(), data)
    assert all(torch.equal(again.final[name], weights) for name, weights in whole.final.items())
