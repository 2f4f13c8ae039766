"""Do retrieval heads do it? Answers with them masked, beside answers with as many other heads masked."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.heads.long_context.decoding import (
    MODES,
    Changed,
    Read,
    answer_log_probs,
    at_line_end,
    greedy,
    read_prompts,
)
from circuitome.heads.long_context.needles import Case, recall
from circuitome.heads.long_context.retrieval import STEPS
from circuitome.results import Estimate, bootstrap, mean

WHERE = ("decode", "everywhere")
"""Where heads are masked: only after the prompt was read, as published, or while it is read as well."""

Head = tuple[int, int]


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
        found = {}
        for name, unit, values in (("log_prob", "nats a token", self.log_probs), ("recall", "share", self.recalls)):
            columns = torch.stack([values[0], values[1], values[2:].mean(0)], 1)
            unmasked, masked, others = columns.unbind(1)
            found[name] = {
                "unmasked": mean(unmasked, unit),
                "masked": mean(masked, unit),
                "random": mean(others, unit),
                "masked_minus_random": bootstrap(columns, lambda means: means[:, 1] - means[:, 2], unit),
            }
        return found


@method
def mask_heads(
    setting: Setting,
    cases: Sequence[Case] | Sequence[Read],
    heads: Sequence[Head],
    *,
    avoid: Sequence[Head] = (),
    mode: str = "zero",
    where: str = "decode",
    draws: int = 5,
    decode: bool = True,
    steps: int = STEPS,
) -> MaskCheck:
    """Answers to `cases` with `heads` masked, and with as many random others, never `heads` or `avoid`, masked.

    `cases` may be batches that `read_prompts` has read already, so that nothing is read twice.
    The log-probability of the expected answer says something even where the model cannot answer; `decode` asks for the
    answers themselves too. `where` decode masks from the last token of the prompt on. Published code draws random heads
    without leaving out the retrieval heads, and its "even" heads attend to padding as well. Source: Wu et al. 2024,
    arXiv:2404.15574, section 3; nightdessert/Retrieval_Head: needle_in_haystack_with_mask.py.

    Raises `InputError` for unknown heads, modes and places, or too few other heads to draw from.
    """
    check = _Check.of(setting, heads, avoid, mode, where, draws)
    plain = [one for one in cases if isinstance(one, Read)]
    if not plain:
        plain = read_prompts(setting, [one for one in cases if isinstance(one, Case)], more=steps)
    return check.run(setting, plain, decode=decode, steps=steps)


@dataclass(frozen=True)
class _Check:
    """Which heads are masked, and how."""

    heads: tuple[Head, ...]
    draws: tuple[tuple[Head, ...], ...]
    mode: str
    where: str

    @classmethod
    def of(
        cls, setting: Setting, heads: Sequence[Head], avoid: Sequence[Head], mode: str, where: str, draws: int
    ) -> "_Check":
        model = setting.model
        for name, value, known in (("mode", mode, MODES), ("place to mask", where, WHERE)):
            if value not in known:
                raise unknown_name(name, value, known)
        every = [(layer, head) for layer in range(len(model.blocks)) for head in range(model.heads.q)]
        if strange := [head for head in (*heads, *avoid) if head not in every]:
            missing = Node.head(*strange[0])
            raise InputError(
                f"{model.name} has no head {missing}: {len(model.blocks)} layers of {model.heads.q} heads."
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
        drawn = tuple(tuple(sorted(source.sample(others, len(heads)))) for _ in range(draws))
        return cls(tuple(heads), drawn, mode, where)

    def run(self, setting: Setting, plain: Sequence[Read], *, decode: bool, steps: int) -> MaskCheck:
        """All conditions on all prompts."""
        model, tell = setting.model, setting.tell("masking heads")
        sets: list[tuple[Head, ...]] = [(), self.heads, *self.draws]
        n = sum(len(batch.rows) for batch in plain)
        log_probs, recalls = torch.full((len(sets), n), torch.nan), torch.full((len(sets), n), torch.nan)
        stopped = at_line_end(model) if decode else None
        done, total = 0, len(sets) * len(plain)
        for index, masked in enumerate(sets):
            change = Changed.of(masked, self.mode)
            for batch in plain:
                read = batch
                if masked and self.where == "everywhere":
                    (read,) = read_prompts(model, batch.cases, attention=change)
                rows = [batch.rows[read.rows[i]] for i in range(n_of(read))] if read is not batch else list(batch.rows)
                log_probs[index, rows] = answer_log_probs(model, read, attention=change).cpu()
                if stopped is not None:
                    said = greedy(model, read, steps, attention=change, stopped=stopped)
                    words = [recall(model.decode(ids), case.answer) for ids, case in zip(said, read.cases, strict=True)]
                    recalls[index, rows] = torch.tensor(words)
                done += 1
                tell(done, total)
        return MaskCheck(self.heads, self.draws, self.mode, self.where, log_probs, recalls)


def n_of(batch: Read) -> int:
    """Prompts of a batch."""
    return len(batch.rows)
