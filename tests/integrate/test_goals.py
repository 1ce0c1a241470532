"""Steps that end where they were asked to: losses, growth, separation and flips, found to tolerance."""

import math

import pytest
import torch

import equipoise as eq
from equipoise.errors import InputError
from equipoise.integrate.goals import parse_goal
from equipoise.integrate.implicit.event_location import locate_event
from helpers.sampling import sampled

GOALS = (eq.LogLoss(-1.5), eq.LogLoss(-1e3), eq.Growth(0.1), eq.Separated(), eq.Steps(7))
SMALL = {"widths": [5, 6, 6, 1], "linear_tail": 2, "seed": 0}


def small_flow(**options):
    return eq.flow(eq.networks.mlp(**SMALL), eq.data.load("separable", n=30, d=5), **options)


@pytest.mark.parametrize("goal", sampled(GOALS, [eq.LogLoss(-1e3)]))
def test_a_flow_ends_at_its_goal_and_keeps_its_laws(goal):
    run = small_flow(until=goal)
    ends = {
        "log_loss": lambda: (run.log_loss - goal.value) / abs(goal.value),
        "growth": lambda: goal.value - run.growth,
        "steps": lambda: run.steps - goal.value,
        "separated": lambda: (run.log_loss + math.log(30)) / math.log(30),
    }[goal.describe().partition("=")[0]]()
    assert run.status == "reached"
    assert -1.0001e-8 <= ends <= 0
    assert max(run.summary()["laws"].values()) < 1e-15


def test_a_goal_is_found_by_three_further_steps(monkeypatch):
    """The last of them is made longer or shorter as it is."""
    taken, step = [], eq.steppers.EntropicMidpoint.step
    monkeypatch.setattr(eq.steppers.EntropicMidpoint, "step", lambda *asked: taken.append(1) or step(*asked))
    run = small_flow(until=eq.LogLoss(-1e3))
    assert run.log_loss == pytest.approx(-1e3, rel=1e-8)
    assert len(taken) <= run.steps + 3


def test_a_flow_stops_where_the_next_pair_flips():
    run = small_flow(until=eq.Flip())
    before, after = (torch.relu(run.data.X @ weights["layer1.weight"].T) > 0 for weights in (run.initial, run.final))
    flipped = (before != after).nonzero()
    assert len(flipped) == 1
    example, neuron = flipped[0].tolist()
    z = run.data.X @ run.final["layer1.weight"].T
    assert abs(float(z[example, neuron])) <= 1e-7 * float(z.abs().max())


def test_weights_are_kept_exactly_where_they_were_asked_for():
    run = small_flow(until=eq.LogLoss(-200.0), save_at=[eq.LogLoss(-40.0), eq.Growth(0.3)])
    margins = run.data.y * run.at("log_loss=-40")(run.data.X).squeeze(1).detach()
    assert float(torch.logsumexp(-margins, 0)) - math.log(30) == pytest.approx(-40.0, rel=1e-7)
    norms = [
        math.sqrt(sum(float((w**2).sum()) for w in weights.values()))
        for weights in (run.initial, run.saved["growth=0.3"])
    ]
    assert math.log(norms[1] / norms[0]) == pytest.approx(0.3, abs=2e-9)


def test_a_point_that_was_not_saved_is_named():
    with pytest.raises(InputError, match="a saved point among initial, final; found 'log_loss=-7'"):
        small_flow(until=eq.Steps(2)).at(eq.LogLoss(-7.0))


@pytest.mark.parametrize("text", ["log_loss=-1e6", "growth=3", "steps=100", "separated", "flip"])
def test_goals_are_read_as_they_are_written(text):
    assert parse_goal(parse_goal(text).describe()) == parse_goal(text)


def test_landing_on_a_function_that_jumps_ends_past_the_goal():
    jumps = lambda size: 1.0 if size < 0.3 else -0.5  # noqa: E731
    assert 0.3 <= locate_event(lambda size: size, lambda size: size, jumps, 1.0, 1.0, 1e-9) < 0.31


def test_landing_on_a_loss_takes_few_trials():
    """`log R = -9510 e^{4.6 s}` to 1e-8 of -1e4: regula falsi takes eight."""
    asked = []

    def again(size):
        asked.append(size)
        return size

    short = lambda size: (1e4 - 9510 * math.exp(4.6 * size)) / 1e4  # noqa: E731
    assert -1e-8 <= short(locate_event(again, lambda size: size, short, 0.06, short(0.0), 1e-8)) <= 0
    assert len(asked) <= 5


def test_a_step_that_was_rejected_and_taken_shorter_is_a_step_on_the_way():
    """A step of 0.8 cannot be taken: half of it is, and the goal at 0.7 is left to the next."""
    asked = []

    def again(size):
        asked.append(size)
        return size / 2 if size > 0.5 else size

    landed_at = locate_event(again, lambda size: size, lambda size: 0.7 - size, 0.9, 0.7, 1e-9)
    assert len(asked) == 1
    assert landed_at == asked[0] / 2


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "3", None, True, 1j])
@pytest.mark.parametrize("goal", [eq.LogLoss, eq.Growth, eq.Steps])
def test_goals_that_are_no_numbers_are_refused(goal, value):
    with pytest.raises(InputError, match="of a goal to be a"):
        goal(value)


@pytest.mark.parametrize("text", ["log_loss=-inf", "growth=nan", "steps=2.5", "steps=-1", "loss=3", "growth", ""])
def test_texts_that_are_no_goals_are_refused(text):
    with pytest.raises(InputError, match=r"of a goal to be a|expected a goal like"):
        parse_goal(text)


@pytest.mark.parametrize(
    "options",
    [
        {"until": eq.LogLoss},
        {"until": None},
        {"until": -1e6},
        {"save_at": [3.0]},
        {"max_steps": 0},
        {"max_steps": 2.5},
        {"max_steps": math.nan},
        {"max_steps": -5},
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options):
    with pytest.raises(InputError) as refusal:
        small_flow(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("goal", [eq.LogLoss(5.0), eq.Growth(0.0), eq.Growth(-1.0), eq.Steps(0)])
def test_a_goal_that_is_behind_at_the_start_is_reached_there(goal):
    run = small_flow(until=goal)
    assert (run.status.value, run.steps) == ("reached", 0)
    assert all(torch.equal(run.final[name], weight) for name, weight in run.initial.items())


def test_weights_that_are_all_zero_are_refused():
    model = eq.networks.mlp(**SMALL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    with pytest.raises(InputError, match="expected weights that are not all zero"):
        eq.flow(model, eq.data.load("separable", n=30, d=5))
