"""Pure functions that measure weights, features, margins and trained functions: one idea a file, no state."""

from equipoise.measure.alignment import LayerAlignment, NeuronAlignment, alignment, neuron_alignment
from equipoise.measure.bottleneck import JacobianSpectrum, jacobian_spectrum, linear_representation_cost
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
from equipoise.measure.regions import PlaneRegions, Regions, layer_regions, plane_regions
from equipoise.measure.scaling import QuasiHomogeneity, euler_residual, quasi_homogeneity
from equipoise.measure.sharpness import Estimate, HessianSharpness, sharpness
from equipoise.measure.spectrum import SingularSpectrum, circular_spectrum, spectra, spectrum

__all__ = [
    "ClusterVariation",
    "Estimate",
    "HessianSharpness",
    "JacobianSpectrum",
    "LayerAlignment",
    "NeuralCollapse",
    "NeuronAlignment",
    "PlaneRegions",
    "QuasiHomogeneity",
    "RankBound",
    "Regions",
    "SingularSpectrum",
    "alignment",
    "batch_rank_bound",
    "centre_mismatch",
    "circular_spectrum",
    "cluster_rank_bound",
    "cluster_variation",
    "distance_to_rank",
    "effective_depth",
    "euler_residual",
    "imbalance_rate",
    "jacobian_spectrum",
    "layer_regions",
    "linear_representation_cost",
    "neural_collapse",
    "neuron_alignment",
    "plane_regions",
    "quasi_homogeneity",
    "sharpness",
    "spectra",
    "spectrum",
]
