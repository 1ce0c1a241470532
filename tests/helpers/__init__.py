"""Shared pieces of the tests: networks, oracles, a browser, processes."""
