"""The figures of an analysed checkpoint: the spectra of each family of matrices, and its measures by depth.

A family is all matrices whose names differ in the indices of layers alone, `encoder.layer.*.output.dense.weight` say;
the index is the depth. Families run from blue at the bottom to orange at the top.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from equipoise.checkpoint.spectra.gaussian_null import gaussian_singular_values
from equipoise.page.canvas import canvas, counted, fitted

POINTS = 120  # on a logarithmic axis more are not seen
CURVES = 24  # of one family
FAMILIES = 18
FLOOR = 0.02  # of the edge: the smallest singular values of all would take most of the height
_NUMBER = re.compile(r"\d+")
_DASHES = ("solid", "dot")


Row: TypeAlias = dict[Any, Any]  # of a table of `eq.analyze`


@dataclass(frozen=True)
class FamilyMember:
    """One matrix of a family: its depth in it, its index as named, and its rows, one for each checkpoint."""

    name: str
    depth: int
    index: str
    rows: tuple[Row | None, ...] = ()


@dataclass(frozen=True)
class Family:
    """Matrices of the same role."""

    name: str
    members: tuple[FamilyMember, ...]

    @property
    def identity(self) -> str:
        """Its name as an HTML identifier."""
        return "spectra-" + re.sub(r"\W+", "-", self.name.replace("*", "n")).strip("-")


def families(tables: Sequence[pd.DataFrame]) -> list[Family]:
    """The families of one checkpoint or of two, in order of appearance; only what was measured."""
    rows: dict[str, list[Row | None]] = {}
    for place, table in enumerate(tables):
        for row in table.to_dict("records"):
            if row.get("spectrum") is not None:
                rows.setdefault(str(row["name"]), [None] * len(tables))[place] = row
    grouped: dict[str, list[str]] = {}
    for name in rows:
        grouped.setdefault(_role(name)[0], []).append(name)
    return [
        Family(
            family if len(names) > 1 else names[0],
            tuple(replace(member, rows=tuple(rows[member.name])) for member in _depths(names)),
        )
        for family, names in grouped.items()
    ]


def _role(name: str) -> tuple[str, tuple[int, ...]]:
    """A name with its indices as stars, and the indices: numbers between dots, and in words above the last of those.

    Below it a number in a word distinguishes roles, as in `layers.0.linear1` and `layers.0.linear2`; where no number is
    between dots, those in words count layers, as in `fc1` and `fc2`.

    >>> _role("layers.12.linear1.weight"), _role("fc2.weight")
    (('layers.*.linear1.weight', (12,)), ('fc*.weight', (2,)))
    >>> _role("layer1.0.conv2.weight")
    ('layer*.*.conv2.weight', (1, 0))
    """
    parts = name.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdecimal()), default=len(parts) - 1)
    above, below = ".".join(parts[: last + 1]), parts[last + 1 :]
    return ".".join([_NUMBER.sub("*", above), *below]), tuple(map(int, _NUMBER.findall(above)))


def _depths(names: Sequence[str]) -> Iterator[FamilyMember]:
    """The names of a family by depth: the one index that differs within it, or the place in the order of several."""
    indices = {name: _role(name)[1] for name in names}
    differing = [place for place, column in enumerate(zip(*indices.values(), strict=True)) if len(set(column)) > 1]
    for order, name in enumerate(sorted(names, key=indices.__getitem__)):
        own = [indices[name][place] for place in differing]
        yield FamilyMember(name, own[0] if len(own) == 1 else order, ".".join(map(str, own)))


def spectra_figure(family: Family) -> go.Figure | None:
    """`σ_i` over the edge of the bulk, against `i`; dashed and grey a random matrix of the same shape and norm."""
    figure = canvas("σᵢ / edge of the bulk", logarithmic=True, across="index i")
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="log", hoverformat="d", minorloglabels="none")
    members = _thinned(family.members)
    for place, member in enumerate(members):
        for dash, row in zip(_DASHES, member.rows, strict=False):
            if row is not None and row["mp_edge"] > 0:
                said = _said(family, member)
                _curve(figure, row["spectrum"] / row["mp_edge"], said, _colour(place, len(members)), dash)
    first = next((row for member in members for row in member.rows if row is not None), None)
    if first is not None and figure.data:
        rows, columns = first["shape"][0], int(np.prod(first["shape"][1:]))
        noise = gaussian_singular_values(rows, columns).numpy() / (rows**0.5 + columns**0.5)
        _curve(figure, noise, "random", "var(--quiet)", "dash")
    return _from(fitted(figure, (0.5, 2.0)), FLOOR) if figure.data else None


def _from(figure: go.Figure | None, floor: float) -> go.Figure | None:
    """With a logarithmic axis that starts no lower than `floor`."""
    if figure is not None:
        low, high = figure.layout.yaxis.range
        figure.update_yaxes(range=[max(low, np.log10(floor)), high])
    return figure


def depth_figure(found: Sequence[Family], measure: str, title: str) -> go.Figure | None:
    """One measure against depth, a curve for each family of several matrices; dotted for the second checkpoint."""
    figure = canvas(title, across="layer")
    figure.update_layout(hovermode="closest", legend_font_size=11)
    figure.update_yaxes(rangemode="nonnegative")
    deep = [family for family in found if len(family.members) > 1]
    shared = _shared_prefix([family.name for family in deep])
    for place, family in enumerate(deep):
        for side, dash in enumerate(_DASHES):
            members = _measured(family, side, measure)
            if members:
                depth = np.array([member.depth for member in members], float)
                values = np.array([(member.rows[side] or {})[measure] for member in members], float)
                figure.add_scatter(
                    x=depth,
                    y=values,
                    customdata=[html.escape(member.name) for member in members],
                    hovertemplate="%{customdata}: %{y}<extra></extra>",
                    mode="lines+markers",
                    marker={"size": 5},
                    name=html.escape(family.name.removeprefix(shared).replace(".weight", "")),
                    legendgroup=html.escape(family.name),
                    showlegend=side == 0,
                    line={"color": _colour(place, len(deep)), "dash": dash, "width": 2},
                )
    return counted(figure) if figure.data else None


def _shared_prefix(names: Sequence[str]) -> str:
    """The prefix that all names share, up to a dot."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, columns)
    return "".join(f"{parts[0]}." for parts in shared) if len(names) > 1 else ""


