"""From a final residual to the loss of each prompt, without unembedding more tokens than the loss looks at."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import NumericsError
from circuitome.models.model import Model
from circuitome.tasks.losses import loss_of
from circuitome.tasks.task import Task

NUMBERS = 24_000_000
"""Residuals or logits of several copies that are held at once, in numbers: about 100 MB."""


def check_numbers(values: Float[Tensor, "*rest"], what: str, rows: Sequence[int] = ()) -> None:
    """Raises `NumericsError` if `values` holds NaN or infinity; with the prompts of its last axis, names the first."""
    if not bool((finite := torch.isfinite(values)).all()):
        bad = (~finite).nonzero()
        first = f", first on prompt {rows[int(bad[0, -1])]}" if rows else ""
        raise NumericsError(
            f"The {what} is not finite in {len(bad)} of {values.numel()} numbers{first}. The model's weights may be "
            "damaged, or its dtype too narrow; try the model in float32."
        )


class Readout:
    """Losses of runs on some prompts of a task; any number of copies of the prompts at a time."""

    def __init__(self, model: Model, task: Task, rows: Sequence[int], kind: str, clean: Tensor | None = None) -> None:
        """`kind` is a name in `LOSSES`; `clean` the clean model's logits [batch, vocab], which "metric" does not need.

        Raises `UnknownNameError` for another kind.
        """
        narrow = task.narrowed() if kind == "metric" else None
        self.model, self.rows = model, tuple(rows)
        self.clean, self.tokens = clean, narrow[1] if narrow else None
        self.loss = loss_of(narrow[0] if narrow else task, kind)
        self.what = f"{kind} of {model.name} on {task.name}"

    def __call__(self, final: Float[Tensor, "copies batch d_model"]) -> Float[Tensor, "copies batch"]:
        """Loss of every prompt in every copy, from the residual in front of the final norm at the position read.

        Raises `NumericsError` at NaN or infinity.
        """
        copies = len(final)
        logits = self.model.unembed(final.flatten(0, 1).to(self.model.dtype), self.tokens)
        clean = logits if self.clean is None else self.clean.repeat(copies, 1)
        losses = self.loss(logits, clean, self.rows * copies).view(copies, -1)
        check_numbers(losses, self.what, self.rows)
        return losses

    def effects(
        self, final: Float[Tensor, "batch d_model"], changes: Float[Tensor, "parts batch d_model"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "parts batch"]]:
        """The metric at `final`, and what each change of that residual, by itself, does to the metric.

        With what parts write when ablated minus what they write, these are their direct effects: only the logits see
        the change, and the final norm is computed anew. For the kind "metric".
        """
        metric = -self(final[None])[0]
        width = self.model.d_model if self.tokens is not None else int(self.model.hf.config.vocab_size)
        copies = max(1, NUMBERS // (len(final) * width))
        ablated = torch.cat([-self(final + some) for some in changes.split(copies)])
        return metric, ablated - metric
