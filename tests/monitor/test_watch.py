"""One line in a training loop: what is seen, what is left behind, and what must never stop the training."""

import copy
import pickle
import shutil
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import equipoise as eq
from equipoise.errors import InputError
from equipoise.monitor import Alarm

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 24), nn.Linear(24, 3))


def train(model, *optimizers, steps=10, before_step=lambda: None):
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(X.to(model[0].weight.dtype) if isinstance(model, nn.Sequential) else X), Y).backward()
        before_step()
        for optimizer in optimizers:
            optimizer.step()


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.1, **settings)


def values(log, observer, quantity, place):
    table = log.table()
    rows = table[(table.observer == observer) & (table.quantity == quantity) & (table.place == place)]
    return dict(zip(rows.step, rows.value, strict=True))


def test_a_watched_training_ends_where_an_unwatched_one_does():
    watched, alone = network(), network()
    optimizer = sgd(watched, weight_decay=1e-2)
    torch.manual_seed(1)
    with eq.watch(watched, optimizer, every=2, quiet=True):
        train(watched, optimizer)
        state = torch.get_rng_state()
    torch.manual_seed(1)
    train(alone, sgd(alone, weight_decay=1e-2))
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_looks_come_at_the_first_step_and_at_every_so_many():
    model = network()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=4, quiet=True) as log:
        train(model, optimizer, steps=13)
    assert sorted(set(log.table().step)) == [1, 4, 8, 12, 13]


def test_spectra_are_those_of_the_full_decomposition():
    model = network()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=5, quiet=True) as log:
        train(model, optimizer, steps=20)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            sigma = torch.linalg.svdvals(weight.detach().double())
            assert log.last("spectrum", "sigma_1", name) == pytest.approx(float(sigma[0]), rel=1e-4)
            stable_rank = float(sigma.square().sum() / sigma[0] ** 2)
            assert log.last("spectrum", "stable_rank", name) == pytest.approx(stable_rank, rel=1e-4)


def test_a_wrong_backward_pass_is_an_alarm_and_a_right_one_moves_the_laws_as_predicted():
    model = network().double()
    optimizer = sgd(model, weight_decay=1e-2)
    steps = iter(range(1, 100))
    model[0].weight.register_hook(lambda gradient: 3 * gradient if next(steps) >= 7 else gradient)
    with pytest.warns(eq.TrainingAlarm), eq.watch(model, optimizer, every=2, quiet=True) as log:
        train(model, optimizer)
    place = "0.weight → 2.weight"
    excess = values(log, "residual", "excess", place)
    assert sorted(excess) == [1, 2, 4, 6, 9, 10]  # 8 is judged with the next step
    assert max(excess[step] for step in (1, 2, 4, 6)) < 1 < min(excess[step] for step in (9, 10))
    excess = values(log, "drift", "excess", place)
    assert sorted(excess) == [1, 2, 4, 6]  # nothing is foretold from a wrong gradient
    assert max(excess.values()) < 1
    assert [(alarm.step, alarm.kind, alarm.place) for alarm in log.alarms] == [(9, "gradient", place)]
    assert log.notes == []


def test_a_step_that_does_otherwise_than_it_says_is_an_alarm():
    model = network().double()
    optimizer = sgd(model)

    @torch.no_grad()
    def shrink(*_):
        model[0].weight.mul_(0.99)

    optimizer.register_step_post_hook(shrink)
    with pytest.warns(eq.TrainingAlarm), eq.watch(model, optimizer, every=2, quiet=True) as log:
        train(model, optimizer, steps=4)
    assert {(alarm.step, alarm.kind, alarm.place) for alarm in log.alarms} == {(1, "law", "0.weight → 2.weight")}


@pytest.mark.parametrize("first", [1, 5])
def test_gradients_changed_after_backward_are_a_note_and_no_alarm(first):
    model = network()
    optimizer = sgd(model)
    steps = iter(range(1, 100))

    def clip():
        if next(steps) >= first:
            nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    with eq.watch(model, optimizer, every=4, quiet=True) as log:
        train(model, optimizer, steps=12, before_step=clip)
    assert log.alarms == []
    (note,) = log.notes
    assert note.startswith(f"step {1 if first == 1 else 9}: gradients were changed between backward and step")
    assert f"note: {note}" in log.summary()


