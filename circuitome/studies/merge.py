"""Merging of fine-tuned models, plain and with the changes of circuits' parts alone, beside random parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, RunError
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, percent
from circuitome.studies.qualities import OTHERS, check_saved, check_tasks, left_out, loss_bars, nats, split_texts
from circuitome.studies.settings import Argument, Flag, ModelSettings, Names
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.applications.merging import Recipe
    from circuitome.applications.quality import Readings

BASE, MERGED = "base", "merged"


@dataclass(frozen=True, kw_only=True)
class Merge(ModelSettings):
    """Merge fine-tunings of one base model, and measure what each keeps, plain or with circuits' parts alone."""

    arguments: ClassVar[tuple[str, ...]] = ("model", "first", "second")

    model: Annotated[str, Argument] = ""
    """The base model: a folder or a name."""
    first: Annotated[str, Argument] = ""
    """Folder of a model that was fine-tuned from it."""
    second: Annotated[str, Argument] = ""
    """Folder of another one."""
    more: Names = ()
    """Further ones."""
    method: str = "task-arithmetic"
    """How: task-arithmetic, ties, dare or slerp."""
    weight: float | None = None
    """What the changes are multiplied with; of slerp, the place between the two."""
    density: float = 0.2
    """Of ties: the share of each model's changes that is kept."""
    drop: float = 0.9
    """Of dare: the share of changes that is dropped at random."""
    only_circuit: Names = ()
    """Runs, one for all models or one for each: only changes of their circuits' parts are merged."""
    outside: float = 0.0
    """Of --only-circuit: what other changes are multiplied with."""
    tasks: Names = ("ioi", *OTHERS)
    """Tasks that all models are measured on."""
    n: int = 64
    """Prompt pairs of each task."""
    texts: str | None = None
    """Text on which the loss is measured; the package's own by default."""
    text_tokens: int = 4000
    """Tokens of it, at most."""
    draws: int = 2
    """Of --only-circuit: as many random parts beside it."""
    circuits: Flag = False
    """Also compare the circuits of the first task in all models."""
    checkpoint: Annotated[str | None, Parameter(negative="")] = None
    """New folder for the merged model."""

    @override
    def check(self) -> None:
        if not self.model or not self.first or not self.second:
            raise InputError("Give the base model and at least two models that were fine-tuned from it.")
        self.recipe()
        if len(self.only_circuit) not in (0, 1, len(self.models)):
            raise InputError(f"--only-circuit takes one run or {len(self.models)}, got {len(self.only_circuit)}.")
        if self.draws < 0 or self.n < 1 or self.text_tokens < 4:
            raise InputError("--draws is at least 0, --n at least 1 and --text-tokens at least 4.")
        for name in (self.model, *self.models):
            check_saved(name)
        check_tasks(self.tasks)
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            raise RunError(f"{self.checkpoint} exists already. Choose another folder for the checkpoint.")

    @property
    def models(self) -> tuple[str, ...]:
        """The fine-tuned ones."""
        return (self.first, self.second, *self.more)

    def recipe(self) -> "Recipe":
        """How they are merged."""
        from circuitome.applications.merging import Recipe

        names = ("method", "weight", "density", "drop", "outside", "seed")
        return Recipe(**{name: getattr(self, name) for name in names})


