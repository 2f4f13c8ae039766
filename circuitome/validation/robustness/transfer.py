"""Does a circuit hold for other prompts of its task, in other words, and is it the circuit of other tasks too?"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.engine.circuit_run import check_graph
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.progress import silent
from circuitome.results import Estimate, plain_fields
from circuitome.tasks import TASKS
from circuitome.tasks.generators.ioi import ioi
from circuitome.tasks.task import Pair, Task
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import normalised
from circuitome.validation.robustness.score_agreement import AgreementMatrix, check_size, method_agreement
from circuitome.validation.tests.hypotheses import FEWEST_PROMPTS


@dataclass(frozen=True, eq=False)
class Transfer:
    """Circuits of several tasks side by side: how far they overlap, and how well each does the other tasks."""

    names: tuple[str, ...]
    """The tasks; the first is the one that the others stand beside."""
    circuits: tuple[Circuit, ...]
    """The circuit of each task."""
    overlap: AgreementMatrix
    """Of the scores of each task with those of each."""
    faithfulness: tuple[tuple[Estimate, ...], ...]
    """By circuit and task: (F(C) - F(0)) / (F(M) - F(0)) of the row's circuit on the column's prompts."""

    @property
    def matrix(self) -> Float[Tensor, "circuits tasks"]:
        """Faithfulness of every circuit on every task."""
        return torch.tensor([[share.value for share in row] for row in self.faithfulness])

    def __getitem__(self, names: tuple[str, str]) -> Estimate:
        """Faithfulness of one task's circuit on another task."""
        circuit, task = names
        return self.faithfulness[self.names.index(circuit)][self.names.index(task)]

    def to_dict(self) -> dict[str, Any]:
        """Names, overlaps and the matrix of faithfulness with intervals, as plain JSON values."""
        return plain_fields(self, "names", "overlap", "faithfulness")


def variants_of(
    model: Model, task: Task, *, n: int | None = None, seed: int = 0, others: bool = True
) -> dict[str, Task]:
    """Tasks to hold `task`'s circuit against, each of up to `n` prompts (default: as many as `task` has).

    Other prompts by its generator ("seed 1"); its prompts template by template, or by groups of templates where these
    are small ("ioi-ABBA", "ioi-BABA"); other sentences, where the generator has some ("paraphrase"); and with `others`
    the other tasks that the model does: mean metric on clean above corrupted prompts, surely over prompts. Tasks whose
    words this tokenizer lacks are left out. Costs two passes over the prompts of each other task.
    """
    count, variants = n or len(task), dict[str, Task]()
    generator = TASKS.get(task.name)
    if generator is not None and task.seed is not None:
        drawn = task.seed + 1 + seed
        kept = {"corruption": match[1]} if (match := re.search(r"corruption ([\w-]+)", task.source)) else {}
        variants[f"seed {drawn}"] = generator(model, n=count, seed=drawn, **kept)
        if generator is ioi:
            variants["paraphrase"] = ioi(model, n=count, seed=drawn, paraphrased=True, **kept)
    variants |= {name: replace(part, pairs=part.pairs[:count]) for name, part in by_template(task).items()}
    for name, other in TASKS.items() if others else ():
        if name != task.name:
            try:
                draw_task = other(model, n=count, seed=seed)
            except InputError:  # words that this tokenizer lacks
                continue
            if does(model, draw_task):
                variants[name] = draw_task
    return variants


def by_template(task: Task, least: int = FEWEST_PROMPTS) -> dict[str, Task]:
    """The prompts of each template as a task of its own; nothing where they are all of one.

    Where a template has fewer than `least` prompts, templates that differ only in a number at the end go together;
    groups that are still smaller are left out.
    """
    names = [pair.template for pair in task.pairs]
    if min(names.count(name) for name in names) < least:
        names = [re.sub(r"-\d+$", "", name) for name in names]
    groups: dict[str, list[Pair]] = {}
    for pair, name in zip(task.pairs, names, strict=True):
        groups.setdefault(name, []).append(pair)
    if len(groups) < 2:
        return {}
    return {name: replace(task, pairs=tuple(pairs)) for name, pairs in sorted(groups.items()) if len(pairs) >= least}


@method
def does(setting: Setting) -> bool:
    """Whether the metric is higher on clean prompts than with everything ablated: the interval's low end above 0."""
    evaluator = Evaluator(setting.but(progress=silent))
    return setting.mean(evaluator.clean - evaluator.empty, setting.task.unit).low > 0


@method
def transfer(
    setting: Setting,
    tasks: Mapping[str, Task],
    *,
    size: int,
    search: Callable[[Setting], EdgeScores] = eap_ig,
    scores: Mapping[str, EdgeScores] | None = None,
    circuits: Mapping[str, Circuit] | None = None,
) -> Transfer:
    """The circuit of every task by `search`, their overlaps, and the faithfulness of each on each.

    A circuit is the `size` strongest edges of the task's scores. `scores` and `circuits` may give what is at hand for
    some of the tasks by name. Costs the search once a task, two passes, and one circuit run for every pair of tasks.
    Raises `InputError` for fewer than two tasks, a circuit of another model, or a task that the model does not do.
    """
    if len(tasks) < 2:
        raise InputError(f"Tasks are compared with each other; got only {', '.join(tasks) or 'none'}.")
    settings = {name: setting.but(prompts=task, progress=silent) for name, task in tasks.items()}
    every, total = dict(scores or {}), 2 * len(tasks)
    for done, (name, here) in enumerate(settings.items()):
        every[name] = every.get(name) or search(here)
        setting.progress("other tasks", done + 1, total)
    chosen = [(circuits or {}).get(name) or every[name].top(size) for name in tasks]
    for circuit in chosen:
        check_size(circuit)
        check_graph(setting.model, circuit)
    columns = []
    for done, (name, here) in enumerate(settings.items()):
        columns.append(_shares(name, Evaluator(here), chosen))
        setting.progress("other tasks", len(tasks) + done + 1, total)
    rows = tuple(tuple(column[i] for column in columns) for i in range(len(chosen)))
    overlap = method_agreement({name: every[name] for name in tasks}, size)
    return Transfer(tuple(tasks), tuple(chosen), overlap, rows)


def _shares(name: str, evaluator: Evaluator, circuits: list[Circuit]) -> list[Estimate]:
    """Faithfulness of each circuit on the task called `name`."""
    *metrics, _ = evaluator.circuits([*circuits, Circuit.empty(evaluator.model.graph)])
    try:
        evaluator.checked_gap()
    except InputError as error:
        raise InputError(f"{name}: {error} variants_of gives only tasks that the model does.") from None
    return [normalised(evaluator.setting, evaluator.samples(metric)) for metric in metrics]
