"""A server's state without a server, and runs as anybody could write them."""

import pytest


@pytest.fixture
def served(tmp_path):
    """A server's state whose runner does nothing."""
    pytest.importorskip("fastapi")
    from circuitome.app.server import Served

    made = Served(tmp_path / "runs")
    yield made
    made.stop()
