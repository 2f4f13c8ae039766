"""The command line: text in, a run out. Torch is imported only when a command needs it, so that --help is quick."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
            "max_memory": _bytes(self.max_memory),
        }


DEFAULTS = Prompts()


@app.command
def find(
    task: str = "ioi",
    *,
    method: str = "eap-ig",
    edges: int | None = None,
    ablation: str = "corrupted",
    steps: int | None = None,
    threshold: tuple[float, ...] = (),
    loss: str | None = None,
    order: str | None = None,
    absolute: Flag = False,
    grouped: Flag = False,
    resume: Flag = False,
    dry_run: Flag = False,
    prompts: Prompts = DEFAULTS,
) -> None:
    """Find the circuit of a task, measure it against random ones, and write a run folder with a report.

    Parameters
    ----------
    task
        A name that `circuitome tasks` lists.
    method
        A name that `circuitome methods` lists.
    edges
        Size of the circuit; about one edge in seventy by default.
    ablation
        What edges outside the circuit carry: corrupted, zero, mean or mean-position.
    steps
        Points on the integration path of eap-ig, or steps of learning of edge-pruning and subnetwork-probing.
    threshold
        Of acdc, in units of the loss; several for a sweep, from which the size nearest to --edges is taken.
    loss
        What counts as a change: metric, kl or l2; for learned masks also both.
    order
        Of acdc's senders: reverse (latest first) or normal.
    absolute
        Let acdc test the size of a change, not its sign.
    grouped
        Let acdc ask about edges that surely go in groups: several times faster, nearly always the same circuit.
    resume
        Go on with a run that was stopped.
    dry_run
        Print passes, seconds and memory, and stop.
    prompts
        Model, prompts, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs import METHODS, FindSpec, open_partial, plan
    from circuitome.runs import find as run_find

    spec = FindSpec(
        method=method,
        edges=edges,
        ablation=ablation,
        steps=steps,
        threshold=tuple(threshold),
        loss=loss,
        order=order,
        absolute=absolute,
        grouped=grouped,
        **prompts.spec(task),
    )
    spec.check()
    if dry_run:
        show.plan(spec, plan(spec, *spec.prepare()), prompts.as_json)
        return
    folder = _folder(prompts, spec.folder_name(method))
    partial = open_partial(folder, spec.command(), resume=resume) if METHODS[method].resumes else None
    with show.progress() as progress, _kept(partial, resume):
        run = run_find(spec, progress, partial)
    _finish(run, folder, prompts.as_json)


@app.command
def patch(task: str = "ioi", *, what: str = "heads", by_position: Flag = False, prompts: Prompts = DEFAULTS) -> None:
    """Patch every head, MLP or place of the residual stream by itself, in both directions, and map the effects.

    Parameters
    ----------
    task
        A name that `circuitome tasks` lists.
    what
        heads, mlps or resid (the residual stream, position by position).
    by_position
        Patch heads or MLPs position by position.
    prompts
        Model, prompts, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs import PatchSpec, run_patch

    spec = PatchSpec(what=what, by_position=by_position, **prompts.spec(task))
    spec.check()
    folder = _folder(prompts, spec.folder_name(f"patch-{what}"))
    with show.progress() as progress:
        run = run_patch(spec, progress)
    _finish(run, folder, prompts.as_json)


@app.command
def path(
    task: str = "ioi",
    *,
    to: str = "logits",
    senders: Annotated[str, Parameter(name="--from")] = "all",
    positions: str = "all",
    to_positions: str | None = None,
    freeze_mlps: Flag = False,
    depth: int = 0,
    width: int = 5,
    threshold: float = 0.02,
    prompts: Prompts = DEFAULTS,
) -> None:
    """Path patching: what reaches receivers from each sender, through no other head; or the trace back from the logits.

    Parameters
    ----------
    task
        A name that `circuitome tasks` lists.
    to
        Receivers, with commas between: logits, or inputs such as a9.h6.q, a9.kv2.v, m7.in.
    senders
        Senders, with commas between, e.g. a5.h1,m3,embed; or all.
    positions
        Where senders are patched: all, end, roles of the task such as S2, or numbers; with commas between.
    to_positions
        Where receivers are; by default the end for queries and logits, all for others.
    freeze_mlps
        Keep MLPs between sender and receiver clean.
    depth
        Trace back: keep the senders that matter to the logits, ask who writes into their inputs, and so on, so often.
    width
        Senders that the trace keeps for a receiver at most.
    threshold
        Effect that a kept sender has at least, as a share of the gap between clean and corrupted metric.
    prompts
        Model, prompts, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs import PathSpec, run_path

    spec = PathSpec(
        to=_names(to),
        senders=() if senders == "all" else _names(senders),
        positions=_names(positions),
        to_positions=_names(to_positions or ""),
        freeze_mlps=freeze_mlps,
        depth=depth,
        width=width,
        threshold=threshold,
        **prompts.spec(task),
    )
    spec.check()
    folder = _folder(prompts, spec.folder_name("trace" if depth else "path"))
    with show.progress() as progress:
        run = run_path(spec, progress)
    _finish(run, folder, prompts.as_json)


