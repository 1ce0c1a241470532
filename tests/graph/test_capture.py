import copy
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from equipoise.errors import CaptureError
from equipoise.graph.capture import capture
from equipoise.graph.export.program import place
from equipoise.laws import invariances


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        with torch.no_grad():
            phase = torch.arange(4.0).cos()
        hidden = F.relu_(self.embed(tokens) * phase)
        return self.head(self.norm(hidden.mean(1)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.offset = torch.ones(2)

    def forward(self, *, a, doubled=True, nothing=None):
        return {"out": self.linear(a) * (2 if doubled else 1) + self.offset, "nothing": nothing}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 7, (5, 3), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tied(tokens):
    return capture(Tied(), tokens)


@pytest.mark.parametrize("training", [True, False])
def test_run_equals_the_model_at_any_batch(tokens, training):
    model = Tied().train(training)
    captured = capture(model, tokens[:2])
    assert captured.mutates_buffers is training
    torch.testing.assert_close(captured.run(dict(model.named_parameters()), tokens), copy.deepcopy(model)(tokens))


def test_tied_parameters_have_one_canonical_name(tied):
    assert list(tied.parameters.values()) == ["embed.weight", "norm.weight", "norm.bias"]
    assert tied.aliases == {"head.weight": "embed.weight"}


def test_parameters_sharing_storage_are_tied_too():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.data)
    captured = capture(model, torch.ones(2, 3))
    assert list(captured.parameters.values()) == ["0.weight"]
    assert captured.aliases == {"2.weight": "0.weight"}


def test_graph_is_functional_and_free_of_guards_and_regions(tied):
    names = {str(node.target) for node in tied.graph.nodes}
    assert "aten.relu.default" in names
    assert not any(name.endswith("_.default") or "assert" in name or "wrap_with" in name for name in names)


def test_capture_leaves_the_model_as_it_was(tokens):
    model = Tied().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, tokens)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_batch_of_one_stays_dynamic():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    captured = capture(model, torch.ones(1, 2, 3))
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(captured.run(dict(model.named_parameters()), x), model(x))


