"""Activity in a training loop: stable, dead and flipping neurons, in a bit each."""

import copy

import pytest
import torch
from torch import nn

import equipoise as eq


def watched(model, probe, change, steps=24, every=2, window=8.0):
    """Readings of the first layer, by step, while `change(step)` edits the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    observer = eq.Activity(probe, window=window)
    with eq.watch(model, optimizer, every=every, observe=[observer], quiet=True, alarms=[]) as log:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            model(probe).sum().backward()
            optimizer.step()
            with torch.no_grad():
                change(step)
    table = log.table().query("observer == 'activity'")
    return table.pivot_table(index="step", columns="quantity", values="value")


def test_flips_are_counted_and_neurons_settle():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 10.0, -1.0]))
    probe = torch.linspace(-1, 1, 10)[:, None]

    def change(step):
        if step == 5:
            model[0].weight[0].neg_()  # every example changes side

    seen = watched(model, probe, change)
    assert seen.dead.tolist() == [1.0] * len(seen)
    assert seen.flipping_pairs[seen.flipping_pairs > 0].to_dict() == {6: 10.0}
    assert seen.last_flip.dropna().unique().tolist() == [6.0]
    assert seen.loc[24, "stably_active"] == 1  # the one with a large bias
    assert seen.loc[24, "stably_inactive"] == 1
    assert seen.pattern_classes.tolist() == [2.0] * len(seen)


def test_one_bit_is_kept_for_each_neuron_and_example():
    """10,000 examples and 4,096 neurons: 5.1 MB of bits, and 8 bytes a neuron."""
    from equipoise.measure.spectrum import ExactSpectra
    from equipoise.observers import Snapshot, TrainingContext
    from equipoise.observers.activity import ActivityState
    from equipoise.observers.state import to_tensors

    z = torch.randn(10_000, 4096, generator=torch.Generator().manual_seed(0))
    context = TrainingContext({}, (), kinks=("layer",))
    snapshot = Snapshot(0, 0.0, {}, 1.0, ExactSpectra({}), preactivations=(z,))
    state, _ = eq.Activity().observe(context, ActivityState(), snapshot)
    assert (
        sum(tensor.numel() * tensor.element_size() for tensor in to_tensors(state).values()) == 1250 * 4096 + 8 * 4096
    )


@pytest.mark.parametrize("watching", [True, False])
@pytest.mark.parametrize(
    ("model", "shape", "channels"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)), (2, 5), 3),
        (nn.Sequential(nn.Conv2d(1, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 1)), (1, 3, 3), 5),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1)), (3, 4), 6),
    ],
)
def test_the_neurons_of_convolutions_and_tokens_are_channels_and_units(watching, model, shape, channels):
    """Off everywhere: the first of them, and no other."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        model[0].weight[0].zero_()
        model[0].bias.copy_(torch.tensor([-1.0, *[5.0] * (channels - 1)]))
    X = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)).double()
    if watching:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with eq.watch(model, optimizer, every=1, observe=[eq.Activity(X)], quiet=True, alarms=[]) as log:
            model(X).sum().backward()
            optimizer.step()
        seen = log.table().set_index("quantity").value
    else:
        run = eq.flow(model, (X, [1, -1] * 3), until=eq.Steps(1), observe=[eq.Activity()])
        seen = run.table().query("step == 0 and observer == 'activity'").set_index("quantity").value
    assert (seen.neurons, seen.dead, seen.pattern_classes) == (channels, 1, 1)
