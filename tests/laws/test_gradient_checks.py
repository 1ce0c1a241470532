"""Planted bugs: what the laws catch, whom they blame, and what they cannot see."""

import json

import pytest
import torch
from torch import multiprocessing, nn

import planted_bugs
from equipoise.laws import invariances
from equipoise.testing import assert_laws
from helpers import reduced_gradients
from planted_bugs import BUGS, Bug, audited

CAUGHT = [
    "weight gradient off by 1%",
    "missing transpose in the weight gradient",
    "input gradient off by 2",
    "bias gradient averaged",
    "mask applied only forward",
    "softmax backward sums over the wrong axis",
    "detached branch",
    "detached mean in a LayerNorm",
]


def planted(name):
    return next(bug for bug in BUGS if bug.name == name)


def test_there_are_at_least_twenty_bugs_to_find():
    visible = [bug for bug in BUGS if bug.visible]
    assert len({bug.name for bug in visible}) >= 20


@pytest.mark.parametrize("name", CAUGHT)
def test_a_planted_bug_is_caught_and_its_parameter_named(name):
    found = audited(planted(name))
    assert not found.passed
    if blamed := planted(name).blamed:
        assert set(blamed) & set(found.suspects)
    if isinstance(planted(name).suspect, str):
        assert f"suspect the gradient of {planted(name).suspect}" in str(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_right_hand_written_backward_raises_no_alarm(dtype):
    sound = Bug("none", lambda: planted_bugs.mlp(planted_bugs.layer(planted_bugs.right)))
    for seed in range(3):
        found = audited(sound, dtype, seed)
        assert found.passed, str(found)
        assert max(finding.residual for finding in found.findings) > 0


@pytest.mark.parametrize("name", ["all gradients off by 2", "mask hides wrong positions in both passes"])
def test_what_respects_every_symmetry_is_not_seen(name):
    assert audited(planted(name)).passed


def test_a_wrong_reduction_over_two_processes(tmp_path):
    multiprocessing.spawn(reduced_gradients.worker, args=(2, str(tmp_path)), nprocs=2)
    found = json.loads((tmp_path / "found.json").read_text())
    right, *wrong = reduced_gradients.WAYS
    assert found[right]["passed"]
    assert not any(found[way]["passed"] for way in wrong)
    left_out, averaged, _ = wrong
    assert found[left_out]["suspects"][0] == found[averaged]["suspects"][0] == reduced_gradients.ONE


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def test_assert_laws_fails_with_the_name_of_the_parameter():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.outward = nn.Linear(4, 2)

        def forward(self, x):
            h = torch.relu(self.inward(x))
            return self.outward(torch.relu(self.left(h) + self.right(Halved.apply(h))))

    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=r"suspect the gradient of inward\."):
        assert_laws(Branch(), torch.randn(6, 3))


class Caching(nn.Linear):
    """Keeps what its last call computed, with its history, which `copy.deepcopy` refuses."""

    def forward(self, x):
        self.cache = {"last": super().forward(x)}
        return torch.relu(self.cache["last"])


def test_a_model_that_keeps_results_with_a_history_is_checked():
    model, x = nn.Sequential(Caching(3, 4), nn.Linear(4, 2)), torch.randn(5, 3)
    model(x)
    assert invariances(model, x).check(model, x).passed


def normalised_pair(seed):
    """A network whose BatchNorms see two values a channel, so that what passes them backward is nearly cancelled."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double(), 100 * torch.randn(2, 6).double()


@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_that_are_left_of_a_cancellation_raise_no_alarm(seed):
    model, inputs = normalised_pair(seed)
    checked = invariances(model, torch.randn(4, 6).double()).check(model, inputs)
    assert checked.passed, str(checked)
    assert max(finding.residual for finding in checked.findings) > 1e-13  # which rounding alone would not explain


class Noisy(torch.autograd.Function):
    """The identity, with noise for a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return torch.randn(upstream.shape, generator=torch.Generator().manual_seed(1), dtype=upstream.dtype)


def test_noise_in_place_of_such_a_gradient_is_caught():
    model, inputs = normalised_pair(0)
    laws = invariances(model, torch.randn(4, 6).double())
    model[0].register_forward_hook(lambda module, args, output: Noisy.apply(output))
    checked = laws.check(model, inputs)
    assert not checked.passed
    assert set(checked.suspects) <= {"0.weight", "0.bias"}
