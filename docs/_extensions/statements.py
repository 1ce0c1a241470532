"""Statements of the theory are addresses: each carries its tests and claims, and every mention of one leads to it."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from equipoise.gallery import claims

ROOT = Path(__file__).parents[2]
PAGE = "theory"
NUMBER = re.compile(r"\bT\d{1,2}(?:\.\d)?\b")
SHOWN = 4  # tests of a statement


def anchor(number: str) -> str:
    """The address of a statement on its page."""
    return number.lower().replace(".", "-")


def tests_of(number: str) -> list[str]:
    """The test files that name a statement most often."""
    word = re.compile(rf"\b{re.escape(number)}\b(?!\.\d)")
    counts = {
        path.relative_to(ROOT).as_posix(): len(word.findall(path.read_text(encoding="utf-8")))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path.parent.name != "docs"
    }
    return [name for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count][:SHOWN]


def mark(app, doctree) -> None:
    """On the theory's page: an address for each statement, and a line that leads to what tests and shows it."""
    if app.env.docname != PAGE:
        return
    known = app.env.statements = {}
    for strong in doctree.findall(nodes.strong):
        number = NUMBER.match(strong.astext())
        if number is None or number[0] in known:
            continue
        holder = strong.parent.parent if isinstance(strong.parent.parent, nodes.list_item) else strong.parent
        holder["ids"].append(anchor(number[0]))
        known[number[0]] = True
        if isinstance(holder, nodes.list_item):
            holder += _evidence(number[0])


def _evidence(number: str) -> list[nodes.Node]:
    line = nodes.paragraph(classes=["evidence"])
    tests = tests_of(number)
    if tests:
        line += nodes.Text("Tests: ")
        for place, name in enumerate(tests):
            line += [nodes.Text(", ")] if place else []
            line += nodes.reference(
                "", "", nodes.literal(text=name.removeprefix("tests/")), source_file=name, refuri="#", internal=True
            )
    shown = [claim for claim in claims() if number in re.split(r"[, ]+", claim.theorem)]
    if shown:
        line += nodes.Text(("; " if tests else "") + "gallery: ")
        for place, claim in enumerate(shown):
            line += [nodes.Text(", ")] if place else []
            line += nodes.reference("", claim.name, refuri=f"claims/{claim.name}.html", internal=True)
    return [line] if tests or shown else []


class Mentions(SphinxPostTransform):
    """`T3.1` in running text becomes a link to the statement."""

    default_priority = 800

    def run(self, **_kwargs) -> None:
        """In every page but that of the theory itself."""
        known = getattr(self.env, "statements", {})
        apart = (
            nodes.literal,
            nodes.reference,
            nodes.title,
            nodes.FixedTextElement,
            nodes.math,
            nodes.math_block,
            nodes.raw,
        )
        for text in list(self.document.findall(nodes.Text)):
            above, inside = text.parent, False
            while above is not None:
                inside = inside or isinstance(above, apart)
                above = above.parent
            numbers = [] if inside else [found for found in NUMBER.finditer(text) if found[0] in known]
            if numbers:
                text.parent.replace(text, self._linked(text, numbers))

    def _linked(self, text: nodes.Text, numbers: list[re.Match]) -> list[nodes.Node]:
        here = self.env.docname
        page = "" if here == PAGE else self.app.builder.get_relative_uri(here, PAGE)
        parts, last = [], 0
        for found in numbers:
            parts.append(nodes.Text(text[last : found.start()]))
            uri = f"{page}#{anchor(found[0])}"
            parts.append(nodes.reference("", found[0], refuri=uri, internal=True, classes=["statement"]))
            last = found.end()
        return [*parts, nodes.Text(text[last:])]


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("doctree-read", mark, priority=400)
    app.add_post_transform(Mentions)
    return {"parallel_read_safe": False}
