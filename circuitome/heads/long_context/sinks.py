"""Attention sinks: how much of a head's attention on real text goes to the first few tokens, whatever they are.

Source: Xiao et al. 2023, arXiv:2309.17453, section 3.1, which shows maps; the number is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.results import Estimate, mean

FIRST = (1, 4)
"""How many first tokens are taken together."""
ROWS = 4
"""Texts of a pass: one layer's patterns of so many are held at a time."""


@dataclass(frozen=True, eq=False)
class SinkMass:
    """Attention to the first tokens, text by text."""

    first: tuple[int, ...]
    """Numbers of first tokens."""
    start: int
    """First query that counts: earlier ones have hardly anything else to attend to."""
    samples: Float[Tensor, "first texts layer head"]
    """Mean over queries q >= start of the sum of A[q, j] over j < k; 0 to 1."""
    uniform: Float[Tensor, " first"]
    """The same for a head that attends evenly to all that came before: mean of k / (q + 1)."""

    @cached_property
    def mean(self) -> Float[Tensor, "first layer head"]:
        """Mean over texts."""
        return self.samples.mean(1)

    def layer(self, index: int, layer: int) -> Estimate:
        """Mean over the heads of a layer for `first[index]`, with its interval over texts."""
        return mean(self.samples[index, :, layer].mean(-1), "share of attention")

    def share_above(self, threshold: float = 0.3) -> float:
        """Share of heads that give at least `threshold` to the first token or tokens (the smallest of `first`)."""
        return float((self.mean[0] >= threshold).float().mean())


@method
def sink_mass(
    setting: Setting, ids: Int[Tensor, "text pos"], *, first: Sequence[int] = FIRST, start: int | None = None
) -> SinkMass:
    """Sink mass of every head over texts of equal length; `start` is the largest of `first` unless given.

    The mean over queries q >= start of the sum over j < k of A[q, j], a share of attention from 0 to 1, for every k of
    `first`: [first, texts, layer, head], float32.
    Patterns are looked at block by block and never kept. Raises `InputError` for texts too short for `first`,
    `UnsupportedModelError` for a model without attention weights.
    Source: Xiao et al. 2023, arXiv:2309.17453, section 3.1, which shows maps; the number is ours.

    >>> cm.sink_mass(cm.load("known-induction"), torch.arange(1, 17)[None], first=(1, 4)).samples.shape
    torch.Size([2, 1, 2, 3])
    """
    model, tell = setting.model, setting.tell("attention to the first tokens")
    start = max(first, default=0) if start is None else start
    texts, length = ids.shape
    if not first or min(first) < 1 or start < max(first):
        raise InputError(f"first holds numbers of tokens from 1 up to start = {start}, got {list(first)}.")
    if not texts or length <= start:
        raise InputError(
            f"Sink mass needs a text of more than {start} tokens, where queries begin; got {texts} texts of {length}."
        )
    queries = torch.arange(start, length, device=model.device)
    uniform = torch.stack([(k / (queries + 1.0)).mean() for k in first]).cpu()
    samples = torch.zeros(len(first), texts, len(model.blocks), model.heads.q)
    for row in range(0, texts, ROWS):
        some = ids[row : row + ROWS].to(model.device)

        def note_mass(layer: int, pattern: Tensor, rows: slice = slice(row, row + ROWS)) -> None:
            for index, k in enumerate(first):
                mass = pattern[:, :, start:, :k].float().sum(-1).mean(-1)
                samples[index, rows, layer] = mass.cpu()

        with torch.no_grad(), model.watching_attention(note_mass):
            model.logits(Inputs.whole(some))
        tell(min(row + ROWS, texts), texts)
    return SinkMass(tuple(first), start, samples, uniform)


def pieces(model: Model, tokens: Sequence[int], length: int, most: int | None = None) -> Int[Tensor, "text pos"]:
    """Stretches of a text, `length` tokens each with those that the tokenizer puts in front; `most` of them, or all.

    `tokens` are without special tokens. Raises `InputError` where there is not even one.
    """
    begin = model.encode("")
    step = length - len(begin)
    if step < 1 or len(tokens) < step:
        raise InputError(
            f"The text has {len(tokens):,} tokens; one piece of {length} needs {max(step, 1):,}. "
            "Give a longer text, or shorter pieces."
        )
    count = len(tokens) // step if most is None else min(most, len(tokens) // step)
    return torch.tensor([[*begin, *tokens[i * step : (i + 1) * step]] for i in range(count)])
