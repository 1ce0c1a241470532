"""Theorems as checks: assumptions, claims, bounds, measurements."""
