"""Trainings worth watching, put together from a few choices: which model, what it reads, what is suppressed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitome.dynamics.development import Development, develop
from circuitome.dynamics.grammar import grammar_pairs, grammar_trees
from circuitome.dynamics.grammar_stream import GrammarStream
from circuitome.dynamics.interventions import AttentionPenalty, Marks, behind_copies, keeping_largest, previous_token
from circuitome.dynamics.measures import Measures
from circuitome.dynamics.small_models import MASK, grammar_tokenizer, small_model
from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model
from circuitome.progress import Progress, silent
from circuitome.training.fresh import vocabulary
from circuitome.training.objectives import Objective, masked_token, next_token
from circuitome.training.schedule import Schedule
from circuitome.training.streams import MaskedStream, MixedStream, RepeatedStream, Stream, text_stream

DATA = ("text", "grammar")
"""What is read: texts with repeated random tokens between them, or sentences of the grammar."""
MARKED = ("previous", "induction", "arcs")
"""Attention that can be suppressed or encouraged: to the token before, behind earlier copies, along arcs of trees."""
VOCABULARY = 512
"""Tokens of a vocabulary that is learned from texts: with more, random ones are seen too seldom to be learned soon."""
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

    def develop(self, folder: str | Path | None = None, *, progress: Progress = silent, **options: Any) -> Development:
        """The training, watched; `folder` and options are those of `develop`."""
        return develop(
            self.model,
            self.data,
            self.schedule,
            self.measures,
            objective=self.objective,
            after_step=self.after_step,
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
    texts: Sequence[str] | None = None,
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
    device: str | None = None,
    seed: int = 0,
) -> Recipe:
    """A training of a `small_model`, and the measures that suit it.

    With `data` "text", a share `repeated` of the rows are random tokens of the whole vocabulary that are said again
    after 12 tokens to half a row, the others are `texts` (the Python language reference unless given), whose end is
    held out. With "grammar" every row is a sentence of `grammar_trees`, never the same, and syntax is measured. A
    masked language model predicts a share `hidden` of the tokens. The attention of a kind in `MARKED` can be suppressed
    or encouraged with a `strength`, up to step `until` (None: always); `kept_weights` below 1 keeps that share of each
    weight matrix after each step.

    >>> small = cm.dynamics.recipe(data="grammar", kind="masked", steps=2, batch=4, suppress="arcs")
    >>> small.model, small.objective.strength
    (Model(BertForMaskedLM, bert, 46 edges, torch.float32), 1.0)

    Raises `UnknownNameError` for a name that there is not, `InputError` for choices that do not go together.
    """
    _check(data, suppress, encourage, hidden)
    schedule = Schedule(steps=steps, batch=batch, length=length, learning_rate=learning_rate, seed=seed)
    whole = "\n\n".join(texts) if texts is not None else python_reference()
    tokenizer = grammar_tokenizer() if data == "grammar" else _tokenizer(whole)
    model = small_model(kind, tokenizer, layers=layers, heads=heads, width=width, length=length, seed=seed)
    model.hf.to(device or model.device)  # type: ignore[arg-type]  # transformers' decorator hides that devices are taken
    tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    streams = _of_grammar(model) if data == "grammar" else _of_text(model, whole, repeated, tokens)
    prediction = masked_token if model.masked else next_token
    objective: Objective = prediction
    if marked := suppress or encourage:
        objective = AttentionPenalty(_marks(marked, streams[0]), strength if suppress else -strength, until, prediction)
    reads, held_out = (_masked(stream, tokenizer, hidden) if model.masked else stream for stream in streams)
    syntax = _held_out_syntax() if data == "grammar" else {}
    measures = Measures.of(model, held_out, length=length, tokens=tokens, seed=seed + HELD_SEED, **syntax)
    after = (keeping_largest(kept_weights),) if kept_weights < 1 else ()
    return Recipe(model=model, data=reads, schedule=schedule, measures=measures, objective=objective, after_step=after)


def _held_out_syntax() -> dict[str, Any]:
    """Sentences with trees, and minimal pairs, that no training of the grammar has seen."""
    return {"trees": grammar_trees(TREES, seed=HELD_SEED), "pairs": grammar_pairs(PAIRS, seed=HELD_SEED)}


def _check(data: str, suppress: str, encourage: str, hidden: float) -> None:
    """Raises `UnknownNameError` and `InputError`."""
    for what, name, known in (("kind of data", data, DATA), ("kind of attention", suppress or encourage, MARKED)):
        if name and name not in known:
            raise unknown_name(what, name, known)
    if not 0 < hidden <= 1:
        raise InputError(f"The share of tokens that are predicted must be above 0 and at most 1, got {hidden}.")
    if suppress and encourage:
        raise InputError("Attention is suppressed or encouraged; give one of the two.")
    if "arcs" in (suppress, encourage) and data != "grammar":
        raise InputError("Arcs are known for sentences of the grammar only. Use data grammar.")


def _marks(marked: str, stream: Stream) -> Marks:
    """The pairs of positions that attention of a kind in `MARKED` is between; arcs are those of the stream."""
    if marked == "arcs":
        assert isinstance(stream, GrammarStream)
        return stream.arcs
    return previous_token if marked == "previous" else behind_copies


def _tokenizer(text: str) -> PreTrainedTokenizerBase:
    tokenizer = vocabulary(text, VOCABULARY)
    tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def _of_grammar(model: Model) -> tuple[Stream, Stream]:
    return GrammarStream(model), GrammarStream(model)


def _of_text(model: Model, text: str, repeated: float, tokens: Sequence[int]) -> tuple[Stream, Stream]:
    """What is trained on, and what is held out: the text's end, and repeated tokens of other seeds."""
    if not 0 <= repeated <= 1:
        raise InputError(f"The share of repeated rows must be from 0 to 1, got {repeated}.")
    cut = round(len(text) * (1 - HELD_OUT))
    again = RepeatedStream(torch.tensor(tokens), shortest=12)
    parts = [
        [(stream, share) for stream, share in ((again, repeated), (text_stream(model, some), 1 - repeated)) if share]
        for some in (text[:cut], text[cut:])
    ]
    return MixedStream(parts[0]), MixedStream(parts[1])


def _masked(stream: Stream, tokenizer: PreTrainedTokenizerBase, share: float) -> MaskedStream:
    token: Any = tokenizer.mask_token_id
    return MaskedStream(stream, token, len(tokenizer), share=share, kept=tuple(tokenizer.all_special_ids))
