"""Commands of information flow routes: trace, routes."""

from pathlib import Path

from circuitome.cli.app import Flag, Json, Prompts, app, finish, folder_of, names, number_of_bytes
from circuitome.errors import InputError


@app.command
def trace(
    prompt: str,
    *,
    position: str = "last",
    threshold: float = 0.04,
    norm: str = "l1",
    renormalize: Flag = False,
    contrast: tuple[str, str] | None = None,
    generate: int = 0,
    neurons: str = "",
    model: str = "smollm2-135m",
    out: Path | None = None,
    max_memory: str | None = None,
    as_json: Json = False,
) -> None:
    """Trace which way the information for a prediction took: one prompt, one forward pass, no corrupted prompt.

    Parameters
    ----------
    prompt
        The text.
    position
        The token after which the prediction is made: last, or a number (from 0; negative from the end).
    threshold
        Least importance of an edge, a share of the node it goes into; between 0 and 1.
    norm
        How far apart vectors are: l1 or l2.
    renormalize
        Set parts below the threshold to 0 and bring the rest to a sum of 1.
    contrast
        Two tokens: measure parts of the last token by what they add to the logit difference, e.g. " Mary" " John".
    generate
        Generate so many tokens, the likeliest each time, and trace each.
    neurons
        MLP nodes whose neurons to show, e.g. m29@13, with commas between; the strongest by default.
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    out
        Folder of the run; runs/NAME by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs.routes import TraceSpec, run_trace

    spec = TraceSpec(
        prompt=prompt,
        model=model,
        position=place(position),
        threshold=threshold,
        norm=norm,
        renormalize=renormalize,
        contrast=contrast,
        generate=generate,
        neurons=names(neurons),
        max_memory=number_of_bytes(max_memory),
    )
    spec.check()
    folder = folder_of(Prompts(out=out), spec.folder_name())
    with show.progress() as progress:
        run = run_trace(spec, progress)
    finish(run, folder, as_json)


@app.command
def routes(
    *,
    file: Path,
    by: str | None = None,
    norm: str = "l1",
    model: str = "smollm2-135m",
    out: Path | None = None,
    max_memory: str | None = None,
    as_json: Json = False,
) -> None:
    """Measure how much each head and MLP matters to the routes of a file of texts, by group.

    Parameters
    ----------
    file
        A .txt file with one text a line, or JSONL or CSV with a column `text` and columns of labels.
    by
        A column of labels, or position or subword (labels of tokens); one group by default.
    norm
        How far apart vectors are: l1 or l2.
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    out
        Folder of the run; runs/NAME by default.
    max_memory
        What a batch may take beside the weights, e.g. 500MB or 2GB.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show
    from circuitome.runs.routes import RoutesSpec, run_routes

    spec = RoutesSpec(file=str(file), by=by, norm=norm, model=model, max_memory=number_of_bytes(max_memory))
    folder = folder_of(Prompts(out=out), spec.folder_name())
    with show.progress() as progress:
        run = run_routes(spec, progress)
    finish(run, folder, as_json)


def place(text: str) -> int:
    """A position: last is -1. Raises `InputError` for anything but a number."""
    if text == "last":
        return -1
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--position {text!r} is no position; write last or a number such as 5 or -2.") from None
