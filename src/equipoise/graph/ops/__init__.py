"""One registry of operations: symmetry, shifts, degree, kinks, lifting and `eps` of each, declared once, by family.

To add an operation, write its rules in the file of its family and declare them there:

    declare("addcmul", Operator(symmetry=product_added, degree=multiplied_and_added, regularity=Regularity.LINEAR))

and add a line to the table of `tests/graph/test_ops.py`. A rule of symmetry takes the algebra and the operation's own
arguments, tensors replaced by `Signal`s, and returns a signal (or a tuple): how the result moves. An operation without
one demands that nothing it reads moves, which is always sound, and is listed by the coverage.
"""

from equipoise.graph.ops import (
    arithmetic,
    attention,
    contraction,
    convolution,
    movement,
    normalisation,
    placement,
    pointwise,
    recurrent,
    reduction,
)
from equipoise.graph.ops.operator import OPERATORS, Operator, operation_name, operator_of

__all__ = [
    "OPERATORS",
    "Operator",
    "arithmetic",
    "attention",
    "contraction",
    "convolution",
    "movement",
    "normalisation",
    "operation_name",
    "operator_of",
    "placement",
    "pointwise",
    "recurrent",
    "reduction",
]
