"""The command line as others call it: exit codes, one JSON line, one line of complaint."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import equipoise as eq
from equipoise.store import Store
from helpers.command import call

QUICK = ["--data", "digits", "--n", "40", "--widths", "8,8", "--linear-tail", "2", "--quiet"]


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
    assert "claim distance of layer2.weight from rank one: missing" in out
    code, out, _ = call(capsys, "decompose", folder, "--json")
    assert json.loads(out)["paths"] == 64 * 8 * 8
    assert [row["parameter"] for row in json.loads(out)["signs"]] == [layer["name"] for layer in told["layers"]]
    code, out, _ = call(capsys, "report", folder, "--json")
    assert code == 0
    assert (tmp_path / "run" / "report.html").stat().st_size < 6e6
    code, _, err = call(capsys, "flow", *QUICK, "--out", folder)
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (["flow"], "hidden widths; the output is one score"),
        (["flow"], "log_loss=X, growth=S"),
        (["certify"], "of a finished run"),
        (["analyze"], "fit the tail exponent"),
        (["gallery", "run"], "processes side by side"),
    ],
)
def test_the_help_of_a_verb_says_what_its_options_mean(capsys, verb, words):
    code, out, _ = call(capsys, *verb, "--help")
    assert code == 0
    assert words in " ".join(out.replace("│", " ").split())


def test_a_run_short_of_its_goal_exits_with_one(capsys):
    code, out, _ = call(capsys, "flow", *QUICK, "--max-steps", "2", "--json")
    assert (code, json.loads(out)["status"]) == (1, "step_limit")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "equipoise", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert {"demo", "flow", "certify", "gallery"} <= set(done.stdout.split())


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
        (["flow", "--classes", "3,3"], "found"),
        (["flow", "--n", "0"], "found"),
        (["flow", "--widths", "8,0"], "found"),
        (["flow", "--widths", "many"], "--widths"),
        (["flow", "--until", "sunset"], "log_loss=-1e6"),
        (["flow", "--loss", "hinge", "--n", "20"], "exponential"),
        (["flow", "--linear-tail", "9"], "found"),
        (["flow", "--linear-tail", "1.5"], "--linear-tail to be a whole number; found 1.5; type --linear-tail 2, say"),
        (["flow", "--n", "0"], "n to be a whole number, at least 1; found 0; pass --n 100"),
        (["flow", "--max-steps", "1e3"], "--max-steps to be a whole number; found 1e3"),
        (["flow", "--nonsense"], "equipoise --help"),
        (["certify", "/nowhere"], "found"),
        (["dance"], "equipoise --help"),
        (["flow", "--until", "growth=-1"], "to lie ahead of the start"),
        (["flow", "--until", "steps=0"], "to lie ahead of the start"),
        (["flow", "--seed", "9" * 23], "--seed to be a whole number"),
        (["flow", "--widths", "1000000,1000000"], "type smaller --widths"),
        (["flow", "--step-size", "5", "--n", "10", "--widths", "4", "--linear-tail", "1"], "pass --step-size 0.05"),
        (["flow", "--data", "separable", "--classes", "5,6"], "found --classes; leave them out"),
        (["flow", "--resume", "run", "--widths", "4", "--n", "9"], "found --n, --widths; leave them out"),
        (["decompose", "--draw", "tree"], "type --draw tree.svg"),
        (["decompose", "run", "--widths", "9"], "found --widths; leave them out"),
        (["analyze", "x.safetensors", "--method", "svd", "--fast"], "found --method svd; leave them out"),
        (["demo", "--page", "/nowhere/page.html"], "type mkdir -p /nowhere"),
        (["invariances", "--module", "a:b", "--widths", "9"], "found --widths; leave them out"),
        (["compare", "/nowhere"], "two folders or more; found 1; type equipoise compare DIR DIR"),
        (["compare", "/nowhere", "/there"], "found no such folder"),
        (["certify", "run", "again"], "found again, which no option takes"),
        (
            ["gallery", "run", "linear-svm", "--seeds", "0,-1"],
            "each of the seeds to be a whole number, at least 0",
        ),
        (
            ["gallery", "run", "linear-svm", "--jobs", "0"],
            "number of processes, or -1 for one a core; found 0; pass --jobs 2",
        ),
        (["gallery", "run", "huh2023low", "--minutes", "-1"], "minutes to be a finite number above 0; found -1.0"),
        (["gallery", "run", "linear-svm", "--data", "mnits"], "found mnits; pass --data digits"),
        (["flow", "--data", "digits", "--classes", "0,77"], "found 77; pass --classes 0,1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("equipoise: expected")
    assert words in err


@pytest.mark.parametrize(
    ("raised", "code", "found"),
    [
        (OSError(28, "No space left on device", "disk"), 2, "No space left on device (disk)"),
        (KeyboardInterrupt(), 130, "an interruption"),
        (eq.errors.Interrupted("interrupted after step 3; go on with this"), 130, "an interruption"),
    ],
)
def test_with_json_whatever_ends_a_command_is_an_object(capsys, monkeypatch, raised, code, found):
    def load(*_, **__):
        raise raised

    monkeypatch.setattr(eq.data, "load", load)
    monkeypatch.setattr(sys.modules["equipoise.cli.app"], "_drop_output", lambda: None)  # pytest reads it still
    ended, out, err = call(capsys, "flow", "--quiet", "--json")
    assert (ended, err.count("\n")) == (code, 1)
    error = json.loads(out)["error"]
    assert error["found"] == found
    assert error["remedy"] in err


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


def told_of(monkeypatch, capsys, inputs, labels, *options):
    """What the command says of data that only a file of one's own could hold: the reader of data sets is replaced."""
    monkeypatch.setattr(eq.data, "load", lambda *_, **__: eq.data.validate((inputs, labels)))
    return call(capsys, "flow", "--quiet", "--json", "--linear-tail", "1", *options)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda X, y: (X, torch.where(y > 0, 7.0, y)), "labels"),
        (lambda X, y: (X.index_fill(0, torch.tensor([3]), float("nan")), y), "found nan at X[3, 0]"),
        (lambda X, y: (X.index_fill(0, torch.tensor([3]), float("inf")), y), "found inf at X[3, 0]"),
        (lambda X, y: (X, torch.ones_like(y)), "class"),
        (lambda X, y: (X[:0], y[:0]), "example"),
    ],
)
def test_spoilt_data_is_one_line_and_exit_code_two(monkeypatch, capsys, spoil, words):
    X, y = (
        torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double(),
        torch.tensor([-1.0, 1.0] * 4).double(),
    )
    code, out, err = told_of(monkeypatch, capsys, *spoil(X, y), "--widths", "4")
    assert code == 2
    assert set(json.loads(out)["error"]) == {"expected", "found", "remedy"}
    assert err.count("\n") == 1
    assert words in err


