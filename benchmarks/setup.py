"""What `eq.invariances` and `eq.watch` take before the first step, beside `torch.export` of the same model.

    python benchmarks/setup.py                    # all models
    python benchmarks/setup.py perceptron convnet --repeats 3

One process and one thread; the parts take turns, and CPU seconds are printed, so that a busy machine matters little:
the least of several repeats, and in brackets over that of `torch.export`. `free batch` is `torch.export` with the size
of the batch left open, as laws are read; `capture` includes it. `watch` is all that the first step under `eq.watch`
takes beyond a plain one: reading the model, and the first snapshot.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.graph.capture import capture
from equipoise.laws.derive import DerivationOptions, derive
from equipoise.laws.self_test import self_test

Model = tuple[nn.Module, Tensor]


def chain(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two convolutions and a skip, as in ResNet-18."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.skip = nn.Identity() if before == after and stride == 1 else skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def convnet() -> Model:
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *blocks, *head), torch.randn(2, 3, 64, 64)


def encoder() -> Model:
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False), torch.randn(2, 16, 512)


MODELS: dict[str, Callable[[], Model]] = {
    "perceptron": lambda: (chain(784, 2048, 2048, 2048, 1000), torch.randn(8, 784)),
    "small": lambda: (chain(784, 512, 512, 10), torch.randn(8, 784)),
    "convnet": convnet,
    "encoder": encoder,
}


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def watched(model: nn.Module, x: Tensor) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    plain = seconds(step)
    with eq.watch(model, optimizer, every=10**6, quiet=True):
        return seconds(step) - plain


def parts(model: nn.Module, x: Tensor) -> dict[str, float]:
    """CPU seconds of each part."""
    found = {"torch.export": seconds(lambda: torch.export.export(model, (x,)))}
    free = ({0: torch.export.Dim.AUTO},)
    found["free batch"] = seconds(lambda: torch.export.export(model, (x,), dynamic_shapes=free))
    held: list = []
    found["capture"] = seconds(lambda: held.append(capture(model, x)))
    found["derivation"] = seconds(lambda: held.append(derive(held[0], DerivationOptions())))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    captured, (laws, _) = held
    found["self-test"] = seconds(lambda: self_test(laws, captured, DerivationOptions(), weights))
    found["watch"] = watched(model, x)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts(chain(4, 3, 2), torch.randn(2, 4))  # what torch loads at the first export
    for number, name in enumerate(asked.models):
        torch.manual_seed(0)
        model, x = MODELS[name]()
        rounds = [parts(model, x) for _ in range(asked.repeats)]
        least = {part: min(each[part] for each in rounds) for part in rounds[0]}
        if not number:
            print("| model | parameters |", " | ".join(least), "|")
            print("|---|---:|" + "---:|" * len(least))
        base = least["torch.export"]
        size = sum(parameter.numel() for parameter in model.parameters())
        told = [f"{value:.2f} s ({value / base:.1f})" for value in least.values()]
        print(f"| {name} | {size / 1e6:.1f} M |", " | ".join(told), "|", flush=True)


if __name__ == "__main__":
    main()
