"""What every command shares: the app, options for prompts, where a run goes, how it ends."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import circuitome
from circuitome.errors import CircuitomeError, InputError

app = App(
    name="circuitome",
    help="Find, validate, explain and use the circuits inside transformer language models.",
    version=circuitome.__version__,
    result_action="return_value",
)

Flag = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON in place of tables.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Prompts:
    """Which model on which prompts, and where the run goes.

    Parameters
    ----------
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    n
        Number of prompt pairs.
    seed
        Seed of prompts, bootstrap, random circuits and learning.
    data
        JSONL or CSV file with columns clean, corrupted, answer, wrong, in place of a generator.
    out
        Folder of the run; runs/NAME by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """

    model: str = "smollm2-135m"
    n: int = 64
    seed: int = 0
    data: Path | None = None
    out: Path | None = None
    max_memory: str | None = None
    as_json: Json = False

    def spec(self, task: str) -> dict[str, Any]:
        """The same as fields of a `PromptSpec`."""
        return {
            "task": Path(self.data).stem if self.data else task,
            "model": self.model,
            "n": self.n,
            "seed": self.seed,
            "data": str(self.data) if self.data else None,
            "max_memory": number_of_bytes(self.max_memory),
        }


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Which model, without prompts of a task, and where the run goes.

    Parameters
    ----------
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    seed
        Seed of everything that is drawn.
    out
        Folder of the run; runs/NAME by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """

    model: str = "smollm2-135m"
    seed: int = 0
    out: Path | None = None
    max_memory: str | None = None
    as_json: Json = False

    def spec(self) -> dict[str, Any]:
        """The same as fields of a `ModelSpec`."""
        return {"model": self.model, "seed": self.seed, "max_memory": number_of_bytes(self.max_memory)}


DEFAULTS = Prompts()


def folder_of(prompts: Prompts | Options, name: str) -> Path:
    """Where a run goes. A folder that cannot take it is refused before the work, not after."""
    from circuitome.runs.store import check_free

    folder = prompts.out or Path("runs") / name
    if folder.is_file() or (folder.exists() and not (folder / "manifest.json").is_file()):
        check_free(folder, "")
    return folder


def finish(run: Any, folder: Path, as_json: bool) -> None:
    """Write a run with its report, and show it."""
    from circuitome.cli import show
    from circuitome.report.pages import page
    from circuitome.runs.store import save_run

    save_run(run, folder, {"report.html": page(run)})
    show.run(run, folder, as_json)


@contextmanager
def kept(partial: Path | None, resume: bool) -> Iterator[None]:
    """Inside, an interruption says how to go on; bad input leaves nothing behind."""
    try:
        yield
    except CircuitomeError:
        if partial is not None and not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        if partial is None:
            raise
        print(f"Stopped; {partial} holds what was done. Repeat the command with --resume to go on.", file=sys.stderr)
        raise SystemExit(130) from None


def write(path: Path, result: Any) -> None:
    """Write plain JSON to a file. Raises `InputError` where that cannot be."""
    from circuitome.runs.store import to_json

    try:
        path.write_text(to_json(result) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's description."""
    return (function.__doc__ or "").strip().splitlines()[0]


def number_of_bytes(text: str | None) -> int | None:
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