class Counted(nn.Linear):
    def forward(self, x):
        return super().forward(x).view(len(x), 2, -1).amax(-1)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_length_of_a_batch_stays_dynamic(batch):
    model = Counted(6, 8)
    captured = capture(model, torch.ones(batch, 6))
    x = torch.randn(4, 6)
    torch.testing.assert_close(captured.run(dict(model.named_parameters()), x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype(dtype):
    model = nn.Linear(3, 2).to(dtype)
    captured = capture(model, torch.ones(2, 3, dtype=dtype))
    assert captured.run(dict(model.named_parameters()), torch.ones(2, 3, dtype=dtype)).dtype is dtype


def test_reads_models_without_values(tokens, tied):
    with torch.device("meta"):
        model = Tied()
    captured = capture(model, tokens)
    assert captured.parameters == tied.parameters
    assert model.embed.weight.is_meta


def test_keyword_arguments_plain_arguments_and_closed_over_tensors():
    model = Keywords()
    captured = capture(model, {"a": torch.ones(2, 3), "doubled": True})
    assert captured.inputs == ("a",)
    x = torch.randn(4, 3)
    torch.testing.assert_close(captured.run(dict(model.named_parameters()), x), model(a=x)["out"])


def test_intercept_replaces_an_operation_under_vmap_and_jacrev():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    captured = capture(model, torch.ones(2, 3).double())
    x = torch.randn(5, 3, dtype=torch.float64)
    half = lambda node, args: 0.5 * args[0] if node.target is torch.ops.aten.relu.default else NotImplemented  # noqa: E731
    linear = nn.Sequential(model[0], nn.Identity(), model[2])
    parameters = dict(model.named_parameters())
    weight, bias = parameters["2.weight"], parameters["2.bias"]
    run = lambda p, row: captured.run(p, row[None], intercept=half)[0, 0]  # noqa: E731
    torch.testing.assert_close(vmap(lambda row: run(parameters, row))(x), ((model[0](x) * 0.5) @ weight.T + bias)[:, 0])
    jacobian = vmap(jacrev(run), in_dims=(None, 0))(parameters, x)
    expected = vmap(jacrev(lambda p, row: functional_call(linear, p, row)[0]), in_dims=(None, 0))(parameters, x)
    torch.testing.assert_close(jacobian["2.weight"], 0.5 * expected["2.weight"])


class Raising(nn.Linear):
    def forward(self, x):
        raise KeyError("of the model's own")


class Cached(nn.Linear):
    """A model that also returns what no graph can hold, unless told not to."""

    def forward(self, x, use_cache=True):
        return (super().forward(x), object()) if use_cache else super().forward(x)


class Configured(nn.Linear):
    def __init__(self, *widths):
        super().__init__(*widths)
        self.config = type("Config", (), {"use_cache": True})()

    def forward(self, x):
        return (super().forward(x), object()) if self.config.use_cache else super().forward(x)


class Library(Branching):
    """Every model of transformers has this method, with experts or without."""

    def set_experts_implementation(self, name): ...


class Routed(Library):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList()


@pytest.mark.parametrize(
    ("model", "x", "reason", "remedy"),
    [
        (
            Branching(),
            torch.ones(2, 2),
            r"a decision by such a value at test_capture.py:\d+",
            "torch.where, or .*interfaces=",
        ),
        (Library(), torch.ones(2, 2), "a decision by such a value", "; write it as torch.where, or .*interfaces="),
        (Routed(), torch.ones(2, 2), "a decision by such a value", r"set_experts_implementation\('batched_mm'\)"),
        (nn.Linear(3, 3), torch.ones(2, 4), "found RuntimeError: mat1 and mat2 .*, raised by the model itself", "runs"),
        (Raising(3, 3), torch.ones(2, 3), "KeyError: .*, raised by the model itself at test_capture.py", "runs"),
    ],
)
def test_says_in_one_line_why_export_refused(model, x, reason, remedy):
    with pytest.raises(CaptureError, match=f"{reason}.*{remedy}") as info:
        capture(model, x)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("model", [Cached(3, 2), Configured(3, 2)])
@pytest.mark.parametrize("inputs", [torch.ones(2, 3), {"x": torch.ones(2, 3)}])
def test_keys_and_values_are_not_asked_for(model, inputs):
    captured = capture(model, inputs)
    assert captured.run(dict(model.named_parameters()), torch.ones(5, 3)).shape == (5, 2)
    assert getattr(model, "config", None) is None or model.config.use_cache


def test_inputs_without_values_are_enough():
    captured = capture(nn.Linear(3, 2), torch.ones(2, 3, device="meta"))
    assert list(captured.parameters.values()) == ["weight", "bias"]


class Starred(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, *inputs):
        return self.linear(sum(inputs))


@pytest.mark.parametrize("count", [1, 2])
def test_any_number_of_arguments_may_be_taken(count):
    model, x = Starred(), torch.randn(4, 3)
    captured = capture(model, (x,) * count)
    other = torch.randn(6, 3)
    torch.testing.assert_close(
        captured.run(dict(model.named_parameters()), *(other,) * count), model(*(other,) * count)
    )


class Standardised(nn.Conv1d):
    """A convolution whose weights a batch norm without running statistics standardises, as that of BiT."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True, eps=1e-300)
        return F.conv1d(x, weight.reshape(self.weight.shape), self.bias)


def test_a_batch_norm_without_running_statistics_is_one_with_them():
    model, x = Standardised(2, 3, 3).double(), torch.randn(4, 2, 5, dtype=torch.float64)
    captured = capture(model, x)
    torch.testing.assert_close(captured.run(dict(model.named_parameters()), x), model(x))
    scale = [law for law in invariances(model, x) if law.kind != "shift"]
    assert [(law.name, law.count) for law in scale] == [("scale of weight", 3)]


def test_the_place_of_an_error_may_be_in_a_library_whose_name_begins_as_torch():
    file = str(Path(torch.__file__).parent) + "_geometric/conv.py"
    with pytest.raises(ZeroDivisionError) as error:
        exec(compile("1 / 0", file, "exec"))
    assert place(error.value) == " at conv.py:1"


def test_a_large_model_whose_batch_stays_fixed_is_not_laid_out_in_memory():
    """Dynamo, which frees a batch read by `len`, copies every weight: here a gigabyte, twice."""

    class Long(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.across, self.down = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 2)

        def forward(self, x):
            return self.down(self.across(torch.relu(self.up(x))).reshape(len(x), -1))

    x = torch.zeros(2, 8, device="meta")
    with torch.device("meta"):
        small, large = Long(16), Long(16384)
    kinds = [law.kind for law in invariances(small, x)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [law.kind for law in invariances(large, x)] == kinds == ["vertex", "linear"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes
