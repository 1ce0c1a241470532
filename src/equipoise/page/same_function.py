"""The pages of a balanced, an aligned and a compressed model: what moved, how far, and what stayed the same."""

import html
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import NamedTuple

import plotly.graph_objects as go

from equipoise.compression import Agreement, Compressed, Move
from equipoise.page.canvas import canvas, counted, fitted
from equipoise.page.render import embedded, render
from equipoise.page.words import plain
from equipoise.transform import Aligned, Balanced, BalanceReport

NO_BREAK = "\u00a0"
BEFORE, AFTER = "var(--other-1)", "var(--other-0)"


class Plot(NamedTuple):
    """A figure of one of these pages."""

    name: str
    title: str
    caption: str
    json: str


class ResultTable(NamedTuple):
    """A table of one of these pages; `numbers` says which columns are numbers."""

    identity: str
    title: str
    caption: str
    columns: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[str]]


@singledispatch
def result_page(result: object) -> str:
    """The page of a result of `eq.balance`, `eq.align` or `eq.compress`."""
    raise NotImplementedError(type(result).__name__)


@result_page.register
def _of_balanced(result: Balanced) -> str:
    report = result.report
    ranges = report.objective == "range"
    return _page(
        "balance",
        "The same function with weights of equal ranges" if ranges else "The same function with weights of least norm",
        "Weights that write a vector were multiplied by a matrix, those that read it by its inverse, wherever the map "
        "between commutes with it: no output changes but for rounding.",
        [
            ("norm ‖w‖", _arrow(report.norm_before, report.norm_after), "of all parameters"),
            (
                ("ratio of ranges", _arrow(report.range_ratio_before, report.range_ratio_after), "the largest")
                if ranges
                else ("largest law", _arrow(report.imbalance_before, report.imbalance_after, 2), "‖C‖ / ‖w‖²")
            ),
            ("outputs changed by", plain(report.output_change), "largest, relative, in the dtype of the model"),
            ("in float64", plain(report.function_change), "the same: rounding of the moves alone"),
            ("laws moved", plain(len(report.laws)), f"{plain(report.sweeps)} sweeps, {plain(report.seconds)} s"),
            ("goal", "reached" if report.balanced else "not reached", "for every law that could move"),
        ],
        _balance_figures(report),
        _balance_tables(report),
    )


def _balance_figures(report: BalanceReport) -> list[Plot | None]:
    """Laws and parameters before and after."""
    if report.objective == "range":
        size, weights = "largest entry", [(w.name, w.largest_before, w.largest_after) for w in report.weights]
    else:
        size, weights = "norm", [(w.name, w.norm_before, w.norm_after) for w in report.weights]
    return [
        _pairs(
            "laws",
            "Conserved quantities",
            "‖C‖ / ‖w‖² of every law that moved, in the order of the table: the gradient of ½‖w‖² along its symmetry, "
            "zero at the least norm.",
            "‖C‖ / ‖w‖²",
            [(law.law, law.before, law.after) for law in report.laws],
            across="law",
        ),
        _pairs(
            "weights",
            f"The {size} of every parameter",
            "In the order in which the model lists them. A parameter without a symmetry keeps its own.",
            size,
            weights,
            across="parameter",
        ),
    ]


def _balance_tables(report: BalanceReport) -> list[ResultTable]:
    """Laws that moved, what could not move, and directions that vanished."""
    return [
        _table(
            "laws-table",
            "Laws",
            "Norm of the conserved quantity over ‖w‖².",
            ("", "law", "kind", "conserved", "before", "after"),
            [(n + 1, each.law, each.kind, each.count, each.before, each.after) for n, each in enumerate(report.laws)],
        ),
        _table(
            "left-alone",
            "Left alone",
            "What does not move, and why.",
            ("law or parameters", "reason"),
            [(each.name, each.reason) for each in report.immovable],
        ),
        _table(
            "vanished",
            "Vanished",
            "Directions that nothing writes or nothing reads any longer: an exact compression.",
            ("law", "unit", "directions"),
            [(each.law, each.unit, each.count) for each in report.vanished],
        ),
    ]


