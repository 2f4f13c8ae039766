"""How well the model does a task, before anybody looks for a circuit: its metric on clean and on corrupted prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitome.present.blocks import Column, Lede, Table
from circuitome.studies.settings import PromptSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.studies.context import Context


@dataclass(frozen=True, kw_only=True)
class Measure(PromptSettings):
    """Measure how well the model does a task, template by template, before looking for a circuit."""


def work(settings: Measure, context: "Context") -> Work:
    """One pass over the clean and one over the corrupted prompts."""
    return Work.over(context.task, forward=2.0)


def run(settings: Measure, context: "Context") -> Findings:
    """The metric of every prompt; what is measured is kept for `--resume`."""
    from circuitome.graph.circuits import Circuit
    from circuitome.results import mean
    from circuitome.studies.pieces import cell, example_pairs
    from circuitome.validation.faithfulness.evaluator import Evaluator

    task = context.task
    evaluator = Evaluator(context.setting.but(checkpoint=context.file("measured.safetensors")))
    nothing = Circuit.empty(context.model.graph)
    metrics = {"clean": evaluator.clean, "corrupted": evaluator.circuits([nothing])[0]}
    rows = tuple(
        (name or "all", *(cell(mean(values[task.rows_of(name)], task.unit)) for values in metrics.values()))
        for name in sorted({pair.template for pair in task.pairs})
    )
    share = float((metrics["clean"] > metrics["corrupted"]).float().mean())
    columns = (Column(name="template"), *(Column(name=name, style="estimate", unit=task.unit) for name in metrics))
    return Findings(
        title=f"How well {settings.model} does {task.name}",
        sign="The metric is larger when the model does the task better. Brackets are 95 % intervals over prompts.",
        results={"clean_is_higher": share, "by_template": rows},
        blocks=[
            Lede(text=f"The metric is higher on the clean prompt than on its corrupted twin in {share:.0%} of pairs."),
            Table(title="By template", columns=columns, rows=rows),
            example_pairs(context.model, task, metrics),
        ],
        tensors=metrics,
    )


STUDY = Study("measure", Measure, run, work)
