"""Edits: one description of any change of a model's behaviour, in force, measured, or written into a checkpoint."""
