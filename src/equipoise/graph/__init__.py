"""A model read as interfaces: capture, propagation, evaluation, coverage; operations are declared in `ops`."""
