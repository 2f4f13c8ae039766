"""Scores of every head of a model on repeated random tokens."""
