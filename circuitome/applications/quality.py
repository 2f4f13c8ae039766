"""What a model is worth: its loss on neutral text, what it does of some tasks, its size and its speed."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.applications.rankings import metrics
from circuitome.engine.setting import Setting
from circuitome.models.model import Model
from circuitome.neurons.text_loss import mean_loss, token_losses
from circuitome.neurons.text_windows import Windows
from circuitome.results import Estimate, Record, bootstrap
from circuitome.tasks.task import Task

ROUNDS, ROWS = 7, 8
"""Rounds in which models run one after another to be timed, and windows of a pass."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What is measured of one model, number by number, for differences between models."""

    losses: Float[Tensor, "window next"]
    """Negative log-likelihood of tokens of the neutral text, nats."""
    clean: Mapping[str, Float[Tensor, " prompt"]]
    """By task, the metric on every clean prompt."""
    gaps: Mapping[str, Float[Tensor, " prompt"]]
    """By task, the metric on every clean prompt minus that on its corrupted twin."""
    parameters: int
    """Numbers in the weights."""


@dataclass(frozen=True)
class Quality(Record):
    """A model beside the one that it comes from."""

    loss: Estimate
    """Loss on the neutral text, nats a token."""
    change: Estimate
    """The same minus that of the first model, window by window."""
    kept: Mapping[str, Estimate]
    """By task, the share of the first model's gap that is left: clean minus corrupted metric, over the same of it."""
    parameters: int
    """Numbers in the weights."""


def readings(setting: Setting, texts: Windows, tasks: Mapping[str, Task], what: str = "the model") -> Readings:
    """What the model of `setting` does on neutral text and on the tasks' prompts."""
    clean, gaps = dict[str, Tensor](), dict[str, Tensor]()
    losses = token_losses(setting, texts, f"loss of {what}")
    for done, (name, task) in enumerate(tasks.items(), 1):
        clean[name], corrupted = metrics(setting.but(prompts=task))
        gaps[name] = clean[name] - corrupted
        setting.progress(f"tasks of {what}", done, len(tasks))
    return Readings(losses, clean, gaps, sum(p.numel() for p in setting.model.hf.parameters()))


def quality(found: Readings, first: Readings, tasks: Mapping[str, Task]) -> Quality:
    """Readings beside those of the first model, with intervals over windows and over prompts."""
    kept = {}
    for name, task in tasks.items():
        columns = torch.stack([found.gaps[name], first.gaps[name]], 1)
        kept[name] = bootstrap(columns, lambda m: m[:, 0] / m[:, 1], "share of the gap", groups=task.groups)
    return Quality(mean_loss(found.losses), mean_loss(found.losses - first.losses), kept, found.parameters)


def done_tasks(model: Model, names: Sequence[str], n: int, seed: int) -> tuple[dict[str, Task], dict[str, str]]:
    """Prompts of the tasks that the model does, its gap significantly above 0, and why there are none of others."""
    from circuitome.errors import InputError
    from circuitome.tasks import TASKS

    tasks, why = dict[str, Task](), dict[str, str]()
    for name in names:
        try:
            task = TASKS[name](model, n=n, seed=seed)
            clean, corrupted = metrics(Setting(model, task))
        except InputError as error:
            why[name] = str(error).splitlines()[0]
            continue
        if float((clean - corrupted).mean()) > 0:
            tasks[name] = task
        else:
            why[name] = "the model does not do it"
    return tasks, why


def forward_seconds(models: Sequence[Model], texts: Windows, rounds: int = ROUNDS) -> list[float]:
    """Seconds of a bare forward pass of each model over some windows: medians of rounds in which each runs once.

    Processor seconds on a CPU, so that other programs count little; on a GPU seconds until it is done.
    """
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + 1):
        for model, taken in zip(models, times, strict=True):
            inputs = texts.inputs(model, range(min(ROWS, len(texts))))
            on_gpu = model.device.type == "cuda"
            clock = time.perf_counter if on_gpu else time.process_time
            with torch.no_grad(), model.reserved():
                if on_gpu:
                    torch.cuda.synchronize(model.device)
                start = clock()
                model.hf(input_ids=inputs.ids, attention_mask=inputs.mask, use_cache=False)
                if on_gpu:
                    torch.cuda.synchronize(model.device)
                taken.append(clock() - start)
    return [statistics.median(taken[1:]) for taken in times]  # the first round warms caches up
