"""Small copies, with random weights, of architectures that people train: a public zoo."""
