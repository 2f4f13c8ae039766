"""The commands that open pages."""

import subprocess
import sys
import time
from pathlib import Path

from command import run

from circuitome.present.assets import asset, demo_page


def test_the_demo_is_a_report_of_the_package_and_needs_no_model(capsys):
    code, printed, _ = run(capsys, "demo", "--no-browser")
    page = Path(printed.strip()).read_text("utf-8")
    assert code == 0
    assert "circuitome find known-ioi --model known-ioi" in page and 'class="circuit"' in page
    assert (
        "http://" not in page.replace("http://www.w3.org/", "").replace("http://graphml.", "")
        and "https://" not in page
    )


def test_the_demo_looks_as_reports_do_today():
    page = demo_page()
    assert "@@" not in page and asset("demo.html").count("@@hash of") == page.count("'sha256-")
    assert not [name for name in ("page.css", "page.js", "report.js") if asset(name) not in page]


def test_the_demo_opens_without_torch():
    words = "import sys; from circuitome.cli.main import main; main(['demo', '--no-browser'])"
    words += "; assert 'torch' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
    assert time.perf_counter() - start < 30  # under two seconds on an idle machine


def test_a_port_that_cannot_be_used_is_said(capsys, tmp_path):
    code, _, error = run(capsys, "app", tmp_path, "--port", 70000, "--no-browser")
    assert code == 1 and "70000" in error