def test_a_layer_that_is_put_into_evaluation_mode_is_read_again_and_no_alarm():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    optimizer, steps = sgd(model), iter(range(1, 100))

    def freeze():
        if next(steps) == 5:
            model[1].eval()

    model.train()
    with eq.watch(model, optimizer, every=2, quiet=True) as log:
        train(model, optimizer, steps=10, before_step=freeze)
        model.eval()  # what follows the training is none of it
    assert log.alarms == []
    (note,) = log.notes
    assert note.startswith("step 6: 1 switched between training and evaluation mode")
    laws = set(log.table().query("observer == 'residual' and quantity == 'residual'").groupby("place").step.max())
    assert laws == {4, 10}  # the scale that the normalisation takes away; from then on the law of the two layers


def test_parameters_without_a_shape_are_watched_from_the_first_forward_pass_on():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = sgd(model)
    with eq.watch(model, optimizer, quiet=True) as log:
        train(model, optimizer, steps=3)
    assert (log.alarms, log.notes, [law.name for law in log.laws]) == ([], [], ["0.weight → 2.weight"])


def test_parameters_that_no_optimizer_holds_are_a_note_and_frozen_ones_are_not():
    model = network()
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[3].parameters()], lr=0.01)
    with eq.watch(model, optimizer, quiet=True) as log:
        train(model, optimizer, steps=3)
    (note,) = log.notes
    assert note.startswith("step 3: 2.weight, 2.bias: in no optimizer that was passed to watch"), note
    model[2].requires_grad_(False).zero_grad()
    with eq.watch(model, optimizer, quiet=True) as log:
        train(model, optimizer, steps=3)
    assert log.notes == []


def test_other_optimizers_have_no_prediction_and_so_no_alarm():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with eq.watch(model, optimizer, every=5, quiet=True) as log:
        train(model, optimizer)
    drift = log.table().query("observer == 'drift'")
    assert log.alarms == []
    assert set(drift.quantity) == {"relative_drift", "relative_drift_estimate"}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    model = network()
    optimizer = sgd(model)
    breaks = pytest.raises(RuntimeError, match="broke") if fails else nullcontext()
    with breaks, eq.watch(model, optimizer, quiet=True):
        train(model, optimizer, steps=3)
        if fails:
            raise RuntimeError("the training broke")
    hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [of for each in model.modules() for of in (each._forward_pre_hooks, each._forward_hooks)]
    assert not any([*hooks, *(each._post_accumulate_grad_hooks for each in model.parameters())])


def test_copies_made_before_the_first_forward_pass_are_left_alone():
    model = network()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=5, quiet=True) as log:
        average, stored = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        average(torch.ones(2, 6))
        stored(torch.ones(2, 6))
        assert log.laws is None
        train(model, optimizer)
    assert log.laws is not None


