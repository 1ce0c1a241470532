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
