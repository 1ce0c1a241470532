"""Unit i of a law is neuron i of the layer that writes it: `value` and `by_unit` move where a neuron is perturbed."""

import pytest
import torch
from torch import nn

from equipoise.laws import invariances


class Gated(nn.Module):
    """`V (relu(W x + b) ⊙ (U x + c))`, the two halves as two layers or as one."""

    def __init__(self, joined):
        super().__init__()
        self.into = nn.Linear(3, 10) if joined else nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5)])
        self.out, self.joined = nn.Linear(5, 2), joined

    def forward(self, x):
        gate, value = self.into(x).chunk(2, -1) if self.joined else (layer(x) for layer in self.into)
        return self.out(torch.relu(gate) * value)


class Turned(nn.Module):
    """Neurons in another order between the layers."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(torch.relu(self.into(x)).flip(-1))


@pytest.mark.parametrize("model", [Gated(True), Gated(False), Turned()], ids=["joined", "apart", "turned"])
def test_entry_i_follows_neuron_i(model):
    model, x = model.double(), torch.randn(6, 3).double()
    laws = invariances(model, x)
    model(x).square().sum().backward()
    assert max(laws.residual(model).values()) < 1e-14
    before = laws.value(model)
    for law in laws:
        weight = model.get_parameter(law.producers[0])
        for neuron in range(len(weight)):
            with torch.no_grad():
                kept, slope = weight[neuron].clone(), weight.grad[neuron].clone()
                weight[neuron] *= 2
                changed = laws.value(model)[law.name] != before[law.name]
                weight[neuron] = kept
                weight.grad[neuron] += 1
                rows = laws.by_unit(model)
                weight.grad[neuron] = slope
            assert changed.nonzero().flatten().tolist() == [neuron]
            assert rows[(rows["law"] == law.name) & (rows["residual"] > 1e-6)]["unit"].tolist() == [neuron]
