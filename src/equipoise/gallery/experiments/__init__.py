"""The claims, one a file: each states itself and measures one run."""
