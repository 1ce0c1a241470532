"""`equipoise doctor`: what is installed, and how to get what is missing."""

import importlib.metadata
import os
import platform
import re

from rich import box
from rich.console import Console
from rich.table import Table

from equipoise.cli.app import Fields, Json, cell, line, say

_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_USES = {
    "report": "pages and pictures",
    "analyze": "tail exponents, ONNX files",
    "onnx": "export to ONNX",
    "parquet": "tables as Parquet",
    "tensorboard": "eq.sinks.TensorBoard",
    "wandb": "eq.sinks.WandB",
    "mlflow": "eq.sinks.MLflow",
    "lightning": "the Lightning callback",
    "huggingface": "the Hugging Face callback",
    "sweep": "sweeps over several machines",
    "geometric": "graph networks",
}


def doctor(*, json: Json = False) -> int:
    """Show versions, extras, threads and folders, and how to get what is missing.

    Exit code 1 says that something the library cannot do without is missing or broken.
    """
    fields = {"versions": _versions(), "machine": _machine(), "extras": _extras(), "data": _data()}
    say(line(fields)) if json else _show(fields)
    return 0 if all(fields["versions"].values()) else 1


def _versions() -> dict[str, str | None]:
    required = [name for name, extra in _requirements() if extra is None]
    return {"python": platform.python_version()} | {name: _version(name) for name in ("equipoise", *required)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[tuple[str, str | None]]:
    """Each package that ours asks for, and the extra that asks for it."""
    found = []
    for text in importlib.metadata.requires("equipoise") or ():
        name = re.match(r"[\w.-]+", text)
        extra = _EXTRA.search(text)
        if name and name[0] != "equipoise":
            found.append((name[0], extra[1] if extra else None))
    return found


def _extras() -> list[Fields]:
    """Of each extra for users, what of it is missing."""
    rows = []
    for extra, use in _USES.items():
        missing = [name for name, its in _requirements() if its == extra and _version(name) is None]
        remedy = f"pip install 'equipoise[{extra}]'" if missing else None
        rows.append({"extra": extra, "for": use, "missing": missing, "remedy": remedy})
    return rows


def _machine() -> Fields:
    import torch

    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _data() -> Fields:
    """The folder of the data sets, and which of them are there."""
    from equipoise.data import files

    found: Fields = {"folder": str(files.folder()), "digits, separable": "built in"}
    for name in files.ARCHIVES:
        lacking = files.missing(name)
        found[name] = f"missing: {', '.join(map(str, lacking))}; eq.data.load({name!r}) gets it" if lacking else "there"
    return found


def _show(fields: Fields) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 160
    for title in ("versions", "machine", "data"):
        table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE)
        for name, value in fields[title].items():
            table.add_row(cell(name), "[red]missing[/red]" if value is None and title == "versions" else cell(value))
        console.print(table)
    table = Table("extra", "for", "", title="extras", title_justify="left", box=box.SIMPLE)
    for row in fields["extras"]:
        state = "installed" if not row["missing"] else f"missing {', '.join(row['missing'])}: {row['remedy']}"
        table.add_row(cell(row["extra"]), cell(row["for"]), cell(state))
    console.print(table)
