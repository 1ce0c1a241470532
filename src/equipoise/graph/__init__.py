"""A model read as interfaces: capture, propagation of symmetries, evaluation, coverage; operations are declared in `ops`."""
