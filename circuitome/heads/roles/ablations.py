"""What taking heads out does: to the metric, to what the other heads look at, and to their direct effects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, ablated_values
from circuitome.engine.partial_forward import dense_copies
from circuitome.heads.roles.context import Part, Subject
from circuitome.heads.roles.head_ablation import HeadRun, Look
from circuitome.heads.roles.measure import Evidence, focus_targets
from circuitome.heads.roles.positions import ANSWER, END
from circuitome.heads.roles.unembedding import copied

KNOCKED = 16
"""Prompts on which heads are taken out at all positions, each at the cost of a part of a pass."""
GROWS = 0.02
"""Share of the scale by which the direct effect of a backup grows at least."""
LEAST_FOCUS = 0.1
"""Share of the movers' attention that counts as what a corrupted prompt takes, where it takes less."""

Movers = Mapping[int, tuple[int, float]]
"""By place on the head axis: what a mover looks at (an index into the targets), and its weight."""


@dataclass(frozen=True, eq=False)
class Knocks:
    """What happens to the metric and to the other heads when heads are taken out."""

    at_end: Float[Tensor, "prompts head"]
    """Metric of the clean run minus that of the run with the head taken out at the token that is read, everything after
    it reacting: positive where it helps."""
    everywhere: Float[Tensor, "some head"]
    """The same with the head taken out at all positions, on the first `KNOCKED` prompts."""
    focus: Float[Tensor, "prompts head"]
    """How much less the movers look at their target, of all they look at before the end, with the head taken out at the
    token that is read; a share of what the corrupted prompt takes, weighted by direct effects. NaN without movers."""
    direct_without: Float[Tensor, "prompts head"]
    """The head's direct effect in a run with the name movers taken out; NaN without name movers."""
    right_without: Float[Tensor, "prompts head"]
    """Attention from the end to right answers in that run."""
    raised_without: Float[Tensor, "prompts head"]
    """1 where what the head writes at the end in that run raises a right answer most, else 0; NaN for heads whose
    direct effect does not grow by `GROWS` of the scale."""
    shifts: Float[Tensor, "head other"]
    """Change of each other head's attention from the end to its own target (what it looks at most) when a head is taken
    out at the token that is read; mean over prompts, 0 for earlier heads."""


def knock(
    subject: Subject, evidence: Evidence, parts: Sequence[Part], movers: Movers, name_movers: Sequence[int]
) -> Knocks:
    """Take out every head by itself, and `name_movers` together.

    At the end that costs about a twentieth of a pass a head, as one token runs on from the head's layer; at all
    positions, on a few prompts, what stands behind the shared prefix does.
    """
    n, count, tell = len(subject.task), len(subject.heads), subject.setting.tell("ablating heads at the last position")
    at_end, focus, without, right = (torch.full((n, count), torch.nan) for _ in range(4))
    shifts = torch.zeros(count, count)
    whole, own = _whole_focus(evidence, movers), focus_targets(evidence)
    with torch.no_grad():
        for part in parts:
            rows, run = torch.tensor(part.rows), subject.at_end(part)
            metric = subject.metric(part.rows, run.final[None])[0]
            masks = _end_masks(subject, part.rows, run)
            for layer, heads, mine in _portions(subject, run):
                seen = evidence.targets[rows].expand(len(heads), -1, -1, -1).clone()
                final = run.without(layer, heads, _noting(subject, seen, masks))
                at_end[rows[:, None], mine] = (metric - subject.metric(part.rows, final)).T.cpu()
                lost = evidence.targets[rows] - seen  # head, prompt, other head, target
                gone = _before_end(evidence, evidence.targets[rows]) - _before_end(evidence, seen)
                drops = [weight * gone[:, :, i, target] for i, (target, weight) in movers.items()]
                if drops:
                    focus[rows[:, None], mine] = (sum(drops[1:], drops[0]) / whole).T
                shifts[mine] -= lost[:, :, torch.arange(count), own].sum(1) / n
                tell(mine[-1] + 1, count)
            if name_movers:
                seen = torch.zeros_like(evidence.targets[rows])[None]
                silenced = run.all_without(_by_layer(subject, name_movers), _noting(subject, seen, masks))
                without[rows] = subject.direct(part.rows, silenced).cpu()
                right[rows] = seen[0, :, :, evidence.target(ANSWER)]
    without[:, list(name_movers)] = torch.nan
    grown = (without - evidence.direct).mean(0) >= GROWS * evidence.scale
    raised = _raised_without(subject, parts, name_movers, grown.nonzero().flatten().tolist())
    return Knocks(at_end, _everywhere(subject), focus, without, right, raised, shifts)


