"""Direct logit attribution: what every writer adds to the answer's logit by itself, no later part in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import NumericsError
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.models.placement import parameter
from circuitome.results import Samples, mean
from circuitome.tasks.task import Task
from circuitome.weights.folding import behind, unembedding_rows


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LogitAttribution(Samples):
    """What every writer adds directly to the logit difference of each prompt; positive speaks for the right answer.

    `samples` is [prompts, parts], in logits, float32. `axes` holds the parts: the writers of the graph, then "biases",
    those of attention outputs, of the final norm and of the unembedding. Parts sum to `logit_diff` exactly.
    """

    logit_diff: Float[Tensor, " prompts"]
    """Mean logit of right answers minus mean logit of wrong ones from the model's final residual, before a soft cap."""
    scale: Float[Tensor, " prompts"]
    """What the final norm divided by at the position read; frozen in all contributions."""

    def to_dict(self) -> dict[str, Any]:
        """Mean contributions and logit difference with intervals, as plain JSON values."""
        return {
            "unit": self.unit,
            "logit_diff": mean(self.logit_diff, self.unit, groups=self.groups).to_dict(),
            "parts": {part: self[part].to_dict() for part in self.axes[0]},
        }


@method
def direct_logit_attribution(setting: Setting) -> LogitAttribution:
    """What each writer adds directly to right minus wrong answers after the clean prompts, later layers left alone.

    c(w) = <centre(x_w), gain * (mean U[right] - mean U[wrong])> / sigma, with sigma the scale of the final norm for
    the whole residual, frozen. Where a model caps its logits (Gemma 2) the logits before the cap are attributed.
    A positive contribution speaks for the right answers. A prompt without wrong answers: the right answers' logit.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> direct = cm.direct_logit_attribution(model, task)
    >>> direct.top(1)[0][0]
    'a2.h0'

    Raises `MemoryBudgetError` where not even one prompt fits, `NumericsError` where residuals are not finite.
    Source: Elhage et al. 2021; in this form TransformerLens, ActivationCache.logit_attrs.
    """
    model, task = setting.model, setting.task
    parts = (*model.graph.writers, "biases")
    samples, totals, scales = torch.empty(len(task), len(parts)), torch.empty(len(task)), torch.empty(len(task))
    with torch.no_grad():
        for batch in setting.clean_batches("attributing logits"):
            rows, inputs = list(batch.rows), batch.clean
            values = _contributions(model, model.record(inputs, logits=False), inputs, *_directions(model, task, rows))
            samples[rows], totals[rows], scales[rows] = (column.cpu() for column in values)
    if not bool(torch.isfinite(samples).all()):
        raise NumericsError(f"{model.name}: contributions to the logits of task {task.name!r} are not finite.")
    return LogitAttribution(
        samples=samples, axes=(parts,), unit="logits", groups=task.groups, logit_diff=totals, scale=scales
    )


def _directions(
    model: Model, task: Task, rows: Sequence[int]
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
    """Mean unembedding of right answers minus that of wrong ones for each prompt, and the same of its biases."""
    weight, bias = unembedding_rows(model), parameter(model.unembedding, "bias")
    directions, offsets = [], []
    for row in rows:
        sides = [list(ids) for ids in (task.pairs[row].answers, task.pairs[row].wrongs)]
        means = [weight[ids].float().mean(0) if ids else weight.new_zeros(model.d_model).float() for ids in sides]
        directions.append(means[0] - means[1])
        constants = [bias[ids].float().mean() if ids and bias is not None else weight.new_zeros(()) for ids in sides]
        offsets.append((constants[0] - constants[1]).float())
    return torch.stack(directions), torch.stack(offsets)


def _contributions(
    model: Model,
    activations: ActivationCache,
    inputs: Inputs,
    direction: Float[Tensor, "batch d_model"],
    offset: Float[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch parts"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Contributions of a batch, the logit difference that they sum to, and the final norm's scale."""
    final, norm = _at(activations.final, inputs), model.final_norm
    scale = norm.sigma(final)
    seen = behind(norm, direction) / scale
    parts, biases = [_dot(_at(activations.resid_pre[0], inputs), seen)[:, None]], offset.clone()
    for layer, block in enumerate(model.blocks):
        z = _at(activations.z[layer], inputs).unflatten(-1, (model.heads.q, model.heads.width))
        if block.attention_post is not None:
            z = z / block.attention_post.sigma(_at(activations.attention_out[layer], inputs))[..., None]
        parts.append(torch.einsum("bhe,hed,bd->bh", z, block.head_weights(), seen))
        parts.append(_dot(_at(activations.mlp_out[layer], inputs), seen)[:, None])
        if (bias := block.output_bias()) is not None:
            biases = biases + seen @ bias
    if norm.bias is not None:
        biases = biases + direction @ norm.bias
    total = _dot(norm.module(final.to(model.dtype)).float(), direction) + offset
    return torch.cat([*parts, biases[:, None]], 1), total, scale[:, 0]


def _at(values: Tensor | None, inputs: Inputs) -> Float[Tensor, "batch _"]:
    """The vector at the position that is read, float32."""
    assert values is not None
    return values[torch.arange(len(values), device=values.device), inputs.read].float()


def _dot(a: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    return (a * b).sum(-1)
