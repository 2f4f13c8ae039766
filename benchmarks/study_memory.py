"""Peak memory of studies beside what their dry runs say, on SmolLM2 with two budgets; prints JSON.

    python benchmarks/study_memory.py [--only measure,patch] [--budgets 300MB,800MB] [--write]

Each study runs in a process of its own, forked from one that has loaded the model and done a small study, so that what
programs and weights take is there from the beginning. What the operating system counts as the peak of a process is
divided into this beginning and the rest; of each step of the work is told how high the peak was at its end.
With --write a study becomes an entry of today's file under benchmarks/results as soon as it is measured.
"""

import argparse
import json
import os
import shlex
import signal
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

from speed import HERE, machine

import circuitome as cm
from circuitome.cli.main import app
from circuitome.studies.context import Context
from circuitome.studies.frame import estimate, perform
from circuitome.studies.settings import Settings
from circuitome.studies.study import Study

MODEL = "smollm2-135m"
PROMPT = "'When Mary and John went to the store, John gave a drink to'"
TEXT = HERE.parent / "docs" / "neurons.md"
STUDIES = [
    "measure ioi --n 64",
    "patch ioi --n 16",
    "path ioi --n 16",
    "find ioi --n 24",
    "find ioi --n 24 --method eap-ig",
    "compare ioi --n 16 --methods eap,mattr --exact-edges 0",
    f"see {PROMPT}",
    f"lens {PROMPT}",
    f"trace {PROMPT}",
    f"graph {PROMPT} --expand 64 --off 4",
    "heads --n 16",
    "induction --n 8 --draws 1",
    "neurons --tokens 8000",
    "routes --file TEXTS",
    "retrieval --lengths 256 --depths 0.5 --draws 1",
    "stream --tokens 1024",
    "syntax --n 40 --n-pairs 4",
    "weights a9.h6",
    "dictionary train --tokens 20000",
    "edit --heads a9.h6 --text-tokens 1000 --draws 1 --tasks capitals --n 16",
    f"steer {PROMPT} --toward 'I love it.' --away 'I hate it.' --wanted ' I love' --samples 2 --new 10 --draws 1",
    "validate RUN --quick",
    "explain RUN",
    "align ioi --n 16",
    "prune --n 8 --text-tokens 1000 --draws 1",
    "subclone --steps 4 --length 64 --seeds 1 --n 4 --width 288",
    f"distil {MODEL} STUDENT --steps 4 --length 64 --n 4",
    "data selection --steps 2 --length 64 --batch 4 --windows 16 --n 4",
    "data patterns --steps 10",
    f"merge {MODEL} FIRST SECOND --n 4 --text-tokens 500 --draws 1 --tasks ioi",
    "develop --steps 100",
    "series STEPS --rows 4 --n 4 --tasks ioi",
    "known --models known-ioi --methods eap --ablations corrupted",
    "languages --texts LANGUAGES --tokens 2000 --held 1000 --draws 1 --n 2",
    "features DICT --tokens 4000 --task ioi --n 8",
    "dictionary check DICT --tokens 4000",
]


