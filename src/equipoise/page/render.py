"""From a template to one HTML file that needs nothing else: what every page shares."""

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

from equipoise.errors import InputError, StoreError
from equipoise.page.words import plain, typeset


@runtime_checkable
class Embeddable(Protocol):
    """A figure of plotly, which is an extra."""

    def to_json(self) -> str | None:
        """The figure with < and > as escapes."""
        ...


def render(template: str, **material: object) -> str:
    """The page of a template of `page/templates`, everything in it escaped.

    The script that draws is inside the page; with `library` among the material it is the file of that name beside it,
    or none where that is None.
    """
    # only here, because the two libraries are an extra
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("equipoise.page"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = plain
    environment.filters["typeset"] = lambda text: Markup(typeset(str(text)))
    return environment.get_template(template).render(plotly=lambda: Markup(library()), **material)


def library() -> str:
    """The script that draws the figures."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def embedded(figure: Embeddable) -> str:
    """A plotly figure as JSON inside a page: plotly writes < and > as escapes, so no name in it can end the script."""
    from markupsafe import Markup

    return Markup(figure.to_json() or "null")


def write(path: Path, page: str) -> Path:
    """Write the page; raises `StoreError` where that cannot be."""
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")  # lone surrogates
    except OSError as error:
        raise StoreError(
            expected=f"to write {path}", found=error.strerror or type(error).__name__, remedy="choose another path"
        ) from None
    return path


def require_libraries() -> None:
    """Raises `InputError` without plotly and jinja2, which are an extra."""
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise InputError(
            expected="plotly and jinja2, which draw the page",
            found=f"no {' and no '.join(missing)}",
            remedy="pip install 'equipoise[report]'",
        )