def _raised_without(
    subject: Subject, parts: Sequence[Part], name_movers: Sequence[int], chosen: Sequence[int]
) -> Float[Tensor, "prompts head"]:
    """Whether what some heads write without the movers raises a right answer that stands in the prompt."""
    found = torch.full((len(subject.task), len(subject.heads)), torch.nan)
    with torch.no_grad():
        for part in parts if chosen else ():
            run = subject.at_end(part).all_without(_by_layer(subject, name_movers))
            spots = [subject.places.right[row] for row in part.rows]
            known = torch.tensor([row for row, spot in zip(part.rows, spots, strict=True) if spot])
            index = torch.tensor([i for i, spot in enumerate(spots) if spot], dtype=torch.long)
            tokens = torch.tensor(
                [subject.task.pairs[row].clean[subject.places.right[row][0]] for row in known.tolist()]
            )
            for i in chosen if len(index) else ():
                layer, head = subject.heads[i]
                weight = subject.model.blocks[layer].head_weights([head])[0]
                out = run.clean.heads[layer][index, 0, head] @ weight
                found[known, i] = copied(subject.unembedding, out[:, None], tokens[:, None])[0][:, 0]
    return found


def _portions(subject: Subject, run: HeadRun) -> Iterator[tuple[int, list[int], list[int]]]:
    """Layer, heads and their places, as many heads as can run together."""
    limit = dense_copies(subject.model, run.inputs, subject.setting.max_memory)
    for layer, heads in subject.layers.items():
        for start in range(0, len(heads), limit):
            some = heads[start : start + limit]
            yield layer, some, [subject.slot[layer, head] for head in some]


def _by_layer(subject: Subject, places: Sequence[int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for layer, head in (subject.heads[i] for i in places):
        out.setdefault(layer, []).append(head)
    return out


def _whole_focus(evidence: Evidence, movers: Movers) -> float:
    """What the corrupted prompts (else even attention) take from the movers' attention to their targets."""
    clean, other = (_before_end(evidence, seen) for seen in (evidence.targets, evidence.corrupted_targets))
    flat = _before_end(evidence, evidence.even_targets[:, None])
    lost = (clean - torch.where(other.isnan(), flat, other)).mean(0)
    total = sum(weight * float(lost[i, target]) for i, (target, weight) in movers.items())
    return max(total, LEAST_FOCUS * sum(weight for _, weight in movers.values()), 1e-9)


def _before_end(evidence: Evidence, targets: Float[Tensor, "*any target"]) -> Float[Tensor, "*any target"]:
    """Attention from the end as a share of that to earlier tokens: their keys stay, so queries alone can change it."""
    end = evidence.target(END)
    return targets / (1 - targets[..., end : end + 1]).clamp(min=1e-6)


def _noting(subject: Subject, seen: Float[Tensor, "copies batch head target"], masks: Tensor) -> Look:
    """Writes what later heads look at from the end into `seen`."""

    def look(layer: int, pattern: Tensor) -> None:
        if layer in subject.layers:
            row = pattern[:, :, subject.layers[layer], 0].float()
            seen[:, :, subject.slots(layer)] = torch.einsum("cbhk,btk->cbht", row, masks).cpu()

    return look


def _end_masks(subject: Subject, rows: Sequence[int], run: HeadRun) -> Float[Tensor, "batch target key"]:
    """`Places.masks` for keys in a cache that is padded on the left."""
    width = run.inputs.mask.shape[1]
    marks = torch.zeros(len(rows), len(subject.places.targets), width)
    for i, row in enumerate(rows):
        size = subject.task.pairs[row].answer_position + 1
        marks[i, :, width - size :] = subject.places.masks(row, size)
    return marks.to(run.inputs.mask.device)


def _everywhere(subject: Subject) -> Float[Tensor, "some head"]:
    """Heads taken out at all positions behind the prefix that clean and corrupted prompts share."""
    model, some = subject.model, replace(subject.task, pairs=subject.task.pairs[:KNOCKED])
    setting, tell = subject.setting.but(prompts=some), subject.setting.tell("ablating heads at all positions")
    found = torch.zeros(len(some), len(subject.heads))
    with torch.no_grad():
        for batch in setting.batches():
            activations = model.record(batch.clean, logits=False)
            ablated = ablated_values(model, some, batch, subject.replacement, WriterValues.of(model, activations))
            run, rows = HeadRun(model, batch.clean, activations, ablated), torch.tensor(batch.rows)
            metric = subject.metric(batch.rows, run.final[None])[0]
            for layer, heads, mine in _portions(subject, run):
                final = run.without(layer, heads)
                found[rows[:, None], mine] = (metric - subject.metric(batch.rows, final)).T.cpu()
                tell(mine[-1] + 1, len(subject.heads))
    return found
