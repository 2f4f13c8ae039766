"""Metrics of a prompt: functions of the logits after its last token. All are larger when the model does better.

`METRICS` holds those that have a name; `Metric` makes one of any function.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, unknown_name

if TYPE_CHECKING:
    from circuitome.tasks.task import Pair

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Metric:
    """How well a model does on prompts: a function of logits with a name, a unit and a direction.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> def margin(logits, pairs):  # logits [batch, vocab] in float32, and each row's prompt pair
    ...     right = torch.stack([row[pair.answers[0]] for row, pair in zip(logits, pairs)])
    ...     return right - logits.logsumexp(-1)
    >>> task.measured_by(cm.tasks.Metric("margin", margin, "nats")).unit
    'nats'

    Gradient methods need a function that torch can differentiate; the others (exact, acdc, patch, path patching,
    faithfulness) take any.
    """

    name: str
    """What it is called in tables and pages."""
    function: Callable[[Tensor, Sequence["Pair"]], Tensor]
    """(logits [batch, vocab], pairs) -> [batch]."""
    unit: str = "metric"
    """What one of it is, e.g. "logits" or "nats"."""
    larger_is_better: bool = True
    """Whether a larger value of the function means that the model does better; otherwise it is negated."""
    on_answers: bool = False
    """Whether it sees no logit but those of the answers: then no others are computed."""
    flat_at_clean: bool = False
    """Whether its gradient is zero at the clean model, as that of a distance to it is: eap and atp then see nothing."""
    odd: bool = False
    """Whether exchanging right and wrong answers changes nothing but its sign."""

    def __str__(self) -> str:
        return self.name.replace("_", " ")

    @property
    def key(self) -> str:
        """What tells it from other metrics: its name, and of a function of one's own a hash of what it computes."""
        if (getattr(self.function, "__module__", None) or "").startswith("circuitome."):
            return self.name
        return f"{self.name} {hashlib.sha256(_written(self.function).encode()).hexdigest()[:16]}"

    def __call__(self, logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
        """The metric of each prompt, larger is better; float32.

        Raises `InputError` for a function that does not give one number a prompt, or that cuts gradients off where
        they are needed.
        """
        values: Any = self.function(logits, pairs)
        if not isinstance(values, Tensor) or values.shape != (len(pairs),):
            came = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"The metric {self.name} must give one number a prompt, a tensor of shape ({len(pairs)},) for logits "
                f"of shape {tuple(logits.shape)}; it gave {came}."
            )
        if logits.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
            raise InputError(
                f"The metric {self.name} has no gradient, which this method needs. Use a method that only runs the "
                "model (exact, acdc; patch, path), or a metric that torch can differentiate, such as logit_diff."
            )
        return values.float() if self.larger_is_better else -values.float()


def _written(function: Callable[..., Any]) -> str:
    """A function as text: its source, or the instructions of one without a source of its own."""
    code = getattr(function, "__code__", None)
    try:
        if code is None or code.co_name != "<lambda>":  # several lambdas may stand in one line of source
            return inspect.getsource(function if code is not None else type(function))
    except (OSError, TypeError):
        pass
    return "" if code is None else _instructions(code)


