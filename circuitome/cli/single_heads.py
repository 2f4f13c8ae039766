"""Commands about single heads: heads, induction."""

from pathlib import Path

from circuitome.cli.app import Flag, Options, app, finish, folder_of

HERE = Options()


@app.command
def heads(*, n: int = 16, period: int | None = None, retrieval: Flag = False, options: Options = HERE) -> None:
    """Map what every head does: where it looks on repeated random tokens, and whether it copies what it looks at.

    Parameters
    ----------
    n
        Number of random sequences.
    period
        Tokens of a sequence before it starts again; as many as suit the model by default.
    retrieval
        Measure retrieval from a long text as well, which takes some minutes.
    options
        Model, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs.heads import HeadsSpec, run_heads

    spec = HeadsSpec(n=n, period=period, retrieval=retrieval, **options.spec())
    folder = folder_of(options, spec.folder_name("heads"))
    with show.progress() as progress:
        run = run_heads(spec, progress)
    finish(run, folder, options.as_json)


@app.command
def induction(
    *,
    n: int = 8,
    period: int | None = None,
    k: int = 5,
    draws: int = 3,
    text: Path | None = None,
    options: Options = HERE,
) -> None:
    """Find induction heads, measure learning in context, and switch the strongest heads off beside random ones.

    Parameters
    ----------
    n
        Number of random sequences.
    period
        Tokens of a sequence before it starts again; as many as suit the model by default.
    k
        Heads that are switched off.
    draws
        Random sets of as many heads.
    text
        A plain text for in-context learning, in place of the package's own.
    options
        Model, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs.heads import InductionSpec, run_induction

    spec = InductionSpec(n=n, period=period, k=k, draws=draws, text=str(text) if text else None, **options.spec())
    folder = folder_of(options, spec.folder_name("induction"))
    with show.progress() as progress:
        run = run_induction(spec, progress)
    finish(run, folder, options.as_json)
