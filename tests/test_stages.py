"""Progress is drawn for work that takes a while, on a terminal alone, and erased."""

import io

import pytest
import torch
from rich.console import Console

import equipoise as eq
from equipoise import stages


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, legacy_windows=False)


def drawn(terminal):
    return terminal.file.getvalue()


def picture(terminal, display):
    shown = Console(file=io.StringIO(), width=100, color_system=None)
    shown.print(display._picture())
    return shown.file.getvalue()


def test_open_stages_say_what_is_done_of_how_much(terminal, monkeypatch):
    monkeypatch.setattr(stages, "DELAY", 0.0)
    with stages.drawn_on(terminal), stages.stage("reading \x1b[2J [bold]") as outer:
        outer.update(7)
        items = stages.staged(range(5), "sweeping")
        next(items), next(items), next(items)
        shown = picture(terminal, stages._DISPLAY.get())
        items.close()
        after = picture(terminal, stages._DISPLAY.get())
    assert "reading \\x1b[2J [bold]" in shown
    assert " 7 " in shown
    assert "2/5" in shown
    assert "sweeping" not in after


def test_quick_work_leaves_no_trace(terminal):
    with stages.drawn_on(terminal), stages.stage("reading"):
        shown = picture(terminal, stages._DISPLAY.get())
    assert shown.strip() == ""
    assert "reading" not in drawn(terminal)


def test_nothing_is_drawn_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(stages, "DELAY", 0.0)
    with eq.show_progress():
        assert stages._DISPLAY.get() is None
        eq.balance(eq.networks.mlp([3, 4, 4, 1]), torch.ones(2, 3).double())
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_verbs_announce_what_they_do(terminal, monkeypatch):
    """Each that may take long has stages, and leaves none open."""
    seen = []
    opened = stages._Display.opened
    monkeypatch.setattr(
        stages._Display, "opened", lambda self, text, total: seen.append(text) or opened(self, text, total)
    )
    model, x = eq.networks.mlp([3, 4, 4, 1]), torch.randn(6, 3, dtype=torch.float64)
    for call, word in {
        lambda: eq.invariances(model, x): "propagating symmetries",
        lambda: eq.balance(model, x): "balancing, sweep 1",
        lambda: eq.align(model, eq.networks.mlp([3, 4, 4, 1], seed=1), x): "aligning, sweep 1",
        lambda: eq.compress(model, (x, torch.tensor([0, 1] * 3)), tolerance=0.1): "choosing sizes",
        lambda: eq.certify(model, (x, torch.tensor([-1.0, 1.0] * 3))): "checking theorems",
    }.items():
        seen.clear()
        with stages.drawn_on(terminal):
            call()
            assert stages._DISPLAY.get().progress.tasks == []
        assert any(text.startswith(word) for text in seen), (word, seen)
