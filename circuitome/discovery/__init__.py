"""Finding circuits: attribution, patching, search, and information flow routes."""
