"""The paper's claims, each measured on several data sets and seeds: what holds, how often, and where it does not.

A claim is one file of `experiments`: its words, source, threshold and the argument for it, seeds, statistic, picture.
"""

from equipoise.gallery.case import Case
from equipoise.gallery.exhibit import exhibit
from equipoise.gallery.experiment import Experiment, Measurement, Picture
from equipoise.gallery.markdown import markdown, write_into
from equipoise.gallery.registry import claims
from equipoise.gallery.results import Results, load
from equipoise.gallery.runner import run

__all__ = [
    "Case",
    "Experiment",
    "Measurement",
    "Picture",
    "Results",
    "claims",
    "exhibit",
    "load",
    "markdown",
    "run",
    "write_into",
]