@result_page.register
def _of_aligned(result: Aligned) -> str:
    report = result.report
    shares = [(each.name, float(each.size), float(each.moved)) for each in report.moves]
    figures = [
        _pairs(
            "distances",
            "Distance to the reference",
            "‖w − w'‖ of every parameter, in the order in which the model lists them.",
            "‖w − w'‖",
            [(each.name, each.before, each.after) for each in report.weights],
            across="parameter",
        ),
        _pairs(
            "parts",
            "Units that moved",
            "Of every part of the group, in the order of the table: how many units it has, and how many of them moved.",
            "units",
            shares,
            across="part",
            names=("all", "moved"),
            logarithmic=False,
        ),
    ]
    return _page(
        "align",
        "The same function with weights nearest to a reference",
        "Permutations of neurons, channels and heads, rotations where the map between is linear, and signs where it is "
        "odd leave function and norm alone. They were chosen for the largest inner product with the reference.",
        [
            ("distance", _arrow(report.distance_before, report.distance_after), "‖w − w'‖ over all parameters"),
            ("cosine", _arrow(report.cosine_before, report.cosine_after), "of the angle between the weights"),
            ("outputs changed by", plain(report.output_change), "largest, relative, in the dtype of the model"),
            ("in float64", plain(report.function_change), "the same: rounding of the moves alone"),
            ("parts of the group", plain(len(report.moves)), "each tried on the example before it is used"),
            ("sweeps", plain(report.sweeps), f"in {plain(report.seconds)} s"),
        ],
        figures,
        [
            _table(
                "parts-table",
                "Parts of the group",
                "",
                ("", "weights", "kind", "units", "moved"),
                [(n + 1, each.name, each.kind, each.size, each.moved) for n, each in enumerate(report.moves)],
            ),
            _table(
                "refused",
                "Refused",
                "Parts that were read in the graph, and change the outputs when moved.",
                ("weights", "reason"),
                [(each.name, each.reason) for each in report.refused],
            ),
        ],
    )


@result_page.register
def _of_compressed(result: Compressed) -> str:
    tolerance = result.plan.settings.tolerance
    kept, held = result.kept, result.held_out
    share = result.parameters_after / result.parameters_before
    sizes = [("the original", result.parameters_before), *((_said(m), m.parameters) for m in result.moves)]
    changes = [(_said(move), move.output_change) for move in result.moves]
    figures = [
        _steps("parameters", "Parameters left", "After each move, in the order of the table.", "parameters", sizes),
        _pairs(
            "changes",
            "Change of the outputs",
            "‖f' − f‖ / ‖f‖ since the original, after each move, in float64, on the examples that it was checked on.",
            "‖f' − f‖ / ‖f‖",
            [(name, None, change) for name, change in changes],
            across="move",
            names=("", "after the move"),
        ),
    ]
    agreements = [("the data", kept), *([("the holdout", held)] if held is not None else [])]
    return _page(
        "compress",
        "Fewer weights with the same answers",
        "All moves keep the outputs on the data, to rounding."
        if result.exact
        else f"Outputs on the data may change by {plain(tolerance)}, relative; moves that keep them come first.",
        [
            ("parameters", _arrow(result.parameters_before, result.parameters_after), f"{share:.1%} are left"),
            ("outputs changed by", plain(kept.output_change), f"{plain(tolerance)} was allowed"),
            ("predictions changed", plain(kept.changed), f"of {plain(kept.examples)} examples of the data"),
            ("margins changed by", _interval(kept.margin_change), "from the least to the most"),
            ("moves", plain(len(result.moves)), "exact" if result.exact else "exact, and within the tolerance"),
            ("promise", "kept" if result.ok else "broken", "recomputed from the two models alone"),
        ],
        figures,
        [
            _table(
                "agreement",
                "Both models on the same examples",
                "The interval is that of the probability of the same prediction (Clopper–Pearson, 95%), "
                "for examples drawn independently that took no part.",
                ("on", "examples", "change of outputs", "predictions changed", "interval", "margins by", "accuracy"),
                [(where, *_agreement(each, place > 0)) for place, (where, each) in enumerate(agreements)],
            ),
            _table(
                "moves-table",
                "Moves",
                "",
                ("", "move", "layers", "before", "after", "parameters", "change", "how"),
                [
                    (m.number, m.kind, ", ".join(m.layers), m.before, m.after, m.parameters, m.output_change, m.detail)
                    for m in result.moves
                ],
            ),
            _table("notes", "Not done", "", ("what, and why",), [(note,) for note in result.notes]),
        ],
    )


def _page(
    verb: str,
    title: str,
    story: str,
    headline: Sequence[tuple[str, str, str]],
    figures: Sequence[Plot | None],
    tables: Sequence[ResultTable],
) -> str:
    return render(
        "same_function.html",
        verb=verb,
        title=title,
        story=story,
        headline=headline,
        figures=[figure for figure in figures if figure is not None],
        tables=[table for table in tables if table.rows],
    )


