"""The command that tests a circuit: validate."""

from pathlib import Path

from circuitome.cli.app import Flag, Json, Prompts, app, finish, folder_of, kept, number_of_bytes


@app.command
def validate(
    run: Path,
    *,
    quick: Flag = False,
    shrink: Flag = False,
    roles: Path | None = None,
    resume: Flag = False,
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
        Keep in the new run the circuit without the nodes and inputs that it can do without together.
    roles
        Folder of an explain run: the heads of each of its roles are knocked out together.
    resume
        Go on with a validation that was stopped.
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
    from circuitome.runs.store import open_partial
    from circuitome.runs.validate import ValidateSpec, run_validate

    spec = ValidateSpec(
        run=str(run),
        roles=str(roles) if roles else None,
        quick=quick,
        shrink=shrink,
        seed=seed,
        max_memory=number_of_bytes(max_memory),
    )
    name = f"{run.name}-validate" + ("-quick" if quick else "")
    folder = folder_of(Prompts(out=out or run.resolve().parent / name), name)
    partial = open_partial(folder, spec.command(), resume=resume)
    with show.progress() as progress, kept(partial, resume):
        found = run_validate(spec, progress, partial)
    finish(found, folder, as_json)
