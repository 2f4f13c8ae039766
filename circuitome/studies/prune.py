"""Structural pruning: a smaller, faster checkpoint, by what its parts do, beside other rankings and random parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, RunError
from circuitome.present import formats
from circuitome.present.blocks import Block, Figure, Lede, Numbers, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import percent
from circuitome.studies.qualities import (
    OTHERS,
    Texts,
    check_saved,
    check_tasks,
    left_out,
    loss_bars,
    nats,
    quality_table,
    split_texts,
    tasks_of,
)
from circuitome.studies.settings import Flag, ModelSettings, Names
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.applications.pruning import Pruned
    from circuitome.tasks.task import Task

PLAIN, HEALED = "the model itself", "and trained"
HEAL_ROWS, HEAL_RATE = 8, 1e-4
"""Windows of a step of training, and its learning rate."""


@dataclass(frozen=True, kw_only=True)
class Prune(ModelSettings):
    """Make a model smaller: heads, neurons or blocks go by what they do; measured on the checkpoint, read again."""

    share: float = 0.2
    """The share of heads, neurons or blocks that goes."""
    by: str = "importance"
    """What goes first: importance, circuit, magnitude or random."""
    heads: Flag = False
    """Remove heads, in whole key/value heads; heads and neurons are removed where nothing is said."""
    neurons: Flag = False
    """Remove neurons of the MLPs."""
    blocks: Flag = False
    """Remove whole blocks."""
    value: str = "mean"
    """What removed parts leave behind: mean, as a bias where the architecture holds one, or zero."""
    rounds: int = 1
    """In how many steps, with scores taken anew."""
    task: str = "ioi"
    """Of --by circuit: the task whose circuit counts."""
    run: str | None = None
    """Of --by circuit: a run whose circuit counts, on its prompts."""
    tasks: Names = OTHERS
    """Tasks that are measured before and after."""
    n: int = 64
    """Prompt pairs of each task."""
    texts: str | None = None
    """Texts, a file or folder: one half to score parts on, one to measure the loss on; the package's own by default."""
    text_tokens: int = 4000
    """Tokens of each half, at most."""
    heal: int = 0
    """Steps of training on the texts of the first half that follow, each of 8 windows."""
    beside: Names = ("random",)
    """Other rankings that are measured beside it."""
    draws: int = 2
    """Random choices beside it."""
    circuits: Flag = False
    """Also compare the task's circuits before and after."""
    checkpoint: Annotated[str | None, Parameter(negative="")] = None
    """New folder for the smaller model."""

    @override
    def check(self) -> None:
        from circuitome.applications.rankings import RANKINGS
        from circuitome.errors import unknown_name

        if not 0 <= self.share <= 1:
            raise InputError(f"--share is from 0 to 1, got {self.share:g}.")
        for name in (self.by, *self.beside):
            if name not in RANKINGS:
                raise unknown_name("ranking of parts", name, RANKINGS)
        for name, least in (("rounds", 1), ("n", 1), ("draws", 0), ("heal", 0), ("text-tokens", 4)):
            if getattr(self, name.replace("-", "_")) < least:
                raise InputError(f"--{name} must be at least {least}, got {getattr(self, name.replace('-', '_'))}.")
        if self.value not in ("mean", "zero"):
            raise unknown_name("value of removed parts", self.value, ("mean", "zero"))
        check_saved(self.model)
        check_tasks((*self.tasks, *(() if self.run else (self.task,))))
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            raise RunError(f"{self.checkpoint} exists already. Choose another folder for the checkpoint.")

    def parts(self) -> dict[str, bool]:
        """What is removed."""
        said = self.heads or self.neurons or self.blocks
        return {"heads": self.heads or not said, "neurons": self.neurons or not said, "blocks": self.blocks}


