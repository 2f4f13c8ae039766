"""Reach into the model's own forward passes: replace, scale, patch, hook and look, inside a `with` block."""
