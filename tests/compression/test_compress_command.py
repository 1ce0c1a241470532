import json

import pytest

from equipoise.cli import main


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "compressible.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def made():\n"
        "    torch.manual_seed(0)\n"
        "    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 8), nn.Linear(8, 3))\n"
        "    X = torch.randn(40, 4)\n"
        "    return model, X, model(X).argmax(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    return "compressible:made"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compress", *map(str, arguments)])
    out, error = capsys.readouterr()
    return ended.value.code, out, error


def test_the_command_writes_the_smaller_model(capsys, factory, tmp_path):
    code, out, _ = run(
        capsys, "--module", factory, "--tolerance", "0.1", "--holdout", "0.25", "--save", "small", "--json"
    )
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert found["parameters_after"] < found["parameters_before"]
    assert found["kept"]["examples"] == 30
    assert found["kept"]["changed"] == 0
    assert found["held_out"]["examples"] == 10
    assert (tmp_path / "small" / "model.safetensors").exists()


def test_the_command_shows_the_moves(capsys, factory):
    code, out, _ = run(capsys, "--module", factory)
    assert code == 0
    assert "collapse" in out
    assert "0 of 40 predictions change" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tolerance", "-1"], "expected a tolerance of 0"),
        (["--tolerance", "nan"], "expected a tolerance of 0"),
        (["--holdout", "1"], "expected --holdout from 0 to below 1"),
    ],
)
def test_bad_options_are_one_line(capsys, factory, options, message):
    code, out, error = run(capsys, "--module", factory, *options)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1
