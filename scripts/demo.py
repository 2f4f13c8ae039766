"""Put the page of a run into the package as its demo, without the styles and scripts that all pages share.

circuitome find known-ioi --model known-ioi --out RUN; python scripts/demo.py RUN
"""

import sys
from pathlib import Path

from circuitome.present.assets import asset, script_hash
from circuitome.present.page import SCRIPTS

DEMO = Path(__file__).resolve().parent.parent / "circuitome/present/assets/demo.html"


def main(run: str) -> None:
    """Write the page of `run` with names in the place of what all pages share."""
    page = (Path(run) / "report.html").read_text("utf-8")
    for name in SCRIPTS:
        page = page.replace(script_hash(asset(name)), f"@@hash of {name}@@")
    for name in ("page.css", *SCRIPTS):
        page = page.replace(asset(name), f"@@{name}@@")
    DEMO.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
