"""Losses of an intervened run against the clean one. All are lower when the run is more like the clean model."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import unknown_name
from circuitome.tasks.task import Task

Loss = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(logits [batch, vocab], the clean model's logits [batch, vocab], rows of the task) -> [batch], float32."""

LOSSES = ("metric", "kl", "l2")


def loss_of(task: Task, kind: str) -> Loss:
    """The loss called `kind`.

    - metric: the task's metric, negated. Can fall below the clean model's. In the metric's unit.
    - kl: KL(clean || run) over the vocabulary, in nats. Its gradient is zero at the clean model.
    - l2: sum over the vocabulary of squared differences of logits. Its gradient is zero there too.

    Raises `UnknownNameError`.
    """
    if kind not in LOSSES:
        raise unknown_name("loss", kind, LOSSES)
    if kind == "kl":
        return lambda logits, clean, rows: kl(clean, logits)
    if kind == "l2":
        return lambda logits, clean, rows: (logits.float() - clean.float()).square().sum(-1)
    return lambda logits, clean, rows: -task.score(logits, rows)


def loss_unit(task: Task, kind: str) -> str:
    """Unit of the loss called `kind`, e.g. "nats"."""
    return {"metric": task.unit, "kl": "nats", "l2": "squared logits"}[kind]


def kl(p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """KL divergence, in nats, of the distribution with logits `q` from the one with logits `p`."""
    log_p, log_q = torch.log_softmax(p.float(), -1), torch.log_softmax(q.float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
