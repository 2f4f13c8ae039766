"""Commands that read weights and the stream: weights, lens."""

from pathlib import Path
from typing import Any

from circuitome.cli.app import Json, app, write


@app.command
def weights(
    head: str,
    *,
    model: str = "smollm2-135m",
    tokens: str | None = None,
    offset: int = 0,
    top: int = 8,
    rows: int | None = 2048,
    seed: int = 0,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """What the weights of one head say: tokens it looks for, what it copies, which heads it reads and feeds.

    Parameters
    ----------
    head
        A head, e.g. a5.h1.
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    tokens
        Text whose tokens are the queries, and those attended to; by default the strongest of the vocabulary.
    offset
        How many tokens the key lies before the query, for rotary models.
    top
        Rows of each table.
    rows
        Tokens of the vocabulary that are searched, those with the longest vectors first; 0 for all.
    seed
        Seed of the random pairs that composition is compared with.
    out
        A JSON file for the result.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import show, weights_view
    from circuitome.models.loading import load

    loaded = load(model)
    with show.progress() as progress:
        found = weights_view.examine(
            loaded, head, tokens=tokens, offset=offset, top=top, rows=rows or None, seed=seed, progress=progress
        )
    _end(found, out, as_json, weights_view.print_head)


@app.command
def lens(
    prompt: str,
    *,
    model: str = "smollm2-135m",
    target: str | None = None,
    last: int = 1,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Logit lens: what the model would predict after each of its parts.

    Parameters
    ----------
    prompt
        The prompt.
    model
        A name that `circuitome models` lists, a hub name, a folder or a .gguf file.
    target
        A token to follow, with its leading space, e.g. " Mary"; by default the model's own prediction.
    last
        Positions that are printed, counted from the end; the JSON has all.
    out
        A JSON file for the result.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import weights_view
    from circuitome.errors import InputError
    from circuitome.models.loading import load
    from circuitome.weights.lens import logit_lens

    if last < 1:
        raise InputError(f"--last is a number of positions and must be at least 1, got {last}.")
    found = logit_lens(load(model), prompt, target=target)
    result = {"kind": "lens", "model": model, "prompt": prompt, **found.to_dict()}
    _end(result, out, as_json, lambda result: weights_view.print_lens(result, last))


def _end(result: dict[str, Any], out: Path | None, as_json: bool, draw: Any) -> None:
    """Write the result where it is wanted, and show it."""
    from circuitome.runs.store import to_json

    if out is not None:
        write(out, result)
    if as_json:
        print(to_json(result))
    else:
        draw(result)
