"""Draws the pictures of the first page in two inks, for light and for dark pages.

python docs/pictures.py        # half a minute; writes docs/_static/front-light.svg, front-dark.svg
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

import equipoise as eq
from equipoise.graph.chain import linear_tail
from equipoise.theorems.linear_tail import LinearTail, certified_bounds

FOLDER = Path(__file__).parent / "_static"
INKS = {
    "light": {"ink": "#1f2933", "linear": "#0b5394", "relu": "#b45309", "quiet": "#6b7280"},
    "dark": {"ink": "#e5e7eb", "linear": "#7cb7ff", "relu": "#f6ad55", "quiet": "#9ca3af"},
}


def trained() -> eq.Run:
    """Two ReLU layers below three linear ones, on two handwritten digits, to a loss of e^(-10^12)."""
    model = eq.networks.mlp([64, 64, 64, 64, 64, 1], linear_tail=3, scale=0.03)
    return eq.flow(model, eq.data.load("digits", (0, 1)), until=eq.LogLoss(-1e12), observe=[eq.Spectrum()])


def curves(run: eq.Run) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Of each matrix: its distance to rank one against growth, and the bound that was certified for it at the start."""
    table = run.table().query("observer == 'spectrum'")
    assert run.chain
    tail = LinearTail.of(linear_tail(run.chain), run.final)
    bounds = certified_bounds(tail, run.initial, run.final)
    found = {}
    for place, rows in table.groupby("place", sort=False):
        wide = rows.pivot_table(index="growth", columns="quantity", values="value")
        found[str(place)] = {"residual": list(wide["rank_one_residual"].items()), "bound": []}
        if place in bounds:
            last = wide["frobenius_norm"].iloc[-1]
            found[str(place)]["bound"] = list((bounds[place] * (last / wide["frobenius_norm"]) ** 2).items())
    return found


def axes_ink(theme: str) -> dict[str, str]:
    """Settings of matplotlib for text and axes."""
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return dict.fromkeys(keys, INKS[theme]["ink"])


def draw(found: dict[str, dict[str, list[tuple[float, float]]]], theme: str) -> Figure:
    """Distances on a logarithmic axis, each curve named at its end."""
    colours = INKS[theme]
    with mpl.rc_context({**axes_ink(theme), "font.size": 11, "svg.hashsalt": "front", "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        names = {
            "layer1.weight": ("layer 1, ReLU", 8),
            "layer2.weight": ("layer 2, ReLU", -6),
            "layer3.weight": ("layers 3 and 4, linear", 6),
        }
        for place, both in found.items():
            points = [(x, y) for x, y in both["residual"] if y > 1e-12]
            if not points:
                continue
            kind = "relu" if place in ("layer1.weight", "layer2.weight") else "linear"
            axes.plot(*zip(*points, strict=True), color=colours[kind], linewidth=2)
            if both["bound"]:
                bound = [(x, y) for x, y in both["bound"] if y > 1e-12]
                axes.plot(
                    *zip(*bound, strict=True), color=colours["quiet"], linewidth=1, linestyle="--"
                ) if bound else None
            if place in names:
                label, up = names[place]
                axes.annotate(
                    label, points[-1], xytext=(6, up), textcoords="offset points", color=colours[kind], va="center"
                )
        axes.annotate("dashed: certified at the start", (0.02, 0.06), xycoords="axes fraction", color=colours["quiet"])
        axes.set(
            yscale="log",
            xlabel="growth of the weights, log(‖w‖ / ‖w₀‖)",
            ylabel="distance to rank one, 1 − σ₁² / ‖W‖²",
            ylim=(1e-7, 2),
        )
        axes.set_xlim(0, max(x for both in found.values() for x, _ in both["residual"]) * 1.28)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Both variants of one run."""
    found = curves(trained())
    for theme in INKS:
        path = FOLDER / f"front-{theme}.svg"
        draw(found, theme).savefig(path, transparent=True, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
