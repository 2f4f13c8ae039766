"""Words that readers guessed wrongly stay out of pages, help, messages and docs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = [
    path
    for folder, kinds in (("circuitome", ("*.py", "*.html", "*.js", "*.pyi")), ("docs", ("*.md",)))
    for kind in kinds
    for path in sorted((ROOT / folder).rglob(kind))
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")]
OLD = {
    "the data do not tell": "inconclusive",
    "carry 61 % of": "recovers 61 % of the logit difference",
    "clean-corrupted gap": "gap of clean and corrupted metric",
    "kept senders": "upstream nodes kept",
    "receivers asked": "targets tested",
    "writer from changed": "answer head that reads the changed token",
    "mostly rest": "mostly attend to the first token or themselves",
    "takes from the movers": "ablating it removes attention",
    "heads taken out": "heads ablated",
    "the referee; hours": "ground truth; takes hours",
    "knocked away": "ablated",
    "asked about": "tested",
    "layered and rewired": "layer-matched and degree-matched",
}
"""Each with what is said in its place."""


@pytest.mark.parametrize("old", OLD)
def test_readers_meet_no_old_word(old):
    here = [path.relative_to(ROOT) for path in READ if old in path.read_text("utf-8").lower()]
    assert not here, f"say {OLD[old]!r} in place of {old!r}"


def test_the_pages_are_read():
    assert len(READ) > 150 and any("page.js" in str(path) or path.suffix == ".js" for path in READ)
