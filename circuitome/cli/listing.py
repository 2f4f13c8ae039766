"""Commands that show what there is: show, tasks, methods, models, doctor."""

from pathlib import Path
from typing import Any

from circuitome.cli.app import Json, app, first_line


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
    from circuitome.runs.store import load_run

    show.run(load_run(run), run, as_json)


@app.command
def tasks(*, as_json: Json = False) -> None:
    """List the tasks that `find` can draw prompts for."""
    from circuitome.cli import show
    from circuitome.tasks import TASKS

    rows = [{"task": name, "what": first_line(function)} for name, function in TASKS.items()]
    show.table("Tasks", rows, as_json, "Your own prompts: circuitome find NAME --data prompts.jsonl")


@app.command
def methods(*, as_json: Json = False) -> None:
    """List the methods that `find` knows."""
    from circuitome.cli import show
    from circuitome.runs.methods import METHODS

    rows = [
        {"method": name, "what": method.what, "losses": ", ".join(method.losses), "settings": ", ".join(method.takes)}
        for name, method in METHODS.items()
    ]
    show.table("Methods", rows, as_json, "")


@app.command
def models(*, as_json: Json = False) -> None:
    """List the models with a short name and the supported architectures."""
    from circuitome.cli import show
    from circuitome.models.families import supported
    from circuitome.models.known import KNOWN
    from circuitome.models.loading import BUNDLED

    rows = [{"model": name, "what": first_line(function)} for name, function in BUNDLED.items()]
    rows += [{"model": name, "what": f"known circuit: {what}"} for name, what in KNOWN.items()]
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
