"""A snapshot of the weights of a GPT-2-shaped network, beside one read of them, full SVDs, and Gram matrices.

    python benchmarks/refresh.py            # 12 blocks of width 768: 85 M parameters, float32, two threads
    python benchmarks/refresh.py --width 256 --blocks 4

Printed: seconds of one refresh of Spectrum(r=4), Alignment and Drift; its ratio to one read of all weights (`Σ‖W‖_F²`);
`torch.linalg.svdvals` on every matrix; Gram eigenvalues in float32; and the accuracy of σ_1 on spectra like those of
trained networks and on flat ones, beside the stated bound.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F

from equipoise.laws import Between, Blocks, Diagonal, LawPlan, invariances
from equipoise.measure.unfolding import Unfolding
from equipoise.monitor.distributed import ProcessGroup
from equipoise.monitor.spectra import SpectrumTracker
from equipoise.observers import Alignment, Drift, Snapshot, Spectrum, TrainingContext


class Block(nn.Module):
    """A transformer block as GPT-2's: LayerNorm, attention, LayerNorm, GELU."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        z = self.ln1(x)
        q, k, v = (layer(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


def derived(model):
    """The laws as the graph gives them."""
    return invariances(model, torch.ones(2, 8, model[0].q.in_features))


def stated(model, width, heads):
    """The same but for shifts, and with keys and queries in one piece a head, stated by hand: reading is set-up."""
    head, laws = Blocks(heads, width // heads), []
    for b in range(len(model)):
        laws += [
            Between((f"{b}.ln1.weight", f"{b}.ln1.bias"), tuple(f"{b}.{x}.weight" for x in "qkv"), Diagonal(width)),
            Between((f"{b}.q.weight", f"{b}.q.bias"), (f"{b}.k.weight",), head),
            Between((f"{b}.v.weight", f"{b}.v.bias"), (f"{b}.o.weight",), head),
            Between((f"{b}.ln2.weight", f"{b}.ln2.bias"), (f"{b}.up.weight",), Diagonal(width)),
        ]
    return invariances(model, torch.ones(1), interfaces=laws)


def best(act, repeats):
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times)


def refresh(model, laws):
    """A function that takes one snapshot, as `eq.watch` does after a step."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    matrices = tuple(Unfolding(name) for name, weight in weights.items() if weight.ndim > 1)
    pairs = tuple(
        (Unfolding(f"{block}.up.weight", f"{block}.up.bias"), Unfolding(f"{block}.down.weight", reads=True))
        for block in range(len(model))
    )
    plan = LawPlan(laws, sketch=8)
    context = TrainingContext(weights, matrices, pairs, laws=laws, plan=plan, online=True)
    asked = [*matrices, *(below for below, _ in pairs)]
    group = ProcessGroup()
    tracker = SpectrumTracker(tuple(asked), 4, group)
    observers = [Spectrum(r=4), Alignment(), Drift()]
    states = [observer.init(context) for observer in observers]

    def take():
        squares = group.census(weights).squares
        spectra = tracker.at(weights, squares)
        snapshot = Snapshot(1, 1.0, weights, 1.0, spectra, full=False, laws=plan(weights))
        for observer, state in zip(observers, states, strict=True):
            observer.observe(context, state, snapshot)
        return spectra

    return take, matrices


def accuracy(kind, sweeps, size=768):
    """Relative error of σ_1, and the bound beside it, after so many sweeps over one matrix."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator)
    if kind == "trained":
        u, _, v = torch.linalg.svd(matrix)
        matrix = u * torch.cat([torch.tensor([4.0, 3.0, 2.0]), torch.arange(1, size - 2) ** -0.5]) @ v
    exact = float(torch.linalg.svdvals(matrix.double())[0])
    tracker, weights = SpectrumTracker((Unfolding("w"),), 4, ProcessGroup()), {"w": matrix}
    for _ in range(sweeps + 1):  # the first snapshot takes several sweeps
        (seen,) = tracker.at(weights, ProcessGroup().census(weights).squares).leading([Unfolding("w")], 4)
    return abs(seen.values[0] / exact - 1), seen.error_bound / exact


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--derive", action="store_true", help="read the laws from the model's graph")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    heads = asked.width // 64
    model = nn.Sequential(*(Block(asked.width, heads) for _ in range(asked.blocks)))
    laws = derived(model) if asked.derive else stated(model, asked.width, heads)
    take, matrices = refresh(model, laws)
    tensors = [dict(model.named_parameters())[each.weight].detach() for each in matrices]
    take()
    ours = best(take, asked.repeats)
    read = best(lambda: [torch.dot(w.view(-1), w.view(-1)) for w in tensors], asked.repeats)
    gram = best(lambda: [torch.linalg.eigvalsh(w.T @ w if len(w) > w.shape[1] else w @ w.T) for w in tensors], 1)
    full = best(lambda: [torch.linalg.svdvals(w) for w in tensors], 1)
    told = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "refresh_seconds": ours,
        "reads_of_all_weights": ours / read,
        "svdvals_over_refresh": full / ours,
        "gram_over_refresh": gram / ours,
        "sigma_1": {f"{kind}, snapshot {n}": accuracy(kind, n) for kind in ("trained", "flat") for n in (1, 10, 30)},
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
