"""Peak memory of studies beside what their dry runs say, on SmolLM2 with two budgets; prints JSON.

    python benchmarks/study_memory.py [--only measure,patch] [--budgets 100MB,400MB] [--write]

Each study runs in a process of its own; what the operating system counts as its peak includes weights and program.
With --write a study becomes an entry of today's file under benchmarks/results as soon as it is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from speed import HERE, machine

PROMPT = "When Mary and John went to the store, John gave a drink to"
TEXT = str(HERE.parent / "docs" / "neurons.md")
STUDIES: dict[str, list[str]] = {
    "measure": ["ioi", "--n", "64"],
    "patch": ["ioi", "--n", "16"],
    "path": ["ioi", "--n", "16"],
    "find, eap-ig": ["ioi", "--n", "24", "--method", "eap-ig"],
    "find": ["ioi", "--n", "24"],
    "compare": ["ioi", "--n", "16", "--methods", "eap,mattr", "--exact-edges", "0"],
    "see": [PROMPT],
    "lens": [PROMPT],
    "trace": [PROMPT],
    "graph": [PROMPT, "--expand", "64", "--off", "4"],
    "heads": ["--n", "16"],
    "induction": ["--n", "8", "--draws", "1"],
    "neurons": ["--tokens", "8000"],
    "routes": ["--file", "TEXTS"],
    "retrieval": ["--lengths", "256", "--depths", "0.5", "--draws", "1"],
    "stream": ["--tokens", "1024"],
    "syntax": ["--n", "40", "--n-pairs", "4"],
    "weights": ["a9.h6"],
    "dictionary train": ["--tokens", "20000"],
    "edit": ["--heads", "a9.h6", "--text-tokens", "1000", "--draws", "1", "--tasks", "capitals", "--n", "16"],
    "steer": [
        PROMPT,
        "--toward",
        "I love it.",
        "--away",
        "I hate it.",
        "--samples",
        "2",
        "--new",
        "10",
        "--draws",
        "1",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="some of the studies, with commas between (a colon for a comma)")
    parser.add_argument("--budgets", default="100MB,400MB")
    parser.add_argument("--limit", type=int, default=500, help="seconds that a run may take")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chosen = [name.replace(":", ",") for name in options.only.split(",")] if options.only else list(STUDIES)
    with tempfile.TemporaryDirectory() as folder:
        keep("program and weights", run(["measure", "ioi", "--n", "1", "--out", f"{folder}/one"], 300), options.write)
        for name in chosen:
            sizes = {budget: beside(name, budget, Path(folder), options.limit) for budget in options.budgets.split(",")}
            keep(name, sizes, options.write)


def beside(name: str, budget: str, folder: Path, limit: int) -> dict[str, Any]:
    """What the dry run says, and what the run took."""
    texts = folder / "texts.txt"
    texts.write_text("\n".join(line for line in Path(TEXT).read_text().splitlines() if len(line) > 60)[:12_000])
    words = [*name.split(",")[0].split(), *(str(texts) if word == "TEXTS" else word for word in STUDIES[name])]
    words += ["--max-memory", budget]
    said = subprocess.run(
        [sys.executable, "-m", "circuitome", *words, "--dry-run", "--json"], capture_output=True, text=True, check=False
    )
    if said.returncode:
        return {"error": said.stderr[-300:] or said.stdout[-300:]}
    expected = json.loads(said.stdout.strip().splitlines()[-1])["bytes"]
    found = run([*words, "--out", str(folder / f"{name}-{budget}".replace(" ", "-"))], limit)
    return {**found, "dry_run": expected, "ratio": round(expected / found["peak"], 3)}


def run(words: list[str], limit: int) -> dict[str, Any]:
    """Peak memory in bytes and seconds of one command."""
    with tempfile.TemporaryFile() as said:
        start = time.time()
        process = subprocess.Popen([sys.executable, "-m", "circuitome", *words], stdout=said, stderr=said)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.time() - start > limit:
                process.kill()
            time.sleep(0.1)
        process.returncode = status
        found: dict[str, Any] = {"peak": usage.ru_maxrss * 1024, "seconds": round(time.time() - start), "exit": status}
        if status:
            said.seek(0)
            found["said"] = said.read().decode()[-300:]
    return found


def keep(name: str, result: dict[str, Any], write: bool) -> None:
    print(json.dumps({name: result}), flush=True)
    if write:
        path = HERE / "results" / f"study-memory-{date.today().isoformat()}.json"
        before = json.loads(path.read_text()) if path.exists() else {"date": date.today().isoformat()}
        path.write_text(json.dumps({**before, "machine": machine(), name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
