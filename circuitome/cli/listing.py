"""Commands that show what there is: show, export, tasks, methods, models, schema, doctor."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from circuitome.cli.app import Json, app


@app.command(name="show")
def show_run(run: Path, *, as_json: Json = False) -> None:
    """Show a finished run again.

    Parameters
    ----------
    run
        The run's folder.

    """
    from circuitome.runs.store import load_run

    print_run(load_run(run), run, as_json)


@app.command
def export(run: Path, figure: str | None = None, *, to: str | None = None, out: Path | None = None) -> None:
    """Write a finished run's circuit, or one figure or table, to a file; without FIGURE and --to, list what there is.

    Parameters
    ----------
    run
        The run's folder, or the name of a study for its newest run.
    figure
        Name of the figure or table, as the list has it; the circuit by default.
    to
        For the circuit graphml, csv, json or neuronpedia; png, svg or pdf for pictures, graphml for those that
        are graphs; csv or json for any figure or table; jsonl or parquet for the neurons of a census.
    out
        The file; FIGURE.TO in the current folder by default.

    """
    import circuitome as cm

    opened = cm.open(run)
    if figure is None and to is None and out is None:
        rows = [{"name": name, "kind": block.block} for name, block in opened.figures.items()]
        if "circuit" in opened.tensors:
            rows.append({"name": "(the circuit)", "kind": "--to graphml, csv, json or neuronpedia"})
        print_table("Figures and tables", rows, False)
        return
    to = to or ("svg" if out is None else None)
    subject = "neurons" if to in ("jsonl", "parquet") else "circuit"
    path = out or Path(f"{figure or subject}.{'json' if to == 'neuronpedia' else to}")
    opened.export(path, figure, to=to)
    print(path)


@app.command
def tasks(*, as_json: Json = False) -> None:
    """List the tasks that `find` can draw prompts for."""
    from circuitome.tasks import TASKS

    rows = [{"task": name, "what": first_line(function)} for name, function in TASKS.items()]
    print_table("Tasks", rows, as_json, "Your own prompts: circuitome find NAME --data prompts.jsonl")


@app.command
def methods(*, as_json: Json = False) -> None:
    """List the methods that `find` knows."""
    from circuitome.studies.methods import METHODS

    rows = [
        {"method": name, "what": method.what, "losses": ", ".join(method.losses), "options": ", ".join(method.takes)}
        for name, method in METHODS.items()
    ]
    print_table("Methods", rows, as_json)


@app.command
def models(*, as_json: Json = False) -> None:
    """List the models with a short name and the supported architectures."""
    from circuitome.models.families import supported
    from circuitome.models.known import KNOWN
    from circuitome.models.loading import BUNDLED

    rows = [{"model": name, "what": first_line(function)} for name, function in BUNDLED.items()]
    rows += [{"model": name, "what": f"known circuit: {what}"} for name, what in KNOWN.items()]
    rows += [{"model": f"any {name}", "what": "a hub name, a folder or a .gguf file"} for name in supported()]
    print_table("Models", rows, as_json)


@app.command
def schema() -> None:
    """Print the JSON schema of a run's manifest.json, for programs that read runs."""
    from circuitome.studies.schema import schema

    print(json.dumps(schema(), indent=1))


@app.command
def doctor(*, as_json: Json = False) -> None:
    """Check that this machine can run circuitome, and say what to do where it cannot."""
    from circuitome.cli.doctor import examine

    rows = examine()
    print_table("Doctor", rows, as_json)
    if any(row["state"] == "missing" for row in rows):
        raise SystemExit(1)


def print_run(run: Any, folder: Path, as_json: bool) -> None:
    """A finished run: what it says, how to repeat it, and where its page is."""
    from circuitome.runs.store import to_json

    if as_json:
        print(to_json({**run.manifest, "folder": str(folder)}))
        return
    from rich.console import Console

    from circuitome.present import terminal
    from circuitome.present.stored import document

    terminal.show(document(run, folder), Console(highlight=False))


def print_table(title: str, rows: Sequence[dict[str, str]], as_json: bool, note: str = "") -> None:
    """Rows of equal keys, one column a key; columns that are empty everywhere are left out."""
    if as_json:
        print(json.dumps(list(rows), indent=1))
        return
    from rich.console import Console

    from circuitome.present.blocks import table
    from circuitome.present.terminal import print_block

    names = [name for name in rows[0] if any(row[name] for row in rows)]
    cells = ([row[name] for name in names] for row in rows)
    print_block(table(title, names, cells, note=note), Console(highlight=False))


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's description."""
    return (function.__doc__ or "").strip().splitlines()[0]
