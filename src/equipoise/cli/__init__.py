"""The command line: thin verbs over the library, one a file.

Exit 0 on success, 1 when something falls short, 2 on bad input.
"""

from equipoise.cli import (  # each registers its verb
    align,
    analyze,
    balance,
    certify,
    compress,
    decompose,
    flow,
    gallery,
    invariances,
    report,
)
from equipoise.cli.app import app, main

__all__ = [
    "align",
    "analyze",
    "app",
    "balance",
    "certify",
    "compress",
    "decompose",
    "flow",
    "gallery",
    "invariances",
    "main",
    "report",
]
