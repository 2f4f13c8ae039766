"""Commands that find circuits: find, patch, path, compare, known."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from circuitome.cli.app import DEFAULTS, Flag, Json, Prompts, app, finish, folder_of, kept, names, write


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
    from circuitome.runs.effects import PatchSpec, run_patch

    spec = PatchSpec(what=what, by_position=by_position, **prompts.spec(task))
    spec.check()
    folder = folder_of(prompts, spec.folder_name(f"patch-{what}"))
    with show.progress() as progress:
        run = run_patch(spec, progress)
    finish(run, folder, prompts.as_json)


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
    from circuitome.runs.effects import PathSpec, run_path

    spec = PathSpec(
        to=names(to),
        senders=() if senders == "all" else names(senders),
        positions=names(positions),
        to_positions=names(to_positions or ""),
        freeze_mlps=freeze_mlps,
        depth=depth,
        width=width,
        threshold=threshold,
        **prompts.spec(task),
    )
    spec.check()
    folder = folder_of(prompts, spec.folder_name("trace" if depth else "path"))
    with show.progress() as progress:
        run = run_path(spec, progress)
    finish(run, folder, prompts.as_json)


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
    from circuitome.runs.compare import COMPARED, CompareSpec, run_compare
    from circuitome.runs.store import open_partial

    spec = CompareSpec(
        methods=names(methods) if methods else COMPARED,
        edges=edges,
        ablation=ablation,
        held_out=held_out,
        exact_edges=exact_edges,
        **prompts.spec(task),
    )
    spec.check()
    folder = folder_of(prompts, spec.folder_name("compare"))
    partial = open_partial(folder, spec.command(), resume=resume)
    with show.progress() as progress, kept(partial, resume):
        run = run_compare(spec, progress, partial)
    finish(run, folder, prompts.as_json)


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
    from circuitome.runs.known import KnownSpec, run_known

    spec = KnownSpec.of(names(models or ""), names(methods or ""), names(ablations))
    spec.check()
    with show.progress() as progress:
        result = run_known(spec, progress)
    if out is not None:
        write(out, result)
    show.known(result, as_json)