@app.command
def compare(
    task: str = "ioi",
    *,
    methods: str | None = None,
    edges: int | None = None,
    ablation: str = "corrupted",
    held_out: str | None = None,
    exact_edges: int = 200,
    resume: Flag = False,
    prompts: Prompts = DEFAULTS,
) -> None:
    """Run several methods on the same prompts: faithfulness by circuit size, here and on held-out prompts.

    Parameters
    ----------
    task
        A name that `circuitome tasks` lists.
    methods
        Names that `circuitome methods` lists, with commas between; all but exact and random by default.
    edges
        Size that methods which learn or search aim at; about one edge in seventy by default.
    ablation
        What edges outside a circuit carry: corrupted, zero, mean or mean-position.
    held_out
        A file, or the name of a generator, for held-out prompts; by default another draw of the task.
    exact_edges
        Edges to patch one by one, with which scores are correlated; 0 for none.
    resume
        Go on with a run that was stopped.
    prompts
        Model, prompts, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs import COMPARED, CompareSpec, open_partial, run_compare

    spec = CompareSpec(
        methods=_names(methods) if methods else COMPARED,
        edges=edges,
        ablation=ablation,
        held_out=held_out,
        exact_edges=exact_edges,
        **prompts.spec(task),
    )
    spec.check()
    folder = _folder(prompts, spec.folder_name("compare"))
    partial = open_partial(folder, spec.command(), resume=resume)
    with show.progress() as progress, _kept(partial, resume):
        run = run_compare(spec, progress, partial)
    _finish(run, folder, prompts.as_json)


@app.command
def known(
    *,
    models: str | None = None,
    methods: str | None = None,
    ablations: str = "zero,corrupted",
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Run methods on models whose circuit is known, and print how much of it they find.

    Parameters
    ----------
    models
        Names of known models (`circuitome models` lists them), with commas between; all by default.
    methods
        Names that `circuitome methods` lists, with commas between; all but learned masks by default.
    ablations
        What cut edges carry: zero, corrupted or both. The true circuit depends on it.
    out
        A JSON file for the result.
    as_json
        Print JSON in place of a table.

    """
    from circuitome.cli import show
    from circuitome.runs import KnownSpec, run_known

    spec = KnownSpec.of(_names(models or ""), _names(methods or ""), _names(ablations))
    spec.check()
    with show.progress() as progress:
        result = run_known(spec, progress)
    if out is not None:
        _write(out, result)
    show.known(result, as_json)


@app.command
def validate(
    run: Path,
    *,
    quick: Flag = False,
    shrink: Flag = False,
    seed: int = 0,
    out: Path | None = None,
    max_memory: str | None = None,
    as_json: Json = False,
) -> None:
    """Test the circuit of a finished run: faithful, complete, minimal, against chance, by hypothesis tests.

    Parameters
    ----------
    run
        Folder of a run that holds a circuit.
    quick
        Fewer subsets: about a tenth of the work, some verdicts stay unclear.
    shrink
        Keep in the new run the circuit without the nodes it can do without.
    seed
        Seed of subsets and random circuits.
    out
        Folder of the verdict; RUN-validate by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs import ValidateSpec, run_validate

    spec = ValidateSpec(run=str(run), quick=quick, shrink=shrink, seed=seed, max_memory=_bytes(max_memory))
    name = f"{run.name}-validate" + ("-quick" if quick else "")
    folder = _folder(Prompts(out=out or run.resolve().parent / name), name)
    with show.progress() as progress:
        found = run_validate(spec, progress)
    _finish(found, folder, as_json)


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
def methods(*, as_json: Json = False) -> None:
    """List the methods that `find` knows."""
    from circuitome.cli import show
    from circuitome.runs import METHODS

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
    from circuitome.models.load import BUNDLED

    rows = [{"model": name, "what": _first_line(function)} for name, function in BUNDLED.items()]
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


def _folder(prompts: Prompts, name: str) -> Path:
    """Where a run goes. A folder that cannot take it is refused before the work, not after."""
    from circuitome.runs import check_free

    folder = prompts.out or Path("runs") / name
    if folder.is_file() or (folder.exists() and not (folder / "manifest.json").is_file()):
        check_free(folder, "")
    return folder


def _finish(run: Any, folder: Path, as_json: bool) -> None:
    """Write a run with its report, and show it."""
    from circuitome.cli import show
    from circuitome.report import page
    from circuitome.runs import save_run

    save_run(run, folder, {"report.html": page(run)})
    show.run(run, folder, as_json)


@contextmanager
def _kept(partial: Path | None, resume: bool) -> Iterator[None]:
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


def _write(path: Path, result: Any) -> None:
    """Write plain JSON to a file. Raises `InputError` where that cannot be."""
    from circuitome.runs import to_json

    try:
        path.write_text(to_json(result) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


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
