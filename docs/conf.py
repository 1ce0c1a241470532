"""How `make docs` builds the site: Markdown, tutorials executed, a generated reference, and no network needed."""

import sys
import urllib.request
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))


def reachable(url: str) -> bool:
    """Whether the inventory of another project can be fetched: without a network its names stay plain text."""
    try:
        with urllib.request.urlopen(url + "objects.inv", timeout=3):
            return True
    except OSError:
        return False


project = "Equipoise"
author = "The Equipoise authors"
copyright = author
release = metadata.version("equipoise")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "api_reference",
    "source_pages",
    "statements",
    "claim_pages",
    "format_matrix",
    "prose",
]
exclude_patterns = ["_build", "_static", "_extensions", "**/*.ipynb", "examples/*.py", "**.codeobj.json"]
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!equipoise\.).*"),  # of other libraries: a link where their inventories are at hand, else plain text
    ("py:class", r"equipoise\..*\.[A-Z]"),  # type variables
    ("py:class", r"equipoise\.observers\.\w+\.(\w+State|Judgement)"),  # states of observers: theirs alone
    (
        "py:class",
        r"equipoise\.(laws\.evaluate\.plan\.ProcessSums|gallery\.case\.Trail|decomposition\.units\.UnitGraph|monitor\.hooks\.OptimizerLike)",
    ),
]


# Markdown, and notebooks in Markdown that are executed
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "image/svg+xml", 0), ("html", "text/html", 1)]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# examples/: each a page; those that need no more than the extra `docs` are run
sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["examples"],
    "filename_pattern": r"(check_backward|decomposition|watch_training)\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "plot_gallery": True,
    "abort_on_example_error": True,
    "copyfile_regex": r".^",
    "within_subsection_order": "FileNameSortKey",
    "default_thumb_file": str(HERE / "_static" / "mark.svg"),
}

# the reference
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
OTHERS = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
}
intersphinx_mapping = {name: (url, None) for name, url in OTHERS.items() if reachable(url)}

# HTML: one theme, light and dark; mathematics by a MathJax that comes with the pages
html_theme = "furo"
html_title = f"Equipoise {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/mark.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_logo": "mark.svg",
    "dark_logo": "mark.svg",
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7cb7ff", "color-brand-content": "#7cb7ff"},
}
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}
MATHJAX = Path(
    str(metadata.distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js"))
)


def bring_mathjax(app, _exception) -> None:
    """Copy MathJax beside the pages: one file, with its fonts in it."""
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    (target / MATHJAX.name).write_bytes(MATHJAX.read_bytes())


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("build-finished", bring_mathjax)
