"""The promise of `--max-memory` and of dry runs, as the system counts it, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from circuitome.allocator import give_back_freed

BUDGET = 150_000_000


TOLD = """
import atexit, sys
from circuitome.cli.main import main
from circuitome.runs.record import peak_memory
atexit.register(lambda: print(peak_memory(), file=sys.stderr))
main(sys.argv[1:])
"""


def measured(*words: str) -> tuple[int, str]:
    """The peak of a command in bytes, and what it printed."""
    done = subprocess.run([sys.executable, "-c", TOLD, *words], capture_output=True, text=True, check=True)
    return int(done.stderr.split()[-1]), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process is told the peak of another one elsewhere")
def test_measuring_keeps_its_budget_and_the_dry_run_is_near(tmp_path: Path) -> None:
    """Within a quarter of the dry run; the 60 MB are what the page's libraries and the system's pages differ by."""
    line = ("measure", "ioi", "--n", "48", "--max-memory", str(BUDGET), "--out", str(tmp_path / "run"))
    small, said = measured(*line, "--dry-run", "--json")
    large, _ = measured(*line)
    assert large - small < BUDGET + 60_000_000
    assert 0.75 < json.loads(said.splitlines()[-1])["bytes"] / large < 1.25


def test_freed_memory_may_be_given_back_more_than_once() -> None:
    give_back_freed()
    give_back_freed()
