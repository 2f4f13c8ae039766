"""The promise of `--max-memory` and of dry runs, as the system counts it, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuitome.studies.memory import give_back_freed

BUDGET = 150_000_000


def measured(*words: str) -> tuple[int, str]:
    """The peak of a command in bytes, and what it printed."""
    with subprocess.Popen([sys.executable, "-m", "circuitome", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return 1024 * usage.ru_maxrss, printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in other units elsewhere")
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
