"""An implicit step: its convex dual problem, the active set, slopes at kinks, and the fixed point of all three."""
