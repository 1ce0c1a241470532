"""Links from pages to files of the repository lead to pages of highlighted source, which the site carries along."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING": "extending", "CHANGELOG": "changelog", "README": "index"}  # texts of the repository
LEXERS = {".py": "python", ".toml": "toml", ".md": "markdown", ".yml": "yaml"}


def page_of(path: Path) -> str:
    """The name of the page that shows a file."""
    return f"source/{path.relative_to(ROOT).as_posix()}"


class SourceLinks(SphinxTransform):
    """Links to files and folders outside the pages, which Markdown cannot follow, marked for `lead`."""

    default_priority = 400

    def apply(self, **_kwargs) -> None:
        """Files with a lexer, folders of source, and the texts of the repository that are pages here."""
        kinds = (addnodes.download_reference, addnodes.pending_xref)
        for node in [each for kind in kinds for each in self.document.findall(kind)]:
            if isinstance(node, addnodes.pending_xref) and node.get("reftype") != "myst":
                continue
            path = (Path(self.env.doc2path(self.env.docname)).parent / node["reftarget"]).resolve()
            name = path.with_suffix("").name
            if path.parent == ROOT and name in PAGES:
                node.replace_self(nodes.reference("", "", *node.children, page=PAGES[name], refuri="#", internal=True))
                continue
            file = first_file(path) if path.is_dir() else path
            if file.suffix in LEXERS and file.is_file() and file.is_relative_to(ROOT) and not _is_page(file):
                where = file.relative_to(ROOT).as_posix()
                node.replace_self(nodes.reference("", "", *node.children, source_file=where, refuri="#", internal=True))


def first_file(folder: Path) -> Path:
    """The file that speaks for a folder."""
    there = sorted(folder.glob("*.py"))
    return next((path for path in there if path.name == "__init__.py"), there[0] if there else folder)


def _is_page(path: Path) -> bool:
    return path.suffix == ".md" and path.is_relative_to(ROOT / "docs")


def lead(app, doctree, docname: str) -> None:
    """Fill in the addresses, and note which files are shown."""
    for link in doctree.findall(nodes.reference):
        if "page" in link:
            link["refuri"] = app.builder.get_relative_uri(docname, link["page"])
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
