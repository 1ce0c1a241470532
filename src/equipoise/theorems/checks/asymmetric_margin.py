"""Quasi-homogeneous networks: exponents, and what Kunin et al. (2023) then say of the limit (docs/theory.md, T11)."""

import math

from equipoise.theorems.claims import Assumption, CheckResult
from equipoise.theorems.evidence import Evidence


def check(evidence: Evidence) -> CheckResult:
    """The assumption that exponents exist, and the promise in words; nothing of homogeneous networks, see T7.

    Args:
        evidence: of a network.

    Returns:
        An assumption and a note; no statement, since the conditions on the limit cannot be seen at a finite time.
    """
    if evidence.homogeneity.degree is not None:
        return CheckResult(())
    found = evidence.quasi_homogeneity
    statement = "f(x; ψ_a θ) = e^a f(x; θ) with ψ_a θ_p = e^{a λ_p} θ_p, λ ≥ 0"
    if found.exponents is None:
        why = f"no exponents: {found.obstacle}"
        return CheckResult((), (Assumption("quasi-homogeneous", statement, "failed", None, None, why),))
    power = math.lcm(*(value.denominator for value in found.exponents.values()))  # 2^{power λ} are powers of two
    scaled = {name: 2.0 ** int(power * found.exponents.get(name, 0)) * w for name, w in evidence.final.items()}
    scores, largest = evidence.scores, float(evidence.scores.abs().max())
    error = float((evidence.scores_at(scaled) / 2.0**power - scores).abs().max()) / (largest or 1.0)
    shown = ", ".join(f"{name} {value}" for name, value in found.exponents.items())
    assumption = Assumption(
        "quasi-homogeneous",
        statement,
        "verified" if error == 0 else "failed",
        error,
        0.0,
        f"by the degrees of all operations, λ = {shown}; weights times 2^({power} λ) against outputs times 2^{power}, "
        "the largest relative difference",
    )
    note = (
        f"quasi-homogeneous, not homogeneous: if the data are separated and the weights, each divided by its growth, "
        f"converge (Kunin et al. 2023), the limit minimises the norm of {', '.join(found.largest)} alone among the "
        f"weights with all margins at least 1; this is no claim, for both are conditions on the limit"
    )
    return CheckResult((), (assumption,), (note,))
