"""How well the model does a task, before anybody looks for a circuit: its metric on clean and on corrupted prompts."""

from dataclasses import dataclass

from circuitome.present.blocks import Lede, table
from circuitome.studies.context import Context
from circuitome.studies.memory import baseline_bytes
from circuitome.studies.pieces import cell, example_pairs
from circuitome.studies.settings import PromptSettings
from circuitome.studies.study import Findings, Study, Work


@dataclass(frozen=True, kw_only=True)
class Measure(PromptSettings):
    """Measure how well the model does a task, template by template, before looking for a circuit."""


def work(settings: Measure, context: Context) -> Work:
    """One pass over the clean and one over the corrupted prompts."""
    taken = baseline_bytes(context.model, settings.max_memory, context.task)
    return Work.over(context.task, forward=2.0, bytes=taken)


def run(settings: Measure, context: Context) -> Findings:
    """The metric of every prompt; what is measured is kept for `--resume`."""
    from circuitome.graph.circuits import Circuit
    from circuitome.results import mean
    from circuitome.validation.faithfulness.evaluator import Evaluator

    task = context.task
    evaluator = Evaluator(context.setting.but(checkpoint=context.file("measured.safetensors")))
    nothing = Circuit.empty(context.model.graph)
    metrics = {"clean": evaluator.clean, "corrupted": evaluator.circuits([nothing])[0]}
    rows = tuple(
        (name or "all", *(cell(mean(values[task.rows_of(name)], task.unit)) for values in metrics.values()))
        for name in sorted({pair.template for pair in task.pairs})
    )
    columns = ("template", *((name, "estimate", None, task.unit) for name in metrics))
    share = float((metrics["clean"] > metrics["corrupted"]).float().mean())
    return Findings(
        title=f"How well {settings.model} does {task.name}",
        sign="The metric is larger when the model does the task better. Brackets are 95 % intervals over prompts.",
        results={"clean_is_higher": share, "by_template": rows},
        blocks=[
            Lede(text=f"The metric is higher on the clean prompt than on its corrupted twin in {share:.0%} of pairs."),
            table("By template", columns, rows),
            example_pairs(context.model, task, metrics),
        ],
        tensors=metrics,
    )


STUDY = Study("measure", Measure, run, work)
