"""Writes docs/architecture.svg, and the list of files in docs/architecture.md, from the source.

python docs/architecture.py         # rewrites both in place
"""

import ast
import html
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "equipoise"
PAGE, PICTURE = Path(__file__).with_name("architecture.md"), Path(__file__).with_name("architecture.svg")
BEGIN, END = "<!-- files: python docs/architecture.py -->\n", "<!-- end of files -->\n"

GROUPS = {
    "Use": ("cli", "testing", "gallery", "page", "integrations", "runs"),
    "Prove and change": ("compression", "theorems", "decomposition", "transform", "init", "parametrize", "optim"),
    "Train": ("integrate", "monitor", "sinks", "observers"),
    "Read": ("checkpoint", "laws", "graph", "measure"),
    "Base": (
        "losses",
        "linalg",
        "data",
        "networks",
        "store",
        "references",
        "models",
        "modes",
        "jobs",
        "notebook",
        "stages",
        "arguments",
        "errors",
        "starting",
    ),
}
VERBS = {
    "laws": "eq.invariances",
    "integrate": "eq.flow",
    "monitor": "eq.watch",
    "theorems": "eq.certify",
    "decomposition": "eq.decompose",
    "checkpoint": "eq.analyze",
    "page": "eq.report",
    "transform": "eq.balance, eq.align",
    "compression": "eq.compress",
    "runs": "eq.load",
    "testing": "assert_laws",
    "gallery": "equipoise gallery",
    "init": "eq.init",
    "parametrize": "eq.parametrize",
    "optim": "eq.optim",
}
WIDTH, MARGIN, GAP, HEIGHT, COLUMNS = 1000, 20, 14, 64, 4
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #22252b }
  .group { font-size: 15px; fill: #62676f } .room { font-size: 17px; font-weight: 600 }
  .verb { font-size: 13px; fill: #1f5fa8 }
  rect { fill: #ffffff; stroke: #b9b5ab; stroke-width: 1 } .paper { fill: #fbfaf7; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e2dc } .group { fill: #9da3ad } .verb { fill: #6aa9f0 }
    rect { fill: #1c1f25; stroke: #4a505a } .paper { fill: #15171b }
  }
"""


@dataclass(frozen=True)
class Room:
    """A package or a module of the first level, and its files with their first lines."""

    name: str
    summary: str
    files: tuple[tuple[str, str], ...]


def layers() -> list[str]:
    """The rooms in the order of the import contract, from the top."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    return [room.strip(" ()") for layer in contract["layers"] for room in layer.split("|")]


def rooms() -> list[Room]:
    """Every room with its files."""
    return [_room(name) for name in layers()]


def _room(name: str) -> Room:
    folder = SOURCE / name
    if not folder.is_dir():
        return Room(name, _summary(folder.with_suffix(".py")), ())
    paths = sorted(
        path for path in folder.rglob("*.py") if path.name != "__init__.py" and "experiments" not in path.parts
    )
    files = tuple((path.relative_to(folder).as_posix(), _summary(path)) for path in paths)
    return Room(name, _summary(folder / "__init__.py"), files)


def _summary(path: Path) -> str:
    """The first line of the docstring of a module."""
    found = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return found.partition("\n")[0]


def table() -> str:
    """The list of rooms and files, as Markdown."""
    lines = []
    for room in rooms():
        lines += [f"### `{room.name}`" + (f" · {VERBS[room.name]}" if room.name in VERBS else ""), "", room.summary, ""]
        if room.files:
            link = f"../src/equipoise/{room.name}"
            lines += [f"- [`{name}`]({link}/{name}): {summary}" for name, summary in room.files] + [""]
    return "\n".join(lines)


def picture() -> str:
    """The rooms as boxes in five rows, each row importing from itself and the rows below."""
    parts, top = [], MARGIN
    for group, members in GROUPS.items():
        parts.append(f'<text class="group" x="{MARGIN}" y="{top + 14}">{group}</text>')
        top += 24
        for start in range(0, len(members), COLUMNS):
            row = members[start : start + COLUMNS]
            width = (WIDTH - 2 * MARGIN - (len(row) - 1) * GAP) / len(row)
            parts += [_box(MARGIN + place * (width + GAP), top, width, name) for place, name in enumerate(row)]
            top += HEIGHT + GAP
        top += 6
    frame = f'<rect class="paper" width="{WIDTH}" height="{top}"/>'
    label = "The packages of Equipoise in five rows; each imports from its own row and from those below"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" aria-label="{label}">'
    return "\n".join([head, f"<style>{STYLE}</style>", frame, *parts, "</svg>", ""])


def _box(left: float, top: float, width: float, name: str) -> str:
    middle = left + width / 2
    verb = html.escape(VERBS.get(name, ""))
    height = top + (28 if verb else 38)
    return (
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT}" rx="6"/>'
        f'<text class="room" x="{middle:.1f}" y="{height}" text-anchor="middle">{name}</text>'
        + (f'<text class="verb" x="{middle:.1f}" y="{top + 49}" text-anchor="middle">{verb}</text>' if verb else "")
    )


def page() -> str:
    """The page with its list written anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
