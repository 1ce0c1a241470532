"""`equipoise analyze` as others call it."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from equipoise.cli import main


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in ("analyze", *arguments)])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def checkpoint(tmp_path):
    nan = torch.ones(3, 3)
    nan[0, 0] = torch.nan
    state = {f"layers.{k}.weight": torch.randn(12, 12) for k in range(3)}
    state |= {"layers.0.bias": torch.ones(4), "nan[bold].weight": nan, "emb.weight": torch.randn(20, 4)}
    save_file(state, tmp_path / "a.safetensors")
    save_file({name: 2 * its for name, its in state.items()}, tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors"


def test_the_table_names_every_matrix_and_counts_the_rest(capsys, checkpoint):
    code, out, err = call(capsys, checkpoint)
    assert (code, err) == (0, "")
    for words in ("layers.2.weight", "12×12", "stable rank", "20×4", "nan[bold].weight", "1 of 9 entries are NaN"):
        assert words in out
    assert "1 without a spectrum: a vector" in out


def test_json_is_one_line_with_a_null_for_what_is_missing(capsys, checkpoint):
    code, out, err = call(capsys, checkpoint, "--json", "--r", 2)
    assert (code, err, out.count("\n")) == (0, "", 1)
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert len(rows) == 6
    assert len(rows["emb.weight"]["singular_values"]) == 2
    assert rows["emb.weight"]["shape"] == [20, 4]
    assert rows["emb.weight"]["null_stable_rank"] > 1
    assert rows["layers.0.bias"]["stable_rank"] is None
    assert "spectrum" not in rows["emb.weight"]


def test_options_reach_the_analysis(capsys, checkpoint):
    code, out, _ = call(
        capsys, checkpoint, "--json", "--names", "layers.*", "--names", "emb*", "--types", "linear,embedding",
        "--fast", "--tolerance", "0.5", "--no-heavy-tail", "--chain", "layers.0.weight,layers.1.weight",
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert code == 0
    assert set(rows) == {"layers.0.weight", "layers.1.weight", "layers.2.weight", "emb.weight"}
    assert rows["layers.0.weight"]["next"] == "layers.1.weight"
    assert rows["layers.0.weight"]["rank_tolerance"] == 0.5
    assert rows["emb.weight"]["heavy_tail_exponent"] is None


def test_two_side_by_side(capsys, checkpoint):
    other = checkpoint.with_name("b.safetensors")
    code, out, _ = call(capsys, checkpoint, other)
    assert code == 0
    assert "→" in out
    code, out, _ = call(capsys, checkpoint, other, "--json", "--names", "emb*")
    (row,) = json.loads(out)["rows"]
    assert row["distance"] == pytest.approx(1.0)
    assert row["stable_rank_a"] == pytest.approx(row["stable_rank_b"])


def test_parquet_without_pyarrow_is_refused_before_the_spectra(capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.cli.analyze.find_spec", lambda name: None)
    code, _, error = call(capsys, checkpoint, "--parquet", tmp_path / "t.parquet")
    assert code == 2
    assert "pip install 'equipoise[parquet]'" in error


def test_parquet_and_page_hold_the_spectra(capsys, checkpoint, tmp_path):
    code, _, _ = call(capsys, checkpoint, "--parquet", tmp_path / "t.parquet", "--html", tmp_path / "t.html")
    assert code == 0
    table = pd.read_parquet(tmp_path / "t.parquet").set_index("name")
    assert len(table.loc["layers.1.weight", "spectrum"]) == 12
    assert table.loc["layers.1.weight", "shape"].tolist() == [12, 12]
    assert "layers.*" in (tmp_path / "t.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere.safetensors"], "/nowhere.safetensors"),
        (["{file}", "--names", "absent"], "filters that keep something"),
        (["{file}", "--types", "circular"], "types among"),
        (["{file}", "--method", "guess"], "a method among"),
        (["{file}", "--r", "many"], "--r to be a whole number; found many"),
        (["{file}", "--chain", "a,b"], "names of matrices"),
        (["{file}", "--adapter", "/nowhere"], "adapter_config.json"),
        (["{file}", "--parquet", "/nowhere/t.parquet"], "expected a folder /nowhere that exists"),
        (["{file}", "--html", "/nowhere/t.html"], "expected a folder /nowhere that exists"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, checkpoint, arguments, words):
    code, out, err = call(capsys, *(argument.format(file=checkpoint) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("equipoise: expected")
    assert words in err


def test_a_malicious_file_is_one_line_and_exit_code_two(capsys, tmp_path):
    import os
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/mark",)

    torch.save({"w": Bomb()}, tmp_path / "m.pt", pickle_module=pickle)
    code, out, err = call(capsys, tmp_path / "m.pt")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "posix.system" in err
    assert not (tmp_path / "mark").exists()


MODEL = """
import torch
from torch import nn


def made():
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)), torch.randn(4, 5)
"""


@pytest.fixture
def permuted(tmp_path, monkeypatch):
    """A checkpoint and the same function with its neurons in another order."""
    (tmp_path / "alignable.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    first, order = {"0.weight": torch.randn(8, 5), "0.bias": torch.randn(8)}, torch.randperm(8)
    second = {name: its[order] for name, its in first.items()}
    last = {"2.weight": torch.randn(3, 8), "2.bias": torch.randn(3)}
    save_file({**first, **last}, "a.safetensors")
    save_file(
        {**second, "2.weight": last["2.weight"][:, order].contiguous(), "2.bias": last["2.bias"]}, "b.safetensors"
    )


def test_two_checkpoints_are_compared_up_to_symmetry(capsys, permuted):
    plain = json.loads(call(capsys, "a.safetensors", "b.safetensors", "--json")[1])
    options = "a.safetensors", "b.safetensors", "--align", "--module", "alignable:made"
    code, out, err = call(capsys, *options, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    distances, before = ({row["name"]: row["distance"] for row in each["rows"]} for each in (found, plain))
    assert before["0.weight"] > 0.3
    assert distances["0.weight"] == distances["2.weight"] == 0
    assert found["aligned"]["distance_before"] > 1 > 1e-6 > found["aligned"]["distance_after"]
    assert [(move["kind"], move["size"]) for move in found["aligned"]["moves"]] == [("permutation", 8)]
    assert "up to symmetry: distance" in call(capsys, *options)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.safetensors", "b.safetensors", "--align"), "a checkpoint holds weights and no graph; found no --module"),
        (
            ("a.safetensors", "--align", "--module", "alignable:made"),
            "expected two checkpoints with --align; found one",
        ),
        (("a.safetensors", "--module", "alignable:made"), "found --module"),
        (
            ("a.safetensors", "c.safetensors", "--align", "--module", "alignable:made"),
            "expected the parameter 0.weight",
        ),
    ],
)
def test_what_alignment_needs_is_said_in_one_line(capsys, permuted, arguments, message):
    save_file({"0.weight": torch.ones(2, 2)}, "c.safetensors")
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
