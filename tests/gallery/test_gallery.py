"""The machinery on quick cases; the whole gallery is slow."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import nnls

from equipoise.errors import InputError, StoreError
from equipoise.gallery import Case, Experiment, Measurement, Results, claims, load, run
from equipoise.gallery.drifts import ROUNDING, worst_drift
from equipoise.gallery.experiments.linear_svm import max_margin
from equipoise.gallery.experiments.two_points_square import forces
from equipoise.gallery.recipes import DEEP_LINEAR, DESCENT
from equipoise.gallery.registry import CLAIMS
from equipoise.gallery.results import row
from equipoise.gallery.tails import within_bounds
from equipoise.integrate.goals import LogLoss, Steps
from equipoise.networks import mlp
from equipoise.references import REFERENCES
from helpers.command import call

QUICK = {"data": ["separable"], "seeds": [0], "jobs": 1}


@pytest.fixture(scope="module")
def results():
    return run("two-points", "two-points-square", **QUICK)


def test_quick_claims_hold_on_separable_data(results):
    table = results.table
    assert table["verdict"].tolist() == ["holds"] * 2
    assert table["claim"].tolist() == ["two-points", "two-points-square"]
    assert results.failed == []


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path):
    run("two-points", **QUICK, out=tmp_path)
    before, so_far = load(tmp_path).rows[0], []
    again = run(
        "two-points", **{**QUICK, "seeds": [0, 1]}, resume=True, out=tmp_path, callback=lambda *n: so_far.append(n)
    )
    assert so_far == [(2, 2)]
    assert [row["seed"] for row in again.rows] == [0, 1]
    assert again.rows[0]["seconds"] == before["seconds"]  # not measured again
    assert load(tmp_path).rows == again.rows


def test_every_claim_says_what_it_must():
    assert len(claims()) == len({claim.name for claim in claims()})
    for claim in claims():
        assert set(claim.sources) <= set(REFERENCES)
        assert len(claim.seeds) >= 5
        assert len(claim.data) == 4
        assert min(map(len, (claim.statement, claim.statistic, claim.why, claim.title))) > 20


@pytest.fixture(scope="module")
def trail():
    narrow = lambda example, seed: mlp([example.numel(), 6, 6, 1], linear_tail=3, seed=seed)  # noqa: E731
    return Case("separable", 0).train(replace(DEEP_LINEAR, network=narrow, until=LogLoss(-1e3)))


def test_claims_that_look_at_one_network_train_it_once(trail):
    case = Case("separable", 0, trails={DEEP_LINEAR: trail})
    found = [CLAIMS[name].measure(case).statistic for name in ("linear-rank-one", "linear-svm", "linear-margin")]
    assert all(map(math.isfinite, found))
    assert list(case.trails) == [DEEP_LINEAR]


def test_a_tail_that_starts_elsewhere_than_it_says_leaves_its_bounds(trail):
    assert CLAIMS["linear-rank-one"].verdict(within_bounds(trail)) == "holds"
    halved = {name: weight / 2 for name, weight in trail.run.initial.items()}
    forged = replace(trail, run=replace(trail.run, initial=halved))
    assert CLAIMS["linear-rank-one"].verdict(within_bounds(forged)) == "fails"


def test_laws_that_are_not_kept_are_seen(trail):
    assert worst_drift(trail, "linear").statistic < ROUNDING
    first, *rest = trail.moments
    moved = {name: weight + 1e-10 for name, weight in rest[-1].parameters.items()}
    nudged = replace(trail, moments=(first, *rest[:-1], replace(rest[-1], parameters=moved)))
    assert worst_drift(nudged, "linear").statistic > ROUNDING


@pytest.fixture(scope="module")
def descent():
    """A short descent of a narrow network under the name of the gallery's."""
    case = Case("separable", 0)
    narrow = lambda example, seed: mlp([example.numel(), 6, 6, 6, 1], linear_tail=2, seed=seed)  # noqa: E731
    short = case.train(replace(DESCENT, network=narrow, until=Steps(40)))
    return case, short


def verdict(name, case, trail):
    case.trails[DESCENT] = trail
    return CLAIMS[name].verdict(CLAIMS[name].measure(case))


def test_defects_that_were_not_predicted_are_seen(descent):
    case, trail = descent
    assert verdict("gradient-descent", case, trail) == "holds"
    wrong = {name: 1.001 * total for name, total in trail.run.defects.items()}
    assert verdict("gradient-descent", case, replace(trail, run=replace(trail.run, defects=wrong))) == "fails"


def test_a_descent_from_elsewhere_leaves_its_bounds(descent):
    case, trail = descent
    assert verdict("descent-tail", case, trail) == "holds"
    halved = {name: weight / 2 for name, weight in trail.run.initial.items()}
    assert verdict("descent-tail", case, replace(trail, run=replace(trail.run, initial=halved))) == "fails"


def test_the_forces_of_the_square_loss_are_its_gradient():
    generator = torch.Generator().manual_seed(0)
    X, W, V = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 5), (4, 5), (2, 4)))
    leaves = W.requires_grad_(), V.requires_grad_()
    loss = (torch.eye(2, dtype=torch.float64) - torch.relu(X @ W.T) @ V.T).square().sum() / 2
    expected = torch.autograd.grad(loss, leaves)
    for force, gradient in zip(forces((W.detach(), V.detach()), X), expected, strict=True):
        assert torch.allclose(force, -gradient, rtol=1e-12)


