"""Do retrieval heads do it? Answers with them masked, compared with answers with as many other heads masked."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.heads.long_context import decoding
from circuitome.heads.long_context.decoding import MODES, Head, MaskedAttention, Prefilled, prefill
from circuitome.heads.long_context.needles import NeedlePrompt, recall
from circuitome.heads.long_context.retrieval import STEPS
from circuitome.results import Estimate, mean

WHERE = ("decode", "everywhere")
"""Where heads are masked: only after the prompt was read, as published, or while it is read as well."""


@dataclass(frozen=True, eq=False)
class MaskCheck:
    """What masking heads does to answers, run by run."""

    heads: tuple[Head, ...]
    """The masked (layer, head)."""
    draws: tuple[tuple[Head, ...], ...]
    """As many others, drawn without replacement, several times."""
    mode: str
    """zero: a masked head's output is 0. even: it attends evenly to all that it may see."""
    where: str
    """decode or everywhere."""
    log_probs: Float[Tensor, "conditions runs"]
    """Mean log-probability in nats of the expected answer's tokens: unmasked, heads masked, then each draw."""
    recalls: Float[Tensor, "conditions runs"]
    """ROUGE-1 recall of the decoded answer, the same conditions; NaN where nothing was decoded."""

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """For log-probability and recall: unmasked, masked, random (mean over draws), and masked minus random."""
        return {"log_prob": _compared(self.log_probs, "nats a token"), "recall": _compared(self.recalls, "share")}


def _compared(values: Float[Tensor, "conditions runs"], unit: str) -> dict[str, Estimate]:
    unmasked, masked, drawn = values[0], values[1], values[2:].mean(0)
    return {
        "unmasked": mean(unmasked, unit),
        "masked": mean(masked, unit),
        "random": mean(drawn, unit),
        "masked_minus_random": mean(masked - drawn, unit),
    }


@method
def mask_heads(
    setting: Setting,
    prompts: Sequence[NeedlePrompt] | Sequence[Prefilled],
    heads: Sequence[Head],
    *,
    avoid: Sequence[Head] = (),
    mode: str = "zero",
    where: str = "decode",
    draws: int = 5,
    decode: bool = True,
    steps: int = STEPS,
) -> MaskCheck:
    """Answers to `prompts` with `heads` masked, and with as many random others, never `heads` or `avoid`, masked.

    `prompts` may be batches that `prefill` has read already, so that nothing is read twice.
    The log-probability of the expected answer says something even where the model cannot answer; `decode` asks for the
    answers themselves too, of up to `steps` tokens. `where` decode masks from the last token of the prompt on.
    The setting's seed draws the random heads, `draws` times. Published code draws them without leaving out the
    retrieval heads, and its "even" heads attend to padding as well.

    >>> model = cm.load("smollm2-135m")
    >>> prompts = cm.heads.needle_prompts(model, lengths=(96,), depths=(0.5,))[:1]
    >>> check = cm.mask_heads(model, prompts, [(14, 3), (15, 5)], draws=1, decode=False)
    >>> effect = check.estimates()["log_prob"]["masked_minus_random"]  # negative: the masked heads are needed
    >>> effect.unit, effect.n
    ('nats a token', 1)

    Raises `InputError` for unknown heads, or too few other heads to draw from; `UnknownNameError` for another mode or
    place. Source: Wu et al. 2024, arXiv:2404.15574, section 3; nightdessert/Retrieval_Head:
    needle_in_haystack_with_mask.py.
    """
    for name, value, known in (("mode", mode, MODES), ("place to mask", where, WHERE)):
        if value not in known:
            raise unknown_name(name, value, known)
    drawn = _draw(setting, heads, avoid, draws)
    batches = [batch for batch in prompts if isinstance(batch, Prefilled)]
    batches = batches or prefill(
        setting, [prompt for prompt in prompts if isinstance(prompt, NeedlePrompt)], more=steps
    )
    sets: list[tuple[Head, ...]] = [(), tuple(heads), *drawn]
    log_probs, recalls = torch.full((2, len(sets), sum(len(batch.rows) for batch in batches)), torch.nan)
    model, tell, ends = setting.model, setting.tell("masking heads"), decoding.at_line_end(setting.model)
    for done, (index, batch) in enumerate(product(range(len(sets)), batches)):
        attention, rows = MaskedAttention(sets[index], mode), batch.rows
        if sets[index] and where == "everywhere":
            (batch,) = prefill(setting, batch.prompts, attention=attention)
            rows = tuple(rows[row] for row in batch.rows)
        log_probs[index, rows] = decoding.answer_log_probs(model, batch, attention=attention).cpu()
        if decode:
            answers = map(model.decode, decoding.greedy(model, batch, steps, attention=attention, ends=ends))
            shares = [recall(said, prompt.answer) for said, prompt in zip(answers, batch.prompts, strict=True)]
            recalls[index, rows] = torch.tensor(shares)
        tell(done + 1, len(sets) * len(batches))
    return MaskCheck(tuple(heads), drawn, mode, where, log_probs, recalls)


def _draw(setting: Setting, heads: Sequence[Head], avoid: Sequence[Head], draws: int) -> tuple[tuple[Head, ...], ...]:
    """As many heads as `heads`, `draws` times, none of them in `heads` or `avoid`."""
    model = setting.model
    every = [(layer, head) for layer in range(len(model.blocks)) for head in range(model.heads.q)]
    if strange := [head for head in (*heads, *avoid) if head not in every]:
        raise InputError(
            f"{model.name} has no head {Node.head(*strange[0])}: {len(model.blocks)} layers of {model.heads.q} heads."
        )
    others = [head for head in every if head not in {*heads, *avoid}]
    if not 1 <= len(heads) <= len(others):
        raise InputError(
            f"{len(heads)} heads to mask, and {len(others)} others of which as many are drawn: there must be at "
            "least one head, and enough others."
        )
    if draws < 1:
        raise InputError(f"draws is how often random heads are masked and must be at least 1, got {draws}.")
    source = random.Random(setting.seed)
    return tuple(tuple(sorted(source.sample(others, len(heads)))) for _ in range(draws))
