"""Exact effects: activation patching, path patching, and every edge by itself."""
