import math

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import EquipoiseError, InputError, StoreError

MODEL = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
X, Y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, "0.1", True])
def test_a_tolerance_is_a_number_from_zero_up(tolerance):
    with pytest.raises(InputError, match=r"expected a tolerance of 0 .* or more.*found"):
        eq.compress(MODEL, (X, Y), tolerance)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"expected data as \(X, y\); found Tensor"),
        ((X, Y, Y), r"expected data as \(X, y\)"),
        ((X, Y[:4]), "expected a label for each of 6 examples; found 4"),
        ((X, Y + 1), r"expected labels 0 … 1; found 1, 2"),
        ((X[:0], None), "one at least"),
        ((torch.full((6, 3), math.nan), None), "expected finite inputs"),
        ((torch.randn(6, 4), None), "expected inputs that the model takes"),
        (((X, X[:3]), None), "expected the same number of examples"),
        (("text", None), "expected inputs that are tensors"),
        ((X.to("meta"), None), "expected dense inputs with values; found a tensor .* on meta"),
        ((X.to_sparse(), None), r"expected dense inputs with values; found .* torch\.sparse_coo"),
        ((X, Y.to("meta")), "expected class indices as y, a dense tensor"),
        ((X, Y.cfloat()), r"expected class indices as y, a dense tensor of real numbers; found torch\.complex64"),
        ((X, ["cat"] * 6), "expected class indices as y; found .*too many dimensions"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        eq.compress(MODEL, data)


def test_a_model_that_cannot_be_used_is_refused():
    bad = nn.Linear(3, 2)
    bad.weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="expected finite weights; found NaN or infinity in weight"):
        eq.compress(bad, (X, Y))
    with pytest.raises(InputError, match="found no parameters"):
        eq.compress(nn.ReLU(), (X, None))
    with pytest.raises(InputError, match="one score, or one a class"):
        eq.compress(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), (X, Y))


class Calls(nn.Module):
    """Two layers, and anything besides."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.then = nn.Linear(3, 8), nn.Linear(8, 2), forward

    def forward(self, x):
        return self.then(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 8, device="meta"), nn.Linear(8, 2)), "found 0.weight on the meta device"),
        (nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), "expected initialised parameters; found lazy 0.weight"),
        (nn.Linear(3, 2, dtype=torch.cfloat), "expected real parameters; found weight of dtype"),
        (torch.compile(nn.Linear(3, 2)), "expected a torch.nn.Module that is not compiled"),
        (Calls(lambda x: x.sum()), "expected outputs with the examples along their first axis; found a single number"),
        (Calls(lambda x: 1 / 0), "expected inputs that the model takes; found .*division by zero"),
        (Calls(lambda x: x[:, [5]]), "expected inputs that the model takes; found IndexError"),
        (Calls(lambda x: None), "expected a model that returns a tensor; found NoneType"),
    ],
    ids=["meta", "lazy", "complex", "compiled", "one number", "it raises", "an index", "nothing"],
)
def test_a_model_that_cannot_be_read_or_run_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        eq.compress(model, (X, None), 0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused():
    with pytest.raises(InputError, match="expected a model written in Python; found a ScriptModule"):
        eq.compress(torch.jit.trace(nn.Linear(3, 2), X), (X, None))


def test_a_model_too_small_is_returned_unchanged_and_says_so():
    small = eq.compress(nn.Linear(3, 2), (X, Y), 0.01)
    assert small.parameters_after == small.parameters_before
    assert small.moves == ()
    assert "nothing to take away: the model is returned unchanged" in str(small)


def test_one_score_takes_signs_or_zero_and_one():
    model = nn.Linear(3, 1)
    assert eq.compress(model, (X, 2 * Y - 1)).kept == eq.compress(model, (X, Y)).kept
    with pytest.raises(InputError, match=r"expected labels -1 and \+1, or 0 and 1"):
        eq.compress(model, (X, 2 * Y))


def test_a_model_that_cannot_be_read_has_its_layers_factorised():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 30), nn.Linear(30, 30)

        def forward(self, x):
            x = self.first(x)
            return self.second(x) if x.sum().item() > -1e9 else x

    small = eq.compress(Branching(), (X, None), 0.05)
    assert any("cannot be read" in note for note in small.notes)
    assert [move.kind for move in small.moves] == ["factorise"]
    assert small.ok


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_of_width_zero_and_a_tolerance_without_bound_are_no_trouble():
    small = eq.compress(nn.Sequential(nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 2)), (X, None), 0.1)
    assert small.kept.output_change == 0
    assert eq.compress(MODEL, (X, None), 1e300).ok


def test_inputs_of_the_methods_and_files_are_checked(tmp_path):
    small = eq.compress(MODEL, (X, Y), 0.0)
    with pytest.raises(InputError, match=r"expected X= to be a Float\[Tensor, .*found 'x'"):
        small.radius("x")
    with pytest.raises(EquipoiseError, match="expected inputs that the model accepts"):
        small.bound(torch.randn(2, 9))
    pytest.importorskip("onnxscript")
    with pytest.raises(StoreError, match=r"expected to write .*/missing/small.onnx"):
        small.to_onnx(tmp_path / "missing" / "small.onnx")
