"""The metric "kl": how far a run's next-token distribution is from the clean model's."""

import torch

from circuitome.engine.batches import batches
from circuitome.models.model import Model
from circuitome.tasks.losses import kl
from circuitome.tasks.metrics import Metric
from circuitome.tasks.task import Pair, Task


def kl_metric(model: Model, task: Task, *, max_memory: int | None = None) -> Metric:
    """Minus KL(clean || run) over the vocabulary, in nats: 0 for the clean model, negative for all else.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> task = task.measured_by(cm.kl_metric(model, task))
    >>> scores = cm.exact(model, task, edges=cm.Circuit.of(model.graph, ["a2.h0->logits"]))
    >>> scores["a2.h0->logits"] < 0, task.unit
    (True, 'nats')

    Costs one forward pass over the clean prompts, whose log-probabilities it keeps. Its gradient is zero at the clean
    model, so eap and atp refuse it.
    """
    clean: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches(model, task, shared_prefix=False, corrupted=False, max_memory=max_memory):
            for row, logits in zip(batch.rows, model.logits(batch.clean).float(), strict=True):
                clean[_place(task.pairs[row])] = logits
    return Metric(
        "kl",
        lambda logits, pairs: kl(torch.stack([clean[_place(pair)] for pair in pairs]).to(logits.device), logits),
        "nats",
        larger_is_better=False,
        flat_at_clean=True,
    )


def _place(pair: Pair) -> tuple[tuple[int, ...], int]:
    """What decides a pair's clean logits: its clean prompt, and where they are read."""
    return pair.clean, pair.answer_position
