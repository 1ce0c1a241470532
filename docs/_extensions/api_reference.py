"""The reference: a page a topic, made of the public names of the packages. Docstrings are read as Markdown.

`module` lists all that is public in a module (its `__all__`, else what it defines); `module: name name` these names.
"""

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

TOPICS = {
    "Train and observe": (
        "equipoise: watch TrainingAlarm load report compare show_progress",
        "equipoise.page.comparison: RunComparison",
        "equipoise.monitor",
        "equipoise.observers",
        "equipoise.sinks",
        "equipoise.store: Record",
    ),
    "Laws and gradient checks": (
        "equipoise: invariances acts_like",
        "equipoise.testing",
        "equipoise.laws",
        "equipoise.laws.evaluate.readings: LawLayout",
    ),
    "Gradient flow": (
        "equipoise: flow resume sweep Run Status",
        "equipoise.integrate.goals: Goal LogLoss Growth Steps Separated Flip",
        "equipoise.integrate.steppers",
        "equipoise.losses",
    ),
    "Certificates": (
        "equipoise: certify Certificate forecast limit_direction undecided_pairs",
        "equipoise.theorems.claims: Claim Assumption Statement",
        "equipoise.theorems.recheck: Recheck Fingerprint",
        "equipoise.theorems.direction: LimitDirection Undecided",
        "equipoise.theorems.evidence_builder: FinishedRun",
    ),
    "Decomposition": ("equipoise.decomposition",),
    "Balance and align": ("equipoise: balance align", "equipoise.transform", "equipoise.init"),
    "Compress": ("equipoise: compress", "equipoise.compression"),
    "Optimizers and parametrisations": ("equipoise.optim", "equipoise.parametrize"),
    "Checkpoints": ("equipoise: analyze", "equipoise.checkpoint"),
    "Data and networks": ("equipoise.data", "equipoise.networks"),
    "Measures": (
        "equipoise.measure",
        "equipoise.measure.margins",
        "equipoise.measure.activity",
        "equipoise.measure.kkt: KKT kkt_residuals",
        "equipoise.measure.unfolding: Unfolding",
        "equipoise.graph.chain: Layer",
        "equipoise.linalg",
    ),
    "Gallery": ("equipoise.gallery", "equipoise.gallery.literature", "equipoise.gallery.experiment: Criterion"),
    "Errors and references": (
        "equipoise.errors: EquipoiseError InputError CaptureError StoreError WorkerDied Interrupted",
        "equipoise: cite",
        "equipoise.references: Reference",
    ),
}


@dataclass(frozen=True)
class Entry:
    """A public name, the topic that lists it, and what it is."""

    topic: str
    path: str
    value: object

    @property
    def module(self) -> str:
        """The module it is documented in."""
        return self.path.rpartition(".")[0]


def public_names(module: object) -> list[str]:
    """`__all__`, or, of a module without one, what it defines and does not hide."""
    return list(
        getattr(module, "__all__", None)
        or (name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__)
    )  # fmt: skip


def entries() -> list[Entry]:
    """Every public name once, where a topic lists it first; modules are no entries."""
    top = importlib.import_module("equipoise")
    at_top = {id(getattr(top, name)): name for name in top.__all__}
    found, known = [], set()
    for topic, specifications in TOPICS.items():
        for specification in specifications:
            name, _, listed = specification.partition(":")
            module = importlib.import_module(name)
            for public in listed.split() or public_names(module):
                value = getattr(module, public)
                if inspect.ismodule(value) or _key(value, name, public) in known:
                    continue
                known.add(_key(value, name, public))
                path = f"equipoise.{at_top[id(value)]}" if id(value) in at_top else f"{name}.{public}"
                found.append(Entry(topic, path, value))
    return found


def _key(value: object, module: str, name: str) -> object:
    """The same for one object under two names; constants may be equal by chance."""
    return id(value) if inspect.isclass(value) or inspect.isroutine(value) else (module, name)


def slug(title: str) -> str:
    """The name of a topic's page."""
    return re.sub(r"\W+", "_", title.lower())


def topic_page(topic: str, listed: list[Entry]) -> str:
    """The page of a topic: for each module its docstring's first line, and every name."""
    lines = [topic, "=" * len(topic), ""]
    current = ""
    for entry in listed:
        if entry.module != current:
            current = entry.module
            title = "import equipoise as eq" if current == "equipoise" else current
            lines += ["", title, "-" * len(title), ""]
            if current != "equipoise":
                lines += [
                    as_rst([(importlib.import_module(current).__doc__ or "").strip().partition("\n\n")[0]])[0],
                    "",
                ]
        lines += _directive(entry)
    return "\n".join(lines) + "\n"


