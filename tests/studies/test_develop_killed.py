"""A development that is killed and gone on with ends with the bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from circuitome.studies.develop import STUDY, Develop
from circuitome.studies.frame import perform
from circuitome.studies.settings import command_line

PROGRAM = """
import sys
from circuitome.cli.main import main
from circuitome.training import loop
loop.SECONDS, loop.SHARE = 0.0, 4
main(sys.argv[1:])
"""
"""The command line, which writes its state often."""


@pytest.mark.slow
def test_a_development_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    (tmp_path / "text.txt").write_text("the old ship near these cats swims . " * 200)
    settings = Develop(texts=str(tmp_path / "text.txt"), width=8, heads=1, steps=40, batch=4, length=24)
    words = [*command_line("develop", settings).split()[1:], "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob("*/training/state.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "killed" / "manifest.json").exists()
    (rows,) = tmp_path.glob("*/training/metrics.jsonl")
    assert 0 < len(rows.read_text().splitlines()) < 40
    perform(STUDY, settings, out=tmp_path / "killed", resume=True)
    perform(STUDY, settings, out=tmp_path / "whole")
    whole, again = ((tmp_path / name / "tensors.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == again
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "killed")]
    assert manifests[0]["results"] == manifests[1]["results"] and manifests[0]["blocks"] == manifests[1]["blocks"]
