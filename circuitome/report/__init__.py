"""One self-contained page for each kind of run."""
