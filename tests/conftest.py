import gc
import os
from typing import TYPE_CHECKING

import checked  # before anything of the package is imported
import pytest

if TYPE_CHECKING:
    from circuitome.models.model import Model
    from circuitome.tasks.task import Task

os.environ["HF_HUB_OFFLINE"] = "1"
gc.disable()  # until all modules are imported: what they make stays
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers with several threads each wait for one another

NAMES = ("Laura", "Peter", "John", "Dan", "Anna", "Kate")


@pytest.fixture(scope="session")
def smollm2() -> "Model":
    from circuitome.models.loading import load  # here, as the process that only hands out tests need not wait for it

    return load("smollm2-135m")


@pytest.fixture(scope="session")
def small_ioi(smollm2: "Model") -> "Task":
    """Six pairs of two lengths."""
    from circuitome.tasks.task import Task, make_pair

    pairs = []
    for i in range(6):
        a, b, c = (NAMES[(i + k) % 6] for k in range(3))
        start = "When" if i % 2 else "Later that day, when"
        text = f"{start} {a} and {b} went to the store, {{}} gave a drink to"
        pairs.append(make_pair(smollm2, text.format(b), text.format(c), [f" {a}"], [f" {b}"]))
    return Task("small-ioi", tuple(pairs))


@pytest.fixture(autouse=True)
def _each_by_itself():
    """No test needs the seed that another left, or finds the type checks used up."""
    import torch

    before = torch.get_rng_state()
    checked.next_test()
    yield
    torch.set_rng_state(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need SmolLM2, or its tokenizer, are slow: every process that runs one reads the file anew."""
    for item in items:
        name = getattr(getattr(item, "callspec", None), "id", "")
        if "smollm2" in getattr(item, "fixturenames", ()) or "smollm2" in name:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is imported is looked through by no collection of garbage."""
    gc.freeze()
    gc.enable()