def test_the_solver_of_the_svm_meets_the_conditions_of_optimality():
    X, y = Case("separable", 1).pair()
    w = max_margin(X, y)
    margins = y * (X @ w)
    assert margins.min() == pytest.approx(1, abs=1e-10)
    touching = (y[:, None] * X)[margins < 1 + 1e-8]
    weights, residual = nnls(touching.T.numpy(), w.numpy())
    assert (weights >= 0).all()
    assert residual < 1e-9 * float(w.norm())


def _claim(measure, **changes) -> Experiment:
    return replace(CLAIMS["two-points"], name="made-up", measure=measure, **changes)


@pytest.mark.parametrize(
    ("relation", "statistic", "verdict"),
    [
        ("≤", 0.01, "holds"),
        ("≤", 0.011, "fails"),
        ("≥", 0.01, "holds"),
        ("≥", 0.009, "fails"),
        ("≤", math.nan, "fails"),
    ],
)
def test_a_verdict_is_the_statistic_against_the_threshold(relation, statistic, verdict):
    claim = replace(CLAIMS["two-points"], relation=relation, threshold=0.01)
    assert claim.verdict(Measurement(statistic)) == verdict
    assert claim.verdict(Measurement.without("the flow stalled")) == "no premise"


def test_what_raises_is_a_row_that_fails_and_says_so(monkeypatch):
    def broken(case: Case) -> Measurement:
        raise ZeroDivisionError("of the measure")

    monkeypatch.setitem(CLAIMS, "made-up", _claim(broken))
    results = run("made-up", **QUICK)
    assert results.table["verdict"].tolist() == ["fails"]
    assert "ZeroDivisionError: of the measure" in results.rows[0]["remark"]
    assert results.failed == ["made-up"]


def test_failures_and_missing_premises_are_counted_apart():
    claim = CLAIMS["two-points"]
    found = [Measurement(0.0), Measurement(1.0), Measurement.without("stalled")]
    rows = [row(claim, "digits", seed, measurement, 0.1) for seed, measurement in enumerate(found)]
    counts = Results(rows, 0.3).shares.iloc[0]
    assert (counts["holds"], counts["applies"], counts["runs"]) == (1, 2, 3)


def test_results_survive_their_folder_and_keep_those_of_other_claims(results, tmp_path):
    results.save(tmp_path)
    assert load(tmp_path).table.equals(results.table)
    again = replace(results, rows=[{**results.rows[-1], "statistic": math.nan, "verdict": "no premise"}])
    again.save(tmp_path)
    kept = load(tmp_path).table
    assert len(kept) == len(results.rows)
    assert kept["verdict"].value_counts().to_dict() == {"holds": 1, "no premise": 1}
    assert (tmp_path / "gallery.csv").read_text().count("\n") == 3
    replace(results, rows=[{**results.rows[0], "seed": 1}]).save(tmp_path)
    assert sorted(load(tmp_path).table.query("claim == 'two-points'")["seed"]) == [0, 1]


def test_refusals_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"claims among .* found linear_rank_one; type equipoise gallery list"):
        run("linear_rank_one")
    with pytest.raises(InputError, match="data among mnist"):
        run("two-points", data=["cifar"])
    with pytest.raises(StoreError, match="type equipoise gallery run --all"):
        load(tmp_path)


def test_the_command_line(capsys, tmp_path, monkeypatch):
    folder = str(tmp_path / "gallery")
    options = ("--data", "separable", "--seeds", "0", "--jobs", "1", "--out", folder, "--quiet", "--json")
    code, out, _ = call(capsys, "gallery", "run", "two-points", *options)
    told = json.loads(out)
    assert (code, told["failed"], told["runs"]) == (0, [], 1)
    assert told["claims"] == {"two-points": {"separable": {"holds": 1, "applies": 1, "runs": 1}}}
    code, out, _ = call(capsys, "gallery", "report", folder, "--json")
    assert code == 0
    assert (tmp_path / "gallery" / "gallery.html").stat().st_size > 1e6
    monkeypatch.setitem(CLAIMS, "made-up", _claim(lambda case: Measurement(1.0)))
    code, out, _ = call(capsys, "gallery", "run", "made-up", *options)
    assert (code, json.loads(out)["failed"]) == (1, ["made-up"])
    code, out, _ = call(capsys, "gallery", "list", "--json")
    assert (code, len(json.loads(out)["claims"])) == (0, len(CLAIMS))
    for wrong in (["run"], ["run", "two-points", "--all"], ["run", "nonsense"], ["report", "/nowhere"]):
        code, out, err = call(capsys, "gallery", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_every_claim_holds_on_every_data_set_with_the_first_seed(tmp_path):
    results = run(seeds=[0], out=tmp_path)
    table = results.table
    assert len(table) == 4 * len(claims())
    assert results.failed == []
    assert (table["verdict"] == "no premise").mean() <= 0.1  # flows that stall, layers without co-active neurons
    assert load(tmp_path).table.equals(table)
