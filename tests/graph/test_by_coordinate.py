"""Generators are solved for and interfaces found on whole arrays; the slow twin goes coordinate by coordinate."""

import numpy as np
import pytest
import torch

from equipoise.graph.capture import capture
from equipoise.graph.constraints import STILL, GeneratorConstraints
from equipoise.graph.interface import find_interfaces
from equipoise.graph.labels import algebra
from equipoise.graph.propagate import SymmetryPropagation
from helpers.by_coordinate import SlowConstraints, slow_interfaces
from helpers.cases import case


def restricted(symmetry, seed):
    """Cells of a few sizes, and what operations demand of them, drawn at random."""
    draw = np.random.default_rng(seed)
    cells = [symmetry.fresh(int(draw.integers(1, 6))) for _ in range(8)]
    pick = lambda: cells[draw.integers(len(cells))]  # noqa: E731
    for _ in range(draw.integers(2, 9)):
        left, right = pick(), pick()
        size = min(len(left), len(right))
        demand = draw.integers(6)
        if demand == 0 and size > 3:  # one half like the other cell, the other half contragredient
            symmetry.relate(left[:2], right[:2], 1.0)
            symmetry.relate(left[2:4], right[2:4], -1.0)
        elif demand <= 1:
            symmetry.relate(draw.permutation(left)[:size], right[:size], float(draw.choice([1, -1, 2, 0.5])))
        elif demand == 2:
            some = draw.permutation(left)
            symmetry.close(some[: size + 1], draw.integers(3, size=len(some[: size + 1])))
        elif demand == 3:
            symmetry.single(left[:2])
        elif demand == 4 and draw.random() < 0.3:
            symmetry.still(left[:1])
        else:
            roots, ratios = symmetry.find(np.array([left[0], right[-1], pick()[0]]))
            symmetry.single(roots)
            symmetry.balance(roots[:, None], ratios[:, None])
    return symmetry.solution()


def families(solution):
    """The blocks of a solution as a list: width, kind, and members with their places and rates."""
    members = zip(
        solution.block.tolist(),
        solution.member.tolist(),
        solution.component.tolist(),
        solution.rate.tolist(),
        strict=True,
    )
    found = [(width, skew, {}) for width, skew in zip(solution.width.tolist(), solution.skew.tolist(), strict=True)]
    for block, member, component, rate in members:
        found[block][2][member] = component, rate
    return found


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 150), marks=pytest.mark.slow)])
def test_the_solution_is_that_of_the_slow_twin(seeds):
    kinds = set()
    for seed in seeds:
        found, expected = restricted(GeneratorConstraints(), seed), restricted(SlowConstraints(), seed)
        expected.ratio[expected.root == STILL] = found.ratio[found.root == STILL] = 0  # no rate to be a multiple of
        for each in ("root", "ratio", "cell"):
            np.testing.assert_array_equal(getattr(found, each), getattr(expected, each), f"{each}, seed {seed}")
        by_hand = [
            (block.width, block.skew, {root: (place, float(rate)) for root, (place, rate) in block.rates.items()})
            for block in expected.blocks
        ]
        assert families(found) == by_hand, seed
        kinds |= {(min(width, 2), skew, min(len(members), 2)) for width, skew, members in by_hand}
    assert kinds == {(1, False, 1), (1, False, 2), (2, False, 2), (2, True, 2)}  # none of them is left out


NETWORKS = [
    "degree two",
    "residual stream",
    pytest.param("hand-written layer norm", marks=pytest.mark.slow),
    "gatv2, shared",
    pytest.param("rotary", marks=pytest.mark.slow),
    pytest.param("gpt, tied", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_interfaces_are_those_of_the_slow_twin(monkeypatch, name):
    network = case(name)
    captured = capture(network.model(), network.inputs())
    found = find_interfaces(SymmetryPropagation(captured))
    monkeypatch.setattr(algebra, "GeneratorConstraints", SlowConstraints)
    expected = slow_interfaces(SymmetryPropagation(captured))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        kind = lambda each: (each.blocks, each.width, each.symmetry, each.breaks)  # noqa: E731
        place = lambda member: (member.parameter, member.view, member.axes, member.degree, member.precision)  # noqa: E731
        assert kind(one) == kind(other)
        assert list(map(place, one.members)) == list(map(place, other.members))
        assert all(torch.equal(a.index, b.index) for a, b in zip(one.members, other.members, strict=True))
