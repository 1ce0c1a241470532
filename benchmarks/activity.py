"""Activity of 4,096 neurons on 10,000 examples: the state of the bits, and the time beside the forward pass.

python benchmarks/activity.py
"""

import json

import torch
from torch import nn

import equipoise as eq
from equipoise.measure.spectrum import ExactSpectra
from equipoise.observers import Snapshot, TrainingContext
from equipoise.observers.state import to_tensors
from refresh import best


def main(examples=10_000, neurons=4096, inputs=784):
    torch.manual_seed(0)
    X, layer = torch.randn(examples, inputs), nn.Linear(inputs, neurons)
    context, observer = TrainingContext({}, (), (), kinks=("layer",)), eq.Activity()
    with torch.no_grad():
        z = layer(X)
        forward = best(lambda: layer(X), 5)
        snapshot = Snapshot(0, 0.0, {}, 1.0, ExactSpectra({}), preactivations=(z,))
        state, _ = observer.observe(context, observer.init(context), snapshot)
        seconds = best(lambda: observer.observe(context, state, snapshot), 5)
    size = sum(tensor.numel() * tensor.element_size() for tensor in to_tensors(state).values())
    told = {"bytes": size, "share_of_float32": size / (z.numel() * 4), "over_forward": seconds / forward}
    print(json.dumps(told | {"forward_seconds": forward, "activity_seconds": seconds}))


if __name__ == "__main__":
    main()
