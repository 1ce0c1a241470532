"""Laws that the eps of a normalisation breaks: the defect explains the residual, exactly."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.errors import InputError
from equipoise.laws import invariances
from equipoise.laws.law import named
from helpers.cases import case
from helpers.sampling import sampled


def curved(output):
    return output.exp().mean()


NORMS = ["layer norm", "rms norm", "batch norm", "group norm", "instance norm"]
BY_HAND = ["hand-written layer norm", "hand-written rms norm"]
MODELS = ["multihead", "llama", "gpt, tied", "resnet"]


@pytest.mark.parametrize("name", sampled([*NORMS, *BY_HAND, *MODELS], ["multihead", "llama", "resnet"]))
def test_with_the_defect_taken_off_the_residual_is_at_rounding(name):
    model, inputs = case(name).model(), case(name).inputs()
    laws = invariances(model, inputs)
    broken = [law.name for law in laws if not law.exact]
    curved(model(*inputs)).backward()
    before, defects = laws.residual(model), laws.defects(model, inputs, curved)
    after = laws.residual(model, defects=defects)
    assert broken
    assert set(defects) == set(broken)
    for law in broken:
        assert before[law] > 1e-9
        assert after[law] < 2e-15


def test_batch_norm_gives_what_theory_says():
    """`⟨w, G_w⟩ = eps/(σ² + eps) · γ G_γ`, channel by channel (docs/theory.md §1)."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=0.1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(6, 2, 6, 6, dtype=torch.float64)
    laws = invariances(model, x)
    curved(model(x)).backward()
    variance = F.conv2d(x, model[0].weight).transpose(0, 1).flatten(1).var(1, correction=0)
    expected = 0.1 / (variance + 0.1) * norm.weight * norm.weight.grad
    found = laws.defects(model, x, curved)["scale of 0.weight"]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    inward = (model[0].weight * model[0].weight.grad).sum((1, 2, 3))
    torch.testing.assert_close(inward.detach(), expected.detach(), rtol=1e-12, atol=0)


def test_a_check_sees_a_wrong_gradient_through_a_broken_law():
    """Only the scale of the first weight, which eps breaks, can see its gradient off by a factor."""

    class Off(nn.Linear):
        def forward(self, x):
            self.weight.register_hook(lambda gradient: 1.5 * gradient) if self.weight.requires_grad else None
            return super().forward(x)

    torch.manual_seed(0)
    right = nn.Sequential(nn.Linear(3, 4, bias=False), nn.RMSNorm(4, eps=1e-3), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    laws = invariances(right, x)
    assert [law.exact for law in laws] == [False]
    assert laws.check(right, x).passed
    wrong = copy.deepcopy(right)
    wrong[0].__class__ = Off
    found = laws.check(wrong, x)
    assert not found.passed
    assert found.suspects[0] == "0.weight"
    assert named(right).keys() == named(wrong).keys()


def test_a_model_that_draws_random_numbers_has_no_defects_and_no_alarm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert invariances(model, x).defects(model, x, curved) == {}
    assert invariances(model, x).check(model, x).passed
    assert set(invariances(model.eval(), x).defects(model, x, curved)) == {"scale of 0.weight"}


def test_data_of_another_shape_is_said_so():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x.reshape(2, 6)).reshape(2, 6)

    torch.manual_seed(0)
    model = Fixed(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6)).double()
    laws = invariances(model, torch.randn(2, 6, dtype=torch.float64))
    with pytest.raises(InputError, match="derive the laws with these inputs"):
        laws.defects(model, torch.randn(3, 6, dtype=torch.float64), curved)