def _instructions(code: CodeType) -> str:
    """Instructions, names and constants of a function and of those inside it."""
    inner = [_instructions(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return " ".join([code.co_code.hex(), *code.co_names, *inner])


def logit_diff(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus mean logit of the wrong ones (0 for an empty list). Unit: logits."""
    return _mean(logits, _rights(pairs)) - _mean(logits, _wrongs(pairs))


def logit_diff_max(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus the largest logit of a wrong one (docstring task). Unit: logits."""
    return _mean(logits, _rights(pairs)) - _largest(logits, _wrongs(pairs))


def prob_diff(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Probability of all right answers minus probability of all wrong ones (Greater-Than). Unit: probability."""
    weights = torch.zeros_like(logits)
    for row, pair in enumerate(pairs):
        weights[row, list(pair.answers)] = 1.0
        weights[row, list(pair.wrongs)] = -1.0
    return (logits.softmax(-1) * weights).sum(-1)


def log_prob(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Log-probability that the next token is one of the right answers. Unit: nats."""
    log_probabilities = logits.log_softmax(-1)
    return torch.stack(
        [row[list(pair.answers)].logsumexp(0) for row, pair in zip(log_probabilities, pairs, strict=True)]
    )


def answer_log_prob(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Log-probability of the right answers minus that of the wrong ones, 0 for an empty list. Unit: nats.

    A task from a file or from rows that is asked for it takes answers of several tokens; see `tasks.long_answers`.
    """
    logs = logits.log_softmax(-1)
    rows = zip(logs, pairs, strict=True)
    return torch.stack([_log_sum(row, pair.answers) - _log_sum(row, pair.wrongs) for row, pair in rows])


def _log_sum(logs: Float[Tensor, " vocab"], ids: Sequence[int]) -> Float[Tensor, ""]:
    return logs[list(ids)].logsumexp(0) if ids else logs.new_zeros(())


def answer_rank(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """Rank of the best right answer among all tokens, 1 for the most probable. No gradient; smaller is better."""
    best = _largest(logits, _rights(pairs))
    return 1.0 + (logits > best[:, None]).sum(-1).float()


def accuracy(logits: Float[Tensor, "batch vocab"], pairs: Sequence["Pair"]) -> Float[Tensor, " batch"]:
    """1 where a right answer has a larger logit than all wrong ones (all other tokens, where none is wrong), else 0.

    The mean over prompts is the share that the model gets right. No gradient.
    """
    best = _largest(logits, _rights(pairs))
    right = torch.zeros_like(logits, dtype=torch.bool)
    rivals = torch.zeros_like(right)
    for row, pair in enumerate(pairs):
        right[row, list(pair.answers)] = True
        rivals[row, list(pair.wrongs) or slice(None)] = True
    return (best > logits.masked_fill(right | ~rivals, -torch.inf).amax(-1)).float()


def _rights(pairs: Sequence["Pair"]) -> Ids:
    return [pair.answers for pair in pairs]


def _wrongs(pairs: Sequence["Pair"]) -> Ids:
    return [pair.wrongs for pair in pairs]


def _largest(logits: Float[Tensor, "batch vocab"], ids: Ids) -> Float[Tensor, " batch"]:
    """Each row's largest logit among its own ids."""
    return torch.stack([row[list(own)].max() for row, own in zip(logits, ids, strict=True)])


def _mean(logits: Float[Tensor, "batch vocab"], ids: Ids) -> Float[Tensor, " batch"]:
    """Mean over each row's own ids, 0 where it has none: one gather, since a loop over rows is slow in big batches."""
    longest = max(1, max(map(len, ids)))
    where = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=logits.device)
    weights = torch.tensor([[1 / max(1, len(row))] * len(row) + [0.0] * (longest - len(row)) for row in ids])
    return (logits.gather(1, where) * weights.to(logits)).sum(1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", logit_diff, "logits", on_answers=True, odd=True),
        Metric("logit_diff_max", logit_diff_max, "logits", on_answers=True),
        Metric("prob_diff", prob_diff, "probability", odd=True),
        Metric("log_prob", log_prob, "nats"),
        Metric("answer_log_prob", answer_log_prob, "nats", odd=True),
        Metric("answer_rank", answer_rank, "ranks", larger_is_better=False),
        Metric("accuracy", accuracy, "share of prompts"),
    )
}
"""By name."""


def metric_of(given: "str | Metric | Callable[[Tensor, Sequence[Pair]], Tensor]") -> Metric:
    """The metric that a name, a `Metric` or a plain function stands for. Raises `UnknownNameError`, `InputError`."""
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        if given not in METRICS:
            raise unknown_name("metric", given, METRICS)
        return METRICS[given]
    if not callable(given):
        raise InputError(f"A metric is a name, a function of (logits, pairs) or a Metric, got {type(given).__name__}.")
    return Metric(getattr(given, "__name__", "metric").strip("<>"), given)
