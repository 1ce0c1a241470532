"""Links from pages to files of the repository lead to pages of highlighted source, which the site carries along."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
LEXERS = {".py": "python", ".toml": "toml", ".md": "markdown", ".yml": "yaml"}


def page_of(path: Path) -> str:
    """The name of the page that shows a file."""
    return f"source/{path.relative_to(ROOT).as_posix()}"


class SourceLinks(SphinxTransform):
    """Links to source files, which Markdown makes downloads of, marked for `lead`."""

    default_priority = 400

    def apply(self, **_kwargs) -> None:
        """Of every link to a file with a lexer outside the pages."""
        for node in list(self.document.findall(addnodes.download_reference)):
            path = (Path(self.env.doc2path(self.env.docname)).parent / node["reftarget"]).resolve()
            if path.suffix in LEXERS and path.is_relative_to(ROOT):
                link = nodes.reference(
                    "", "", *node.children, source_file=path.relative_to(ROOT).as_posix(), refuri="#", internal=True
                )
                node.replace_self(link)


def lead(app, doctree, docname: str) -> None:
    """Fill in the addresses, and note which files are shown."""
    for link in doctree.findall(nodes.reference):
        if "source_file" in link:
            path = ROOT / link["source_file"]
            link["refuri"] = app.builder.get_relative_uri(docname, page_of(path))
            if not hasattr(app.env, "shown_sources"):
                app.env.shown_sources = set()
            app.env.shown_sources.add(link["source_file"])


def pages(app):
    """A page for each file that some page links to."""
    for name in sorted(getattr(app.env, "shown_sources", ())):
        text = (ROOT / name).read_text(encoding="utf-8")
        code = app.builder.highlighter.highlight_block(text, LEXERS[Path(name).suffix], linenos="table")
        title = f"<h1><code>{name}</code></h1>"
        yield (
            f"source/{name}",
            {"title": name, "body": title + code, "parents": [], "prev": None, "next": None},
            "page.html",
        )


def setup(app) -> dict:
    """Called by Sphinx."""
    app.add_transform(SourceLinks)
    app.connect("doctree-resolved", lead, priority=900)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True}
