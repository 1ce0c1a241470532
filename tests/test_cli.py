"""The command line as others call it: exit codes, one JSON line, one line of complaint."""

import json

import pytest

from equipoise.cli import main

QUICK = ["--data", "digits", "--n", "40", "--widths", "8,8", "--linear-tail", "2", "--quiet"]


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def test_flow_certify_and_report_of_one_run(capsys, tmp_path):
    folder = str(tmp_path / "run")
    code, out, _ = call(capsys, "flow", *QUICK, "--until", "log_loss=-1e4", "--out", folder, "--json")
    told = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert told["status"] == "reached"
    assert told["precision"] == "float64"
    linear = [layer for layer in told["layers"] if layer["kind"] == "linear"]
    assert all(layer["rank_one_residual"] <= layer["certified_bound"] for layer in linear)
    assert told["layers"][0]["certified_bound"] is None
    assert told["certificate"]["holds"] is True
    assert set(told["activity"]["layers"][0]) >= {"name", "neurons", "stably_active", "sliding_pairs"}

    code, out, _ = call(capsys, "certify", folder, "--json")
    assert (code, json.loads(out)["holds"]) == (0, True)
    (tmp_path / "certificate.json").write_text(out)
    code, out, _ = call(capsys, "certify", folder, "--recheck", str(tmp_path / "certificate.json"), "--json")
    assert (code, json.loads(out)) == (0, {"holds": True, "differences": []})
    (tmp_path / "forged.json").write_text(json.dumps(told["certificate"] | {"notes": [], "claims": []}))
    code, out, _ = call(capsys, "certify", folder, "--recheck", str(tmp_path / "forged.json"))
    assert code == 1
    assert "claim rank one of layer2.weight: missing" in out
    code, out, _ = call(capsys, "decompose", folder, "--json")
    assert json.loads(out)["paths"] == 64 * 8 * 8
    assert [row["parameter"] for row in json.loads(out)["signs"]] == [layer["name"] for layer in told["layers"]]
    code, out, _ = call(capsys, "report", folder, "--json")
    assert code == 0
    assert (tmp_path / "run" / "report.html").stat().st_size < 6e6
    code, _, err = call(capsys, "flow", *QUICK, "--out", folder)
    assert code == 2
    assert err.count("\n") == 1


def test_a_run_short_of_its_goal_exits_with_one(capsys):
    code, out, _ = call(capsys, "flow", *QUICK, "--max-steps", "2", "--json")
    assert (code, json.loads(out)["status"]) == (1, "step_limit")


def test_invariances_lists_the_laws(capsys):
    code, out, _ = call(capsys, "invariances", "--widths", "4,3", "--inputs", "5", "--linear-tail", "2", "--json")
    assert code == 0
    assert [law["count"] for law in json.loads(out)["laws"]] == [4, 6]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flow", "--data", "digitz"], "digits"),
        (["flow", "--classes", "0,17"], "17"),
        (["flow", "--classes", "0"], "two classes"),
        (["flow", "--n", "0"], "found"),
        (["flow", "--widths", "8,0"], "found"),
        (["flow", "--widths", "many"], "--widths"),
        (["flow", "--until", "sunset"], "log_loss=-1e6"),
        (["flow", "--loss", "hinge", "--n", "20"], "exponential"),
        (["flow", "--linear-tail", "9"], "found"),
        (["flow", "--nonsense"], "equipoise --help"),
        (["certify", "/nowhere"], "found"),
        (["dance"], "equipoise --help"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("equipoise: expected")
    assert words in err


def test_another_programs_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    code, _, err = call(capsys, "flow", *QUICK, "--out", str(tmp_path))
    assert code == 2
    assert err.count("\n") == 1
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_decompose_counts_measures_and_draws(capsys, tmp_path):
    code, out, _ = call(capsys, "decompose", "--bias", "--draw", str(tmp_path / "net.svg"), "--json")
    told = json.loads(out)
    assert code == 0
    assert told["paths"] == 5 * 4 * 3 + 4 * 3 + 3 + 1
    assert (tmp_path / "net.svg").exists()
