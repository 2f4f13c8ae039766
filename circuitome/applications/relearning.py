"""Fine-tuning on a task's answers: toward them, until an unlearnt behaviour is back, and away from them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitome.applications.rankings import metrics
from circuitome.engine.setting import Setting
from circuitome.models.model import Model
from circuitome.tasks.task import Task
from circuitome.training.loop import train
from circuitome.training.objectives import logits_of
from circuitome.training.schedule import Schedule
from circuitome.training.streams import NOT_COUNTED, Rows

STEPS, RATE, ROWS = 60, 2e-5, 16
"""Steps at most, learning rate, and prompts of a step."""


class _Reached(Exception):
    """Ends a training whose end is reached."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model that was fine-tuned until something was reached."""

    model: Model
    """A copy with its new weights."""
    gaps: tuple[float, ...]
    """Mean metric on clean minus corrupted prompts before the first step and after each."""
    reached: bool
    """Whether it was reached."""

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return len(self.gaps) - 1


def relearn(
    setting: Setting, train_on: Task, *, gap: float, steps: int = STEPS, rate: float = RATE, rows: int = ROWS
) -> Tuned:
    """A copy of the model, fine-tuned on answers of `train_on` until the gap on the setting's prompts is `gap` or more.

    The gap is the mean metric on clean minus that on corrupted prompts. AdamW at a constant learning rate, `rows`
    prompts a step; the loss is that of the answer alone.
    """
    return _tuned(setting, train_on, 1.0, lambda now: now >= gap, steps, rate, rows)


def forget(
    setting: Setting, train_on: Task, *, gap: float, steps: int = STEPS, rate: float = RATE, rows: int = ROWS
) -> Tuned:
    """The same by gradient ascent on the answers' loss, until the gap is at most `gap`: what unlearning is beside."""
    return _tuned(setting, train_on, -1.0, lambda now: now <= gap, steps, rate, rows)


def _tuned(
    setting: Setting, data: Task, sign: float, done: Callable[[float], bool], steps: int, rate: float, rows: int
) -> Tuned:
    model = setting.model.copied("Training on top")
    own = setting.but(model=model)
    gaps = [_gap(own)]

    def objective(live: Model, tokens: Rows) -> Tensor:
        logits, targets = logits_of(live, tokens)[:, :-1], tokens.targets[:, 1:]
        return sign * cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_COUNTED)

    def after(live: Model, step: int) -> None:
        gaps.append(_gap(own))
        setting.progress("fine-tuning", len(gaps) - 1, steps)
        if done(gaps[-1]):
            raise _Reached

    if done(gaps[0]):
        return Tuned(model, tuple(gaps), True)
    length = max(len(pair.clean) for pair in data.pairs) + 1
    schedule = Schedule(
        steps=steps,
        batch=rows,
        length=length,
        learning_rate=rate,
        warm_up=0.0,
        floor=1.0,
        weight_decay=0.0,
        seed=setting.seed,
    )
    try:
        train(model, lambda step, drawn: answers(data, rows, drawn), schedule, objective=objective, after_step=[after])
    except _Reached:
        return Tuned(model, tuple(gaps), True)
    return Tuned(model, tuple(gaps), False)


def _gap(setting: Setting) -> float:
    clean, corrupted = metrics(setting)
    return float((clean - corrupted).mean())


def answers(task: Task, rows: int, drawn: torch.Generator) -> Rows:
    """Some clean prompts, each with its first answer behind it, which alone is counted."""
    chosen = torch.randint(len(task), (rows,), generator=drawn).tolist()
    pairs = [task.pairs[i] for i in chosen]
    texts = [(*pair.clean[: pair.answer_position + 1], pair.answers[0]) for pair in pairs]
    longest = max(map(len, texts))
    ids = torch.zeros(rows, longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, NOT_COUNTED), torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
        labels[row, len(text) - 1] = text[-1]
    return Rows(ids, labels, mask)
