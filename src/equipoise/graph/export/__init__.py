"""From a module to a functional graph of ATen operations."""