def work(settings: Merge, context: Context) -> Work:
    """Passes over the text for every model."""
    models = 2 + len(settings.models) + (settings.draws + 1) * bool(settings.only_circuit)
    return Work(texts=max(1, settings.text_tokens // 128), tokens=128, forward=3.0 * models, copies=2)


def run(settings: Merge, context: Context) -> Findings:
    """Merge in every way that was asked for, and measure all models."""
    from circuitome.applications.quality import done_tasks, quality, readings
    from circuitome.results import mean

    texts = split_texts(settings.texts, context.model, settings.text_tokens, settings.seed)
    drawn, why = done_tasks(context.model, settings.tasks, settings.n, settings.seed)
    tasks = {name: task.measured_by("log_prob") for name, task in drawn.items()}
    found, distances = {BASE: readings(context.setting, texts.measured, tasks, BASE)}, {}
    with TemporaryDirectory() as scratch:
        for name, folder in folders(settings, context, Path(scratch)).items():
            other = context.setting.but(model=cm.load(folder, device=context.model.device))
            found[name] = readings(other, texts.measured, tasks, name)
            if settings.circuits and tasks:
                distances[name] = moved(context, other, next(iter(drawn.values())))
    rows = {
        name: quality(one, found[BASE], {}).to_dict()
        | {"answers": {task: mean(one.clean[task], "nats", groups=tasks[task].groups).to_dict() for task in tasks}}
        for name, one in found.items()
    }
    results: dict[str, Any] = {
        "method": vars(settings.recipe()) | {"factor": settings.recipe().factor},
        "models": rows,
        "gains": gains(settings, found),
        "circuits": distances,
        "left_out": why,
        "checkpoint": settings.checkpoint,
    }
    return Findings(
        title=f"{' and '.join(Path(name).name for name in settings.models)} merged into {settings.model}",
        sign="Answers: mean log-probability of the right answer on clean prompts, nats; higher is better. Change of "
        "the loss: model minus base. Brackets are 95 % intervals.",
        results=results,
        blocks=blocks(settings, results),
        more={"data_hash": texts.data_hash},
    )


def folders(settings: Merge, context: Context, scratch: Path) -> dict[str, str | Path]:
    """All models by name: fine-tuned ones, the merged one, and where circuits are given the restricted ones."""
    from circuitome.applications.component_masks import random_components

    recipe, named = settings.recipe(), dict[str, str | Path]()
    for name in settings.models:
        named[Path(name).name if Path(name).name not in named else name] = name
    merged = [dict[str, Any](name=MERGED, only=None)]
    if settings.only_circuit:
        circuits = [list(cm.open(run).circuit.without_dangling().nodes) for run in settings.only_circuit]
        parts = circuits * (len(settings.models) if len(circuits) == 1 else 1)
        merged.append({"name": "circuits' parts", "only": parts})
        for draw in range(settings.draws):
            random = [random_components(context.model, some, settings.seed + draw) for some in parts]
            merged.append({"name": f"random parts {draw + 1}", "only": random})
    chosen = merged[1]["name"] if len(merged) > 1 else MERGED
    for i, how in enumerate(merged):
        keep = settings.checkpoint if how["name"] == chosen else None
        folder = Path(keep) if keep else scratch / str(i)
        options = {"only": how["only"], "progress": context.progress}
        named[how["name"]] = cm.merge(settings.model, settings.models, folder, recipe, **options)
    return named


def moved(context: Context, other: Any, task: "cm.Task") -> dict[str, Any]:
    """How far a model's circuit of the task is from the base model's."""
    from circuitome.applications.distance import circuit_distance
    from circuitome.studies.find import circuit_size

    first = context.setting.but(prompts=task)
    edges = circuit_size(None, context.model)
    return circuit_distance(first, other.but(prompts=task), edges=edges).to_dict()


def gains(settings: Merge, found: "Mapping[str, Readings]") -> list[dict[str, Any]]:
    """Of every task that a fine-tuned model does better than the base: who gains most, and what of it others keep."""
    tuned = list(found)[1 : 1 + len(settings.models)]
    rows = []
    for task in found[BASE].clean:
        answer = {name: float(one.clean[task].mean()) for name, one in found.items()}
        best = max(tuned, key=answer.__getitem__)
        gain = answer[best] - answer[BASE]
        if gain > 0:
            kept = {name: (answer[name] - answer[BASE]) / gain for name in list(found)[1 + len(tuned) :]}
            rows.append({"task": task, "model": best, "gain": gain, "kept": kept})
    return rows


def blocks(settings: Merge, results: Mapping[str, Any]) -> list[Block]:
    """The answer, gains, all models side by side, circuits."""
    parts: list[Block] = [Lede(text=lede(settings, results))]
    if results["gains"]:
        parts.append(gains_table(results["gains"]))
    parts += [answers_table(results["models"]), loss_bars(results["models"], BASE)]
    if results["circuits"]:
        parts.append(circuits_table(results["circuits"]))
    return [*parts, *left_out(results["left_out"])]


def lede(settings: Merge, results: Mapping[str, Any]) -> str:
    """What of the gains is kept, and what it costs."""
    rows, gained = results["models"], results["gains"]
    text = f"Merged by {settings.method}, the model's loss on neutral text changes by {nats(rows[MERGED]['change'])}. "
    if not gained:
        return f"{text}No fine-tuned model does a measured task better than the base; name their tasks with --tasks."
    shares = (f"{formats.percent(row['kept'][MERGED])} of {row['model']}'s gain in {row['task']}" for row in gained)
    text += f"It keeps {', '.join(shares)}."
    others = [name for name in gained[0]["kept"] if name != MERGED]
    if others:
        least = (f"{name} {formats.percent(min(row['kept'][name] for row in gained))}" for name in others)
        text += f"\nThe smallest share of a gain that is kept: {', '.join(least)}."
    return text


def gains_table(gained: list[dict[str, Any]]) -> Table:
    """What of the best fine-tuned model's gain each merged model keeps."""
    names = list(gained[0]["kept"])
    columns = ("task", "gains most", ("gain", "number", 2), *((name, "percent") for name in names))
    rows = ((row["task"], row["model"], row["gain"], *(row["kept"][name] for name in names)) for row in gained)
    note = "Gain: log-probability of the answer minus that in the base, nats; then the share that a merged model keeps."
    return table("What is kept of each gain", columns, rows, note=note)


def answers_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Models by name: change of the loss, and the answers' log-probability by task."""
    names = list(rows[BASE]["answers"])
    columns = ("model", ("change of loss", "estimate", 3, "nats a token"), *((name, "estimate", 2) for name in names))
    cells = ((name, cell(row["change"]), *(cell(row["answers"][task]) for task in names)) for name, row in rows.items())
    return table("Side by side", columns, cells, note="Tasks: mean log-probability of the answer, nats.")


def circuits_table(found: Mapping[str, Any]) -> Table:
    """How far circuits are from the base model's."""
    rows = (
        (name, one["distance"], percent(one["first_in_second"]), percent(one["second_in_first"]))
        for name, one in found.items()
    )
    columns = ("model", ("distance", "number", 2), "the base's circuit in it", "its circuit in the base")
    note = "1 - Jaccard of circuits of one size by EAP-IG on the first task, and the faithfulness of one in the other."
    return table("Circuits beside the base model's", columns, rows, note=note)


STUDY = Study("merge", Merge, run, work)
