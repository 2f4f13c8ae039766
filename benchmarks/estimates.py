"""How near `--dry-run` comes: every study's estimate beside the seconds that it takes, on SmolLM2.

python benchmarks/estimates.py [STUDY ...]    writes a dated result with --write
"""

import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from circuitome.studies.catalog import STUDIES
from circuitome.studies.frame import cost, perform

HERE = Path(__file__).parent
PROMPT = "When John and Mary went to the store, John gave a drink to"
CASES = {
    "measure": {"n": 64},
    "find": {"n": 32},
    "patch": {"n": 16, "what": "mlps"},
    "path": {"n": 16},
    "heads": {},
    "induction": {},
    "retrieval": {"lengths": (256,)},
    "stream": {},
    "trace": {"prompt": PROMPT},
    "lens": {"prompt": PROMPT},
    "see": {"prompt": PROMPT},
    "explain": {"run": "find"},
    "validate": {"run": "find", "quick": True},
    "align": {"task": "ioi", "n": 32, "k": (4,)},
}
"""By study: what it is asked; `run` names a case whose run it is about."""


def main(names: list[str]) -> dict[str, dict[str, float]]:
    """Estimate and seconds of each study."""
    rows: dict[str, dict[str, float]] = {}
    folder = Path(tempfile.mkdtemp())
    for name, given in CASES.items():
        if names and name not in names and not (name == "find" and {"explain", "validate"} & set(names)):
            continue
        study = STUDIES[name]
        about = {"run": str(folder / given["run"])} if "run" in given else {}
        settings = study.settings(**(given | about))
        expected = cost(study, settings).seconds
        start = time.perf_counter()
        perform(study, settings, out=folder / name)
        took = time.perf_counter() - start
        rows[name] = {"estimated": round(expected, 1), "took": round(took, 1), "ratio": round(took / expected, 2)}
        print(f"{name:10} estimated {expected:7.1f} s, took {took:7.1f} s, ratio {took / expected:.2f}", flush=True)
    return rows


if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if not word.startswith("--")]
    result = main(asked)
    if "--write" in sys.argv:
        path = HERE / "results" / f"estimates-{date.today()}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