class Unreadable(nn.Module):
    """A network whose path depends on its values."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > -1e9 else x


def test_a_model_that_cannot_be_read_still_has_spectra():
    model = Unreadable()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=5, quiet=True) as log:
        train(model, optimizer)
    assert set(log.off) == {"alignment", "drift", "residual"}
    assert all(log.off.values())
    assert log.last("spectrum", "sigma_1", "inner.0.weight") > 0
    assert "off: drift" in log.summary()


class Fails:
    """A sink, an observer or a rule with a mistake in it."""

    name = "fails"

    def init(self, scene):
        return {}

    def observe(self, scene, memory, snapshot):
        raise KeyError("observer")

    def write(self, records):
        raise OSError("disk full")

    def close(self):
        pass


def test_a_crash_of_a_sink_or_an_observer_never_stops_the_training():
    model = network()
    optimizer = sgd(model)
    seen = []
    with (
        pytest.warns(eq.TrainingAlarm) as warned,
        eq.watch(
            model, optimizer, every=5, observe=[Fails(), eq.Spectrum()], sinks=[Fails(), seen.append], quiet=True
        ) as log,
    ):
        train(model, optimizer)
    assert len(warned) == 2
    assert set(log.off) == {"Fails", "fails"}
    for thread in threading.enumerate():
        if thread.name == "equipoise Fails":
            thread.join(5)
            assert not thread.is_alive()
    assert len(seen) == 4  # steps 1, 5, 10 and the end


@pytest.mark.parametrize(
    "place",
    ["distributed.ProcessGroup.census", "distributed.ProcessGroup.block", "context.ModelContext.training_context"],
)
def test_a_look_that_fails_never_stops_the_training(place, monkeypatch):
    """Out of memory, a device that is lost: whatever happens in what all observers share."""

    def fail(*arguments):
        raise RuntimeError("lost")

    watched, alone = network(), network()
    monkeypatch.setattr(f"equipoise.monitor.{place}", fail)
    optimizer = sgd(watched)
    with pytest.warns(eq.TrainingAlarm, match="RuntimeError: lost"), eq.watch(watched, optimizer, every=2) as log:
        train(watched, optimizer)
    train(alone, sgd(alone))
    assert "RuntimeError: lost" in log.off.values()
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "style",
    [
        "compile",
        pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler]),
        "accumulation",
        "frozen",
        "groups",
    ],
)
def test_ways_to_train(style):
    model = network()
    backend = {"compile": "eager", "inductor": "inductor"}.get(style)
    called = torch.compile(model, backend=backend) if backend else model
    if style == "frozen":
        model[0].requires_grad_(False)
    groups = [
        {"params": model[0].parameters(), "lr": 0.01},
        {"params": [*model[2].parameters(), *model[3].parameters()]},
    ]
    optimizer = torch.optim.SGD(groups if style == "groups" else model.parameters(), lr=0.1)
    with eq.watch(called, optimizer, every=2, quiet=True) as log:
        for _ in range(6):
            optimizer.zero_grad()
            for part in (slice(0, 20), slice(20, 40)) if style == "accumulation" else (slice(0, 40),):
                F.cross_entropy(called(X[part]), Y[part]).backward()
            optimizer.step()
    assert log.alarms == []
    assert log.off == {}
    residuals = log.table().query("observer == 'residual' and quantity == 'residual'")
    assert set(residuals.place) == (
        {"2.weight → 3.weight"} if style == "frozen" else {"0.weight → 2.weight", "2.weight → 3.weight"}
    )
    assert residuals.value.max() < 1e-6
    mismatches = log.table().query("observer == 'drift' and quantity == 'mismatch'")
    unequal = {"0.weight → 2.weight"} if style in ("frozen", "groups") else set()  # other rates on its two sides
    assert set(mismatches.place) == {"0.weight → 2.weight", "2.weight → 3.weight"} - unequal


def test_autocast_and_a_gradient_scaler():
    model = network()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with eq.watch(model, optimizer, every=2, quiet=True) as log:
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(X).float(), Y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    residuals = log.table().query("observer == 'residual' and quantity == 'residual'").value
    assert 1e-7 < residuals.max() < 2e-2  # rounding of bfloat16, and no scale of 4096
    assert log.alarms == []


def test_gradients_that_come_with_a_closure():
    model = network()
    optimizer = sgd(model)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with eq.watch(model, optimizer, every=2, quiet=True) as log:
        for _ in range(4):
            optimizer.step(closure)
    residuals = log.table().query("observer == 'residual' and quantity == 'residual'")
    assert set(residuals.step) == {1, 2, 4}
    assert residuals.value.max() < 1e-6
    assert log.table().query("observer == 'drift' and quantity == 'excess'").value.max() < 1


def test_several_optimizers_look_at_what_they_hold():
    model = network()
    first, second = torch.optim.Adam(model[0].parameters()), torch.optim.SGD(model[2:].parameters(), lr=0.1)
    with eq.watch(model, [first, second], every=5, quiet=True) as log:
        train(model, first, second)
    spectra = log.table().query("observer == 'spectrum' and quantity == 'sigma_1'")
    assert set(spectra.place) == {"0.weight", "2.weight", "3.weight"}
    assert spectra.groupby("place").step.apply(list).map(tuple).nunique() == 1
    assert set(log.table().query("quantity == 'mismatch'").place) == {"2.weight → 3.weight"}


def test_a_convolution_in_groups_follows_no_layer():
    """Each of its rows reads some of the channels only: there is no direction to compare with."""
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv1d(8, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        model(torch.ones(5, 3, 9)).square().mean().backward()
        optimizer.step()
    table = log.table()
    assert log.off == {}
    assert set(table[table.quantity == "alignment_next"].place) == {"2.weight"}


def test_a_model_without_laws_is_watched_all_the_same():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
    assert (len(log.laws), set(log.off)) == (0, {"alignment"})  # no layer follows another
    assert log.last("spectrum", "sigma_1", "weight") > 0


def test_a_training_that_diverges_is_watched_to_its_end():
    """Through overflow to infinity and NaN, with nothing said but the alarms of it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", eq.TrainingAlarm)
        with eq.watch(model, optimizer, every=1, quiet=True) as log:
            train(model, optimizer, steps=12)
    assert log.off == {}
    assert "nan" in {alarm.kind for alarm in log.alarms}
    assert not all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_alarms_for_nan_collapse_and_dying_neurons():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    steps, heard = iter(range(1, 100)), []

    def break_it():
        step = next(steps)
        with torch.no_grad():
            if step == 4:
                model[2].weight.copy_(torch.outer(torch.ones(24), torch.ones(8)))
            if step == 6:
                model[0].bias.fill_(-1e3)
            if step == 8:
                model[3].weight[0, 0] = float("nan")

    observe = [eq.Spectrum(), eq.Activity(X)]
    with (
        pytest.warns(eq.TrainingAlarm),
        eq.watch(model, optimizer, every=2, observe=observe, on_alarm=heard.append, quiet=True) as log,
    ):
        train(model, optimizer, steps=8, before_step=break_it)
    kinds = {(alarm.step, alarm.kind, alarm.place) for alarm in log.alarms}
    assert kinds == {(4, "collapse", "2.weight"), (6, "dying", "0.weight"), (8, "nan", "3.weight")}
    assert heard == log.alarms


