"""Retrieval heads: heads that look at the very token of the needle that the model is about to say.

At a step of greedy decoding a head copies if the key that its last query attends to most is a token of the needle and
that token is the one the model says. Source: Wu et al. 2024, arXiv:2404.15574, section 2; nightdessert/Retrieval_Head:
retrieval_head_detection.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.long_context.decoding import MaskedAttention, Prefilled, at_line_end, greedy, prefill
from circuitome.heads.long_context.needles import DEPTHS, LENGTHS, Needle, NeedlePrompt, needle_prompts, recall
from circuitome.results import Estimate

STEPS = 24
"""Tokens of an answer at most."""
SUCCESS = 0.5
"""A run succeeds if more than this share of the answer's words was found."""
RETRIEVAL = 0.1
"""Score from which on a head is called a retrieval head."""
STRONG = 0.5
"""Score above which it is called strong."""


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """How much of the needle each head copied, run by run; GQA: one score per query head."""

    prompts: tuple[NeedlePrompt, ...]
    """The prompts."""
    answers: tuple[str, ...]
    """What the model said."""
    recall: Float[Tensor, " runs"]
    """ROUGE-1 recall of each answer."""
    samples: Float[Tensor, "runs layer head"]
    """The paper's score: different tokens of the needle that the head copied, as a share of all different ones."""
    hits: Float[Tensor, "runs layer head"]
    """The published code's score: steps at which the head copied, over tokens of the needle; can exceed 1."""

    @cached_property
    def success(self) -> Bool[Tensor, " runs"]:
        """Which runs answered: recall above one half."""
        return self.recall > SUCCESS

    @property
    def conditional(self) -> bool:
        """Whether means are over successful runs only, as published; with no success they are over all runs."""
        return bool(self.success.any())

    @property
    def counted(self) -> Bool[Tensor, " runs"]:
        """The runs that means are over."""
        return self.success if self.conditional else torch.ones_like(self.success)

    @cached_property
    def score(self) -> HeadScore:
        """The paper's score over the counted runs, as one that an atlas can hold; by chance a head copies nothing."""
        what = "tokens of a needle that the head copies while the model answers"
        return HeadScore.of("retrieval", what, "share of the needle's tokens", self.samples[self.counted], 0.0)

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean paper score over the counted runs."""
        return self.score.mean

    @cached_property
    def mean_hits(self) -> Float[Tensor, "layer head"]:
        """Mean code score over the counted runs."""
        return self.hits[self.counted].mean(0)

    @cached_property
    def frequency(self) -> Float[Tensor, "layer head"]:
        """Share of the counted runs in which the head copied at all."""
        return (self.hits[self.counted] > 0).float().mean(0)

    def heads(self, n: int) -> tuple[tuple[int, int], ...]:
        """The n (layer, head) with the highest mean, then the highest code score."""
        order = (self.mean.double() + 1e-6 * self.mean_hits.double()).flatten().argsort(descending=True, stable=True)
        return tuple(divmod(int(index), self.mean.shape[1]) for index in order[:n])

    def top(self, n: int) -> list[tuple[str, Estimate]]:
        """The same heads by name, each with its mean and interval."""
        return [(self.score.label(*head), self.score.estimate(*head)) for head in self.heads(n)]

    def retrieval_heads(self) -> tuple[tuple[int, int], ...]:
        """All (layer, head) whose mean is at least 0.1, strongest first."""
        return self.heads(int((self.mean >= RETRIEVAL).sum()))


@method
def retrieval_scores(
    setting: Setting,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    text: str | None = None,
    needles: Sequence[Needle] | None = None,
    steps: int = STEPS,
) -> RetrievalScores:
    """Scores of all heads over every needle at every depth of every length (see `needle_prompts`).

    The prompt is read at once but for its last token; only decoding steps are scored, up to `steps` or a line break.
    A score is the share of the needle's different tokens that a head copied (see `copy_scores`), 0 to 1, [runs, layer,
    head]; means are over runs that answered. Raises what `needle_prompts` raises, `InputError` for no step, and
    `UnsupportedModelError` for a model without attention weights to look at.
    Source: Wu et al. 2024, arXiv:2404.15574, section 2.

    >>> model = cm.load("smollm2-135m")
    >>> scores = cm.retrieval_scores(model, lengths=(96,), depths=(1.0,), steps=4)
    >>> scores.samples.shape, len(scores.prompts)
    (torch.Size([3, 30, 9]), 3)
    """
    if steps < 1:
        raise InputError(f"steps is the largest number of tokens of an answer and must be at least 1, got {steps}.")
    prompts = needle_prompts(setting.model, lengths=lengths, depths=depths, text=text, needles=needles)
    return score_prefilled(setting, prefill(setting, prompts, more=steps), steps=steps)


def _keep_strongest(places: list[Tensor], layer: int, pattern: Tensor) -> None:
    """Where the last query of a layer attends most, by head."""
    places.append(pattern[:, :, -1].argmax(-1))


@method
def score_prefilled(setting: Setting, batches: Sequence[Prefilled], *, steps: int = STEPS) -> RetrievalScores:
    """The same for prompts that were read already."""
    model, tell = setting.model, setting.tell("decoding")
    total = sum(len(batch.rows) for batch in batches)
    runs: dict[int, tuple[NeedlePrompt, str, float, Tensor, Tensor]] = {}
    for batch in batches:
        places: list[Tensor] = []
        watched = MaskedAttention(watch=partial(_keep_strongest, places))
        answers = greedy(model, batch, steps, attention=watched, ends=at_line_end(model))
        by_step = torch.stack(places).unflatten(0, (-1, len(model.blocks)))
        for i, (row, prompt, said) in enumerate(zip(batch.rows, batch.prompts, answers, strict=True)):
            scores = copy_scores(by_step[: len(said), :, i], said, prompt.ids, prompt.span)
            answer = model.decode(said).strip()
            runs[row] = prompt, answer, recall(answer, prompt.answer), *scores
        tell(len(runs), total)
    prompts, said_texts, recalls, samples, hits = zip(*(runs[row] for row in sorted(runs)), strict=True)
    return RetrievalScores(prompts, said_texts, torch.tensor(recalls), torch.stack(samples), torch.stack(hits))


def copy_scores(
    most: Int[Tensor, "step layer head"], said: Sequence[int], prompt: Sequence[int], span: tuple[int, int]
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """Both scores of one run: `most` is the position that each head attends to most, `said` the token of each step.

    Paper: |set of copied tokens| / |set of the needle's tokens|. Code: hits / tokens of the needle. A key behind the
    prompt, in what was said before, is no hit.
    """
    start, end = span
    needle, tokens = (torch.tensor(ids, dtype=torch.long, device=most.device) for ids in (prompt[start:end], said))
    attended = needle[(most - start).clamp(0, len(needle) - 1)]
    hit = (most >= start) & (most < end) & (attended == tokens[:, None, None])
    copied = torch.stack([hit[tokens == kind].any(0) for kind in needle.unique()])
    return copied.float().mean(0).cpu(), (hit.float().sum(0) / len(needle)).cpu()
