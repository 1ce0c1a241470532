"""`equipoise invariances --module`: other people's models, their gradients, and whatever is wrong with them."""

import json

import pytest

from equipoise.cli import main

FACTORIES = """
import torch
from torch import nn

print("loading weights")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def plain():
    return network(), torch.randn(5, 3)


def classified():
    return network(), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), "cross_entropy"


def own_loss():
    return network(), (torch.randn(5, 3),), lambda output: output.exp().mean()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.d(torch.relu(self.b(h.detach()) + self.c(h)))


def detached():
    return Detached(), torch.randn(5, 3)


def lawless():
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(5, 3)


def with_example_array():
    model = network()
    model.example_input_array = torch.randn(5, 3)
    return model


def alone():
    return network()


def raises():
    raise ValueError("out of luck\\nand lines")


def exits():
    raise SystemExit(3)


def nothing():
    return None


def five_things():
    return network(), 1, 2, 3, 4


def number_for_loss():
    return network(), torch.randn(5, 3), 3


def vector_for_loss():
    return network(), torch.randn(5, 3), lambda output: output


constant = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command in a folder that holds the factories; exit code, standard output, standard error."""
    (tmp_path / "factories_of_a_user.py").write_text(FACTORIES)
    (tmp_path / "broken_by_a_user.py").write_text("import torch\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["invariances", *arguments])
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call


def checked(run, name):
    code, out, _ = run("--module", f"factories_of_a_user:{name}", "--check", "--json")
    assert out.count("\n") == 1
    return code, json.loads(out)


@pytest.mark.parametrize(("name", "kinds"), [("classified", ["vertex", "shift"]), ("own_loss", ["vertex"])])
def test_a_right_gradient_passes(run, name, kinds):
    code, told = checked(run, name)
    assert code == 0
    assert told["check"] == {"passed": True, "suspects": []}
    assert [law["kind"] for law in told["laws"]] == kinds
    assert all(law["residual"] <= law["tolerance"] for law in told["laws"])
    assert told["conserved"] == sum(law["count"] for law in told["laws"])
    assert told["coverage"]["complete"]


def test_a_detached_branch_fails_and_is_named(run):
    code, told = checked(run, "detached")
    assert code == 1
    assert told["check"]["passed"] is False
    assert told["check"]["suspects"][0] in {"a.weight", "a.bias"}  # what the branch should have sent back to
    assert [law["passed"] for law in told["laws"]] == [False, True]


def test_a_check_without_laws_is_no_check(run):
    code, told = checked(run, "lawless")
    assert (code, told["check"]["passed"], told["laws"]) == (1, False, [])
    assert told["coverage"]["lawless"] == {"gelu": 1}


def test_the_table_of_laws(run):
    code, out, err = run("--module", "factories_of_a_user:with_example_array")
    assert code == 0
    assert "0.weight → 2.weight" in out
    assert "loading weights" not in out
    code, out, err = run("--module", "factories_of_a_user:detached", "--check")
    assert code == 1
    assert "FAILS" in out
    assert "suspect the gradient of a." in out
    assert err == ""


def test_a_reference_network_can_be_checked_too(run):
    code, out, _ = run("--widths", "4,3", "--inputs", "5", "--linear-tail", "2", "--check", "--json")
    assert code == 0
    assert [law["count"] for law in json.loads(out)["laws"]] == [4, 6]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("factories_of_a_user", "package.module:factory"),
        ("factories_of_a_user.py:plain", "package.module:factory"),
        (":plain", "package.module:factory"),
        ("no_such_module:plain", "No module named"),
        ("broken_by_a_user:plain", "ZeroDivisionError"),
        ("factories_of_a_user:missing", "nothing of that name"),
        ("factories_of_a_user:constant", "found int"),
        ("factories_of_a_user:raises", "ValueError: out of luck;"),
        ("factories_of_a_user:exits", "exits with 3"),
        ("factories_of_a_user:nothing", "NoneType"),
        ("factories_of_a_user:alone", "a model alone"),
        ("factories_of_a_user:five_things", "int"),
        ("factories_of_a_user:number_for_loss", "int in place of the loss"),
        ("factories_of_a_user:vector_for_loss", "scalar outputs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(run, module, words):
    code, out, err = run("--module", module, "--check", "--json")
    assert code == 2
    assert set(json.loads(out)["error"]) == {"expected", "found", "remedy"}
    told = [line for line in err.splitlines() if line != "loading weights"]
    assert len(told) == 1
    assert told[0].startswith("equipoise: expected")
    assert words in told[0]
