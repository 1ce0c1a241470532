"""Results as a notebook shows them: their text, and a picture where one says more."""

import base64
import html
import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

from equipoise.errors import InputError, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def notebook(text: str, figure: "Figure | None" = None) -> str:
    """HTML of a text in a fixed-width face, and of a picture below it.

    Args:
        text: of several lines.
        figure: of matplotlib.

    Returns:
        A fragment of HTML, everything in the text escaped.

    >>> notebook("a < b")
    '<pre>a &lt; b</pre>'
    """
    shown = "\n".join(map(visible, text.split("\n")))
    return f"<pre>{html.escape(shown)}</pre>{'' if figure is None else _picture(figure)}"


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib, which is an extra.

    Raises:
        InputError: without it.
    """
    if find_spec("matplotlib") is None:
        remedy = "pip install 'equipoise[report]'"
        raise InputError(expected="matplotlib, which draws the picture", found="none", remedy=remedy)


def _picture(figure: "Figure") -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}">'
