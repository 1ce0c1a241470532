"""Formats of checkpoints, one a file: each lists the tensors as `TensorEntry`, and reads none of their numbers."""
