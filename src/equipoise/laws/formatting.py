"""Laws for the eye and for other programs: table, LaTeX, JSON."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from equipoise.laws.law import Law


def table(laws: Sequence[Law]) -> pd.DataFrame:
    """One row for each law: name, kind, how many quantities, exact or not, and the formula."""
    rows = [(law.name, law.kind, law.count, law.exact, law.statement) for law in laws]
    return pd.DataFrame(rows, columns=pd.Index(["law", "kind", "count", "exact", "conserved"]))


def by_unit(laws: Sequence[Law], parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> pd.DataFrame:
    """One row for each head, neuron or group, with its own residual."""
    columns = pd.Index(["law", "kind", "unit", "count", "exact", "residual"])
    rows = [
        (law.name, law.kind, unit, law.count // len(residuals), law.exact, residual)
        for law in laws
        for residuals in [law.residuals(parameters, gradients).tolist()]
        for unit, residual in enumerate(residuals)
    ]
    return pd.DataFrame(rows, columns=columns)


def to_json(laws: Sequence[Law]) -> str:
    """One object for each law, with its members by name, axes and degree."""
    return json.dumps([plain(law) for law in laws], ensure_ascii=False)


def plain(law: Law) -> dict[str, object]:
    """A law as JSON knows it."""
    members = [
        {"parameter": member.parameter, "axes": list(member.axes), "degree": member.degree}
        for member in law.interface.members
    ]
    return {
        "name": law.name,
        "kind": law.kind,
        "count": law.count,
        "exact": law.exact,
        "conserved": law.statement,
        "members": members,
    }


def to_latex(laws: Sequence[Law]) -> str:
    """A `tabular` with one line for each law."""
    lines = [f"{_escaped(law.name)} & {law.kind} & {law.count} & ${_formula(law)}$ \\\\" for law in laws]
    head = "law & kind & count & conserved \\\\"
    return "\n".join(["\\begin{tabular}{llrl}", head, "\\hline", *lines, "\\end{tabular}"])


def _formula(law: Law) -> str:
    return " ".join(_term(law, number) for number in range(len(law.interface.members))).removeprefix("+ ")


def _term(law: Law, number: int) -> str:
    member = law.interface.members[number]
    symbol = f"\\texttt{{{_escaped(member.label)}}}"
    degree = "" if abs(member.degree) == 1 else f"{abs(member.degree):g}\\,"
    sign = "+" if member.degree > 0 else "-"
    if law.kind == "shift":
        return f"{sign} \\textstyle\\sum {symbol}"
    if law.interface.width == 1:
        return f"{sign} {degree}\\|{symbol}\\|^2"
    turned = member.axes[-1] == len(member.axes) - 1
    return f"{sign} {degree}{symbol}{symbol}^\\top" if turned else f"{sign} {degree}{symbol}^\\top {symbol}"


def _escaped(text: str) -> str:
    return text.replace("_", "\\_").replace("→", "$\\to$").replace("…", "\\dots ").replace("#", "\\#")
