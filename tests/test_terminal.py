"""Names never drive the terminal: what does not show in them is escaped, by every verb and by `eq.watch`."""

import io
import json
import sys
import types
import warnings

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import equipoise as eq
from equipoise.errors import visible
from equipoise.sinks import Live
from equipoise.store import Record
from helpers import command

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2066\x7f[blink]"


def harmless(text):
    """Only what shows, in lines."""
    assert all(char.isprintable() for char in text.replace("\n", "")), ascii(text)
    return text


def call(capsys, *arguments):
    code, out, err = command.call(capsys, *arguments)
    return code, harmless(out), harmless(err)


REFUSED = {
    "a verb": [EVIL],
    "an option": ["flow", f"--{EVIL}"],
    "flow --data": ["flow", "--data", EVIL],
    "flow --classes": ["flow", "--classes", EVIL],
    "flow --widths": ["flow", "--widths", EVIL],
    "flow --n": ["flow", "--n", EVIL],
    "flow --loss": ["flow", "--n", "20", "--loss", EVIL],
    "flow --init": ["flow", "--n", "20", "--init", EVIL],
    "flow --until": ["flow", "--until", EVIL],
    "flow --resume": ["flow", "--resume", EVIL],
    "certify": ["certify", EVIL],
    "report": ["report", EVIL],
    "decompose": ["decompose", EVIL],
    "decompose --widths": ["decompose", "--widths", EVIL],
    "decompose --draw": ["decompose", "--draw", f"/nowhere/{EVIL}"],
    "analyze": ["analyze", EVIL],
    "analyze --method": ["analyze", "{checkpoint}", "--method", EVIL],
    "analyze --names": ["analyze", "{checkpoint}", "--names", f"re:({EVIL}"],
    "analyze --types": ["analyze", "{checkpoint}", "--types", EVIL],
    "analyze --chain": ["analyze", "{checkpoint}", "--chain", EVIL],
    "analyze --adapter": ["analyze", "{checkpoint}", "--adapter", EVIL],
    "analyze --parquet": ["analyze", "{checkpoint}", "--parquet", f"/nowhere/{EVIL}"],
    "analyze --html": ["analyze", "{checkpoint}", "--html", f"/nowhere/{EVIL}"],
    "invariances --module": ["invariances", "--module", f"{EVIL}:{EVIL}"],
    "invariances --widths": ["invariances", "--widths", EVIL],
    "gallery": ["gallery", EVIL],
    "gallery run": ["gallery", "run", EVIL],
    "gallery run --data": ["gallery", "run", "interface_laws", "--data", EVIL],
    "gallery report": ["gallery", "report", EVIL],
    "gallery table": ["gallery", "table", EVIL],
    "demo --seed": ["demo", "--seed", EVIL],
}


@pytest.fixture
def checkpoint(tmp_path):
    weights = {f"a{EVIL}.weight": torch.eye(4), f"b{EVIL}": torch.ones(3), "nan": torch.full((2, 2), torch.nan)}
    save_file(weights, tmp_path / f"m{EVIL}.safetensors")
    return tmp_path / f"m{EVIL}.safetensors"


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_arguments_of_every_verb_are_shown_escaped(capsys, checkpoint, arguments):
    code, out, err = call(capsys, *(str(checkpoint) if each == "{checkpoint}" else each for each in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("equipoise: expected")
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"], ["--names", "*"]])
def test_names_of_tensors_and_files_are_shown_escaped(capsys, checkpoint, options):
    code, out, err = call(capsys, "analyze", checkpoint, *options)
    assert (code, err) == (0, "")
    shown = json.loads(out)["rows"][0]["name"] if options == ["--json"] else out
    assert visible(EVIL) in shown


def test_names_of_run_folders_are_shown_escaped(capsys, tmp_path):
    folder = tmp_path / EVIL
    network = ["--data", "separable", "--n", "12", "--widths", "4,3", "--linear-tail", "1"]
    assert call(capsys, "flow", *network, "--until", "steps=2", "--quiet", "--out", folder)[0] in (0, 1)
    assert call(capsys, "flow", *network, "--out", folder)[0] == 2
    for verb in (["certify"], ["decompose"], ["report"], ["report", "--json"], ["flow", "--resume"]):
        assert call(capsys, *verb, folder)[0] in (0, 1)
    (folder / "records.sqlite").write_bytes(b"no database")
    for verb in (["certify"], ["decompose"], ["report"], ["flow", "--resume"]):
        assert "records.sqlite" in call(capsys, *verb, folder)[2]


class Evil(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({f"one{EVIL}": nn.Linear(3, 8), f"two{EVIL}": nn.Linear(8, 1)})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x).relu()
        return x


@pytest.mark.parametrize("options", [[], ["--check", "--json"]])
def test_names_of_layers_are_shown_escaped(capsys, monkeypatch, options):
    module = types.ModuleType("evil")
    module.factory = lambda: (Evil(), (torch.randn(5, 3),), lambda out: out.sum())
    monkeypatch.setitem(sys.modules, "evil", module)
    code, out, _ = call(capsys, "invariances", "--module", "evil:factory", *options)
    assert code == 0
    assert "two" in out


def test_what_the_callers_code_raises_is_shown_escaped(capsys, monkeypatch):
    def fails():
        warnings.warn(EVIL, UserWarning, stacklevel=1)
        raise ValueError(EVIL)

    monkeypatch.setitem(sys.modules, "evil", types.SimpleNamespace(fails=fails))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _as_python_does
        code, _, err = call(capsys, "invariances", "--module", "evil:fails")
    assert code == 2
    assert err.count(visible(EVIL)) >= 2


def _as_python_does(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def test_a_watched_training_shows_names_escaped(capsys):
    class Failing(eq.Spectrum):
        name = f"observer {EVIL}"

        def observe(self, context, state, snapshot):
            raise ValueError(EVIL)

    model = Evil()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with eq.watch(model, optimizer, every=1, observe=[Failing(), eq.Spectrum()]) as log:
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.layers[f"one{EVIL}"].weight.fill_(torch.nan)
            optimizer.step()
    out = harmless(capsys.readouterr().out)
    assert f"one{visible(EVIL)}" in out
    assert len(warned) >= 2
    assert all(harmless(str(each.message)) for each in warned)
    harmless(log.summary())


def test_the_live_table_shows_names_escaped():
    console = Console(file=io.StringIO(), width=200)
    sink = Live(console)
    sink.write([Record(1, 0.0, 0.0, 0.0, "spectrum", EVIL, "sigma_1", 1.0)])
    sink.close()
    assert visible(EVIL) in harmless(console.file.getvalue())
