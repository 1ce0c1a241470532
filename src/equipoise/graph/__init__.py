"""A model read as interfaces: capture, evaluation, matchers, coverage."""
