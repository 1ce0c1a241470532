"""The general path on what people have: products of the Jacobian against autograd on the model itself."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import reference
from equipoise.errors import InputError
from equipoise.graph.capture import capture
from equipoise.graph.evaluate import frozen
from equipoise.integrate.margins.graph_margins import GraphMargins
from equipoise.integrate.margins.protocol import ParameterLayout, local_slopes, secant_slopes
from equipoise.integrate.margins.readout import BinaryReadout, MulticlassReadout
from helpers.sampling import sampled


class Attention(nn.Module):
    """One block of a transformer on a sequence of 4 tokens, a class token's worth of pooling, and a linear tail."""

    def __init__(self, heads=2, width=6):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.position = nn.Parameter(torch.randn(4, width, generator=torch.Generator().manual_seed(0)) / 2)
        self.block = nn.TransformerEncoderLayer(width, heads, 8, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.block(self.embed(x.view(-1, 4, 3)) + self.position).mean(1))


class Tied(nn.Module):
    """One matrix used twice, and once more transposed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) / 3)
        self.head = nn.Linear(12, 1)

    def forward(self, x):
        h = torch.relu(x @ self.weight)
        return self.head(torch.relu(h @ self.weight) @ self.weight.T)


def image(*layers):
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *layers)


MODELS = {
    "maximum": lambda: image(
        nn.Conv2d(1, 3, 2, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.LazyLinear(1)
    ),
    "average": lambda: image(
        nn.Conv2d(1, 3, (2, 3), stride=(1, 2), padding=(0, 1), dilation=1, bias=False),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.Linear(5, 1),
    ),
    "one axis": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 6)),
        nn.Conv1d(2, 3, 3, padding=1, dilation=1),
        nn.ReLU(),
        nn.MaxPool1d(3, 2, 1),
        nn.Conv1d(3, 3, 2, groups=3),
        nn.PReLU(3),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(3, 1),
    ),
    "normalised": lambda: nn.Sequential(
        nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 1)
    ),
    "attention": Attention,
    "tied": Tied,
    "bent": lambda: nn.Sequential(nn.Linear(12, 6), nn.ReLU6(), nn.Linear(6, 5), nn.Hardtanh(), nn.Linear(5, 1)),
    "classes": lambda: image(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)
    ),
}


def built(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    model(torch.randn(8, 12, dtype=torch.float64))  # sizes of lazy layers, statistics of BatchNorm
    return model.eval()


def setting(name, n=7, **options):
    model, generator = built(name), torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    classes = 3 if name == "classes" else None
    labels = torch.arange(n) % 3 if classes else torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    layout = ParameterLayout.of(dict(model.named_parameters()))
    readout = MulticlassReadout(labels, 3) if classes else BinaryReadout(labels)
    margins = GraphMargins(capture(model, inputs[:2]), layout, inputs, readout, **options)
    jacobian = reference.margin_jacobian(model, inputs, labels, classes)
    return margins, layout.flatten(dict(model.named_parameters())), jacobian


def close(a, b):
    return torch.allclose(a, b, rtol=1e-10, atol=1e-12)


AT_ONCE, ONE_BY_ONE = 1 << 30, 1


@pytest.mark.parametrize(
    ("name", "memory"),
    sampled(
        [(name, memory) for name in MODELS for memory in (AT_ONCE, ONE_BY_ONE)],
        [(name, ONE_BY_ONE) for name in MODELS if name not in ("maximum", "tied", "classes")],
    ),
)
def test_products_of_the_jacobian_are_those_of_autograd(name, memory):
    margins, weights, jacobian = setting(name, memory=memory)
    here = margins.linearize(weights, local_slopes(margins, margins.evaluate(weights)))
    generator = torch.Generator().manual_seed(2)
    forces = torch.rand(here.margins.shape, generator=generator, dtype=torch.float64)
    change = torch.randn(len(weights), generator=generator, dtype=torch.float64)
    assert close(here.margins, margins.evaluate(weights).margins)
    assert close(here.vjp(forces), jacobian.T @ forces.flatten())
    assert close(here.jvp(change).margins.flatten(), jacobian @ change)
    examples = torch.tensor([5, 0, 0, 3])
    onto = torch.randn(4, *margins.readout.others, generator=generator, dtype=torch.float64)
    rows = (onto.view(4, -1, 1) * jacobian.unflatten(0, (7, -1))[examples]).sum(1)
    assert close(here.kernel(examples, onto), rows @ rows.T)
    columns = torch.tensor([3, 1])
    assert close(here.kernel(examples, onto, columns), rows @ rows[columns].T)


@pytest.mark.parametrize("name", MODELS)
def test_kernel_from_layer_grams_is_that_of_per_example_gradients_at_any_slopes(name):
    """The fast path and its twin by `torch.func`, which has no Gram layers."""
    margins, weights, _ = setting(name)
    twin = replace(margins)
    object.__setattr__(twin, "gram_layers", ())
    before, after = margins.evaluate(weights), margins.evaluate(1.1 * weights + 0.1)
    slopes = secant_slopes(margins, before, after)
    examples, forces = torch.arange(7), torch.rand(7, *margins.readout.others, dtype=torch.float64)
    a, b = (one.linearize(weights, slopes).kernel(examples, forces) for one in (margins, twin))
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-13 * float(b.abs().max()))
    covered = {parameter for layer in margins.gram_layers for parameter in layer.parameters}
    assert covered or name == "tied"


def refused(model, message):
    inputs = torch.randn(4, 12, dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        _ = GraphMargins(
            capture(model.double(), inputs), ParameterLayout({}), inputs, BinaryReadout(inputs[:, 0])
        ).kinks


class Through(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.layer, self.head, self.operation = nn.Linear(12, 4), nn.Linear(4, 1), operation

    def forward(self, x):
        return self.head(self.operation(self.layer(x)))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (torch.sign, "sign at sign, whose derivative is zero almost everywhere"),
        (torch.round, "round at round_1, whose derivative is zero almost everywhere"),
        (lambda z: nn.functional.one_hot(z.argmax(1), 4).to(z), "argmax at argmax, whose derivative"),
        (lambda z: torch.where(z > 0, z, 0.0), "gt at gt, whose derivative"),
        (torch.special.bessel_j0, "special_bessel_j0 at .*, an operation that is not known to be"),
        (lambda z: z.detach(), "detach at .*, an operation that is not known to be"),
        (lambda z: nn.functional.dropout(z, 0.5, True), "dropout at .* in training mode; call model.eval"),
    ],
)
def test_what_has_no_useful_derivative_is_named(operation, message):
    refused(Through(operation), message)


def test_what_does_not_depend_on_the_weights_may_be_anything():
    model = nn.Sequential(Rounded(), nn.Linear(12, 1)).double()
    inputs = torch.randn(4, 12, dtype=torch.float64)
    assert GraphMargins(capture(model, inputs), ParameterLayout({}), inputs, BinaryReadout(inputs[:, 0])).kinks == ()


class Rounded(nn.Module):
    def forward(self, x):
        return torch.round(x) * torch.sign(x)


@pytest.mark.parametrize(
    ("name", "memory"),
    [("maximum", AT_ONCE), ("one axis", ONE_BY_ONE), ("tied", AT_ONCE), ("classes", ONE_BY_ONE)],
)
def test_sensitivity_is_what_an_offset_of_a_kink_does_to_the_margins(name, memory):
    """By finite differences of the frozen network; the slopes are none of the network's own."""
    margins, weights, _ = setting(name, memory=memory)
    slopes = tuple(torch.rand_like(slope) for slope in local_slopes(margins, margins.evaluate(weights)))
    forces = torch.rand(margins.evaluate(weights).margins.shape, dtype=torch.float64)
    found = margins.linearize(weights, slopes).sensitivity(forces)
    views = margins.layout.views(weights)
    for k, sensitivity in enumerate(found):
        along = torch.randn(sensitivity.shape, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            offsets = [torch.zeros_like(each) for each in found]
            offsets[k] = 1e-4 * sign * along
            output = frozen(margins.captured, margins.nodes, views, margins.inputs, slopes, offsets)
            ends.append((forces * margins.readout.margins(output.reshape(len(forces), -1))).sum())
        assert torch.allclose((ends[0] - ends[1]) / 2e-4, (sensitivity * along).sum(), rtol=1e-6, atol=1e-8)
