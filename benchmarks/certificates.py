"""Certificates of random networks, however trained, recomputed in 34 digits: is any bound exceeded, any run refused?

python benchmarks/certificates.py              # 500 networks, about a quarter of an hour
python benchmarks/certificates.py --count 20

Nothing of equipoise is used to recompute: networks, spectra and angles are written out below for mpmath, on the very
numbers that are stored. A claim counts as checked where it is *verified*; what rests on something only observed does
not. A run is refused wrongly if an assumption has failed that the recomputation confirms.
"""

import argparse
import copy
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import Tensor, nn

import equipoise as eq

DIGITS = 34
CONSERVING = ("flow", "gradient descent")

# --- networks that both torch and mpmath can run ----------------------------------------------------------------------


class Skip(nn.Module):
    """`h' = V relu(U h) + Z h`."""

    def __init__(self, width: int, hidden: int, *, bias: bool):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.skip = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(h))) + self.skip(h)


class Places(nn.Module):
    """The mean over all positions."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(2)


def exactly(tensor: Tensor) -> np.ndarray:
    """The very numbers that are stored, as an array of mpmath's."""
    return np.vectorize(mpf, otypes=[object])(tensor.detach().double().numpy())


def patches(h: np.ndarray, taps: int, padding: int) -> np.ndarray:
    """`(n, positions, channels * taps)` of `(n, channels, length)`."""
    wide = np.full((*h.shape[:2], padding), mpf(0), dtype=object)
    h = np.concatenate([wide, h, wide], 2) if padding else h
    starts = range(h.shape[2] - taps + 1)
    return np.stack([h[:, :, i : i + taps].reshape(len(h), -1) for i in starts], 1)


