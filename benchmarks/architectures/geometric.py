"""Graph convolutions of torch_geometric, each between two linear layers with ReLU."""

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as G
from torch import Tensor, nn

from architectures.entry import Architecture, Inputs

NODES = 7


class Graphs(nn.Module):
    """Two convolutions with ReLU between them, and a linear head; `extras` are passed on to each convolution."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int):
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(width, 2)

    def forward(self, x: Tensor, edges: Tensor, *extras: Tensor) -> Tensor:
        x = torch.relu(self.first(x, edges, *extras))
        return self.head(torch.relu(self.second(x, edges, *extras)))


def _edges() -> Tensor:
    """A ring both ways and some chords: every node has neighbours, two of them to six."""
    ring = torch.arange(NODES)
    chords = torch.tensor([[0, 0, 0, 0, 2, 2, 3], [2, 3, 4, 5, 4, 5, 5]])
    forth = torch.cat([torch.stack([ring, (ring + 1) % NODES]), chords], 1)
    return torch.cat([forth, forth.flip(0)], 1)


def _graph(*extras: Callable[[int], Tensor]) -> Callable[[int], Inputs]:
    def inputs(width: int) -> Inputs:
        edges = _edges()
        return torch.randn(NODES, 3), edges, *(extra(edges.shape[1]) for extra in extras)

    return inputs


def _entry(
    name: str, layer: Callable[[int, int], nn.Module], *extras: Callable[[int], Tensor], wide: int = 1
) -> Architecture:
    """`layer(inputs, outputs)` twice; its output is `wide` times as wide, as with concatenated heads."""
    return Architecture(
        name,
        "torch_geometric",
        lambda w: Graphs(layer(3, w // wide), layer(w, w // wide), w),
        _graph(*extras),
    )


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))


def _pna(inputs: int, outputs: int) -> nn.Module:
    spread: dict[str, Any] = {"aggregators": ["mean", "max", "sum"], "scalers": ["identity", "amplification"]}
    return G.PNAConv(inputs, outputs, deg=torch.tensor([0, 0, 3, 4]), **spread)


def _weights(edges: int) -> Tensor:
    return torch.rand(edges)


def _attributes(edges: int) -> Tensor:
    return torch.rand(edges, 2)


def _relations(edges: int) -> Tensor:
    return torch.arange(edges) % 2


class _Alike(nn.Module):
    """A convolution that keeps the width, after a linear map to it; `rest` takes what it needs besides."""

    def __init__(self, inputs: int, outputs: int, layer: nn.Module, initial: bool = False):
        super().__init__()
        self.into, self.layer, self.initial = nn.Linear(inputs, outputs), layer, initial

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.into(x)
        return self.layer(x, x, edges) if self.initial else self.layer(x, edges)


ENTRIES = (
    _entry("GCN", G.GCNConv),
    _entry("GCN, weighted edges", G.GCNConv, _weights),
    _entry("GAT", lambda i, o: G.GATConv(i, o, heads=2), wide=2),
    _entry("GATv2", lambda i, o: G.GATv2Conv(i, o, heads=2), wide=2),
    _entry("SuperGAT", lambda i, o: G.SuperGATConv(i, o, heads=2, attention_type="SD"), wide=2),
    _entry("GraphSAGE", G.SAGEConv),
    _entry("GraphSAGE, max, normalised", lambda i, o: G.SAGEConv(i, o, aggr="max", normalize=True)),
    _entry("GIN", lambda i, o: G.GINConv(_mlp(i, o), train_eps=True)),
    _entry("Chebyshev", lambda i, o: G.ChebConv(i, o, K=2)),
    _entry("ARMA", lambda i, o: G.ARMAConv(i, o, num_stacks=2)),
    _entry("SGC", lambda i, o: G.SGConv(i, o, K=2)),
    _entry("TAG", lambda i, o: G.TAGConv(i, o, K=2)),
    _entry("Graph transformer", lambda i, o: G.TransformerConv(i, o, heads=2), wide=2),
    _entry("Graph transformer, gated", lambda i, o: G.TransformerConv(i, o, heads=2, beta=True), wide=2),
    _entry("PNA", _pna),
    _entry("GraphConv", G.GraphConv),
    _entry("EdgeConv", lambda i, o: G.EdgeConv(_mlp(2 * i, o), aggr="mean")),
    _entry("LEConv", G.LEConv),
    _entry("GENConv", G.GENConv),
    _entry("Residual gated graph", G.ResGatedGraphConv),
    _entry("FeaStNet", lambda i, o: G.FeaStConv(i, o, heads=2)),
    _entry("Cluster-GCN", G.ClusterGCNConv),
    _entry("GCN2", lambda i, o: _Alike(i, o, G.GCN2Conv(o, alpha=0.1), initial=True)),
    _entry("APPNP", lambda i, o: _Alike(i, o, G.APPNP(K=2, alpha=0.1))),
    _entry("AGNN", lambda i, o: _Alike(i, o, G.AGNNConv())),
    _entry("Gated graph", lambda i, o: _Alike(i, o, G.GatedGraphConv(o, num_layers=1))),
    _entry("MFConv", lambda i, o: G.MFConv(i, o, max_degree=4)),
    _entry("FiLM graph", lambda i, o: G.FiLMConv(i, o)),
    _entry("Relational GCN", lambda i, o: G.RGCNConv(i, o, num_relations=2), _relations),
    _entry("Edge-conditioned", lambda i, o: G.NNConv(i, o, nn.Linear(2, i * o)), _attributes),
    _entry("Crystal graph", lambda i, o: _Alike(i, o, G.CGConv(o))),
    _entry("Gaussian mixture graph", lambda i, o: G.GMMConv(i, o, dim=2, kernel_size=2), _attributes),
    _entry("Hypergraph", G.HypergraphConv),
    _entry("General graph", G.GeneralConv),
    _entry("Light GCN", lambda i, o: _Alike(i, o, G.LGConv())),
    _entry("Graph isomorphism with edges", lambda i, o: G.GINEConv(_mlp(i, o), edge_dim=2), _attributes),
)