def work(settings: Prune, context: Context) -> Work:
    """Scores by forward and backward passes over one half of the texts, and losses on the other."""
    models = 2 + sum(settings.draws if name == "random" else 1 for name in settings.beside)
    texts = max(1, settings.text_tokens // 128)
    forward, backward = 2.0 * models + 8, 2.0 * models * settings.rounds
    return Work(texts=texts, tokens=128, forward=forward, backward=backward, copies=2)  # one is written and read again


def run(settings: Prune, context: Context) -> Findings:
    """Prune by each ranking, save and read the checkpoint again, and measure."""
    from circuitome.applications.quality import forward_seconds, quality, readings

    model, texts = context.model, split_texts(settings.texts, context.model, settings.text_tokens, settings.seed)
    task, circuit = own_task(settings, context)
    tasks, why = tasks_of(context, settings.tasks, settings.n, task)
    setting = context.setting.but(prompts=task)
    first = readings(setting, texts.measured, tasks)
    rows = {PLAIN: quality(first, first, tasks).to_dict()}

    def measure(name: str, smaller: "cm.Model") -> None:
        found = readings(setting.but(model=smaller), texts.measured, tasks, name)
        rows[name] = quality(found, first, tasks).to_dict()

    options: dict[str, Any] = {"texts": texts.scored, "value": settings.value, "rounds": settings.rounds}
    options |= settings.parts() | {"circuit": circuit}
    own = cm.prune(setting, settings.share, by=settings.by, **options)
    with TemporaryDirectory() as scratch:
        folder = own.save(settings.checkpoint or Path(scratch) / "model")
        after = cm.load(folder, device=model.device)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        measure(settings.by, after)
        seconds = forward_seconds((model, after), texts.measured)
        if settings.heal:
            measure(HEALED, healed(settings, context, after, texts, folder))
    for name, seed in others(settings):
        other = cm.prune(setting.but(seed=seed), settings.share, by=name.split()[0], **options)
        measure(name, other.model)
    results: dict[str, Any] = {
        "removed": own.removed,
        "heads_share": 1 - len(own.kept[0].groups) / model.heads.kv if settings.parts()["heads"] else None,
        "means_in_biases": list(own.means),
        "parameters": list(own.parameters),
        "seconds": seconds,
        "times_faster": seconds[0] / seconds[1],
        "bytes": size,
        "models": rows,
        "circuits": distances(settings, setting, own) if settings.circuits else None,
        "left_out": why,
        "checkpoint": settings.checkpoint,
    }
    return Findings(
        title=f"{settings.model} without {formats.percent(settings.share)} of its {what(settings)}, by {settings.by}",
        sign="Change of the loss: smaller model minus model itself, on texts that no ranking saw. Brackets are 95 % "
        "intervals, of losses over windows of text, of tasks over prompts.",
        results=results,
        blocks=blocks(settings, results),
        more={"data_hash": texts.data_hash, "kept": [vars(parts) for parts in own.kept]},
    )


def what(settings: Prune) -> str:
    """What is removed, in words."""
    return " and ".join(name for name, removed in settings.parts().items() if removed)


def own_task(settings: Prune, context: Context) -> "tuple[Task | None, cm.Circuit | None]":
    """The task, and the circuit, of a ranking by circuit."""
    from circuitome.tasks import TASKS

    if settings.run is not None:
        opened = cm.open(settings.run)
        return opened.task, opened.circuit
    needed = settings.circuits or "circuit" in (settings.by, *settings.beside)
    return TASKS[settings.task](context.model, n=settings.n, seed=settings.seed) if needed else None, None


def others(settings: Prune) -> list[tuple[str, int]]:
    """Rankings that stand beside, with seeds: random ones once for each draw."""
    found = []
    for by in dict.fromkeys(name for name in settings.beside if name != settings.by):
        draws = range(settings.draws) if by == "random" else range(1)
        found += [(f"random {draw + 1}" if by == "random" else by, settings.seed + draw) for draw in draws]
    return found


def healed(settings: Prune, context: Context, model: "cm.Model", texts: Texts, folder: Path) -> "cm.Model":
    """The smaller model, trained on the texts that parts were scored on, and written in place of it."""
    import torch

    from circuitome.models.saving import write_checkpoint

    lengths = texts.scored.lengths.long()
    rows = [ids[:length].long() for ids, length in zip(texts.scored.ids, lengths.tolist(), strict=True)]
    stream = cm.training.TextStream(torch.cat(rows))
    length = min(texts.scored.length, len(stream.ids))
    schedule = cm.training.Schedule(
        steps=settings.heal, batch=HEAL_ROWS, length=length, learning_rate=HEAL_RATE, warm_up=0.1, seed=settings.seed
    )
    cm.training.train(model, stream, schedule, max_memory=settings.max_memory, progress=context.progress)
    write_checkpoint(model, folder, replace=True)
    return model


def distances(settings: Prune, setting: Any, own: "Pruned") -> dict[str, Any]:
    """The task's circuits before and after."""
    from circuitome.applications.distance import circuit_distance
    from circuitome.studies.find import circuit_size

    edges = min(circuit_size(None, setting.model), own.model.graph.n_edges)
    return circuit_distance(setting, setting.but(model=own.model), edges=edges, kept=own.kept).to_dict()


def blocks(settings: Prune, results: Mapping[str, Any]) -> list[Block]:
    """The answer, headline numbers, models side by side, circuits."""
    rows = results["models"]
    large, small = results["parameters"]
    cards = (
        Figure(name="Parameters", value=small, style="count", about=f"of {large:,}: {formats.percent(small / large)}"),
        Figure(name="Faster", value=results["times_faster"], unit="times", about="bare forward pass, median"),
        Figure(name="On disk", value=results["bytes"] / 1e6, unit="MB", about="weights of the checkpoint"),
    )
    parts: list[Block] = [
        Lede(text=lede(settings, results)),
        Numbers(items=cards),
        quality_table(rows, note="Tasks: the share of the model's own gap of clean and corrupted metric that is left."),
        loss_bars(rows, PLAIN),
        *left_out(results["left_out"]),
    ]
    if results["circuits"]:
        parts.append(circuits_table(results["circuits"]))
    return parts


def lede(settings: Prune, results: Mapping[str, Any]) -> str:
    """What is gone, what that costs, and what the same share costs at random."""
    rows = results["models"]
    own = rows[settings.by]["change"]
    text = f"Without {' and '.join(results['removed'])} the loss on neutral text rises by {nats(own)}."
    if results["heads_share"] is not None and abs(results["heads_share"] - settings.share) > 0.02:
        text += f" Heads go in whole key/value heads: {formats.percent(results['heads_share'])} of them here."
    random = [row["change"]["value"] for name, row in rows.items() if name.startswith("random ")]
    if random:
        mean = sum(random) / len(random)
        share = f"{formats.percent(own['value'] / mean)} of that" if mean > 0 else "not less"
        text += f" Parts drawn at random cost {formats.fixed(mean, 3)}; by {settings.by} it is {share}."
    text += f"\nA forward pass is {formats.fixed(results['times_faster'], 2)} times as fast."
    held = results["means_in_biases"]
    if settings.value == "mean" and len(held) < 2:
        gone = "neither" if not held else f"only {held[0]}s"
        text += f" The architecture has no bias for all means: {gone} could leave theirs behind."
    return text


def circuits_table(found: Mapping[str, Any]) -> Any:
    """How far the circuit has moved."""
    rows = [
        ("distance of the circuits (1 - Jaccard)", formats.fixed(found["distance"], 3)),
        ("circuit of the model, in it", percent(found["own"])),
        ("circuit of the model, in the smaller one", percent(found["first_in_second"])),
        ("circuit of the smaller one, in the model", percent(found["second_in_first"])),
    ]
    note = f"Circuits of {found['edges']:,} edges by EAP-IG on the same prompts; faithfulness in percent of the gap."
    return table("Circuits before and after", ("", "value"), rows, note=note)


STUDY = Study("prune", Prune, run, work)
