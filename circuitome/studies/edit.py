"""Edits made permanent: a behaviour, heads, neurons or a feature taken out of a checkpoint, and what that costs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, RunError, UnknownNameError
from circuitome.present import formats
from circuitome.present.blocks import Block, Figure, Lede, Lines, Note, Numbers, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import percent
from circuitome.studies.qualities import (
    OTHERS,
    Texts,
    check_saved,
    check_tasks,
    left_out,
    nats,
    quality_table,
    split_texts,
    tasks_of,
)
from circuitome.studies.settings import Argument, Flag, Names, PromptSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.applications.unlearning import Unlearned
    from circuitome.engine.setting import Setting
    from circuitome.runs.draw import Origin

PLAIN, OWN, TUNED = "the model itself", "edited", "fine-tuned away"
TUNED_ON, BACK = 32, 0.9
"""Held-out prompts on which relearning is watched, and the share of the gap at which the behaviour is back."""
ROUNDS = 4
"""Rounds that unlearning usually takes."""


@dataclass(frozen=True, kw_only=True)
class Edit(PromptSettings):
    """Take a behaviour out of a model, or heads, neurons or a feature, and keep the rest: an ordinary checkpoint."""

    task: Annotated[str, Argument] = "ioi"
    """The behaviour: a task, or the folder of a run, of whose circuit parts are then taken."""
    heads: Names = ()
    """Heads to take out, in place of unlearning a behaviour; what this does to it is measured."""
    neurons: Names = ()
    """Neurons to take out, in the same way."""
    feature: str | None = None
    """A feature of a dictionary, DICT:NUMBER, whose direction nothing writes any more, in the same way."""
    value: str = "mean"
    """What parts write instead: their mean over texts, as a bias where the architecture holds one, or zero."""
    left: float = 0.05
    """Of unlearning: the share of the gap of clean and corrupted metric that may be left."""
    kinds: Names = ("heads", "neurons")
    """Of unlearning: the parts that can be taken, heads or neurons or both."""
    tasks: Names = OTHERS
    """Other tasks that are measured before and after."""
    texts: str | None = None
    """Texts, a file or folder: one half to price parts on, one to measure the loss on; the package's own by default."""
    text_tokens: int = 4000
    """Tokens of each half, at most."""
    draws: int = 2
    """Random choices of as many parts beside it."""
    relearn: Flag = False
    """Also fine-tune the behaviour away in place of it, and fine-tune both back: how many steps that takes."""
    checkpoint: Annotated[str | None, Parameter(negative="")] = None
    """New folder for the edited model."""

    @override
    def check(self) -> None:
        from circuitome.applications.unlearning import KINDS
        from circuitome.errors import unknown_name

        super().check()
        for kind in self.kinds:
            if kind not in KINDS:
                raise unknown_name("kind of parts", kind, KINDS)
        if self.value not in ("mean", "zero"):
            raise unknown_name("value of an edit", self.value, ("mean", "zero"))
        if not 0 <= self.left < 1:
            raise InputError(f"--left is a share from 0 to below 1, got {self.left:g}.")
        if self.draws < 0 or self.text_tokens < 4:
            raise InputError(f"--draws is at least 0 and --text-tokens 4, got {self.draws} and {self.text_tokens}.")
        if self.feature is not None and not self.feature.rpartition(":")[2].isdigit():
            raise InputError(f"--feature is DICT:NUMBER, got {self.feature!r}.")
        check_tasks(self.tasks)
        check_saved(self.model)
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            raise RunError(f"{self.checkpoint} exists already. Choose another folder for the checkpoint.")

    @override
    def apart(self) -> tuple[str, ...]:
        return ("held_out",)

    @property
    def is_run(self) -> bool:
        """Whether the behaviour is that of a finished run."""
        return (Path(self.task) / "manifest.json").is_file()

    @override
    def origin(self) -> "Origin":
        if not self.is_run:
            return super().origin()
        from circuitome.runs.draw import Origin

        known = json.loads((Path(self.task) / "manifest.json").read_text("utf-8")).get("prompts_from")
        if known is None:
            raise RunError(f"{self.task} is a run without prompts. Give a run of `circuitome find`, or a task.")
        if known["model"] != self.model:
            raise InputError(f"{self.task} is a run on {known['model']}; add --model {known['model']}.")
        return Origin(**{**known, "apart": self.apart()})

    @override
    def subject(self) -> str:
        return f"{Path(self.task).name}-{Path(self.model).stem}"

    @property
    def named(self) -> tuple[str, ...]:
        """Parts that were named."""
        return (*self.heads, *self.neurons)