def _measured(family: Family, side: int, measure: str) -> list[FamilyMember]:
    """Every member that has the measure, from the bottom up."""
    sided = [(member, member.rows[side]) for member in family.members if side < len(member.rows)]
    return [member for member, row in sided if row is not None and pd.notna(row[measure])]


def _said(family: Family, member: FamilyMember) -> str:
    return f"layer {member.index}" if len(family.members) > 1 else member.name


def _curve(figure: go.Figure, values: np.ndarray, said: str, colour: str, dash: str) -> None:
    places = np.unique(np.geomspace(1, len(values), POINTS).round().astype(int))
    seen = values[places - 1].astype(float)
    figure.add_scatter(
        x=places,
        y=np.where(seen > 1e-7, seen, np.nan).round(6),
        mode="lines+markers" if len(places) < 4 else "lines",
        name=html.escape(said),
        legendgroup=html.escape(said),
        showlegend=dash != "dot",
        line={"color": colour, "dash": dash, "width": 1.5},
    )


def _thinned(members: Sequence[FamilyMember]) -> list[FamilyMember]:
    if len(members) <= CURVES:
        return list(members)
    return [members[place] for place in np.linspace(0, len(members) - 1, CURVES).round().astype(int)]


def _colour(place: int, count: int) -> str:
    """From blue over violet to orange; light enough for a dark page and dark enough for a light one."""
    turn = place / (count - 1) if count > 1 else 0.0
    return f"hsl({round(210 + 180 * turn) % 360}, 62%, 54%)"
