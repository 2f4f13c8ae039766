"""One generator of prompt pairs for each behaviour."""
