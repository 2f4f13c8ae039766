"""What holds for the package as a whole: names, sizes of functions."""

import ast
import importlib
import pkgutil
from pathlib import Path

import circuitome

ROOT = Path(circuitome.__file__).parent
LONGEST, NEARLY_ALL = 60, 23
"""Lines of a function: at most, and the 90th percentile."""


def test_no_exported_function_shadows_its_module():
    """`import circuitome.a.b as m` always gives a module, whatever the packages export."""
    for info in pkgutil.walk_packages([str(ROOT)], "circuitome."):
        if info.name.endswith("__main__"):
            continue
        importlib.import_module(info.name)
        package, _, name = info.name.rpartition(".")
        found = getattr(importlib.import_module(package), name)
        assert isinstance(found, type(ast)), f"{info.name} is hidden by {found!r}"


def statements(node):
    """All statements below one, in which functions are."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield child
            yield from statements(child)


def test_functions_stay_small():
    sizes = {}
    for path in ROOT.rglob("*.py"):
        for node in statements(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                sizes[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    ranked = sorted(sizes.values())
    assert max(sizes.values()) <= LONGEST, max(sizes, key=sizes.get)
    assert ranked[int(0.9 * len(ranked))] <= NEARLY_ALL
