"""Pure functions that measure weights, activations and margins: one idea a file, no state."""
