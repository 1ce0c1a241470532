"""Pure functions that measure weights, features, margins and trained functions: one idea a file, no state."""

from equipoise.measure.alignment import LayerAlignment, NeuronAlignment, alignment, neuron_alignment
from equipoise.measure.collapse import (
    ClusterVariation,
    NeuralCollapse,
    centre_mismatch,
    cluster_variation,
    effective_depth,
    neural_collapse,
)
from equipoise.measure.low_rank_bounds import (
    RankBound,
    batch_rank_bound,
    cluster_rank_bound,
    distance_to_rank,
    imbalance_rate,
)
from equipoise.measure.sharpness import Estimate, HessianSharpness, sharpness
from equipoise.measure.spectrum import SingularSpectrum, circular_spectrum, spectra, spectrum

__all__ = [
    "ClusterVariation",
    "Estimate",
    "HessianSharpness",
    "LayerAlignment",
    "NeuralCollapse",
    "NeuronAlignment",
    "RankBound",
    "SingularSpectrum",
    "alignment",
    "batch_rank_bound",
    "centre_mismatch",
    "circular_spectrum",
    "cluster_rank_bound",
    "cluster_variation",
    "distance_to_rank",
    "effective_depth",
    "imbalance_rate",
    "neural_collapse",
    "neuron_alignment",
    "sharpness",
    "spectra",
    "spectrum",
]
