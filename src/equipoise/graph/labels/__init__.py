"""Integers on the elements of tensors that say which generators, and which shifts, move them."""
