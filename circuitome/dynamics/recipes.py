"""Trainings worth watching, put together from a few choices: which model, what it reads, what is suppressed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitome.dynamics.development import Development, develop
from circuitome.dynamics.freezing import Freezing
from circuitome.dynamics.grammar import grammar_pairs, grammar_trees
from circuitome.dynamics.grammar_stream import GrammarStream
from circuitome.dynamics.interventions import AttentionPenalty, Marks, behind_copies, keeping_largest, previous_token
from circuitome.dynamics.measures import Measures
from circuitome.dynamics.small_models import MASK, grammar_tokenizer, small_model
from circuitome.dynamics.small_tasks import watched_tasks
from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model
from circuitome.progress import Progress, silent
from circuitome.training.fresh import END, vocabulary
from circuitome.training.objectives import Objective, masked_token, next_token
from circuitome.training.schedule import Schedule
from circuitome.training.streams import MaskedStream, MixedStream, RepeatedStream, Stream, token_stream

DATA = ("text", "grammar")
"""What is read: texts with repeated random tokens between them, or sentences of the grammar."""
MARKED = ("previous", "induction", "arcs")
"""Attention that can be suppressed or encouraged: to the token before, behind earlier copies, along arcs of trees."""
VOCABULARY = 512
"""Tokens of a vocabulary that is learned from texts: with more, random ones are seen too seldom to be learned soon."""
SHORTEST = 6
"""Tokens of a row, at least."""
HELD_OUT = 0.05
"""Share of the text, its end, that is not trained on."""
TREES, PAIRS, HELD_SEED = 150, 20, 1_000_003
"""Sentences and pairs of each rule that are measured, and what sets their seed apart from that of training."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training that is ready to begin."""

    model: Model
    """The untrained model."""
    data: Stream
    """What it reads."""
    schedule: Schedule
    """For how long, and in which steps."""
    measures: Measures
    """What is measured of it."""
    objective: Objective
    """What it makes smaller."""
    after_step: tuple[Callable[[Model, int], None], ...] = ()
    """Changes of the weights after each step."""
    freezing: Freezing | None = None
    """Heads that are frozen on the way."""

    def develop(self, folder: str | Path | None = None, *, progress: Progress = silent, **options: Any) -> Development:
        """The training, watched; `folder` and options are those of `develop`."""
        return develop(
            self.model,
            self.data,
            self.schedule,
            self.measures,
            objective=self.objective,
            before_step=() if self.freezing is None else (self.freezing.before,),
            after_step=self.after_step if self.freezing is None else (*self.after_step, self.freezing.after),
            folder=folder,
            progress=progress,
            **options,
        )


def python_reference() -> str:
    """The language reference that comes with every Python, 100,000 words of plain text (PSF licence).

    >>> "for" in cm.dynamics.python_reference()
    True
    """
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def recipe(
    *,
    kind: str = "attention",
    layers: int = 2,
    heads: int = 2,
    width: int = 64,
    data: str = "text",
    texts: Iterable[str] | None = None,
    repeated: float = 0.75,
    hidden: float = 0.15,
    steps: int = 2000,
    batch: int = 32,
    length: int = 48,
    learning_rate: float = 3e-3,
    suppress: str = "",
    encourage: str = "",
    strength: float = 1.0,
    until: int | None = None,
    kept_weights: float = 1.0,
    freeze: Freezing | None = None,
    tasks: Sequence[str] = (),
    device: str | None = None,
    seed: int = 0,
) -> Recipe:
    """A training of a `small_model`, and the measures that suit it.

    With `data` "text", a share `repeated` of the rows are random tokens of the whole vocabulary that are said again
    after 12 tokens to half a row, the others are `texts` (the Python language reference unless given), whose end is
    held out. With "grammar" every row is a sentence of `grammar_trees`, never the same, and syntax is measured. A
    masked language model predicts a share `hidden` of the tokens. The attention of a kind in `MARKED` can be suppressed
    or encouraged with a `strength`, up to step `until` (None: always); `kept_weights` below 1 keeps that share of each
    weight matrix after each step; `freeze` says which heads stop learning; circuits of `watched_tasks` are looked for.

    >>> small = cm.dynamics.recipe(data="grammar", kind="masked", steps=2, batch=4, suppress="arcs")
    >>> small.model, small.objective.strength
    (Model(BertForMaskedLM, bert, 46 edges, torch.float32), 1.0)

    Raises `UnknownNameError` and `InputError` for choices that there are not, or that do not go together.
    """
    read = _read(data, texts, length, repeated, hidden)
    _check_attention(data, suppress, encourage, strength, until, steps)
    tokenizer = grammar_tokenizer() if data == "grammar" else _vocabulary(read)
    model = small_model(kind, tokenizer, layers=layers, heads=heads, width=width, length=length, seed=seed)
    model.hf.to(device or model.device)  # type: ignore[arg-type]  # transformers' decorator hides that devices are taken
    tokens = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    streams = _of_grammar(model) if data == "grammar" else _of_text(model, read, repeated, tokens)
    reads, held_out = (_masked(stream, tokenizer, hidden) if model.masked else stream for stream in streams)
    drawn = watched_tasks(model, tasks, seed=seed, tokens=tokens)
    measures = Measures.of(
        model, held_out, length=length, tasks=drawn, tokens=tokens, seed=seed + HELD_SEED, **_syntax(data)
    )
    return Recipe(
        model=model,
        data=reads,
        schedule=Schedule(steps=steps, batch=batch, length=length, learning_rate=learning_rate, seed=seed),
        measures=measures,
        objective=_objective(model, streams[0], suppress or encourage, strength if suppress else -strength, until),
        after_step=() if kept_weights == 1 else (keeping_largest(kept_weights),),
        freezing=None if freeze is None else replace(freeze, repeated=measures.repeated),
    )


