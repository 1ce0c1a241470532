"""Conserved quantities as values: commutants, laws, their derivation and completeness."""