def test_a_step_that_fails_is_not_taken_for_one_that_breaks_a_law():
    model = network()
    optimizer = sgd(model, weight_decay=0.1)
    with eq.watch(model, optimizer, every=1, quiet=True) as log:
        train(model, optimizer, steps=3)
        optimizer.register_step_pre_hook(_out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(model, optimizer, steps=1)
    assert log.off == {}
    assert log.alarms == []
    table = log.table()
    assert sorted(set(table[table.quantity == "mismatch"].step)) == [1, 2, 3]
    assert sorted(set(table[table.quantity == "sigma_1"].step)) == [1, 2, 3, 4]


def _out_of_memory(optimizer, args, kwargs):
    raise RuntimeError("out of memory")


class Heavy:
    """A rule about one quantity."""

    quantity = "frobenius_norm"

    def __call__(self, record):
        assert record.quantity == self.quantity
        return Alarm(record.step, "heavy", record.place, "as heavy as that")


def test_a_rule_is_asked_about_all_records_or_about_those_of_its_quantity():
    model, seen = network(), set()
    optimizer, rules = sgd(model), [Heavy(), lambda record: seen.add(record.quantity)]
    with (
        pytest.warns(eq.TrainingAlarm, match="as heavy as that"),
        eq.watch(model, optimizer, every=5, alarms=rules, quiet=True) as log,
    ):
        train(model, optimizer, steps=5)
    assert {alarm.place for alarm in log.alarms} == {"0.weight", "2.weight", "3.weight"}
    assert seen == set(log.table().quantity) - {"overhead", "seconds", "heavy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "expected every to be a whole number, at least 1; found 0; pass every=50, in steps"),
        ({"budget": 2.0}, "expected a share of the training's time between 0 and 1; found budget=2.0"),
        ({"sinks": [3]}, "expected sinks= to be a sequence of Sink or callable; found 3 in it"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    model = network()
    with pytest.raises(InputError, match=message.replace("(", r"\(")), eq.watch(model, sgd(model), **arguments):
        pass


def test_complex_weights_are_refused():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    refused = pytest.raises(InputError, match="expected a model of real weights; found weight, bias of complex numbers")
    with refused, eq.watch(model, sgd(model)):
        pass


def test_an_optimizer_of_another_model_is_refused():
    refused = pytest.raises(InputError, match="expected an optimizer of the model's parameters")
    with refused, eq.watch(network(), sgd(network())):
        pass


def test_a_budget_puts_looks_off():
    model = network()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=2, budget=1e-3, quiet=True) as log:
        train(model, optimizer, steps=60)
    looks = [step for step in sorted(set(log.table().step)) if step not in (1, 2, 60)]
    assert len(looks) < 10  # a look takes longer than a step here: at a thousandth it cannot come every other step


def test_the_plot_and_the_summary_say_what_was_seen(capsys):
    model = network()
    optimizer = sgd(model)
    with eq.watch(model, optimizer, every=5) as log:
        train(model, optimizer)
    assert "watched 10 steps" in capsys.readouterr().out
    drawn = log.plot("stable_rank", "residual")
    assert [axes.get_ylabel() for axes in drawn.axes] == ["stable rank", "residual"]
    assert len(drawn.axes[0].lines) == 3
    with pytest.raises(InputError, match="found nonsense"):
        log.plot("nonsense")
