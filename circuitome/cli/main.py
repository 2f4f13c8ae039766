"""The command line: text in, a run out. Torch is imported only when a command needs it, so that --help is quick."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import circuitome
from circuitome.errors import CircuitomeError, InputError

app = App(
    name="circuitome",
    help="Find, validate, explain and use the circuits inside transformer language models.",
    version=circuitome.__version__,
    result_action="return_value",
)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON in place of tables.")]


@app.command
def find(
    task: str = "ioi",
    *,
    model: str = "smollm2-135m",
    method: str = "eap-ig",
    edges: int | None = None,
    n: int = 64,
    seed: int = 0,
    steps: int = 5,
    ablation: str = "corrupted",
    out: Path | None = None,
    data: Path | None = None,
    max_memory: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Find the circuit of a task, measure it against random ones, and write a run folder with a report.

    Parameters
    ----------
    task
        A name that `circuitome tasks` lists.
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    method
        eap, eap-ig, eap-ig-activations or clean-corrupted.
    edges
        Size of the circuit; about one edge in seventy by default.
    n
        Number of prompt pairs.
    seed
        Seed of prompts, bootstrap and random circuits.
    steps
        Points on the integration path of eap-ig.
    ablation
        What edges outside the circuit carry: corrupted, zero, mean or mean-position.
    out
        Folder of the run; runs/NAME by default.
    data
        JSONL or CSV file with columns clean, corrupted, answer, wrong, in place of a generator.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    dry_run
        Print passes, seconds and memory, and stop.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs import FindSpec, check_free, plan, prepare, save_run
    from circuitome.runs import find as run_find

    spec = FindSpec(
        Path(data).stem if data else task,
        model,
        method,
        edges,
        n,
        seed,
        steps,
        ablation,
        str(data) if data else None,
        _bytes(max_memory),
    )
    spec.check()
    if dry_run:
        show.plan(spec, plan(spec, *prepare(spec)), as_json)
        return
    folder = out or Path("runs") / spec.folder_name()
    if folder.is_file() or (folder.exists() and not (folder / "manifest.json").is_file()):
        check_free(folder, "")  # a folder that cannot take the run is refused before the work, not after
    with show.progress() as progress:
        run = run_find(spec, progress)
    from circuitome.report import payload, render

    save_run(run, folder, {"report.html": render(payload(run))})
    show.run(run, folder, as_json)


@app.command(name="show")
def show_run(run: Path, *, as_json: Json = False) -> None:
    """Show a finished run again.

    Parameters
    ----------
    run
        The run's folder.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs import load_run

    show.run(load_run(run), run, as_json)


@app.command
def tasks(*, as_json: Json = False) -> None:
    """List the tasks that `find` can draw prompts for."""
    from circuitome.cli import show
    from circuitome.tasks import TASKS

    rows = [{"task": name, "what": _first_line(function)} for name, function in TASKS.items()]
    show.table("Tasks", rows, as_json, "Your own prompts: circuitome find NAME --data prompts.jsonl")


@app.command
def models(*, as_json: Json = False) -> None:
    """List the models with a short name and the supported architectures."""
    from circuitome.cli import show
    from circuitome.models.families import supported
    from circuitome.models.load import BUNDLED

    rows = [{"model": name, "what": _first_line(function)} for name, function in BUNDLED.items()]
    rows += [{"model": f"any {name}", "what": "a hub name, a folder or a .gguf file"} for name in supported()]
    show.table("Models", rows, as_json, "")


@app.command
def doctor(*, as_json: Json = False) -> None:
    """Check that this machine can run circuitome, and say what to do where it cannot."""
    from circuitome.cli import show
    from circuitome.cli.doctor import examine

    rows = examine()
    show.table("Doctor", rows, as_json, "")
    if any(row["state"] == "missing" for row in rows):
        raise SystemExit(1)


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _bytes(text: str | None) -> int | None:
    """Bytes of a size such as 500MB, 2GB, 1.5GiB or a plain number. Raises `InputError`."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(i?)B?\s*", text, flags=re.IGNORECASE)
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or number <= 0:
        raise InputError(f"--max-memory {text!r} is not a size. Write it like 500MB, 2GB or 1500000000.")
    return int(number * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def main(tokens: list[str] | None = None) -> None:
    """Run a command line; exit with 0, 1 (bad input) or 2 (bad usage)."""
    arguments = sys.argv[1:] if tokens is None else tokens
    try:
        app(arguments, exit_on_error=False, print_error=True, help_on_error=False)
    except CycloptsError:
        raise SystemExit(2) from None
    except CircuitomeError as error:
        if "--json" in arguments:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
