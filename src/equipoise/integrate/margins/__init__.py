"""Margins as functions of the weights: one protocol, and its forms for chains and for any captured graph."""
