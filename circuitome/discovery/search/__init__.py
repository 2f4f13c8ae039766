"""Searches for a circuit: ACDC, learned masks, and what any search must beat."""
