"""Trainings from different seeds, aligned: loss barriers on the straight line between them, and the mean of several.

python benchmarks/align.py mlp 128 512 1024
python benchmarks/align.py convnet 32 64

Three MLPs, or convnets, of each width are trained on MNIST (`EQUIPOISE_DATA`) from different
seeds. The barrier is the largest excess of the loss on the line over the straight line between the losses of its ends,
on 5,000 held-out examples: for the weights as trained, by `eq.align`, which reads the group from the graph, and by
weight matching with a permutation specification written by hand for these chains (`tests/reference.py`).
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import equipoise as eq
from reference import matched_chain

MODELS, EPOCHS, TRAINED, HELD = 3, 3, 20000, 5000


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def convnet(width: int) -> nn.Sequential:
    convolutions = [(1, width), (width, width), (width, width)]
    layers = [each for sizes in convolutions for each in (nn.Conv2d(*sizes, 3, 2, 1), nn.ReLU())]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *layers, *head)


def trained(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (len(x) // 100))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def mixture(models: Sequence[nn.Module], shares: Sequence[float]) -> nn.Module:
    found = copy.deepcopy(models[0])
    with torch.no_grad():
        for parameter, *others in zip(found.parameters(), *(each.parameters() for each in models), strict=True):
            parameter.copy_(sum(share * other for share, other in zip(shares, others, strict=True)))
    return found


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and accuracy."""
    with torch.no_grad():
        logits = model(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).double().mean())


def barrier(left: nn.Module, right: nn.Module, x: Tensor, y: Tensor) -> float:
    shares = torch.linspace(0, 1, 11).tolist()
    losses = [measured(mixture([left, right], [1 - share, share]), x, y)[0] for share in shares]
    return max(loss - (1 - s) * losses[0] - s * losses[-1] for s, loss in zip(shares, losses, strict=True))


def by_hand(model: nn.Module, reference: nn.Module) -> nn.Module:
    found = copy.deepcopy(model)
    layers, targets = (
        [layer for layer in each.modules() if isinstance(layer, nn.Linear | nn.Conv2d)] for each in (found, reference)
    )
    for layer, (weight, bias) in zip(layers, matched_chain(layers, targets), strict=True):
        layer.weight.data, layer.bias.data = weight, bias  # pyright: ignore[reportOptionalMemberAccess]
    return found


def distance(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return float(sum((a.detach() - b.detach()).square().sum() for a, b in pairs)) ** 0.5


def compare(name: str, build: Callable[[], nn.Module], data: tuple[Tensor, ...]) -> None:
    x, y, held, truth = data
    models = []
    for seed in range(MODELS):
        torch.manual_seed(seed)
        models.append(trained(build(), x, y, seed))
    first, *others = models
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "as trained": lambda model: model,
        "eq.align": lambda model: eq.align(model, first, x[:8]).model,
        "by hand": lambda model: by_hand(model, first),
    }
    alone = [measured(model, held, truth)[1] for model in models]
    print(f"{name}: accuracy of each {', '.join(f'{each:.4f}' for each in alone)}", flush=True)
    for way, move in ways.items():
        start = time.perf_counter()
        moved = [move(model) for model in others]
        seconds = (time.perf_counter() - start) / len(others)
        mean = measured(mixture([first, *moved], [1 / MODELS] * MODELS), held, truth)[1]
        print(
            f"{name}, {way}: barrier {barrier(first, moved[0], held, truth):.4f}, distance "
            f"{distance(first, moved[0]):.3f}, accuracy of the mean of {MODELS} {mean:.4f}, {seconds:.1f} s a model",
            flush=True,
        )


def main(kind: str, widths: Sequence[int]) -> None:
    pixels, labels = eq.data.load("mnist", n=TRAINED + HELD)
    parts = [each for tensor in (pixels.float(), labels.long()) for each in tensor.split([TRAINED, HELD])]
    build = {"mlp": mlp, "convnet": convnet}[kind]
    for width in widths:
        compare(f"{kind} of width {width}", lambda width=width: build(width), (parts[0], parts[2], parts[1], parts[3]))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(sys.argv[1], [int(each) for each in sys.argv[2:]])