def scores_of(model: nn.Module, weights: Mapping[str, np.ndarray], h: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What each layer writes, neurons or channels on axis 1, by the name of its weight; last the scores."""
    relu = lambda z, slope=0: np.where(z > 0, z, mpf(slope) * z)  # noqa: E731

    def linear(name: str, z: np.ndarray) -> np.ndarray:
        out = z @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            h = linear(name, h)
            yield f"{name}.weight", h
        elif isinstance(layer, nn.Conv1d):
            kernel = weights[f"{name}.weight"]
            h = (patches(h, kernel.shape[2], layer.padding[0]) @ kernel.reshape(len(kernel), -1).T).transpose(0, 2, 1)
            h = h + weights[f"{name}.bias"][None, :, None] if f"{name}.bias" in weights else h
            yield f"{name}.weight", h
        elif isinstance(layer, Skip):
            up = linear(f"{name}.up", h)
            yield f"{name}.up.weight", up
            h = linear(f"{name}.down", relu(up)) + linear(f"{name}.skip", h)
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU):
            h = relu(h, getattr(layer, "negative_slope", 0))
        elif isinstance(layer, Places):
            h = h.sum(2) / mpf(h.shape[2])
        else:
            assert isinstance(layer, nn.Flatten)
            h = h.reshape(len(h), -1)
    yield "scores", h.reshape(len(h), -1)


# --- a random network, its data and its training ----------------------------------------------------------------------


@dataclass
class Case:
    """What is certified, and what its certificate is made from."""

    family: str
    training: str
    loss: str
    model: nn.Module
    X: Tensor
    y: Tensor
    dtype: torch.dtype
    example_weights: Tensor | None
    run: Any = None
    known: dict[str, Any] = field(default_factory=dict)
    recorded: float | None = None

    @property
    def multiclass(self) -> bool:
        return self.loss in ("cross_entropy", "multiclass_exponential")


class Dice:
    """Random numbers and choices of one seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one(self, *choices: Any) -> Any:
        return choices[self.number(0, len(choices) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


FAMILIES = ("deep linear", "relu", "bottleneck", "skip", "convolution", "linear convolution")
TRAININGS = ("flow", "gradient descent", "SGD", "Adam", "none")


def network(dice: Dice, family: str, outputs: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network of a family and the shape of its inputs."""
    bias, inputs = dice.one(False, False, True), dice.number(2, 6)
    widths = lambda low, high: [dice.number(low, high) for _ in range(dice.number(1, 3))]  # noqa: E731
    layers = lambda sizes, bias: [nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)]  # noqa: E731
    act = dice.one(nn.ReLU, nn.ReLU, lambda: nn.LeakyReLU(0.125))
    if family in ("deep linear", "bottleneck") and dice.one(True, False):
        sizes = [inputs, *widths(1 if family == "bottleneck" else 3, 6), outputs]
        return nn.Sequential(*layers(sizes, bias)[:-1], nn.Linear(sizes[-2], outputs, bias=False)), (inputs,)
    if family in ("deep linear", "relu", "bottleneck"):
        below = [inputs, *widths(4, 8)] if family != "deep linear" else [inputs]
        above = [below[-1], *widths(1 if family == "bottleneck" else 3, 6), outputs]
        bent = [module for layer in layers(below, bias) for module in (layer, act())]
        return nn.Sequential(*bent, *layers(above, bias)), (inputs,)
    if family == "skip":
        d = dice.number(3, 5)
        tail = layers([d, dice.number(1, 4), outputs], bias)
        return nn.Sequential(nn.Linear(inputs, d, bias=bias), Skip(d, dice.number(4, 7), bias=bias), *tail), (inputs,)
    channels, width, taps = dice.number(1, 2), dice.number(4, 8), dice.number(2, 3)
    first, second = (nn.Conv1d(a, width, taps, padding=1, bias=bias) for a in (channels, width))
    bends = [] if family == "linear convolution" else [act()]
    end = dice.number(0, 2)
    if end == 0:
        head = [Places(), *layers([width, dice.number(2, 5), outputs], bias)]
    elif end == 1:
        head = [nn.Conv1d(width, outputs, 7 - taps, bias=False), nn.Flatten()]  # one place is left
    else:
        head = [second, Places(), nn.Linear(width, outputs, bias=False)]
    return nn.Sequential(first, *bends, *head), (channels, 4)


def case_of(seed: int) -> Case:
    """The case of a seed, trained."""
    dice = Dice(seed)
    family, training = dice.one(*FAMILIES), dice.one("flow", "flow", *TRAININGS)
    classes = dice.number(3, 5) if family == "bottleneck" or dice.one(True, False, False) else 2
    loss = dice.one("exponential", "logistic") if classes == 2 else dice.one("cross_entropy", "multiclass_exponential")
    model, shape = network(dice, family, 1 if classes == 2 else classes)
    with torch.no_grad():
        scale = dice.one(0.5, 1.0, 2.0)
        for parameter in model.double().parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(scale * dice.normal(*parameter.shape) / fan_in**0.5)
    n = dice.number(max(3, classes), 3 + classes)
    X, y = taught(dice, model, (n, *shape), classes)
    dtype = dice.one(torch.float64, torch.float64, torch.float32)
    shares = dice.normal(n).exp() if dice.one(True, False, False) else None
    case = Case(family, training, loss, model, X, y, dtype, shares)
    train(case, dice)
    return case


def taught(dice: Dice, model: nn.Module, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    """Examples that the network separates with other weights: those of a teacher of the same shape."""
    while True:
        teacher, X = copy.deepcopy(model), dice.normal(*shape)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.copy_(dice.normal(*parameter.shape))
            scores = teacher(X).reshape(len(X), -1)
        y = scores.argmax(1) if classes > 2 else 2 * (scores[:, 0] > 0).long() - 1
        if len(y.unique()) > 1:
            return X, y


def train(case: Case, dice: Dice) -> None:
    """Gradient flow, gradient descent that keeps count, an optimizer of torch, or nothing."""
    if case.training in CONSERVING:
        goals = (-2.0, -20.0, -1e3) if case.dtype == torch.float32 else (-10.0, -1e2, -1e3, -1e5)
        known: dict[str, Any] = {"until": eq.LogLoss(dice.one(*goals)), "observe": [], "max_steps": 60}
        if case.training == "gradient descent":
            stepper = eq.steppers.GradientDescent(dice.one(0.02, 0.2), dice.one("constant", "loss_scaled"))
            known |= {
                "until": eq.LogLoss(-3.0),
                "observe": [eq.observers.Defect()],
                "stepper": stepper,
                "max_steps": 30,
            }
        known |= {"example_weights": case.example_weights, "dtype": case.dtype}
        case.run = eq.flow(case.model, (case.X, case.y), case.loss, **known)
        case.model, case.recorded = case.run.model, case.run.log_loss
        return
    case.model.to(case.dtype)
    initial = {name: parameter.detach().clone() for name, parameter in case.model.named_parameters()}
    case.known = {"initial": initial} if dice.one(True, False) else {}
    if case.training != "none":
        descend(case, dice)


def descend(case: Case, dice: Dice) -> None:
    """Steps of torch's optimizers on batches of half the examples."""
    kind = torch.optim.Adam if case.training == "Adam" else torch.optim.SGD
    optimizer = kind(case.model.parameters(), lr=dice.one(0.01, 0.05))
    X, half = case.X.to(case.dtype), max(1, len(case.y) // 2)
    for _ in range(dice.number(20, 100)):
        batch = torch.randperm(len(X), generator=dice.generator)[:half]
        scores = case.model(X[batch]).reshape(len(batch), -1)
        if case.multiclass:
            losses = nn.functional.cross_entropy(scores, case.y[batch], reduction="none")
        else:
            losses = nn.functional.softplus(-case.y[batch] * scores[:, 0])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()


def certified(case: Case) -> eq.Certificate:
    """Its certificate."""
    if case.run is not None:
        return eq.certify(case.run)
    known = case.known | {"example_weights": case.example_weights}
    return eq.certify(case.model, (case.X, case.y), loss=case.loss, **known)


# --- recomputed -------------------------------------------------------------------------------------------------------


def eigen(gram: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Eigenvalues, descending, and eigenvectors in columns."""
    values, vectors = mpmath.eigsy(mpmath.matrix(gram.tolist()))
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [values[i] for i in order], np.array(vectors.tolist(), dtype=object)[:, order]


def residual(matrix: np.ndarray, rank: int) -> Any:
    """`Σ_{i>r} σ_i² / Σ σ_i²`; the squares of the singular values in twice the digits."""
    with mpmath.workdps(2 * DIGITS + 10):
        small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        values = eigen(small @ small.T)[0]
        total = mpmath.fsum(values)
        return mpmath.fsum(max(v, mpf(0)) for v in values[rank:]) / total if total else mpf(0)


def sines(writes: np.ndarray, reads: np.ndarray, rank: int) -> Any:
    """`‖sin Θ‖²` of the top directions that one writes and the other reads."""
    with mpmath.workdps(2 * DIGITS + 10):
        left, right = (eigen(gram)[1][:, :rank] for gram in (writes @ writes.T, reads.T @ reads))
        away = right - left @ (left.T @ right)
        return mpmath.fsum((away * away).flatten())


class Recomputed:
    """One trained network in 34 digits."""

    def __init__(self, case: Case):
        self.case = case
        self.weights = {name: exactly(parameter) for name, parameter in case.model.named_parameters()}
        self.seen = dict(scores_of(case.model, self.weights, exactly(case.X)))
        self.outputs = self.seen["scores"].shape[1]
        self.rank = max(1, self.outputs - 1)

    def margins(self) -> np.ndarray:
        scores, y = self.seen["scores"], self.case.y.tolist()
        if not self.case.multiclass:
            return np.array([[mpf(label) * row[0]] for label, row in zip(y, scores, strict=True)], dtype=object)
        rows = [[row[t] - row[c] for c in range(len(row)) if c != t] for t, row in zip(y, scores, strict=True)]
        return np.array(rows, dtype=object)

    def log_risk(self) -> Any:
        """`log Σ w_i ℓ_i`."""
        plain = self.case.loss in ("exponential", "multiclass_exponential")
        sums = [mpmath.fsum(mpmath.exp(-m) for m in row) for row in self.margins()]
        losses = [s if plain else mpmath.log1p(s) for s in sums]
        shares = [mpf(1)] * len(losses) if self.case.example_weights is None else exactly(self.case.example_weights)
        return mpmath.log(mpmath.fsum(s * loss for s, loss in zip(shares, losses, strict=True)) / mpmath.fsum(shares))

    def separation(self) -> Any:
        at_zero = mpf(1) if "exponential" in self.case.loss else mpmath.log(2)
        shares = (
            [mpf(1)] * len(self.case.y) if self.case.example_weights is None else exactly(self.case.example_weights)
        )
        return mpmath.log(at_zero * min(shares) / mpmath.fsum(shares))

    def written(self, names: str, *, bias: bool) -> np.ndarray:
        """All that writes a layer, side by side."""
        parts = [self.weights[name].reshape(len(self.weights[name]), -1) for name in names.split(" + ")]
        owners = [name.removesuffix("weight") + "bias" for name in names.split(" + ")]
        parts += [self.weights[name][:, None] for name in owners if bias and name in self.weights]
        return np.concatenate(parts, 1)

    def read(self, writer: str) -> np.ndarray:
        """All that reads a layer, a column for each of its neurons or channels."""
        names, last = [name for name in self.weights if name.endswith("weight")], writer.split(" + ")[-1]
        following = names[names.index(last) + 1 :]
        if following[0].endswith("up.weight"):  # a stream: the block reads it, and its skip
            following = [name for name in following if name.endswith(("up.weight", "skip.weight"))]
        elif last.endswith(("down.weight", "skip.weight")):
            following = [name for name in following if "." not in name.removesuffix(".weight")][:1]
        width, found = len(self.weights[last]), []
        for name in following if following[0].endswith("up.weight") else following[:1]:
            columns = self.weights[name].reshape(len(self.weights[name]), width, -1)
            found.append(columns.transpose(0, 2, 1).reshape(-1, width))
        return np.concatenate(found, 0)

    def together(self, writer: str, first: Sequence[int], count: int) -> list[int]:
        """The neurons that are on for the same examples as these."""
        z = self.seen[writer]
        on = (np.moveaxis(z, 1, -1).reshape(-1, z.shape[1]) > 0).astype(bool)
        members = [u for u in range(on.shape[1]) if (on[:, u] == on[:, first[0]]).all()]
        if len(members) == count and members[: len(first)] == list(first):
            return members
        raise LookupError(f"neurons {first} of {writer}: {members} are together in 34 digits")

    def norm_of_force(self) -> Any:
        """`‖Jᵀp‖` for `p = softmax(-m)`: `Σ p_i m_i` is affine in each weight, so a difference is its derivative."""
        with mpmath.workdps(2 * DIGITS + 30):
            inputs, seen = exactly(self.case.X), self.seen
            least, step = min(self.margins().flatten()), mpf(10) ** (-DIGITS - 10)
            p = np.vectorize(lambda m: mpmath.exp(least - m), otypes=[object])(self.margins())
            self.seen = dict(scores_of(self.case.model, self.weights, inputs))
            here, square = (p * self.margins()).sum(), mpf(0)
            for weight in self.weights.values():
                for at in np.ndindex(weight.shape):
                    kept = weight[at]
                    weight[at] = kept + step
                    self.seen = dict(scores_of(self.case.model, self.weights, inputs))
                    square += (((p * self.margins()).sum() - here) / step) ** 2
                    weight[at] = kept
            self.seen = seen
            return mpmath.sqrt(square) / p.sum()

    def slackness(self, degree: int) -> Any:
        flat = list(self.margins().flatten())
        least = min(flat)
        p = [mpmath.exp(least - m) for m in flat]
        size = mpmath.sqrt(mpmath.fsum((w * w).sum() for w in self.weights.values())) / self.norm_of_force()
        excess = mpmath.fsum(a * (m - least) for a, m in zip(p, flat, strict=True)) / mpmath.fsum(p)
        return size * excess / least ** (mpf(2) / degree)

    def measured(self, claim: Any, degree: int | None) -> Any:
        """What a claim measures, by its name alone."""
        name = claim.name.removesuffix(" from today's matrices")
        if found := re.fullmatch(
            r"distance of (\d+) co-active neurons of (\S+) \(([\d, ]+)(?:, …)?\) from rank (\w+)", name
        ):
            count, writer, first, rank = found.groups()
            members = self.together(writer, [int(u) for u in first.split(", ")], int(count))
            return residual(self.written(writer, bias=True)[members], 1 if rank == "one" else int(rank))
        if found := re.fullmatch(
            r"misalignment of (\d+) co-active neurons of (\S+) \(([\d, ]+)(?:, …)?\) with .*", name
        ):
            count, writer, first = found.groups()
            members = self.together(writer, [int(u) for u in first.split(", ")], int(count))
            writes, reads = self.written(writer, bias=True)[members], self.read(writer)[:, members]
            return sines(writes, reads, self._directions(claim))
        if found := re.fullmatch(r"distance of (.+?) from rank (\w+)(, by .*)?", name):
            names, rank, _ = found.groups()
            whole = self.written(names, bias=names not in self.tail())
            return residual(whole, 1 if rank == "one" else int(rank))
        if found := re.fullmatch(r"misalignment of (.+) with (.+)", name):
            lower, upper = found.groups()
            writes = self.written(lower, bias=True)
            reads = self.written(upper, bias=False) if lower in self.tail() else self.read(lower)
            if lower in self.tail():
                assert self._directions(claim) == min(self.rank, *writes.shape, *reads.shape), claim.name
            return sines(writes, reads, self._directions(claim))
        if found := re.fullmatch(r"norm of (\S+)", name):
            return mpmath.sqrt((self.weights[found.group(1)] ** 2).sum())
        assert name == "slackness of the margins", name
        assert degree is not None
        return self.slackness(degree)

    @staticmethod
    def _directions(claim: Any) -> int:
        found = re.search(r"of the top (\d+) directions", claim.quantity)
        return int(found.group(1)) if found else 1

    def tail(self) -> list[str]:
        """The last fully connected layers, nothing between them; or the last convolution."""
        names: list[str] = []
        for name, layer in reversed(list(self.case.model.named_children())):
            if isinstance(layer, nn.Flatten) and not names:
                continue
            if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv1d) and not names):
                break
            names.insert(0, f"{name}.weight")
            if isinstance(layer, nn.Conv1d):
                break
        return names


@dataclass
class Verdict:
    """What was found of one certificate."""

    checked: Counter = field(default_factory=Counter)
    informative: Counter = field(default_factory=Counter)
    undecided: int = 0
    problems: list[str] = field(default_factory=list)


def verdict_of(case: Case) -> Verdict:
    """Every verified claim, and every failed assumption, against the recomputation."""
    certificate, found, again = certified(case), Verdict(), Recomputed(case)
    assumptions = {each.name: each for each in certificate.assumptions}
    degree = re.search(r"a\^(\d+)", assumptions["homogeneous"].statement)
    for claim in certificate.claims:
        if claim.standing != "verified":
            continue
        try:
            exact = again.measured(claim, int(degree.group(1)) if degree else None)
        except LookupError:  # a neuron on its kink: on or off only by rounding
            found.undecided += 1
            continue
        found.checked[claim.theorem] += 1
        found.informative[claim.theorem] += claim.informative
        within = exact <= mpf(claim.bound) if claim.relation == "≤" else exact >= mpf(claim.bound)
        near = abs(exact - mpf(claim.measured)) <= mpf(1e-6) * abs(exact) + mpf(1e-12)
        if not within or not claim.holds:
            found.problems.append(f"EXCEEDED {claim.name}: {mpmath.nstr(exact, 20)}, bound {claim.bound!r}")
        elif not near and claim.informative and not (claim.theorem in ("T3.2", "T4.6") and exact > 1e-9):
            found.problems.append(f"MEASURED {claim.name}: {mpmath.nstr(exact, 20)}, in float64 {claim.measured!r}")
    found.problems += _refused(case, certificate, again, assumptions)
    return found


def _refused(case: Case, certificate: Any, again: Recomputed, assumptions: Mapping[str, Any]) -> Iterator[str]:
    log_risk, separation = again.log_risk(), again.separation()
    separated = assumptions["separated"].standing
    if separated == "verified" and log_risk >= separation:
        yield f"EXCEEDED separated: log R = {mpmath.nstr(log_risk, 20)}"
    if separated == "failed" and log_risk < separation - mpf(10) ** -6 * abs(separation):
        yield f"REFUSED separated: log R = {mpmath.nstr(log_risk, 20)}, {certificate.failed}"
    for name in certificate.failed:
        if name != "separated" and not (name == "laws conserved" and case.training not in CONSERVING):
            broken = assumptions[name]
            yield f"REFUSED {name}: {broken.measured} beyond {broken.tolerance}: {broken.why}"
    if case.recorded is not None and abs(log_risk - mpf(case.recorded)) > assumptions["weights of the run"].tolerance:
        yield f"REFUSED weights of the run: log R {mpmath.nstr(log_risk, 20)}, recorded {case.recorded!r}"
    if certificate.failed == () and not certificate.holds and certificate.proved:
        yield f"REFUSED: {str(certificate).splitlines()[0]}"


def _finite(first: int) -> Iterator[tuple[int, Case]]:
    """The cases from this seed on whose training did not diverge."""
    for seed in itertools.count(first):
        case = case_of(seed)
        if all(bool(weight.isfinite().all()) for weight in case.model.parameters()):
            yield seed, case


def main(count: int, first: int = 0) -> int:
    """The table; 1 where anything was exceeded or refused."""
    mpmath.mp.dps, begun = DIGITS, time.perf_counter()
    total, kinds, held, problems = Verdict(), Counter(), Counter(), []
    for seed, case in islice(_finite(first), count):
        found = verdict_of(case)
        kinds[case.training] += 1
        held[case.training] += not found.problems
        total.checked += found.checked
        total.informative += found.informative
        total.undecided += found.undecided
        for line in found.problems:
            problems.append(line)
            precision = str(case.dtype).removeprefix("torch.")
            print(f"seed {seed}: {case.family}, {case.training}, {case.loss}, {precision}: {line}", flush=True)
    exceeded = sum(not line.startswith("REFUSED") for line in problems)
    print(f"{'theorem':10}{'claims':>8}{'informative':>13}")
    for theorem in sorted(total.checked):
        print(f"{theorem:10}{total.checked[theorem]:8}{total.informative[theorem]:13}")
    print("  ".join(f"{kind}: {held[kind]} of {kinds[kind]} right" for kind in TRAININGS if kinds[kind]))
    print(
        f"{count} networks, {total.checked.total()} verified claims in {DIGITS} digits: {exceeded} exceeded, "
        f"{len(problems) - exceeded} runs refused; {total.undecided} of neurons on a kink left out; "
        f"{time.perf_counter() - begun:.0f} s"
    )
    return bool(problems)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    sys.exit(main(asked.count, asked.first))
