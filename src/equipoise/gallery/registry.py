"""All claims, in the order in which the page tells them."""

from equipoise.errors import InputError
from equipoise.gallery.claim import Claim
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

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        linear_rank_one.CLAIM,
        linear_svm.CLAIM,
        linear_margin.CLAIM,
        tail_rank_one.CLAIM,
        tail_skips.CLAIM,
        tail_convolutional.CLAIM,
        tail_nonhomogeneous.CLAIM,
        tail_smooth.CLAIM,
        tail_classes.CLAIM,
        relu_not_rank_one.CLAIM,
        class_blocks.CLAIM,
        stable_block.CLAIM,
        vertex_invariance.CLAIM,
        diagonal_skips.CLAIM,
        matrix_invariance.CLAIM,
        pair_invariance.CLAIM,
        pair_drift.CLAIM,
        layers_balanced.CLAIM,
        gradient_descent.CLAIM,
        descent_tail.CLAIM,
        constant_signs.CLAIM,
        margin_monotone.CLAIM,
        two_points.CLAIM,
        two_points_square.CLAIM,
        deep_ratio.CLAIM,
    )
}


def claims() -> tuple[Claim, ...]:
    """Every claim of the gallery.

    >>> claims()[0].name
    'linear-rank-one'
    """
    return tuple(CLAIMS.values())


def named(names: tuple[str, ...]) -> tuple[Claim, ...]:
    """The claims of these names, or all of them. Raises `InputError` for a name that is none."""
    unknown = [name for name in names if name not in CLAIMS]
    if unknown:
        raise InputError(
            expected=f"claims among {', '.join(CLAIMS)}",
            found=", ".join(unknown),
            remedy="type equipoise gallery list",
        )
    return tuple(CLAIMS[name] for name in names) or claims()
