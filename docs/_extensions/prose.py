"""What renders otherwise than its author meant is refused: examples outside fences become quotations of quotations."""

from docutils import nodes
from sphinx.util import logging

LOG = logging.getLogger(__name__)


def check(_app, doctree) -> None:
    """Warn, which ends the build, of quotations three deep and of prompts in running text."""
    for quote in doctree.findall(nodes.block_quote):
        depth, above = 1, quote.parent
        while above is not None:
            depth += isinstance(above, nodes.block_quote)
            above = above.parent
        if depth > 2:
            LOG.warning("an example outside a fence: put ```python before it and ``` after it", location=quote)
    for paragraph in doctree.findall(nodes.paragraph):
        if paragraph.astext().startswith((">>> ", "$$")):
            LOG.warning("this paragraph does not render: %s", paragraph.astext()[:60], location=paragraph)


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("doctree-read", check)
    return {"parallel_read_safe": True}
