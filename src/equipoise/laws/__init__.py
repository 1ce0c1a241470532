"""Conserved quantities as values: commutants, laws, and their derivation."""

from equipoise.laws.derive import chain_laws, invariances
from equipoise.laws.law import Law, Laws

__all__ = ["Law", "Laws", "chain_laws", "invariances"]
