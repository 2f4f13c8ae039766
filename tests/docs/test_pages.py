"""The Python blocks and the cells of the pages and the README run as they stand, in order, one namespace a page."""

import ast
import re
from pathlib import Path

import pytest

import circuitome as cm
from circuitome.studies.catalog import STUDIES

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"^```(?:python|\{code-cell\} ipython3)\n((?::[^\n]*\n)*)(.*?)^```", flags=re.DOTALL | re.MULTILINE)
"""A block or a cell: its options, and its code."""


def _code(page: Path) -> str:
    """What a page runs, without comments."""
    return ast.unparse(ast.parse("\n".join(code for _, code in CODE.findall(page.read_text()))))


RUN = {_code(page): page for page in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")}
PAGES = [page for code, page in RUN.items() if code]
"""Pages that run something, each once: the first page of the documentation has the README's example."""


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page, smollm2, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    load = cm.load
    monkeypatch.setattr(cm, "load", lambda name, **k: smollm2 if "smollm2" in name else load(name, **k), raising=False)
    space: dict[str, object] = {}
    for _, code in CODE.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), space)
    assert len(space.get("circuit", PAGES)) > 0


def test_public_names_are_what_the_package_says():
    assert set(cm.__all__) <= set(dir(cm))
    for name in cm.__all__:
        assert getattr(cm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'eap_gi'"):
        cm.eap_gi  # noqa: B018


def test_every_public_name_has_a_docstring():
    for name in cm.__all__:
        assert getattr(cm, name).__doc__, name


def test_contributing_shows_a_study_as_it_is():
    assert (ROOT / "circuitome/studies/measure.py").read_text() in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_command_has_its_line():
    page = (ROOT / "docs/commands.md").read_text()
    missing = [name for name in STUDIES if not re.search(rf"^    circuitome .*\b{name}\b", page, re.MULTILINE)]
    assert not missing
