"""Singular values and vectors, exact by a full SVD or leading ones by block Krylov; their bounds; Hessian products."""

from equipoise.linalg.bounds import probable_norm_bound
from equipoise.linalg.krylov import krylov_triplets
from equipoise.linalg.norms import deflated_residual, frobenius_norm, sum_of_squares, wide
from equipoise.linalg.svd import (
    LeadingTriplets,
    Triplets,
    exact_leading,
    leading_triplets,
    principal_angles,
    require_matrix,
    singular_values,
)

__all__ = [
    "LeadingTriplets",
    "Triplets",
    "deflated_residual",
    "exact_leading",
    "frobenius_norm",
    "krylov_triplets",
    "leading_triplets",
    "principal_angles",
    "probable_norm_bound",
    "require_matrix",
    "singular_values",
    "sum_of_squares",
    "wide",
]
