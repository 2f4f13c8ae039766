"""What a training makes smaller: functions of the live model and a batch of tokens."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitome.engine.batches import memory_budget
from circuitome.models.model import Model
from circuitome.training.streams import NOT_COUNTED, Rows, Stream, split

Objective = Callable[[Model, Rows], Tensor | Mapping[str, Tensor]]
"""From a model and a batch to the loss, a mean over the tokens that count, or to named parts whose sum it is."""


def logits_of(model: Model, tokens: Rows) -> Float[Tensor, "row pos vocab"]:
    """Logits at every token, float32, with gradients where they are on, in the mode that the model is in."""
    return model.hf(input_ids=tokens.ids, attention_mask=tokens.mask, use_cache=False).logits.float()


def next_token(model: Model, tokens: Rows) -> Float[Tensor, ""]:
    """Mean cross-entropy of each next token, in nats.

    >>> model = cm.load("known-ioi")
    >>> stream = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> cm.training.next_token(model, stream.batch(0, rows=1, length=8, seed=0)).item() > 0
    True
    """
    tokens = tokens.to(model.device)
    return mean_cross_entropy(logits_of(model, tokens)[:, :-1], tokens.targets[:, 1:])


def masked_token(model: Model, tokens: Rows) -> Float[Tensor, ""]:
    """Mean cross-entropy of the labelled tokens themselves, in nats: for masked language models, on a `MaskedStream`.

    >>> model = cm.load("known-ioi")
    >>> plain = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> stream = cm.training.MaskedStream(plain, token=0, vocabulary=20, share=0.5)
    >>> cm.training.masked_token(model, stream.batch(0, rows=1, length=8, seed=0)).item() > 0
    True
    """
    tokens = tokens.to(model.device)
    return mean_cross_entropy(logits_of(model, tokens)[:, 1:], tokens.targets[:, 1:])


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the tokens that count, in nats; 0 where none does."""
    total = cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=NOT_COUNTED, reduction="sum")
    return total / (targets != NOT_COUNTED).sum().clamp(min=1)


@torch.no_grad()
def mean_loss(
    model: Model,
    data: Stream,
    *,
    batches: int = 4,
    rows: int = 16,
    length: int = 256,
    seed: int = 0,
    objective: Objective = next_token,
    max_memory: int | None = None,
) -> float:
    """The loss on the first batches of a stream, without dropout: for texts that are held out of a training.

    As many rows run at once as `max_memory` bytes beside the weights allow, one at least.

    >>> model = cm.load("known-ioi")
    >>> stream = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> cm.training.mean_loss(model, stream, batches=1, rows=1, length=8) > 0
    True
    """
    total = count = 0.0
    with model.reserved():
        for step in range(batches):
            tokens = data.batch(step, rows, length, seed).to(model.device)
            for part in split(tokens, rows_at_once(model, length, max_memory)):
                total += part.predicted * float(summed(objective(model, part)))
                count += part.predicted
    return total / max(1.0, count)


def rows_at_once(model: Model, length: int, max_memory: int | None) -> int:
    """How many rows' losses fit into the budget at once, one at least: logits and their log-softmax are most of it."""
    logits = 3 * 4 * int(model.hf.config.vocab_size)
    return max(1, memory_budget(model, max_memory) // (length * (model.bytes_per_token(gradients=False) + logits)))


def summed(loss: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A loss, or the sum of its parts."""
    return torch.stack(list(loss.values())).sum() if isinstance(loss, Mapping) else loss