# Figures --------------------------------------------------------------------------------------------------------------


def _pairs(
    name: str,
    title: str,
    caption: str,
    axis: str,
    values: Sequence[tuple[str, float | None, float | None]],
    across: str,
    names: tuple[str, str] = ("before", "after"),
    logarithmic: bool = True,
) -> Plot | None:
    """Two values of each of several things; None without any that the axis can show."""
    figure = canvas(axis, logarithmic=logarithmic, across=across)
    figure.update_layout(hovermode="closest")
    sides: list[tuple[str, str, str, Callable[[tuple[str, float | None, float | None]], float | None]]] = [
        (names[0], BEFORE, "circle-open", lambda row: row[1]),
        (names[1], AFTER, "circle", lambda row: row[2]),
    ]
    shown: list[float] = []
    for said, colour, symbol, value in sides:
        found = [value(row) for row in values]
        heights = [each if each is not None and (each > 0 or not logarithmic) else None for each in found]
        shown += [each for each in heights if each is not None]
        if any(each is not None for each in heights):
            _markers(figure, [row[0] for row in values], heights, said, colour, symbol)
    if not shown:
        return None
    if logarithmic:
        fitted(figure, (min(shown), max(shown)))
    else:
        figure.update_yaxes(rangemode="tozero")
    return Plot(name, title, caption, embedded(counted(figure)))


def _markers(
    figure: go.Figure, names: Sequence[str], heights: Sequence[float | None], said: str, colour: str, symbol: str
) -> None:
    figure.add_scatter(
        x=list(range(1, len(heights) + 1)),
        y=[float("nan") if each is None else each for each in heights],
        mode="lines+markers" if len(heights) > 1 else "markers",
        name=said,
        cliponaxis=False,
        line={"color": colour, "width": 0.75},
        marker={"color": colour, "size": 7, "symbol": symbol, "line": {"color": colour, "width": 1.5}},
        customdata=[html.escape(name) for name in names],
        hovertemplate="%{customdata}<br>%{y:.3g}",
    )


def _steps(name: str, title: str, caption: str, axis: str, values: Sequence[tuple[str, int]]) -> Plot | None:
    """A number after each of several moves; None if there is but one."""
    if len(values) < 2:
        return None
    figure = canvas(axis, across="move")
    figure.update_layout(hovermode="closest", showlegend=False)
    figure.add_scatter(
        x=list(range(len(values))),
        y=[size for _, size in values],
        mode="lines+markers",
        cliponaxis=False,
        line={"color": AFTER, "shape": "hv", "width": 2},
        marker={"color": AFTER, "size": 6},
        customdata=[html.escape(said) for said, _ in values],
        hovertemplate="%{customdata}<br>%{y:,}",
    )
    figure.update_yaxes(rangemode="tozero", tickformat=",")
    return Plot(name, title, caption, embedded(counted(figure)))


# Tables and words -----------------------------------------------------------------------------------------------------


def _table(
    identity: str, title: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> ResultTable:
    """Numbers to the right; those to three digits that are no counts."""
    numbers = [all(not isinstance(row[place], str) for row in rows) for place in range(len(columns))]
    return ResultTable(identity, title, caption, columns, numbers, [[_cell(value) for value in row] for row in rows])


def _cell(value: object) -> str:
    return plain(float(f"{value:.3g}")) if isinstance(value, float) else plain(value)


def _arrow(before: int | float, after: int | float, digits: int = 4) -> str:
    return f"{_whole(before, digits)} → {_whole(after, digits)}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "—" if bounds is None else " … ".join(_whole(each, 2) for each in bounds)


def _whole(value: int | float, digits: int) -> str:
    """A number that no line break divides."""
    return plain(float(f"{value:.{digits}g}") if isinstance(value, float) else value).replace(" ", NO_BREAK)


def _said(move: Move) -> str:
    return f"{move.kind} {', '.join(move.layers)}"


def _agreement(found: Agreement, independent: bool) -> tuple[object, ...]:
    accuracies = found.accuracy_before, found.accuracy_after
    known = [f"{each:.2%}" for each in accuracies if each is not None]
    bounds = found.interval() if independent else None
    return (
        found.examples,
        found.output_change,
        found.changed,
        "—" if bounds is None else " … ".join(f"{each:.4f}" for each in bounds),
        _interval(found.margin_change),
        " → ".join(known) or "—",
    )
