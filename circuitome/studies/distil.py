"""A student that learns a teacher's predictions, beside one that learns from text alone, and with heads matched."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Note, table
from circuitome.studies.context import Context
from circuitome.studies.memory import weight_bytes
from circuitome.studies.pieces import cell
from circuitome.studies.settings import Argument
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.training_settings import Checkpoint, TaskTrainingSettings, held_loss, lines, options, streams

TEXT, PREDICTIONS, HEADS = "text", "predictions", "predictions and heads"


@dataclass(frozen=True, kw_only=True)
class Distil(TaskTrainingSettings):
    """Train a student to predict as its teacher does, beside the same training on text alone."""

    arguments: ClassVar[tuple[str, ...]] = ("model", "student")

    model: Annotated[str, Argument] = ""
    """The teacher: a name that `circuitome models` lists, a hub name, a folder or a .gguf file."""
    student: Annotated[str, Argument] = ""
    """The student, likewise, with the same tokenizer; `circuitome subclone --checkpoint` makes one."""
    align: str = "none"
    """circuit: heads of the task's circuit are matched and drawn together as well, beside the training without."""
    temperature: float = 2.0
    """Divides both models' logits."""
    weight: float = 1.0
    """Weight of the matched heads."""
    checkpoint: Checkpoint = None
    """New folder for the student, trained with the first seed."""

    @override
    def check(self) -> None:
        super().check()
        if self.align not in ("none", "circuit"):
            raise unknown_name("alignment", self.align, ("none", "circuit"))
        if self.steps < 1:
            raise InputError(f"--steps must be at least 1, got {self.steps}.")
        if not self.temperature > 0:
            raise InputError(f"--temperature must be above 0, got {self.temperature}.")

    def conditions(self) -> tuple[str, ...]:
        """Ways to train that are compared; the last is the one asked for."""
        return (TEXT, PREDICTIONS, *((HEADS,) if self.align == "circuit" else ()))


def work(settings: Distil, context: Context) -> Work:
    """Trainings of the student, as dear as the teacher's at most, and the teacher's passes."""
    stored = sum(file.stat().st_size for file in Path(settings.student).glob("*.safetensors"))
    share = min(1.0, stored / weight_bytes(context.model)) if stored else 1.0
    return settings.work(len(settings.conditions()) * settings.seeds, passes=1.0, models=2, share=share)


def run(settings: Distil, context: Context) -> Findings:
    """The trainings, each from the same student."""
    from circuitome.applications.distillation import check_pair
    from circuitome.applications.rankings import metrics

    teacher, texts = context.model, streams(settings, context.model)
    task = settings.origin().draw(teacher)
    first = cm.load(settings.student, device=teacher.device)
    check_pair(teacher, first)
    look = held_loss(settings, texts.held)

    def measure(model: "cm.Model") -> dict[str, float]:
        clean, corrupted = metrics(context.setting.but(model=model, prompts=task))
        return {**look(model), "gap": float((clean - corrupted).mean())}

    alike: dict[str, list[float]] = {name: [] for name in settings.conditions()}
    matched = cm.applications.matched_heads(teacher, first, task)

    def trained(name: str, seed: int) -> "cm.training.Training":
        student = cm.load(settings.student, device=teacher.device)
        told = options(settings, context, name, seed, watch=[measure])
        rows = (texts.trained, settings.schedule(seed))
        if name == TEXT:
            training = cm.training.train(student, *rows, **told)
        else:
            pairs = matched if name == HEADS else None
            told |= {"temperature": settings.temperature, "weight": settings.weight, "align": pairs}
            training = cm.applications.distil(teacher, student, *rows, **told)
        alike[name].append(cm.applications.resemblance(teacher, student, task))
        if name == settings.conditions()[-1] and seed == 0 and settings.checkpoint is not None:
            from circuitome.models.saving import write_checkpoint

            write_checkpoint(student, Path(settings.checkpoint))
        return training

    conditions = {name: partial(trained, name) for name in settings.conditions()}
    curves = cm.applications.compare_curves(conditions, range(settings.seeds), ("held_out", "gap"))
    results = {
        "task": settings.task,
        "unit": task.unit,
        "teacher": measure(teacher),
        "student": {**measure(first), "resemblance": cm.applications.resemblance(teacher, first, task)},
        "pairs": [vars(pair) for pair in matched],
        "trained": _trained(curves, alike),
        "curves": {what: found.to_dict() for what, found in curves.items()},
    }
    return Findings(
        title=f"What {settings.student} learns of {settings.model}",
        sign=(
            "Losses are on held-out texts, in nats a token; the gap is the task's metric on clean prompts minus "
            "that on corrupted ones. Resemblance is the mean cosine of the effects of matched heads, 1 for a copy. "
            "Brackets are 95 % intervals over seeds."
        ),
        results=results,
        blocks=blocks(settings, results, curves),
        tensors={f"{what}.{name.replace(' ', '_')}": v for what, c in curves.items() for name, v in c.values.items()},
        more={"data_hash": texts.data_hash, "checkpoint": settings.checkpoint},
    )


def _trained(curves: Mapping[str, "cm.applications.Curves"], alike: Mapping[str, list[float]]) -> dict[str, Any]:
    import torch

    from circuitome.results import mean

    return {
        name: {
            **{what: found.final(name).to_dict() for what, found in curves.items()},
            "resemblance": mean(torch.tensor(values), "cosine").to_dict(),
        }
        for name, values in alike.items()
    }


def blocks(settings: Distil, results: Mapping[str, Any], curves: Mapping[str, "cm.applications.Curves"]) -> list[Block]:
    """The answer, the table of models, the curves, and the matched heads."""
    ends = {name: row["held_out"]["value"] for name, row in results["trained"].items()}
    last = settings.conditions()[-1]
    text = (
        f"After {settings.steps:,} steps the student's loss on held-out texts is {formats.fixed(ends[last], 3)} nats a "
        f"token with {last}, and {formats.fixed(ends[TEXT], 3)} with text alone; the teacher's is "
        f"{formats.fixed(results['teacher']['held_out'], 3)}."
    )
    rows: list[tuple[Any, ...]] = [
        ("teacher", results["teacher"]["held_out"], results["teacher"]["gap"], 1.0),
        ("student before", *(results["student"][what] for what in ("held_out", "gap", "resemblance"))),
    ]
    plain = [
        (name, *(value if isinstance(value, str) else (value, None, None) for value in row)) for name, *row in rows
    ]
    trained = [
        (name, *(cell(row[what]) for what in ("held_out", "gap", "resemblance")))
        for name, row in results["trained"].items()
    ]
    columns = (
        ("model", "text"),
        ("loss", "estimate", 3, "nats"),
        (f"gap of {settings.task}", "estimate", 3, results["unit"]),
        ("resemblance", "estimate", 3),
    )
    pairs = ((pair["teacher"], pair["student"], pair["similarity"]) for pair in results["pairs"])
    return [
        Lede(text=text),
        table("Side by side", columns, [*plain, *trained]),
        lines(curves["held_out"], "Training", "loss on held-out texts, nats a token"),
        lines(curves["gap"], f"The task {settings.task}", f"gap, {results['unit']}"),
        table(
            "Matched heads", (("teacher", "node"), ("student", "node"), ("cosine", "number", 3)), pairs, where="page"
        ),
        Note(
            text="Heads are matched before the training, by their effects on the task, prompt by prompt. A student of "
            "random heads resembles its teacher too, since the best of its heads is taken for each of the teacher's."
        ),
    ]


STUDY = Study("distil", Distil, run, work)