def test_contradictory_examples_are_proved_hopeless(monkeypatch, capsys):
    X, y = torch.ones(2, 5).double(), torch.tensor([-1.0, 1.0]).double()
    code, out, _ = told_of(monkeypatch, capsys, X, y, "--widths", "4")
    told = json.loads(out)
    assert (code, told["status"]) == (1, "not_separable")
    assert told["reason"] == "examples 0 and 1 are the same input with two labels"


def test_dead_neurons_stall_and_are_named(monkeypatch, capsys):
    """One neuron, off for one of two opposite inputs."""
    X, y = torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([1.0, -1.0]).double()
    code, out, _ = told_of(monkeypatch, capsys, X, y, "--widths", "1", "--seed", "1")
    told = json.loads(out)
    assert (code, told["status"]) == (1, "stalled")
    assert told["log_loss"] > -30
    assert "is off for" in told["reason"]


def test_a_disk_that_fills_is_one_line_and_what_was_written_stays(tmp_path):
    """The kernel refuses to let any file grow past 48 KiB: a manifest fits, the records of a run do not."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (49152, 49152));"
        "from equipoise.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limited, "flow", *QUICK, "--until", "steps=200", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("equipoise: expected")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["loss"] == "exponential"


# ---- what the shell expects ----


def test_a_closed_pipe_ends_the_command_in_silence():
    command = [sys.executable, "-m", "equipoise", "gallery", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as `| head` does
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "equipoise", "gallery", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert found.returncode == 2
    assert found.stderr.startswith("equipoise: expected to read and write files; found No space left on device")
    assert found.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_an_interruption_while_the_command_starts_is_silent_or_one_line():
    """While torch is imported, of which the first library is there; a process that a signal ends is 130 to a shell."""
    options = ["--data", "separable", "--widths", "4,3", "--n", "20", "--quiet", "--until", "steps=100000"]
    command = [sys.executable, "-m", "equipoise", "flow", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, complaint = process.communicate()
    assert (process.returncode, complaint) in ((-signal.SIGINT, ""), (130, "equipoise: interrupted\n"))
    assert printed == ""


def test_an_interruption_before_the_command_begins_is_silent():
    """As soon as the module is found that sees to it."""
    program = "import sys, os, signal; sys.argv[0] = 'equipoise'; import equipoise; os.kill(os.getpid(), signal.SIGINT)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")


def test_programs_that_import_the_package_keep_their_handler_of_interruptions():
    program = "import signal, equipoise; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"


def test_an_interrupted_flow_exits_with_130_and_can_go_on(tmp_path):
    out = tmp_path / "my run"
    options = ["--data", "separable", "--widths", "4,3", "--linear-tail", "1", "--n", "20", "--quiet"]
    command = [sys.executable, "-m", "equipoise", "flow", *options, "--until", "steps=100000", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 130
    assert re.fullmatch(
        r"equipoise: interrupted(\n| after step \d+; go on with equipoise flow --resume '\S+my run', .*\n)", complaint
    )
    with Store.resume(out) as store:
        assert store.load_weights("initial")[0]


def test_the_doctor_says_what_is_there(capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["versions"]["torch"] == torch.__version__
    assert {row["extra"] for row in told["extras"]} >= {"report", "parquet"}
    assert told["data"]["folder"]
