"""Choices of training data that are compared, each as streams on the same token budget, with what is watched.

Three questions, one function each: questions and answers behind documents (`instruction_streams`), repeated patterns
added or taken away (`pattern_streams`), texts that agree with a circuit (`selection_streams`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from circuitome.applications import instructions
from circuitome.applications.rankings import metrics
from circuitome.applications.text_choice import agreement, chosen_windows, induction_gain, repetition
from circuitome.engine.setting import Setting
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows, packed
from circuitome.tasks.task import Task
from circuitome.training.fresh import untrained
from circuitome.training.loop import Watch
from circuitome.training.objectives import mean_loss
from circuitome.training.streams import MixedStream, RepeatedStream, Stream, TextStream, text_stream


@dataclass(frozen=True, eq=False)
class Choices:
    """Streams that differ in the choice of data, the first of which is the one that others are compared with."""

    streams: Mapping[str, Stream]
    """By name."""
    watch: Sequence[Watch]
    """What is measured on the way."""
    measures: Mapping[str, str]
    """Names of what `watch` gives, and their units."""
    begin: Callable[[int], Model]
    """From a seed to the model that is trained."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers about the streams."""


def small_model(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, seed: int = 0, device: Any = None
) -> Model:
    """An untrained Llama of so many blocks and that width, heads 32 wide, embeddings tied.

    >>> tokenizer = cm.training.vocabulary("the cat sat on the mat", size=270)
    >>> cm.applications.data_choices.small_model(tokenizer, layers=1, width=32).graph.n_heads
    1
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return untrained(config, seed=seed, tokenizer=tokenizer, device=device)


def held_out(stream: TextStream, length: int, batches: int = 4) -> Watch:
    """The loss on the first rows of a stream, as `held_out`."""
    rows = max(1, min(16, len(stream.ids) // length))
    return lambda model: {"held_out": mean_loss(model, stream, batches=batches, rows=rows, length=length)}


def instruction_streams(
    tokenizer: PreTrainedTokenizerFast,
    begin: Callable[[int], Model],
    *,
    documents: int = 20_000,
    share: float = 0.5,
    length: int = 128,
) -> Choices:
    """Made documents alone, a share of them with questions and answers, and the control: another document's questions.

    Watched: the loss on held-out documents without questions, the share of right answers to questions behind these
    documents, and `induction_gain`. `facts["plain_share"]` is the share of each stream's tokens that are documents, by
    which losses at equal plain tokens are found.

    >>> made = cm.applications.instructions
    >>> tokenizer = cm.training.vocabulary(made.corpus(made.documents(20), "augmented"), size=300)
    >>> begin = lambda seed: cm.applications.data_choices.small_model(tokenizer, layers=1, width=32, seed=seed)
    >>> choices = cm.applications.data_choices.instruction_streams(tokenizer, begin, documents=40)
    >>> list(choices.streams), choices.facts["plain_share"]["plain"]
    (['plain', 'augmented', 'shuffled'], 1.0)
    """
    made, others = instructions.documents(documents, seed=0), instructions.documents(100, seed=1)
    first = begin(0)
    streams = {kind: text_stream(first, instructions.corpus(made, kind, share)) for kind in instructions.KINDS}
    held = text_stream(first, [document.text for document in others])
    tokens = {kind: len(stream.ids) for kind, stream in streams.items()}
    watch: list[Watch] = [
        held_out(held, length),
        lambda model: {"answers": instructions.answer_accuracy(model, others[:50])},
        lambda model: {"induction": induction_gain(model, length=length)},
    ]
    measures = {"held_out": "nats a token", "answers": "share", "induction": "nats a token"}
    facts = {"plain_share": {kind: tokens["plain"] / count for kind, count in tokens.items()}}
    return Choices(streams, watch, measures, begin, facts)


def pattern_streams(
    train: TextStream, held: TextStream, begin: Callable[[int], Model], *, added: float = 0.1, length: int = 128
) -> Choices:
    """Texts, texts with rows of random tokens that come twice, texts without those that repeat themselves most.

    The last is the two thirds of the rows with the smallest `repetition`, beside as many rows at random. Watched: the
    loss on held-out texts, and `induction_gain`.
    """
    rows = train.ids[: len(train.ids) // length * length].view(-1, length)
    share = repetition(packed(rows.tolist()))
    kept = {which: chosen_windows(share, which, 2 / 3) for which in ("bottom", "random")}
    drawn = RepeatedStream(torch.arange(1, begin(0).hf.config.vocab_size), shortest=8)
    streams: dict[str, Stream] = {
        "texts": train,
        f"texts and {added:.0%} repeated": MixedStream([(train, 1 - added), (drawn, added)]),
        "the less repeated two thirds": TextStream(rows[kept["bottom"]].flatten()),
        "two thirds at random": TextStream(rows[kept["random"]].flatten()),
    }
    watch: list[Watch] = [held_out(held, length), lambda model: {"induction": induction_gain(model, length=length)}]
    facts = {"repeated_share": {which: float(share[index].mean()) for which, index in kept.items()}}
    return Choices(streams, watch, {"held_out": "nats a token", "induction": "nats a token"}, begin, facts)


def gap(model: Model, task: Task) -> float:
    """The mean metric of the clean prompts minus that of the corrupted ones."""
    clean, corrupted = metrics(Setting(model, task))
    return float((clean - corrupted).mean())


def selection_streams(
    setting: Setting,
    texts: Windows,
    held: TextStream,
    begin: Callable[[int], Model],
    *,
    circuit: Circuit | None,
    measured: Task,
    share: float = 0.2,
    values: torch.Tensor | None = None,
) -> Choices:
    """Of `texts`, those that agree most with the task's circuit (`agreement`), those that agree least, and any.

    Watched: the loss on held-out texts, and the gap of `measured`, other prompts of the task.
    """
    found = agreement(setting, texts, circuit=circuit) if values is None else values
    streams = {
        which: TextStream(texts.ids[chosen_windows(found, which, share, setting.seed)].flatten())
        for which in ("random", "top", "bottom")
    }
    watch: list[Watch] = [held_out(held, texts.length), lambda model: {"gap": gap(model, measured)}]
    facts = {"agreement": {"mean": float(found.mean()), "spread": float(found.std()), "windows": len(found)}}
    return Choices(streams, watch, {"held_out": "nats a token", "gap": measured.unit}, begin, facts)
