"""Options from a TOML file, under those that are typed; and the file that a run keeps."""

import json
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise as eq
from equipoise.store import Store
from equipoise.store.options import options_text
from helpers.command import call

SMALL = 'data = "separable"\nn = 20\nwidths = [6, 6]\nlinear_tail = 2\nuntil = "log_loss=-1e3"\n'


def saved(folder):
    return tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))


def test_a_run_keeps_its_options_and_they_make_it_again(capsys, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL + "step-size = 0.04\n")
    first, again = tmp_path / "first", tmp_path / "again"
    code, out, err = call(capsys, "flow", "--config", path, "--seed", 3, "--n", 30, "--out", first, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    options = saved(first)
    assert (options["seed"], options["n"], options["widths"], options["step_size"]) == (3, 30, "6,6", 0.04)
    assert (options["until"], options["loss"], options["max_steps"]) == ("log_loss=-1e3", "exponential", 10_000)
    with Store.open(first) as store:
        assert store.manifest["data"]["n"] == 30
        command = store.manifest["arguments"]["command"]
    assert "--n=30" in command
    assert "--config" not in command
    code, out, _ = call(capsys, "flow", "--config", first / "config.toml", "--out", again, "--json")
    assert (code, json.loads(out)["log_loss"]) == (0, told["log_loss"])
    assert saved(again) == options


def test_another_goal_is_kept_too(capsys, tmp_path):
    path, folder = tmp_path / "small.toml", tmp_path / "run"
    path.write_text(SMALL)
    assert call(capsys, "flow", "--config", path, "--out", folder)[0] == 0
    assert call(capsys, "flow", "--resume", folder, "--until", "log_loss=-2e3")[0] == 0
    assert saved(folder)["until"] == "log_loss=-2000"
    code, _, err = call(capsys, "flow", "--config", path, "--resume", folder)
    assert code == 2
    assert "--resume without options that it does not use; found --data, --n, --widths, --linear-tail" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widhts = '3'\n", "found widhts; write widths"),
        ("page = 'a.html'\n", "options of equipoise flow in .*; found page; write "),
        ("config = 'b.toml'\n", "found config; write "),
        ("seed = \n", "a TOML file at .*; found TOMLDecodeError: Invalid value"),
        ("[flow]\nseed = 1\n", "flow in .* to be text, a number, true or false, or a list; found a dict"),
        ("seed = 'many'\n", "seed in .*options.toml to be a whole number; found many; write seed = 2"),
        ("n = -3\n", "found -3"),
        ("bias = 'perhaps'\n", "perhaps"),
    ],
)
def test_what_the_command_does_not_have_is_refused_by_name(capsys, tmp_path, text, said):
    path = tmp_path / "options.toml"
    path.write_text(text)
    code, _, err = call(capsys, "flow", "--config", path)
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(said, err), err


def test_a_file_that_is_not_there(capsys, tmp_path):
    code, out, err = call(capsys, "demo", "--config", tmp_path / "none.toml", "--json")
    assert (code, err.count("\n")) == (2, 1)
    assert "FileNotFoundError" in json.loads(out)["error"]["found"]


def test_the_demo_takes_a_file_and_keeps_one(capsys, tmp_path, monkeypatch):
    import equipoise.cli.flow as module

    asked = {}

    def small(model, dataset, *, origin, **rest):
        asked.update(rest, origin=origin)
        tiny = eq.data.load("separable", n=8, d=5)
        return eq.flow(eq.networks.mlp([5, 4, 1]), tiny, until="steps=2", out=rest["out"])

    monkeypatch.setattr(module, "run_flow", small)
    path = tmp_path / "demo.toml"
    path.write_text(f"seed = 5\npage = '{tmp_path / 'page.html'}'\n")
    code, _, err = call(capsys, "demo", "--config", path, "--quiet", "--json")
    assert (code, err) == (0, "")
    assert (asked["origin"].seed, asked["origin"].options) == (5, {"seed": 5})
    assert (tmp_path / "page.html").exists()


@given(st.dictionaries(st.from_regex(r"\A[a-z_]{1,9}\Z"), st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans()))
def test_options_are_read_back_as_they_were_written(options):
    text = options_text(options)
    assert tomllib.loads(text.encode("utf-8", "surrogatepass").decode("utf-8")) == options


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_back_to_the_last_digit(number):
    assert tomllib.loads(options_text({"x": number})) == {"x": number}