def _directive(entry: Entry) -> list[str]:
    if inspect.isclass(entry.value):
        return [f".. autoclass:: {entry.path}", "   :members:", ""]
    if inspect.isroutine(entry.value):
        return [f".. autofunction:: {entry.path}", ""]
    comment = ModuleAnalyzer.for_module(entry.module).find_attr_docs().get(("", entry.path.rpartition(".")[2]), [])
    listed = [f"``{name}``" for name in entry.value] if isinstance(entry.value, (dict, tuple)) else []
    text = as_rst([line for line in comment if line]) + (["", f"Names: {', '.join(listed)}."] if listed else [])
    return [f".. py:data:: {entry.path}", "", *(f"   {line}" for line in text), ""]


def write_pages(app) -> None:
    """Write docs/api/ anew, each page only where it changed."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    grouped: dict[str, list[Entry]] = {topic: [] for topic in TOPICS}
    for entry in entries():
        grouped[entry.topic].append(entry)
    pages = {slug(topic): topic_page(topic, listed) for topic, listed in grouped.items()}
    summary = ["API reference", "=" * 13, "", "By topic. Every public name is here.", ""]
    summary += [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in pages), ""]
    for topic, listed in grouped.items():
        short = [f":py:obj:`{entry.path.rpartition('.')[2]} <{entry.path}>`" for entry in listed]
        summary += [f":doc:`{topic} <{slug(topic)}>`", "   " + ", ".join(short), ""]
    for name, text in {**pages, "index": "\n".join(summary)}.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# docstrings: code between single backticks, and letters that reStructuredText would take for markup
_SPAN = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def as_rst(lines: list[str]) -> list[str]:
    """The lines with code spans doubled and markup escaped outside of them; examples are left as they are."""
    found: list[str] = []
    prose: list[str] = []
    for line in [*lines, None]:
        example = line is not None and (
            line.lstrip().startswith((">>>", "..."))
            or (found and not prose and bool(line.strip()) and found[-1].strip() != "")
        )
        if line is None or example:
            found += _escaped("\n".join(prose)).split("\n") if prose else []
            prose = []
            if line is not None:
                found.append(line)
        else:
            prose.append(line)
    return found


def _escaped(text: str) -> str:
    """`code` as ``code``, followed by an empty escape where a letter touches it; `*`, `|` and `x_` outside escaped."""
    parts = [
        f"``{' '.join(part.strip('`').split())}``" if place % 2 else _MARKUP.sub(r"\\\1", part)
        for place, part in enumerate(_SPAN.split(text))
    ]
    for place in range(2, len(parts), 2):
        if parts[place][:1].isalnum() or parts[place][:1] in tuple("‑'’"):
            parts[place] = "\\ " + parts[place]
    return "".join(parts)


class Docstrings:
    """Markdown to reStructuredText before napoleon reads the sections, which it takes `a: b` of an attribute for."""

    def __init__(self):
        self.attribute: list[str] = []

    def before(self, _app, what: str, _name, _value, _options, lines: list[str]) -> None:
        """Translate, and keep what napoleon must not read."""
        lines[:] = "\n".join(as_rst(lines)).split("\n")
        self.attribute = lines.copy() if what in ("attribute", "property") else []

    def after(self, _app, _what, _name, _value, _options, lines: list[str]) -> None:
        """Put an attribute's docstring back."""
        if self.attribute:
            lines[:] = self.attribute


# names in signatures
class Resolver:
    """Where a class that is named by its own module is documented: under the path that users import it from."""

    def __init__(self):
        self.paths: dict[int, str] = {}

    def __call__(self, app, env, node, contnode):
        """Of a reference that was not found by its name."""
        target = node.get("reftarget", "")
        if node.get("refdomain") != "py" or not target:
            return None
        if not self.paths:
            self.paths = {id(entry.value): entry.path for entry in entries()}
        path = self.paths.get(id(_object(target, node.get("py:module"))))
        if path is None or path == target:
            return None
        domain = env.domains["py"]
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, contnode)


def _object(dotted: str, module: str | None) -> object:
    for start in (dotted, f"{module}.{dotted}"):
        parts = start.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                for name in parts[cut:]:
                    found = getattr(found, name)
                return found
            except (ImportError, AttributeError, ValueError):
                continue
    return None


def setup(app) -> dict:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    docstrings = Docstrings()
    app.connect("autodoc-process-docstring", docstrings.before, priority=100)
    app.connect("autodoc-process-docstring", docstrings.after, priority=900)
    app.connect("missing-reference", Resolver())
    return {"parallel_read_safe": True}
