"""Proof that every use of every parameter was read by a matcher, or the list of what was not."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from equipoise.graph.exchanges import exchanges
from equipoise.graph.matchers.pointwise import LAWLESS
from equipoise.graph.matchers.recurrent import LAWLESS as CELLS
from equipoise.graph.unfollowed import Unfollowed, unfollowed
from equipoise.graph.walk import Unmatched, Walk, operation_name


@dataclass(frozen=True)
class Refuted:
    """A law that a backward pass at random weights shows to be false, and the operations between its members."""

    law: str
    residual: float
    operations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.law} (residual {self.residual:.1e}; one of {', '.join(self.operations)} is misread)"


@dataclass(frozen=True)
class Coverage:
    """Uses of parameters that were matched, and what was not.

    An operation without a matcher holds still whatever it reads: the laws that are returned stay proved, those that it
    might have had are missing. `unfollowed` operations are read, but keep less than they might: a law through them may
    be missing beside those found. `lawless` counts the maps, such as GELU, that commute with no linear flow: the units
    in front of them have no law of their own. `unused` parameters take no part in the output, `frozen` ones in
    training.
    `in_no_law` are trained parameters that no law found names: what they conserve, if anything, was not derived.
    Within each group of `exchanges` parameters are added to each other, so that differences of their sums are conserved
    too; these linear laws are not among those returned.
    `refuted` laws were dropped by the self-test; `untested` says why there was none, empty if there was.
    """

    uses: Mapping[str, tuple[str, ...]]
    unmatched: tuple[Unmatched, ...] = ()
    unfollowed: tuple[Unfollowed, ...] = ()
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    lawless: Mapping[str, int] = field(default_factory=dict)
    exchanges: tuple[tuple[str, ...], ...] = ()
    in_no_law: tuple[str, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    untested: str = ""

    def beside(self, named: Collection[str]) -> "Coverage":
        """The same, beside laws that name these parameters."""
        lost = tuple(name for name in self.uses if name not in named and name not in self.frozen)
        return replace(self, in_no_law=lost)

    @property
    def complete(self) -> bool:
        """Whether every operation had a matcher."""
        return not self.unmatched

    def __str__(self) -> str:
        head = f"{sum(map(len, self.uses.values()))} uses of {len(self.uses)} parameters seen"
        missing = [f"{u.operation} at {u.node} (touches {', '.join(u.parameters) or 'none'})" for u in self.unmatched]
        through = [f"{name} ({count})" for name, count in self.lawless.items()]
        exchanges = [" with ".join(group) for group in self.exchanges]
        parts = [
            ("not read", missing),
            ("not followed", [str(each) for each in self.unfollowed]),
            ("no law through", through),
            ("in no law", self.in_no_law),
            ("no law stated of shifts that cancel", exchanges),
            ("unused", self.unused),
            ("frozen", self.frozen),
            ("dropped as false", [str(each) for each in self.refuted]),
            ("not tested", [self.untested] if self.untested else []),
        ]
        return "; ".join([head, *(f"{label}: {', '.join(names)}" for label, names in parts if names)])


def coverage(walk: Walk) -> Coverage:
    """What the walk has seen.

    >>> import torch
    >>> from torch import nn
    >>> from equipoise.graph.capture import capture
    >>> print(coverage(Walk(capture(nn.Linear(2, 1), torch.ones(2, 2)))))
    2 uses of 2 parameters seen
    """
    captured = walk.captured
    users = {node.name: tuple(user.name for user in node.users) for node in captured.graph.find_nodes(op="placeholder")}
    uses = {name: users[placeholder] for placeholder, name in captured.parameters.items()}
    return Coverage(
        uses={name: nodes for name, nodes in uses.items() if nodes},
        unmatched=tuple(walk.unmatched),
        unfollowed=unfollowed(walk),
        unused=tuple(name for name, nodes in uses.items() if not nodes),
        frozen=tuple(name for name in uses if name in walk.frozen),
        lawless=dict(Counter(_lawless(walk))),
        exchanges=exchanges(walk),
    )


def _lawless(walk: Walk) -> Iterator[str]:
    """Operations on what parameters compute that leave no linear flow."""
    for node in walk.captured.graph.nodes:
        name = operation_name(node.target)
        if node.op == "call_function" and name in (*LAWLESS, *CELLS) and walk.upstream(node):
            yield name
