"""What memory a command takes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitome.models.model import Model
    from circuitome.tasks.task import Task


def weight_bytes(model: "Model") -> int:
    """Bytes of a model's weights, but for those that are offloaded to disk."""
    return sum(p.numel() * p.itemsize for p in model.hf.parameters() if p.device.type != "meta")


def plain_bytes(model: "Model", max_memory: int | None, texts: int, tokens: int) -> int:
    """Bytes of a batch of texts of so many tokens in passes that record nothing: one block's numbers at a time.

    A token takes s (6 d + r + 3 f) bytes in a block of width d, with r numbers of q, k and v and f neurons of s bytes,
    and 12 for each head and token that it may attend to, with attention computed in the open.
    """
    from circuitome.engine.batches import tokens_within

    numbers = 6 * model.d_model + model.heads.readers * model.heads.width + 3 * model.mlp_width
    at_once = min(max(tokens, tokens_within(model, max_memory, gradients=False)), texts * tokens)
    return at_once * (model.dtype.itemsize * numbers + 12 * model.heads.q * tokens)


def batch_of_routes(model: "Model", max_memory: int | None, texts: int, tokens: int) -> int:
    """Bytes of a batch of texts of so many tokens whose routes are traced; the longest decides if it does not fit."""
    from circuitome.discovery.routes.forward import route_bytes
    from circuitome.engine.batches import tokens_within

    fits = max(tokens, tokens_within(model, max_memory, gradients=False))
    return route_bytes(model, min(fits, texts * tokens))


def baseline_bytes(model: "Model", max_memory: int | None, task: "Task") -> int:
    """Bytes of a recorded batch that leaves room for circuits on it, where no circuit with edges runs."""
    from circuitome.engine.batches import tokens_within
    from circuitome.engine.circuit_run import circuit_bytes

    fits = tokens_within(model, max_memory, gradients=False, beside=circuit_bytes(model, max_memory))
    return min(fits, sum(len(pair.clean) for pair in task.pairs)) * model.bytes_per_token(gradients=False)
