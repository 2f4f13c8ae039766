"""Every kind of block on a page: it fits, can be read, and is saved as a file."""

import pytest
from browser.looks import accessible, no_wider_than_its_window
from documents import every

BOTH = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


@BOTH
def test_every_block_fits_and_can_be_read(show, width, dark):
    page = show(every(), width=width, dark=dark)
    for fold in page.locator("details").all():
        fold.evaluate("(fold) => (fold.open = true)")
    no_wider_than_its_window(page)
    accessible(page)