FIRST_RUNS = {
    "RUN": "find ioi --n 16 --method eap --edges 500",
    "DICT": "dictionary train --tokens 4000",
    "STUDENT": "subclone --steps 4 --length 64 --n 4 --seeds 1 --width 288 --checkpoint STUDENT",
}
"""Runs that others begin with."""
PLACES = ("TEXTS", "LANGUAGES", "FIRST", "SECOND", "STEPS", *FIRST_RUNS)
"""What stands for a file or folder in the commands."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="studies whose command begins so, with commas between")
    parser.add_argument("--budgets", default="300MB,800MB")
    parser.add_argument("--limit", type=int, default=400, help="seconds that a run may take")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    models = {(MODEL, None, None): cm.load(MODEL)}
    with tempfile.TemporaryDirectory() as folder:
        small, about = asked("measure ioi --n 1")
        perform(small, about, out=Path(folder) / "small", models=models, progress=lambda *_: None)
        chosen = [line for line in STUDIES if line.startswith(tuple(options.only.split(",")))]
        places = {name: str(Path(folder) / name) for name in PLACES}
        wanted = " ".join(chosen).replace("STEPS", "STEPS FIRST SECOND")
        for name in PLACES:
            if name in wanted:
                prepared(name, Path(folder), models)
        for line in chosen:
            sizes: dict[str, Any] = {}
            for budget in options.budgets.split(","):
                words = " ".join(places.get(word, word) for word in line.split(" ")) + f" --max-memory {budget}"
                sizes[budget] = measured(words, Path(folder) / f"run-{time.time()}", models, options.limit)
                print(json.dumps({line: {budget: sizes[budget]}}), flush=True)
            if options.write:
                keep(line, sizes)


def prepared(name: str, folder: Path, models: Any) -> None:
    """Make what some studies begin with, in a folder of that name."""
    place, model = folder / name, models[MODEL, None, None]
    if name == "TEXTS":
        place.write_text("\n".join(line for line in TEXT.read_text().splitlines() if len(line) > 60)[:12_000])
    elif name == "LANGUAGES":
        place.mkdir()
        for language, page in (("en", "neurons.md"), ("de", "scale.md")):  # only sizes matter
            (place / f"{language}.txt").write_text((TEXT.parent / page).read_text())
    elif name in ("FIRST", "SECOND"):
        model.hf.save_pretrained(place)
        model.tokenizer.save_pretrained(place)
    elif name == "STEPS":
        place.mkdir()
        for step, other in enumerate(("FIRST", "SECOND")):
            (place / f"step-{step}").symlink_to(folder / other)
    else:
        measured(FIRST_RUNS[name].replace("STUDENT", str(place)), folder / f"{name}-run", models, 2000)
        if name != "STUDENT":
            (folder / f"{name}-run").rename(place)


def asked(line: str) -> tuple[Study, Settings]:
    """The study of a command line, and what it is asked."""
    command, bound, _ = app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)
    settings = bound.arguments["settings"]
    given = dict(zip(command.study.settings.arguments, bound.args[: len(bound.args)], strict=False))
    return command.study, settings if not given else type(settings)(**{**vars(settings), **given})


def measured(line: str, out: Path, models: Any, limit: int) -> dict[str, Any]:
    """What the dry run says and what the run takes, in bytes, both done in a process of their own."""
    told, began = out.with_suffix(".json"), time.time()
    before = status("VmRSS")
    if not (pid := os.fork()):
        signal.alarm(limit)
        code = 1
        try:
            done(line, out, models, told, before)
            code = 0
        except BaseException as error:
            told.write_text(
                json.dumps({"error": f"{type(error).__name__}: {error}", "at": traceback.format_exc()[-900:]})
            )
        finally:
            os._exit(code)
    _, ended, usage = os.wait4(pid, 0)
    peak = usage.ru_maxrss * 1024
    found = {"peak": peak, "beside": peak - before, "seconds": round(time.time() - began), "exit": ended}
    found |= json.loads(told.read_text()) if told.exists() else {}
    return found | ({"ratio": round(found["dry_run"] / peak, 3)} if "dry_run" in found else {})


def done(line: str, out: Path, models: Any, told: Path, before: int) -> None:
    """Estimate and do a study, and write what the dry run says and how high the peak was after each step."""
    study, settings = asked(line)
    found: dict[str, Any] = {"steps": {}}

    def tell(what: str, at: int, of: int) -> None:
        found["steps"][what] = round((status("VmHWM") - before) / 1e6)
        told.write_text(json.dumps(found))

    cost = estimate(study, settings, Context(settings, models=models))
    found["dry_run"] = cost.bytes
    tell("dry run", 1, 1)
    perform(study, settings, out=out, progress=tell, models=models)
    tell("page", 1, 1)


def status(name: str) -> int:
    """A figure of this process in bytes, as Linux tells it."""
    return next(1024 * int(row.split()[1]) for row in Path("/proc/self/status").read_text().splitlines() if name in row)


def keep(name: str, result: dict[str, Any]) -> None:
    path = HERE / "results" / f"study-memory-{date.today().isoformat()}.json"
    before = json.loads(path.read_text()) if path.exists() else {"date": date.today().isoformat()}
    path.write_text(json.dumps({**before, "machine": machine(), name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
