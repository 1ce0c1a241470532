"""Operations that bend are the same in terms of ReLU and maxima, and every kink of theirs is known."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.graph.capture import capture
from equipoise.graph.evaluate import kinks, rectified

BENT = {  # and how many kinks each has
    "hardtanh": (lambda z: F.hardtanh(z, -0.3, 0.7), 2),
    "relu6": (lambda z: F.relu6(4 * z), 2),
    "hardsigmoid": (lambda z: F.hardsigmoid(2 * z), 2),
    "hardswish": (lambda z: F.hardswish(2 * z), 2),
    "selu": (F.selu, 2),
    "elu": (lambda z: F.elu(z, 0.4), 2),
    "clamp": (lambda z: z.clamp(-0.2, 0.6), 2),
    "clamp by guards": (lambda z: z.clamp(-1e30, torch.finfo(z.dtype).max), 2),
    "clamp from below": (lambda z: z.clamp(min=0.1), 1),
    "clamp from above": (lambda z: z.clamp(max=0.1), 1),
    "clamp between": (lambda z: z.clamp(z.mean(1, keepdim=True), torch.ones(())), 2),
    "maximum": (lambda z: torch.maximum(z[:, :4], z[:, 4:]), 1),
    "minimum": (lambda z: torch.minimum(z[:, :4], z[:, 4:]), 1),
    "fmin": (lambda z: torch.fmin(z[:, :4], z[:, 4:]), 1),
    "max of two": (lambda z: torch.max(z[:, :4], z[:, 4:]), 1),
    "min of two": (lambda z: torch.min(z[:, :4], z[:, 4:]), 1),
    "max": (lambda z: z.view(z.shape[0], 4, 2).max(-1).values, 1),
    "min": (lambda z: z.view(z.shape[0], 4, 2).min(1, keepdim=True).values, 1),
    "amax": (lambda z: z.view(z.shape[0], 4, 2).amax((1, 2), keepdim=True), 1),
    "amin": (lambda z: z.view(z.shape[0], 4, 2).amin(-1), 1),
    "adaptive pool": (lambda z: F.adaptive_max_pool1d(z[:, None], 2), 1),
    "adaptive pool of two axes": (lambda z: F.adaptive_max_pool2d(z.view(-1, 1, 2, 4), (1, 2)), 2),
}


class Bent(nn.Module):
    def __init__(self, bend):
        super().__init__()
        self.layer, self.bend = nn.Linear(5, 8).double(), bend

    def forward(self, x):
        return self.bend(self.layer(x)).flatten(1).sum(1)


@pytest.mark.parametrize("name", BENT)
def test_the_same_numbers_and_every_kink_known(name):
    bend, count = BENT[name]
    model, x = Bent(bend), torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    found = rectified(capture(model, x[:2]), model, x[:2])
    weights = dict(model.named_parameters())
    assert torch.allclose(found.run(weights, x), model(x), rtol=1e-13, atol=1e-14)
    assert len(kinks(found)) == count


def test_saturation_is_exact_however_far():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Hardtanh()).double()
    found = rectified(capture(model, torch.ones(2, 1).double()), model, torch.ones(2, 1).double())
    far = torch.tensor([[1e17], [-1e17]], dtype=torch.float64)
    assert found.run({"0.weight": torch.ones(1, 1).double()}, far).tolist() == [[1.0], [-1.0]]


def test_what_bends_as_relu_does_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.LeakyReLU(), nn.ELU())
    captured = capture(model, torch.ones(2, 5))
    assert [node.target for node in rectified(captured, model, torch.ones(2, 5)).graph.nodes] == [
        node.target for node in captured.graph.nodes
    ]
