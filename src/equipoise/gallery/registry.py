"""All claims, in the order of the page."""

from equipoise.errors import InputError
from equipoise.gallery.experiment import Experiment
from equipoise.gallery.experiments import (
    class_blocks,
    constant_signs,
    deep_ratio,
    descent_tail,
    diagonal_skips,
    gradient_descent,
    layers_balanced,
    linear_margin,
    linear_rank_one,
    linear_svm,
    margin_monotone,
    matrix_invariance,
    pair_drift,
    pair_invariance,
    relu_not_rank_one,
    stable_block,
    tail_classes,
    tail_convolutional,
    tail_nonhomogeneous,
    tail_rank_one,
    tail_skips,
    tail_smooth,
    two_points,
    two_points_square,
    vertex_invariance,
)

CLAIMS: dict[str, Experiment] = {
    claim.name: claim
    for claim in (
        linear_rank_one.EXPERIMENT,
        linear_svm.EXPERIMENT,
        linear_margin.EXPERIMENT,
        tail_rank_one.EXPERIMENT,
        tail_skips.EXPERIMENT,
        tail_convolutional.EXPERIMENT,
        tail_nonhomogeneous.EXPERIMENT,
        tail_smooth.EXPERIMENT,
        tail_classes.EXPERIMENT,
        relu_not_rank_one.EXPERIMENT,
        class_blocks.EXPERIMENT,
        stable_block.EXPERIMENT,
        vertex_invariance.EXPERIMENT,
        diagonal_skips.EXPERIMENT,
        matrix_invariance.EXPERIMENT,
        pair_invariance.EXPERIMENT,
        pair_drift.EXPERIMENT,
        layers_balanced.EXPERIMENT,
        gradient_descent.EXPERIMENT,
        descent_tail.EXPERIMENT,
        constant_signs.EXPERIMENT,
        margin_monotone.EXPERIMENT,
        two_points.EXPERIMENT,
        two_points_square.EXPERIMENT,
        deep_ratio.EXPERIMENT,
    )
}


def claims() -> tuple[Experiment, ...]:
    """Every claim of the gallery.

    >>> claims()[0].name
    'linear-rank-one'
    """
    return tuple(CLAIMS.values())


def named(names: tuple[str, ...]) -> tuple[Experiment, ...]:
    """The claims of these names, or all of them. Raises `InputError` for a name that is none."""
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise InputError(
            expected=f"claims among {', '.join(CLAIMS)}",
            found=", ".join(unknown),
            remedy="type equipoise gallery list",
        )
    return tuple(CLAIMS[name] for name in names) or claims()
