"""Draws the rank of each layer against growth, along flows on all of MNIST and from small weights, for light and dark.

python docs/ranks.py ALL SMALL   # the folders of two runs; writes docs/_static/ranks-light.svg, ranks-dark.svg

The runs are those of

    python benchmarks/flow_scale.py classes --n 60000 --until log_loss=-20 --out ALL
    python benchmarks/flow_scale.py classes --n 4000 --scale 0.1 --until log_loss=-20 --out SMALL
"""

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.store import Store

sys.path.insert(0, str(Path(__file__).parent))

from pictures import FOLDER, INKS, axes_ink

NAMES = ("layer 1, ReLU", "layer 2, linear", "layer 3, linear", "layer 4, linear")
SHADES = ("relu", "linear", "linear", "linear")
DASHES = ("-", "-", "--", ":")


def ranks(folder: str | Path) -> pd.DataFrame:
    """The effective rank of every layer, a column each, and `log_loss`, by growth."""
    table = Store.open(folder).table().query("observer == 'spectrum' and quantity == 'effective_rank'")
    wide = table.pivot_table(index="growth", columns="place", values="value")
    return wide.assign(log_loss=table.groupby("growth").log_loss.first())


def panel(axes: Axes, found: pd.DataFrame, title: str, theme: str) -> None:
    """A curve for each layer, and the growth at which the loss passes one half and e⁻¹⁰."""
    colours = INKS[theme]
    places = [column for column in found.columns if column != "log_loss"]
    for place, name, shade, dash in zip(places, NAMES, SHADES, DASHES, strict=True):
        axes.plot(found.index, found[place], color=colours[shade], linestyle=dash, linewidth=2, label=name)
    for level, label in ((-0.7, "R = 1/2"), (-10.0, "R = e⁻¹⁰")):
        passed = found.index[found.log_loss < level]
        if len(passed):
            axes.axvline(passed[0], color=colours["quiet"], linewidth=0.8)
            axes.annotate(
                label, (passed[0], 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0), fontsize=8,
                textcoords="offset points", color=colours["quiet"],
            )  # fmt: skip
    axes.set(title=title, xlabel="growth of the weights, log(‖w‖ / ‖w₀‖)", yscale="log")
    axes.set_xlim(0, 1.12 * found.index.max())
    axes.spines[["top", "right"]].set_visible(False)


def draw(whole: pd.DataFrame, small: pd.DataFrame, theme: str) -> Figure:
    """Both flows side by side."""
    with mpl.rc_context({**axes_ink(theme), "font.size": 10, "svg.hashsalt": "ranks", "svg.fonttype": "path"}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        panel(left, whole, "all of MNIST, ten classes", theme)
        panel(right, small, "4,000 examples, weights a tenth at the start", theme)
        left.set_ylabel("effective rank")
        ticks = [2, 5, 9, 20, 50, 100]
        left.set_yticks(ticks, [str(tick) for tick in ticks])
        left.minorticks_off()
        left.legend(frameon=False, fontsize=8, labelcolor=INKS[theme]["ink"])
    return figure


def main() -> None:
    """Both variants of the two runs."""
    whole, small = map(ranks, sys.argv[1:3])
    for theme in INKS:
        path = FOLDER / f"ranks-{theme}.svg"
        draw(whole, small, theme).savefig(path, transparent=True, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
