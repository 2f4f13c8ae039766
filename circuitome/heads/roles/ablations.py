"""What ablating heads does: to the metric, to what the other heads attend to, and to their direct effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, ablated_values
from circuitome.heads.roles.context import AnswerBatch, HeadContext, by_layer
from circuitome.heads.roles.head_ablation import HeadRun, SeePatterns
from circuitome.heads.roles.measure import Measurements
from circuitome.heads.roles.positions import ANSWER, END
from circuitome.heads.roles.unembedding import copied

ABLATED_EVERYWHERE = 16
"""Prompts on which heads are ablated at all positions, each at the cost of a part of a pass."""
GROWS = 0.02
"""Share of the scale by which the direct effect of a backup grows at least."""
LEAST_REMOVED = 0.1
"""Share of the movers' attention that counts as what a corrupted prompt removes, where it removes less."""

Movers = Mapping[int, tuple[int, float]]
"""By place on the head axis: what a mover attends to (an index into the targets), and its weight."""


@dataclass(frozen=True, eq=False)
class HeadAblations:
    """What happens to the metric and to the other heads when heads are ablated.

    An effect is the change of the metric when the head is ablated: negative where it helps.
    """

    last_position: Float[Tensor, "prompts head"]
    """Total effect at the last position: the head ablated at the answer position, everything after it reacting."""
    all_positions: Float[Tensor, "some head"]
    """Total effect at all positions, on the first `ABLATED_EVERYWHERE` prompts."""
    movers_attention_removed: Float[Tensor, "prompts head"]
    """How much less the movers attend to their target, of all they attend to before the end, with the head ablated at
    the answer position; a share of what the corrupted prompt removes, weighted by direct effects. NaN without movers.
    """
    direct_without_movers: Float[Tensor, "prompts head"]
    """The head's direct effect in a run with the name movers ablated; NaN without name movers."""
    to_right_without_movers: Float[Tensor, "prompts head"]
    """Attention from the end to right answers in that run."""
    copied_without_movers: Float[Tensor, "prompts head"]
    """1 where what the head writes at the end in that run raises a right answer most, else 0; NaN for heads whose
    direct effect does not grow by `GROWS` of the scale."""
    attention_changes: Float[Tensor, "head other"]
    """Change of each other head's attention from the end to its main target when a head is ablated at the answer
    position; mean over prompts, 0 for earlier heads."""


def ablate_heads(
    context: HeadContext,
    measurements: Measurements,
    batches: Sequence[AnswerBatch],
    movers: Movers,
    name_movers: Sequence[int],
) -> HeadAblations:
    """Ablate every head by itself, and `name_movers` together.

    At the answer position that costs about a twentieth of a pass a head, as one token runs on from the head's layer; at
    all positions, on a few prompts, what stands behind the shared prefix does.
    """
    with torch.no_grad():
        return HeadAblations(
            **_at_last_position(context, measurements, batches, movers),
            **_without_movers(context, measurements, batches, name_movers),
            all_positions=_at_all_positions(context),
        )


def _at_last_position(
    context: HeadContext, measurements: Measurements, batches: Sequence[AnswerBatch], movers: Movers
) -> dict[str, Tensor]:
    n, count = len(context.task), len(context.heads)
    tell = context.setting.tell("ablating heads at the last position")
    effects, removed = (torch.full((n, count), torch.nan) for _ in range(2))
    changes = torch.zeros(count, count)
    most, main = _removed_by_corruption(measurements, movers), measurements.main_target()
    for batch in batches:
        rows, run = torch.tensor(batch.rows), context.run(batch)
        masks, clean = _target_masks(context, batch.rows, run), measurements.attention_from_end[rows]
        for layer, heads, places in context.portions(run):
            attention = clean.expand(len(heads), -1, -1, -1).clone()  # head, prompt, other head, target
            final = run.each_ablated(layer, heads, _noting(context, attention, masks))
            effects[rows[:, None], places] = context.effect(batch.rows, run, final)
            drop = _before_end(measurements, clean) - _before_end(measurements, attention)
            if movers:
                lost = [weight * drop[:, :, i, target] for i, (target, weight) in movers.items()]
                removed[rows[:, None], places] = (torch.stack(lost).sum(0) / most).T
            changes[places] += (attention - clean)[:, :, torch.arange(count), main].sum(1) / n
            tell(places[-1] + 1, count)
    return {"last_position": effects, "movers_attention_removed": removed, "attention_changes": changes}


