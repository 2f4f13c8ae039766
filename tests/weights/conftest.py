from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from circuitome.models.model import Model


@pytest.fixture(scope="session")
def small() -> "Callable[[str], Model]":
    """Tiny random models by family, made once: nothing here changes a weight."""
    from families import tiny

    return cache(tiny)
