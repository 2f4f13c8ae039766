"""Retrieval heads, attention sinks and streaming caches."""
