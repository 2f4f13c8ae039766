"""What a finished run says, as a terminal and a page show it."""

from io import StringIO

from rich.console import Console

from circuitome.present import terminal
from circuitome.present.stored import document
from circuitome.runs.store import load_run


def blocks_of(folder, kind=None):
    """The blocks of a run by title; of one kind if that is given."""
    blocks = document(load_run(folder)).blocks
    return {block.title: block for block in blocks if kind in (None, block.block)}


def lede_of(folder):
    """The answer in words."""
    return next(block.text for block in document(load_run(folder)).blocks if block.block == "lede")


def printed(folder, width=80):
    """The run in a terminal of that width."""
    text = StringIO()
    terminal.show(document(load_run(folder), folder), Console(file=text, width=width, highlight=False))
    return text.getvalue()


def check_shown(folder, width=80):
    """Every view shows the run: no number is NaN, no line of a table is wider than the terminal; gives both texts."""
    text, page = printed(folder, width), (folder / "report.html").read_text()
    free = ("Again:", "Report:")
    assert all(len(line) <= width for line in text.splitlines() if not line.startswith(free))
    assert "nan" not in text.lower().split() and ">nan<" not in page.lower()
    return text, page
