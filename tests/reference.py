"""Slow, obvious twins: every fast implementation is compared with one of these."""
