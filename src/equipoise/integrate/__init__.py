"""The engine behind eq.flow."""