def _read(data: str, texts: Iterable[str] | None, length: int, repeated: float, hidden: float) -> Iterable[str]:
    """The texts that are read, once the choices are possible. Raises `UnknownNameError` and `InputError`."""
    if data not in DATA:
        raise unknown_name("kind of data", data, DATA)
    if data == "grammar" and texts is not None:
        raise InputError("With data grammar no texts are read: sentences are drawn. Leave texts out, or use data text.")
    if length < SHORTEST:
        raise InputError(
            f"Rows have at least {SHORTEST} tokens, two times the three that are said again, got {length}."
        )
    if not 0 <= repeated <= 1:
        raise InputError(f"The share of repeated rows must be from 0 to 1, got {repeated}.")
    if not 0 < hidden <= 1:
        raise InputError(f"The share of tokens that are predicted must be above 0 and at most 1, got {hidden}.")
    return [python_reference()] if texts is None else texts


def _check_attention(data: str, suppress: str, encourage: str, strength: float, until: int | None, steps: int) -> None:
    """Raises `UnknownNameError` and `InputError`."""
    for name in filter(None, (suppress, encourage)):
        if name not in MARKED:
            raise unknown_name("kind of attention", name, MARKED)
    if suppress and encourage:
        raise InputError("Attention is suppressed or encouraged; give one of the two.")
    if "arcs" in (suppress, encourage) and data != "grammar":
        raise InputError("Arcs are known for sentences of the grammar only. Use data grammar.")
    if not 0 < strength < float("inf"):
        raise InputError(
            f"The strength must be above 0, got {strength}. To turn its effect round, encourage attention."
        )
    if until is not None and not (suppress or encourage):
        raise InputError(f"Nothing is released after step {until}: no attention is suppressed or encouraged.")
    if until is not None and not 0 < until < steps:
        raise InputError(
            f"Attention cannot be released after step {until} of {steps}. Give a step between, or none to never do it."
        )


def _syntax(data: str) -> dict[str, Any]:
    """Sentences with trees and minimal pairs where the grammar is read."""
    if data != "grammar":
        return {}
    return {"trees": grammar_trees(TREES, seed=HELD_SEED), "pairs": grammar_pairs(PAIRS, seed=HELD_SEED)}


def _objective(model: Model, stream: Stream, marked: str, strength: float, until: int | None) -> Objective:
    """Prediction, and a term on attention of a kind in `MARKED` if any."""
    prediction = masked_token if model.masked else next_token
    return AttentionPenalty(_marks(marked, stream), strength, until, prediction) if marked else prediction


def _marks(marked: str, stream: Stream) -> Marks:
    """The pairs of positions that attention of a kind in `MARKED` is between; arcs are those of the stream."""
    if marked == "arcs":
        assert isinstance(stream, GrammarStream)
        return stream.arcs
    return previous_token if marked == "previous" else behind_copies


def _vocabulary(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer that is learned from texts."""
    tokenizer = vocabulary(pieces(texts), VOCABULARY)
    tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def pieces(texts: Iterable[str]) -> Iterator[str]:
    r"""The texts with an empty line between any two, in pieces that have the tokens of the whole, one at a time.

    White space at the end of a piece goes to the next: a token of `vocabulary` may begin with it, and none reaches into
    it from before.

    >>> from circuitome.dynamics.recipes import pieces
    >>> list(pieces(["One. \n", "Two."]))
    ['One.', ' \n\n\nTwo.']
    """
    space = ""
    for i, text in enumerate(texts):
        whole = space + ("\n\n" if i else "") + text
        piece = whole.rstrip()
        space = whole[len(piece) :]
        if piece:
            yield piece
    if space:
        yield space


def _of_grammar(model: Model) -> tuple[Stream, Stream]:
    return GrammarStream(model), GrammarStream(model)


def _of_text(model: Model, texts: Iterable[str], repeated: float, tokens: Sequence[int]) -> tuple[Stream, Stream]:
    """What is trained on, and what is held out: the text's end, and repeated tokens of other seeds."""
    count = sum(map(len, pieces(texts)))
    cut, again = round(count * (1 - HELD_OUT)), RepeatedStream(torch.tensor(tokens), shortest=12)
    parts = [
        [
            (stream, share)
            for stream, share in ((again, repeated), (_stretch(model, texts, *ends), 1 - repeated))
            if share
        ]
        for ends in ((0, cut), (cut, count))
    ]
    return MixedStream(parts[0]), MixedStream(parts[1])


def _stretch(model: Model, texts: Iterable[str], start: int, stop: int) -> Stream:
    """The characters of all texts from `start` to `stop` as one text that ends there."""

    def ids() -> Iterator[list[int]]:
        at = 0
        for piece in pieces(texts):
            yield model.encode(piece[max(0, start - at) : max(0, stop - at)])
            at += len(piece)
        yield model.encode(END)

    return token_stream(ids())


def _masked(stream: Stream, tokenizer: PreTrainedTokenizerBase, share: float) -> MaskedStream:
    token: Any = tokenizer.mask_token_id
    return MaskedStream(stream, token, len(tokenizer), share=share, kept=tuple(tokenizer.all_special_ids))
