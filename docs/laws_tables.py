"""Writes the tables of docs/laws.md: the laws of five networks, each with its residual on one batch in float64.

python docs/laws_tables.py         # rewrites docs/laws.md in place
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import equipoise as eq
from helpers.cases import Attention, LanguageModel, PreNormBlock, RMSNorm, SwiGLU, resnet

PAGE = Path(__file__).with_name("laws.md")
BEGIN, END = "<!-- tables: python docs/laws_tables.py -->\n", "<!-- end of tables -->\n"


class ViTBlock(nn.Module):
    """One block of ViT-Tiny between its patches and its head: width 192, three heads, GELU."""

    def __init__(self, width: int = 192, heads: int = 3, classes: int = 10):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.block = PreNormBlock(width, Attention(width, heads), feedforward)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class DoubleConvolution(nn.Sequential):
    def __init__(self, channels_in: int, channels: int):
        first, second = (nn.Conv2d(c, channels, 3, padding=1, bias=False) for c in (channels_in, channels))
        norms = (nn.BatchNorm2d(channels) for _ in range(2))
        super().__init__(first, next(norms), nn.ReLU(), second, next(norms), nn.ReLU())


class UNet(nn.Module):
    """Two levels down and up again, each skip concatenated, BatchNorm after every convolution."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down1, self.down2 = DoubleConvolution(1, width), DoubleConvolution(width, 2 * width)
        self.bottom = DoubleConvolution(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(2 * w, w, 2, 2) for w in (2 * width, width))
        self.join2, self.join1 = DoubleConvolution(4 * width, 2 * width), DoubleConvolution(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        middle = self.down2(F.max_pool2d(high, 2))
        low = self.bottom(F.max_pool2d(middle, 2))
        middle = self.join2(torch.cat([middle, self.up2(low)], 1))
        return self.out(self.join1(torch.cat([high, self.up1(middle)], 1)))


class GAT(nn.Module):
    """Two layers of `torch_geometric.nn.GATv2Conv`, four heads and then one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = GATv2Conv(6, 8, heads=4), GATv2Conv(32, 3, heads=1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edges)), edges)


def ring(nodes: int) -> Tensor:
    """Edges of a ring with chords, both ways."""
    start = torch.arange(nodes)
    edges = torch.cat([torch.stack([start, (start + step) % nodes]) for step in (1, 3)], 1)
    return torch.cat([edges, edges.flip(0)], 1)


def llama() -> nn.Module:
    attention = Attention(64, 8, 2, rope=0, bias=False)
    return LanguageModel(PreNormBlock(64, attention, SwiGLU(64, 172), RMSNorm), 64, vocabulary=50, norm=RMSNorm(64))


@dataclass(frozen=True)
class Subject:
    """A network and a batch; `what` is its heading, `build` is called after seeding."""

    what: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


SUBJECTS = (
    Subject(
        "ResNet-18's shape, 11.2 million parameters, BatchNorm in training",
        lambda: resnet((64, 128, 256, 512), 2, 10),
        lambda: (torch.randn(4, 3, 64, 64),),
    ),
    Subject("A ViT block: pre-norm, three heads, GELU", ViTBlock, lambda: (torch.randn(4, 3, 32, 32),)),
    Subject(
        "A LLaMA-style block: RMSNorm, rotary embedding, SwiGLU, eight query heads on two of keys and values",
        llama,
        lambda: (torch.randint(0, 50, (3, 12)),),
    ),
    Subject("A U-Net-like network: skips by concatenation, BatchNorm", UNet, lambda: (torch.randn(4, 1, 16, 16),)),
    Subject("A two-layer GATv2 of torch_geometric", GAT, lambda: (torch.randn(10, 6), ring(10))),
)


@dataclass(frozen=True)
class Line:
    """One law as the table shows it; `corrected` is its residual with the defect of `eps` taken off."""

    law: str
    kind: str
    count: int
    residual: float
    corrected: float | None

    @property
    def text(self) -> str:
        """A row of a Markdown table."""
        corrected = "" if self.corrected is None else f"{self.corrected:.0e}"
        return f"| `{self.law}` | {self.kind} | {self.count} | {self.residual:.0e} | {corrected} |"


def lines(subject: Subject) -> tuple[str, list[Line]]:
    """What was read of a network, and its laws after one backward pass in float64."""
    torch.manual_seed(0)
    model = subject.build().double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in subject.inputs())
    laws = eq.invariances(model, inputs)
    loss = lambda output: output.exp().mean()  # noqa: E731
    loss(model(*inputs)).backward()
    before = laws.residual(model)
    defects = laws.defects(model, inputs, loss)
    after = laws.residual(model, defects=defects)
    rows = [
        Line(law.name, law.kind, law.count, float(before[law.name]), None if law.exact else float(after[law.name]))
        for law in laws
    ]
    return f"{len(laws)} laws, {laws.conserved} conserved quantities; {laws.coverage}", rows


def sections() -> Iterator[str]:
    """A section for each network."""
    for subject in SUBJECTS:
        told, rows = lines(subject)
        head = "| law | kind | count | residual | `eps` taken off |\n|---|---|---:|---:|---:|"
        yield "\n".join([f"## {subject.what}", "", f"{told}.", "", head, *(row.text for row in rows), "", ""])


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{''.join(sections())}{END}{after}", encoding="utf-8")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()