def work(settings: Edit, context: Context) -> Work:
    """Passes over texts, counted in windows of 128 tokens, and over the prompts of the task as part of them."""
    models = 3 + settings.draws
    rounds = 0 if settings.named or settings.feature else 2 * ROUNDS
    return Work(
        texts=max(1, settings.text_tokens // 128), tokens=128, forward=2.0 * models, backward=1.0 + rounds, copies=1
    )


def run(settings: Edit, context: Context) -> Findings:
    """Choose the parts, write the checkpoint, read it again, and measure beside random parts."""
    from circuitome.applications.quality import quality, readings
    from circuitome.applications.unlearning import random_like

    model, texts = context.model, split_texts(settings.texts, context.model, settings.text_tokens, settings.seed)
    held_out = context.prompts.held_out or context.task
    tasks, why = tasks_of(context, settings.tasks, settings.n, replace(held_out, name=context.task.name))
    edit, found = chosen(settings, context, texts)
    parts = settings.named or (found.parts if found else ())
    first = readings(context.setting, texts.measured, tasks)
    rows = {PLAIN: quality(first, first, tasks).to_dict()}
    with TemporaryDirectory() as scratch:
        folder = edit.save(model, settings.checkpoint or Path(scratch) / "model")
        after = context.setting.but(model=cm.load(folder, device=model.device))
        rows[OWN] = quality(readings(after, texts.measured, tasks, "the edited model"), first, tasks).to_dict()
    relearning: dict[str, Any] = {}
    if settings.relearn:
        own_gap = float(first.gaps[context.task.name].mean())
        away, relearning = tuned_back(settings, context, held_out, after, own_gap)
        forgot = readings(context.setting.but(model=away), texts.measured, tasks, "the fine-tuned model")
        rows[TUNED] = quality(forgot, first, tasks).to_dict()
    for draw in range(settings.draws if parts else 0):
        random = constant_edit(settings, context, texts, random_like(model, parts, settings.seed + draw))
        with model.edited(random):
            measured = readings(context.setting, texts.measured, tasks, f"random parts {draw + 1}")
        rows[f"random parts {draw + 1}"] = quality(measured, first, tasks).to_dict()
    results: dict[str, Any] = {
        "behaviour": context.task.name,
        "edit": str(edit),
        "parts": list(parts),
        "prices": dict(found.prices) if found else {},
        "left_by_round": list(found.left) if found else [],
        "reached": found.reached if found else None,
        "models": rows,
        "relearning": relearning,
        "left_out": why,
        "heads_stay": found is not None and saved_kinds(settings, model) != settings.kinds,
        "checkpoint": settings.checkpoint,
    }
    return Findings(
        title=f"{settings.model} without {what_goes(settings, context.task.name)}",
        sign="Left: clean minus corrupted metric of the edited model over the same of the model, on prompts that chose "
        "nothing. Change of the loss: edited model minus model. Brackets are 95 % intervals.",
        results=results,
        blocks=blocks(settings, results),
        more={"texts_hash": texts.data_hash},
    )


def tuned_back(
    settings: Edit, context: Context, held_out: "cm.Task", edited: "Setting", own_gap: float
) -> "tuple[cm.Model, dict[str, Any]]":
    """The model with the behaviour fine-tuned away, and how both models come back, step by step."""
    from circuitome.applications.relearning import forget, relearn

    data = context.task
    some = replace(held_out, pairs=held_out.pairs[:TUNED_ON])
    away = forget(context.setting.but(prompts=some), data, gap=settings.left * own_gap)
    found = {}
    for name, model in ((OWN, edited.model), (TUNED, away.model)):
        back = relearn(context.setting.but(model=model, prompts=some), data, gap=BACK * own_gap)
        shares = [gap / own_gap for gap in back.gaps]
        found[name] = {"steps": back.steps, "reached": back.reached, "share": shares}
    found[TUNED]["steps_away"] = away.steps
    return away.model, found


def what_goes(settings: Edit, task: str) -> str:
    """What is taken out, in words."""
    if settings.feature is not None:
        return f"feature {settings.feature}"
    return ", ".join(settings.named[:4]) + ("..." if len(settings.named) > 4 else "") if settings.named else task


def chosen(settings: Edit, context: Context, texts: Texts) -> "tuple[cm.Edit, Unlearned | None]":
    """The edit that was asked for, or the one that unlearns the behaviour."""
    if settings.feature is not None:
        name, _, number = settings.feature.rpartition(":")
        dictionary = cm.features.load(name, model=context.model)
        if int(number) >= len(dictionary):
            raise UnknownNameError(f"There is no feature {number}; {name} has features 0 to {len(dictionary) - 1}.")
        return cm.Edit.remove(context.model, dictionary.W_dec[int(number)]), None
    if settings.named:
        return constant_edit(settings, context, texts, settings.named), None
    circuit = cm.open(settings.task).circuit if settings.is_run else None
    if circuit is not None and circuit.graph.with_neurons([]) != context.model.graph:
        raise InputError(f"The circuit of {settings.task} belongs to another model than {context.model.name}.")
    kinds = saved_kinds(settings, context.model)
    found = cm.unlearn(context.setting, texts=texts.scored, left=settings.left, kinds=kinds, circuit=circuit)
    if not found.parts:
        raise InputError(f"No part of the circuit of {settings.task} can be taken out of {context.model.name}.")
    return found.edit, found


def saved_kinds(settings: Edit, model: "cm.Model") -> tuple[str, ...]:
    """The kinds of parts that can be taken: behind a post-norm no weights hold a head that is gone."""
    neurons = tuple(kind for kind in settings.kinds if kind != "heads")
    return neurons if neurons and model.blocks[0].attention_post else settings.kinds


def constant_edit(settings: Edit, context: Context, texts: Texts, parts: Any) -> "cm.Edit":
    """Some parts held at their means over the texts, or at zero where there is no bias for means."""
    from circuitome.editing.checkpoint import holds_mean

    model, edit = context.model, cm.Edit()
    rows = [ids[:length].tolist() for ids, length in zip(texts.scored.ids, texts.scored.lengths.tolist(), strict=True)]
    for kind in ("head", "neuron"):
        some = [name for name in parts if cm.Node.parse(name).kind == kind]
        if some:
            value = "mean" if settings.value == "mean" and holds_mean(model, kind) else "zero"
            edit += cm.Edit.ablate(model, some, value=value, prompts=rows)
    return edit


def blocks(settings: Edit, results: Mapping[str, Any]) -> list[Block]:
    """The answer, headline numbers, models side by side, the parts, the way there."""
    rows, task = results["models"], results["behaviour"]
    own = rows[OWN]
    cards = [
        Figure(name=f"{task} left", **_ends(own["kept"][task]), style="percent", about="of the model's own gap"),
        Figure(name="Change of loss", **_ends(own["change"]), unit="nats a token", about="on neutral text"),
    ]
    if results["parts"]:
        cards.append(Figure(name="Parts", value=len(results["parts"]), style="count", about="taken out"))
    parts: list[Block] = [Lede(text=lede(settings, results)), Numbers(items=tuple(cards)), quality_table(rows)]
    if results["prices"]:
        parts.append(parts_table(results))
    if len(results["left_by_round"]) > 2:
        parts.append(by_round(results))
    if results["relearning"]:
        parts.append(back_again(results["relearning"]))
    if results["heads_stay"]:
        text = "Heads were not taken: behind the post-norms of this architecture no weights hold a head that is gone."
        parts.append(Note(text=text))
    return [*parts, *left_out(results["left_out"])]


def _ends(estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {name: estimate[name] for name in ("value", "low", "high")}


def lede(settings: Edit, results: Mapping[str, Any]) -> str:
    """How much is left, at what price, and what random parts do."""
    rows, task = results["models"], results["behaviour"]
    count = len(results["parts"])
    what = f"{count} part{'s' * (count != 1)}" if count else what_goes(settings, task)
    text = (
        f"Without {what}, {percent(rows[OWN]['kept'][task])} of what {settings.model} does of {task} is left, for "
        f"{nats(rows[OWN]['change'])} on neutral text."
    )
    random = [row for name, row in rows.items() if name.startswith("random")]
    if random:
        left = ", ".join(formats.percent(row["kept"][task]["value"]) for row in random)
        text += f" With as many parts drawn at random, {left} is left."
    if results["reached"] is False:
        text += f" What was asked for, {settings.left:.0%}, is not reached on the prompts that chose the parts."
    others = {name: kept["value"] for name, kept in rows[OWN]["kept"].items() if name != task}
    if others:
        worst = min(others, key=lambda name: others[name])
        text += f"\nOf other tasks, {worst} suffers most: {percent(rows[OWN]['kept'][worst])} of it is left."
    return text


def back_again(relearning: Mapping[str, Any]) -> Lines:
    """How much of the behaviour is back after each step of fine-tuning."""
    series = [
        Series(name=name, x=tuple(map(float, range(len(found["share"])))), y=tuple(found["share"]))
        for name, found in relearning.items()
    ]
    words = (f"{name} {found['steps'] if found['reached'] else 'not reached'}" for name, found in relearning.items())
    note = f"Steps of fine-tuning on the answers until {BACK:.0%} of the gap is back: {', '.join(words)}."
    return Lines(title="Relearning", note=note, series=tuple(series), x="steps", y="share of the gap")


def parts_table(results: Mapping[str, Any]) -> Table:
    """The parts, and what each alone would cost."""
    rows = [(name, 1000 * results["prices"][name]) for name in results["parts"]]
    note = "In the order in which they were taken; the price is that of the part alone, to second order."
    columns = (("part", "node"), ("price", "number", 4, "thousandths of a nat a token"))
    return table("Parts taken out", columns, rows, note=note, top=12)


def by_round(results: Mapping[str, Any]) -> Lines:
    """What is left after each round."""
    left = results["left_by_round"]
    line = Series(name="prompts that choose the parts", x=tuple(map(float, range(len(left)))), y=tuple(left))
    return Lines(title="What is left, round by round", series=(line,), x="round", y="share of the gap", where="page")


STUDY = Study("edit", Edit, run, work)
