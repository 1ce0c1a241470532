"""Papers as working code: a claim, what was published, our measurement of it, and the verdict.

A paper is one file of `equipoise.gallery.papers`; this package finds, runs, records and shows them.
"""

from equipoise.gallery.literature.catalogue import paper, papers
from equipoise.gallery.literature.pages import write_pages
from equipoise.gallery.literature.paper import Comparison, Curve, Outcome, Paper, PaperCase
from equipoise.gallery.literature.records import PaperResults, PaperRow, load_papers
from equipoise.gallery.literature.runner import run_papers
from equipoise.gallery.literature.table import papers_markdown, write_papers_into

__all__ = [
    "Comparison",
    "Curve",
    "Outcome",
    "Paper",
    "PaperCase",
    "PaperResults",
    "PaperRow",
    "load_papers",
    "paper",
    "papers",
    "papers_markdown",
    "run_papers",
    "write_pages",
    "write_papers_into",
]
