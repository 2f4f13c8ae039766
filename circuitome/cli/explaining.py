"""The command that says what a circuit's heads do: explain."""

from pathlib import Path

from circuitome.cli.app import Json, Prompts, app, finish, folder_of, names, number_of_bytes


@app.command
def explain(
    run: Path,
    *,
    heads: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    max_memory: str | None = None,
    as_json: Json = False,
) -> None:
    """Name the role of every head of a finished run's circuit, with the evidence, and tell the circuit in words.

    Parameters
    ----------
    run
        Folder of a run that holds a circuit.
    heads
        Heads to explain, with commas between, e.g. a9.h1,a5.h0; all of the circuit by default.
    seed
        Seed of the repeated random tokens on which patterns are also measured.
    out
        Folder of the explanation; RUN-explain by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs.explain import ExplainSpec, run_explain

    spec = ExplainSpec(run=str(run), heads=names(heads or ""), seed=seed, max_memory=number_of_bytes(max_memory))
    name = f"{run.name}-explain"
    folder = folder_of(Prompts(out=out or run.resolve().parent / name), name)
    with show.progress() as progress:
        found = run_explain(spec, progress)
    finish(found, folder, as_json)
