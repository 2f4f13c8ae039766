"""Induction heads: which heads are some, how much the model learns in context, and what of that goes without them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.batches import memory_budget
from circuitome.engine.frozen_attention import frozen_patterns
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.heads.atlas.all_heads import one_pass
from circuitome.heads.atlas.copying import COPYING
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.atlas.patterns import PATTERNS, chance_levels, chunks, in_chunks
from circuitome.heads.atlas.repeated import Repeated, reads_text, repeated_tokens, usual_period
from circuitome.heads.long_context.needles import own_text
from circuitome.heads.long_context.sinks import pieces
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.results import Estimate, mean
from circuitome.weights.folding import outputs_are_tokens

LENGTH = 128
"""Tokens of a piece of text, at most."""
UNIT = "nats a token"


@dataclass(frozen=True, eq=False)
class Losses:
    """What the model loses on every token, whole or with some heads switched off."""

    heads: tuple[str, ...]
    """Heads whose output is zero, every pattern as in the whole model; none for the whole model."""
    repeated: Float[Tensor, "n pos"]
    """On repeated tokens, nats: column t is the loss of token t + 1 given those before."""
    text: Float[Tensor, "pieces text_pos"] | None
    """The same on pieces of text; None where there is none."""


@dataclass(frozen=True, eq=False)
class Induction:
    """Scores of induction, and what switching off the strongest heads costs beside as many others."""

    prefix: HeadScore
    """Prefix matching of every head: attention to tokens behind earlier copies of the same token."""
    copying: HeadScore | None
    """What every head adds to the logits of tokens it attends to; None where outputs are no tokens."""
    layout: Repeated
    """The repeated sequences."""
    whole: Losses
    """The model as it is."""
    without: Losses
    """Without the heads of the strongest prefix matching."""
    random: tuple[Losses, ...]
    """Without as many heads drawn from all others, draw by draw."""

    @property
    def runs(self) -> tuple[Losses, ...]:
        """The whole model, the one without the strongest heads, and those without random ones."""
        return self.whole, self.without, *self.random

    @property
    def first_half(self) -> Estimate:
        """Mean loss in the first repeat, its first token left out, in nats a token."""
        return mean(early_repeat(self.whole, self.layout), UNIT)

    @property
    def second_half(self) -> Estimate:
        """Mean loss in later repeats, the first token of each left out: nothing tells that they begin."""
        return mean(late_repeats(self.whole, self.layout), UNIT)

    @property
    def advantage(self) -> Estimate:
        """Loss of the first repeat minus that of later ones: what repetition is worth."""
        return mean(early_repeat(self.whole, self.layout) - late_repeats(self.whole, self.layout), UNIT)

    @property
    def in_context(self) -> Estimate | None:
        """In-context-learning score on text: loss late in a piece minus loss early; negative where context helps."""
        return None if self.whole.text is None else mean(context_score(self.whole.text), UNIT)

    def loss_rise(self, part: str = "without") -> Estimate:
        """Rise of the loss in later repeats: `without` the strongest heads, without `random` ones, or the `difference`.

        Random ones are averaged over draws on each sequence; intervals are over sequences, pairs kept together.
        """
        return _rise(part, *(late_repeats(losses, self.layout) for losses in self.runs))

    def context_score_rise(self, part: str = "without") -> Estimate | None:
        """The same for the in-context-learning score on text; None where there is no text."""
        scores = [context_score(losses.text) for losses in self.runs if losses.text is not None]
        return _rise(part, *scores) if scores else None

    def to_dict(self) -> dict[str, Any]:
        """All numbers but single samples, as plain JSON values."""
        context_rises = {part: rise.to_dict() for part in PARTS if (rise := self.context_score_rise(part))}
        whole, without, *random = (losses.repeated.mean(0) for losses in self.runs)
        return {
            "heads": list(self.without.heads),
            "random_heads": [list(losses.heads) for losses in self.random],
            "sequences": len(self.whole.repeated),
            "period": self.layout.period,
            "repeats": self.layout.repeats,
            "pieces": 0 if self.whole.text is None else len(self.whole.text),
            "prefix": self.prefix.to_dict(),
            "copying": self.copying.to_dict() if self.copying else None,
            **{name: getattr(self, name).to_dict() for name in ("first_half", "second_half", "advantage")},
            "in_context": self.in_context.to_dict() if self.in_context else None,
            "effects": {part: self.loss_rise(part).to_dict() for part in PARTS},
            "context_effects": context_rises,
            "loss_by_position": {
                "whole": whole.tolist(),
                "without": without.tolist(),
                "random": torch.stack(random).mean(0).tolist(),
            },
        }


PARTS = ("without", "random", "difference")


@method
def induction(
    setting: Setting, *, n: int = 8, period: int | None = None, k: int = 5, draws: int = 3, text: str | None = None
) -> Induction:
    """Prefix matching and copying of every head, in-context learning, and both without the `k` strongest heads.

    Scores and losses are of `n` sequences of `period` random tokens said twice. In-context learning is also measured on
    pieces of `text` (the package's own by default) of up to 128 tokens: mean loss over the last tenth of a piece minus
    that around its first tenth (from 1/20 to 3/20), where Olsson et al. take tokens 500 and 50 of 512; pieces of less
    context and means over several tokens, as our pieces are short and few. Models that read no words skip it.
    Switching off keeps every attention pattern as it is in the whole model and sets the head's output to zero;
    `draws` sets of `k` other heads show what that alone does.
    Raises `InputError` for numbers that cannot be, `UnsupportedModelError` for a model without attention probabilities.
    Source: Olsson et al. 2022, arXiv:2209.11895, arguments 1 to 3.

    >>> found = cm.heads.induction(cm.load("known-induction"), n=3, k=1)
    >>> found.without.heads, round(found.loss_rise().value, 2)  # nats a token
    (('a1.h0',), 2.83)
    """
    model, seed = setting.model, setting.seed
    model.check_sums("Losses of next tokens")
    heads = model.graph.n_layers * model.graph.n_heads
    if not 1 <= k <= heads // 2:
        raise InputError(
            f"k is the number of heads to switch off and must be from 1 to {heads // 2}, half of the {heads} heads of "
            f"{model.name}; got {k}."
        )
    if draws < 1:
        raise InputError(f"draws is the number of random sets of heads and must be at least 1, got {draws}.")
    layout = repeated_tokens(model, n=n, period=usual_period(model) if period is None else period, seed=seed)
    prefix, copying = _scores(setting, layout)
    strongest = prefix.mean.flatten().argsort(descending=True, stable=True).tolist()
    sets = [strongest[:k], *_draws(strongest[k:], k, draws, seed)]
    texts = _texts(model, text)
    batches = _memory_chunks(setting, layout.inputs)
    n_repeated = len(batches)
    batches += _memory_chunks(setting, texts)
    tell = setting.tell("batches with heads switched off")
    parts: list[list[Tensor]] = []
    for done, inputs in enumerate(batches, 1):
        parts.append(losses_without(model, inputs, [_keep(model, heads) for heads in sets]))
        tell(done, len(batches))
    names = [(), *(tuple(str(Node.head(*divmod(i, model.graph.n_heads))) for i in heads) for heads in sets)]
    whole, without, *random = (
        Losses(
            heads,
            torch.cat([part[i] for part in parts[:n_repeated]]),
            _joined([part[i] for part in parts[n_repeated:]]),
        )
        for i, heads in enumerate(names)
    )
    return Induction(prefix, copying, layout, whole, without, tuple(random))


def losses_without(
    model: Model, inputs: Inputs, keeps: Sequence[Float[Tensor, "layer head"]]
) -> list[Float[Tensor, "batch pos"]]:
    """Loss of every token but the first: of the whole model, then with each of `keeps` and the whole's patterns."""
    patterns: list[Tensor] = []
    with torch.no_grad():
        with model.watching_attention(lambda layer, pattern: patterns.append(pattern)):
            losses = [_losses(model, inputs)]
        for keep in keeps:
            with frozen_patterns(model, patterns, keep):
                losses.append(_losses(model, inputs))
    return losses


def early_repeat(losses: Losses, layout: Repeated) -> Float[Tensor, " n"]:
    """Mean loss of each sequence over the first repeat but its first token."""
    start = layout.front
    return losses.repeated[:, start : start + layout.period - 1].mean(1)


def late_repeats(losses: Losses, layout: Repeated) -> Float[Tensor, " n"]:
    """Mean loss of each sequence over later repeats but the first token of each."""
    place = torch.arange(1, layout.length) - layout.front
    return losses.repeated[:, (place >= layout.period) & (place % layout.period > 0)].mean(1)


def context_score(losses: Float[Tensor, "pieces pos"]) -> Float[Tensor, " pieces"]:
    """Mean loss over the last tenth minus that from 1/20 to 3/20 of the positions, piece by piece."""
    size = losses.shape[1]
    early = losses[:, size // 20 : max(size // 20 + 1, 3 * size // 20)].mean(1)
    return losses[:, -max(1, size // 10) :].mean(1) - early


def _rise(part: str, whole: Tensor, without: Tensor, *random: Tensor) -> Estimate:
    control = torch.stack(random).mean(0)
    values = {"without": without - whole, "random": control - whole, "difference": without - control}
    return mean(values[part], UNIT)


def _scores(setting: Setting, layout: Repeated) -> tuple[HeadScore, HeadScore | None]:
    model = setting.model
    samples, chance = in_chunks(setting, layout, one_pass), chance_levels(layout, model.causal)["induction"]
    prefix = HeadScore.of("induction", *PATTERNS["induction"], samples["induction"], chance)
    if not outputs_are_tokens(model):
        return prefix, None
    return prefix, HeadScore.of("copying", *COPYING["copying"], samples["copying"], 0.0)


def _draws(others: list[int], k: int, draws: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[others[i] for i in torch.randperm(len(others), generator=generator)[:k].tolist()] for _ in range(draws)]


def _keep(model: Model, heads: Sequence[int]) -> Float[Tensor, "layer head"]:
    keep = torch.ones(model.graph.n_layers, model.graph.n_heads)
    keep.view(-1)[list(heads)] = 0
    return keep


def _losses(model: Model, inputs: Inputs) -> Float[Tensor, "batch pos"]:
    logits = model.every_logits(inputs)[:, :-1].float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), inputs.ids[:, 1:], reduction="none").cpu()


def _memory_chunks(setting: Setting, inputs: Inputs | None) -> list[Inputs]:
    """Parts of a batch with room for all logits beside what a pass takes."""
    if inputs is None:
        return []
    budget = memory_budget(setting.model, setting.max_memory)
    return chunks(setting.but(max_memory=budget // 3), inputs)


def _texts(model: Model, text: str | None) -> Inputs | None:
    """Text cut into equally long pieces, each behind what the tokenizer puts in front; None without any.

    Raises `InputError` for a text too short for one piece.
    """
    if text is None and not reads_text(model):
        return None
    limit = model.positions or LENGTH
    tokens = model.encode_answer(own_text() if text is None else text)
    return Inputs.whole(pieces(model, tokens, min(LENGTH, limit)).to(model.device))


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(parts)) if parts else None