def _without_movers(
    context: HeadContext, measurements: Measurements, batches: Sequence[AnswerBatch], name_movers: Sequence[int]
) -> dict[str, Tensor]:
    n, count = len(context.task), len(context.heads)
    direct, to_right, raised = (torch.full((n, count), torch.nan) for _ in range(3))
    z = torch.zeros(n, count, context.model.heads.width)
    ablated = by_layer(context.heads[place] for place in name_movers)
    for batch in batches if name_movers else ():
        rows, clean = list(batch.rows), context.run(batch)
        attention = torch.zeros_like(measurements.attention_from_end[rows])[None]
        run = clean.all_ablated(ablated, _noting(context, attention, _target_masks(context, rows, clean)))
        direct[rows] = context.direct_effects(rows, run)
        to_right[rows] = attention[0, :, :, measurements.target(ANSWER)]
        z[rows] = context.joined({at: run.clean.heads[at][:, 0, heads] for at, heads in context.layers.items()}).cpu()
    direct[:, list(name_movers)] = torch.nan
    grown = (measurements.direct - direct).mean(0) >= GROWS * measurements.scale
    for place in grown.nonzero().flatten().tolist():
        raised[:, place] = _raises_answer(context, place, z[:, place])
    return {"direct_without_movers": direct, "to_right_without_movers": to_right, "copied_without_movers": raised}


def _raises_answer(context: HeadContext, place: int, z: Float[Tensor, "prompts d_head"]) -> Float[Tensor, " prompts"]:
    """1 where a head's output raises the first right answer in the prompt most, else 0; NaN without one."""
    layer, head = context.heads[place]
    rows = [row for row, right in enumerate(context.places.right) if right]
    raised = torch.full((len(z),), torch.nan)
    if rows:
        tokens = torch.tensor([context.task.pairs[row].clean[context.places.right[row][0]] for row in rows])
        out = z[rows].to(context.model.device) @ context.model.blocks[layer].head_weights([head])[0]
        raised[rows] = copied(context.unembedding, out[:, None], tokens[:, None])[0][:, 0]
    return raised


def _at_all_positions(context: HeadContext) -> Float[Tensor, "some head"]:
    """Effects of heads ablated at all positions behind the prefix that clean and corrupted prompts share."""
    model, some = context.model, replace(context.task, pairs=context.task.pairs[:ABLATED_EVERYWHERE])
    setting, tell = context.setting.but(prompts=some), context.setting.tell("ablating heads at all positions")
    effects = torch.zeros(len(some), len(context.heads))
    for batch in setting.batches():
        activations = model.record(batch.clean, logits=False)
        clean = WriterValues.of(model, activations)
        ablated = ablated_values(model, some, batch, context.setting.replacement, clean)
        run, rows = HeadRun(model, batch.clean, activations, ablated), torch.tensor(batch.rows)
        for layer, heads, places in context.portions(run):
            effects[rows[:, None], places] = context.effect(batch.rows, run, run.each_ablated(layer, heads))
            tell(places[-1] + 1, len(context.heads))
    return effects


def _removed_by_corruption(measurements: Measurements, movers: Movers) -> float:
    """What the corrupted prompts (else even attention) remove of the movers' attention to their targets."""
    attention = measurements.attention_from_end, measurements.corrupted_from_end, measurements.even_from_end[:, None]
    clean, corrupted, flat = (_before_end(measurements, values) for values in attention)
    lost = (clean - torch.where(corrupted.isnan(), flat, corrupted)).mean(0)
    total = sum(weight * float(lost[i, target]) for i, (target, weight) in movers.items())
    return max(total, LEAST_REMOVED * sum(weight for _, weight in movers.values()), 1e-9)


def _before_end(measurements: Measurements, attention: Float[Tensor, "*any target"]) -> Float[Tensor, "*any target"]:
    """Attention from the end as a share of that to earlier tokens: their keys stay, so queries alone can change it."""
    end = measurements.target(END)
    return attention / (1 - attention[..., end : end + 1]).clamp(min=1e-6)


def _noting(context: HeadContext, attention: Float[Tensor, "copies batch head target"], masks: Tensor) -> SeePatterns:
    """Writes what later heads attend to from the end into `attention`."""

    def see(layer: int, pattern: Tensor) -> None:
        if layer in context.layers:
            row = pattern[:, :, context.layers[layer], 0].float()
            attention[:, :, context.slots(layer)] = torch.einsum("cbhk,btk->cbht", row, masks).cpu()

    return see


def _target_masks(context: HeadContext, rows: Sequence[int], run: HeadRun) -> Float[Tensor, "batch target key"]:
    """`Places.masks` for keys in a cache that is padded on the left."""
    width = run.inputs.mask.shape[1]
    marks = torch.zeros(len(rows), len(context.places.targets), width)
    for i, row in enumerate(rows):
        size = context.task.pairs[row].answer_position + 1
        marks[i, :, width - size :] = context.places.masks(row, size)
    return marks.to(run.inputs.mask.device)
