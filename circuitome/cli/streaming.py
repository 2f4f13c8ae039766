"""Commands about long texts: retrieval, stream."""

from pathlib import Path

from circuitome.cli.app import Options, app, finish, folder_of, names
from circuitome.errors import InputError

OPTIONS = Options()


@app.command
def retrieval(
    *,
    lengths: str = "128,256,512",
    depths: str = "0,0.25,0.5,0.75,1",
    text: Path | None = None,
    needles: Path | None = None,
    top_k: int = 10,
    mode: str = "zero",
    where: str = "decode",
    draws: int = 3,
    steps: int = 24,
    options: Options = OPTIONS,
) -> None:
    """Find the heads that fetch a fact from a long text, and mask them to see whether the answer needs them.

    Parameters
    ----------
    lengths
        Tokens of the prompts, with commas between.
    depths
        Shares of the text in front of the fact, 0 to 1, with commas between.
    text
        A UTF-8 file in which facts are hidden; the package's own prose by default.
    needles
        JSONL file with needle, question and answer a line; three of our own by default.
    top_k
        Heads that are masked.
    mode
        zero: a masked head's output is 0. even: it attends evenly, as in published code.
    where
        decode: masked once the prompt was read. everywhere: while it is read as well.
    draws
        How often as many random other heads are masked.
    steps
        Tokens of an answer at most.
    options
        Model, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs.retrieval import RetrievalSpec, run_retrieval

    spec = RetrievalSpec(
        lengths=tuple(int(number) for number in _numbers("--lengths", lengths, whole=True)),
        depths=_numbers("--depths", depths),
        text=str(text) if text else None,
        needles=str(needles) if needles else None,
        top_k=top_k,
        mode=mode,
        where=where,
        draws=draws,
        steps=steps,
        **options.spec(),
    )
    spec.check()
    folder = folder_of(options, spec.folder_name("retrieval"))
    with show.progress() as progress:
        run = run_retrieval(spec, progress)
    finish(run, folder, options.as_json)


@app.command
def stream(
    *,
    sinks: int = 4,
    window: int = 256,
    text: Path | None = None,
    tokens: int = 2048,
    options: Options = OPTIONS,
) -> None:
    """Loss on a long text when the cache keeps everything, a window, or the first few tokens and a window.

    Parameters
    ----------
    sinks
        First tokens that the cache keeps.
    window
        Latest tokens that it keeps.
    text
        A UTF-8 file; the package's own prose by default.
    tokens
        Tokens of the text at most.
    options
        Model, and where the run goes.

    """
    from circuitome.cli import show
    from circuitome.runs.stream import StreamSpec, run_stream

    spec = StreamSpec(sinks=sinks, window=window, text=str(text) if text else None, tokens=tokens, **options.spec())
    spec.check()
    folder = folder_of(options, spec.folder_name("stream"))
    with show.progress() as progress:
        run = run_stream(spec, progress)
    finish(run, folder, options.as_json)


def _numbers(option: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """Numbers between commas. Raises `InputError` for what is none."""
    try:
        return tuple(int(part) if whole else float(part) for part in names(text))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{option} takes {kind} with commas between, got {text!r}.") from None
