"""A file of prompt pairs before it is used: which rows can be, what the model does on them, what to mend."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import DataFileError
from circuitome.present.blocks import Block, Lede, Note, Table, Tokens, table
from circuitome.studies.context import Context
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work

SHOWN = 8
"""Pairs whose tokens are shown."""


@dataclass(frozen=True, kw_only=True)
class Check(ModelSettings):
    """Check a file of prompt pairs: which rows can be used, how they are tokenised, and what the model does on them."""

    arguments: ClassVar[tuple[str, ...]] = ("file",)

    file: Annotated[str, Argument] = ""
    """JSONL or CSV file with the columns clean, corrupted, answer, wrong, and if you like template and roles."""

    @override
    def check(self) -> None:
        if not Path(self.file).is_file():
            raise DataFileError(f"{self.file}: there is no such file.")

    @override
    def subject(self) -> str:
        return f"{Path(self.file).stem}-{super().subject()}"


def work(settings: Check, context: Context) -> Work:
    """One pass over the clean and one over the corrupted prompts."""
    task, _ = read(settings.file, context.model)
    return Work.over(task, forward=2.0) if task else Work(texts=0, tokens=0)


def read(file: str, model: "cm.Model") -> tuple["cm.Task | None", list[tuple[str, str]]]:
    """The rows that can be used as a task, None where there are none; and place and message of each that cannot.

    Raises `DataFileError` where the file cannot be read as rows at all.
    """
    from circuitome.tasks.pair_files import pairs_of, rows_of

    pairs, problems = [], list[tuple[str, str]]()
    for where, row in rows_of(Path(file)):
        try:
            pairs += pairs_of(model, where, row)
        except DataFileError as error:
            place, _, message = str(error).partition(": ")
            problems.append((place.rpartition(", ")[2], message))
    return (cm.Task(Path(file).stem, tuple(pairs), source=Path(file).name) if pairs else None), problems


def run(settings: Check, context: Context) -> Findings:
    """Problems row by row; for the rest the model's answer and the metric on both prompts of every pair."""
    task, problems = read(settings.file, context.model)
    if task is None and not problems:
        raise DataFileError(f"{settings.file}: the file is empty; it needs at least one row.")
    rows = [] if task is None else answers(context, task)
    return Findings(
        title=f"Prompt pairs of {Path(settings.file).name} for {settings.model}",
        sign="The logit difference is that between right and wrong answers; larger means that the model does better.",
        results={"usable": len(rows), "problems": problems, "rows": rows},
        blocks=blocks(context, task, problems, rows),
        more={"data_hash": Path(settings.file).read_text("utf-8-sig")},
    )


def answers(context: Context, task: "cm.Task") -> list[tuple[str, str, bool, int, float, float]]:
    """By pair: prompt, next token, whether right beats wrong, rank of the answer, metric on both prompts."""
    setting, graph, every = context.setting.but(prompts=task), context.model.graph, range(len(task))
    clean, corrupted = (
        cm.run_circuit(setting, circuit) for circuit in (cm.Circuit.full(graph), cm.Circuit.empty(graph))
    )
    columns = (
        [pair.clean_text for pair in task.pairs],
        [context.model.decode([token]) for token in clean.argmax(-1).tolist()],
        (task.measured_by("accuracy").score(clean, every) > 0).tolist(),
        (-task.measured_by("answer_rank").score(clean, every)).int().tolist(),
        task.score(clean, every).tolist(),
        task.score(corrupted, every).tolist(),
    )
    return list(zip(*columns, strict=True))


def blocks(
    context: Context, task: "cm.Task | None", problems: list[tuple[str, str]], rows: list[tuple[Any, ...]]
) -> list[Block]:
    """The answer in a sentence, what to mend, what the model does, and how pairs are cut into tokens."""
    text = f"{len(rows)} of {len(rows) + len(problems)} rows can be used."
    parts: list[Block] = []
    if problems:
        parts.append(
            Note(text=f"{len(problems)} rows cannot be used; the table says why and what to do.", level="warning")
        )
        parts.append(table("To mend", ("row", "what is wrong"), problems))
    if task is not None:
        right, higher = (sum(flags) for flags in ([row[2] for row in rows], [row[4] > row[5] for row in rows]))
        text += (
            f"\nThe model gets {right} of {len(rows)} right; in {higher} its logit difference is higher on the clean "
            "prompt than on the corrupted one."
        )
        parts += [answered(task, rows), tokenised(context, task)]
    return [Lede(text=text), *parts]


def answered(task: "cm.Task", rows: list[tuple[Any, ...]]) -> Table:
    """One row a pair, those that the model gets wrong first."""
    columns = ("prompt", "next token", "right", ("rank of the answer", "count"))
    numbers = [(name, "number", 2, task.unit) for name in ("clean", "corrupted")]
    cells = [
        (row[0], repr(row[1]), "yes" if row[2] else "no", *row[3:]) for row in sorted(rows, key=lambda row: row[4])
    ]
    return table("What the model says", (*columns, *numbers), cells)


def tokenised(context: Context, task: "cm.Task") -> Tokens:
    """The tokens of the first pairs; those that differ between clean and corrupted are coloured."""
    lines, labels = [], []
    for number, pair in enumerate(task.pairs[:SHOWN]):
        for side, ids, others in (("clean", pair.clean, pair.corrupted), ("corrupted", pair.corrupted, pair.clean)):
            marks = [float(a != b) for a, b in zip(ids, others, strict=True)]
            lines.append(tuple(zip((context.model.decode([token]) for token in ids), marks, strict=True)))
            labels.append(f"{number} {side}")
    note = "Coloured tokens are those that the two prompts do not share."
    return Tokens(title="Tokens of the first pairs", note=note, lines=tuple(lines), labels=tuple(labels))


STUDY = Study("check", Check, run, work)
