"""The examples (`>>>`) in docstrings of heads and validation give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import circuitome as cm
import circuitome.heads
import circuitome.validation

MODULES = [
    info.name
    for package in (circuitome.heads, circuitome.validation)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
EXAMPLES = [
    test
    for name in MODULES
    for test in doctest.DocTestFinder().find(
        importlib.import_module(name), extraglobs={"cm": cm, "torch": torch, "circuitome": circuitome}
    )
    if test.examples
]


def test_there_are_examples():
    assert len(EXAMPLES) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_gives_what_it_says(example):
    assert doctest.DocTestRunner().run(example).failed == 0
