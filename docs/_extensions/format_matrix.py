"""The format matrix of `eq.analyze`, made from the tables that its readers themselves go by."""

import ast
import inspect
from collections.abc import Callable

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from equipoise.checkpoint.effective.adapters import _VARIANTS
from equipoise.checkpoint.effective.scaled import _METHODS
from equipoise.checkpoint.readers import opening, recognised
from equipoise.checkpoint.readers.recognised import Foreign


def readers() -> list[tuple[str, str]]:
    """Each reader that opens a checkpoint, and the first line of its docstring."""
    found = [(name, each) for name, each in vars(opening).items() if name.startswith("read_") and name != "read_json"]
    return [
        (name.removeprefix("read_").replace("_", " "), (each.__doc__ or "").partition("\n")[0]) for name, each in found
    ]


def refusals() -> list[Foreign]:
    """Every `Foreign(…)` that the source of `recognised` writes, and every one made from another."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(recognised))) if isinstance(node, ast.Call)]
    made = [node for node in calls if ast.unparse(node.func).endswith(("Foreign", "._replace"))]
    values = [eval(compile(ast.Expression(node), recognised.__file__, "eval"), vars(recognised)) for node in made]
    return list(dict.fromkeys(values))


def codes() -> list[tuple[str, str]]:
    """Quantised weights that are recognised and not read: their tensors, and the method."""
    return list(_METHODS.items())


def variants() -> list[tuple[str, str]]:
    """Options of adapters that are refused, and what they are."""
    return list(_VARIANTS.items())


TABLES: dict[str, tuple[tuple[str, str], Callable[[], list]]] = {
    "read": (("reader", "what it reads"), readers),
    "refused": (("found", "what to do"), refusals),
    "codes": (("tensors named", "method"), codes),
    "variants": (("option of the adapter", "what it is"), variants),
}


class FormatMatrix(SphinxDirective):
    """`{format-matrix} read`, `refused`, `codes` or `variants`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table of two columns."""
        head, rows = TABLES[self.arguments[0]]
        table, group = nodes.table(), nodes.tgroup(cols=2)
        table += group
        group += [nodes.colspec(colwidth=width) for width in (40, 60)]
        top, body = nodes.thead(), nodes.tbody()
        top += _row([nodes.Text(text) for text in head])
        for first, second in rows():
            body += _row([nodes.Text(first), nodes.Text(second)])
        group += [top, body]
        return [table]


def _row(cells: list[nodes.Node]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry, paragraph = nodes.entry(), nodes.paragraph()
        paragraph += cell
        entry += paragraph
        row += entry
    return row


def setup(app) -> dict:
    """Called by Sphinx."""
    app.add_directive("format-matrix", FormatMatrix)
    return {"parallel_read_safe": True}
