"""What `make docs` would find wrong with the pages, in a second: each is in a table of contents, links lead somewhere,
and the reference has every public name."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from docs.test_docstrings import public_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def named(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


def listed(page: Path) -> list[Path]:
    """The pages in the tables of contents of a page."""
    tables = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    return [page.parent / f"{name}.md" for name in names]


def test_every_page_is_in_one_table_of_contents():
    inside = [entry for page in PAGES for entry in listed(page)]
    assert sorted([*inside, DOCS / "index.md"]) == PAGES


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_the_reference_has_every_public_name():
    entries = set()
    for page in sorted((DOCS / "reference").glob("*.md")):
        module = ""
        for directive, name in re.findall(r"\.\. (currentmodule|auto(?!module)\w+):: (\S+)", page.read_text()):
            if directive == "currentmodule":
                module = name
            else:
                entries.add(getattr(import_module(module), name))
    assert [name for name, thing in public_names().items() if thing not in entries] == []
