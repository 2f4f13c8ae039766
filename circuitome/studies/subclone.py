"""A smaller model that begins with parts of a larger one, and how soon training brings it where others end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Block, Figure, Lede, Numbers, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell
from circuitome.studies.settings import Names
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.training_settings import Checkpoint, TaskTrainingSettings, held_loss, lines, options, streams

UNTRAINED = "untrained"
"""The beginning of random weights that the architecture itself has."""
MEASURED = 4096
"""Tokens of text on which sizes of activations are measured, at most."""


@dataclass(frozen=True, kw_only=True)
class Subclone(TaskTrainingSettings):
    """Begin a smaller model with parts of a larger one, and train it beside other beginnings."""

    layers: int | None = None
    """Blocks of the smaller model; those in the middle go. All by default, as for the other sizes."""
    width: int | None = None
    """Coordinates of its residual stream."""
    neurons: int | None = None
    """Neurons of each MLP."""
    heads: int | None = None
    """Query heads of each block, in whole groups of a key/value head."""
    by: str = "magnitude"
    """What decides which parts are kept: importance, circuit, magnitude, uniform or random."""
    scale: Literal["fitted", "fan-in", "none"] = "fitted"
    """How weights are multiplied for the inputs that they lost."""
    beside: Names = (UNTRAINED,)
    """Other beginnings that are trained in the same way: untrained, or ways to decide, with commas between."""
    checkpoint: Checkpoint = None
    """New folder for the smaller model, trained with the first seed."""

    @override
    def check(self) -> None:
        super().check()
        for name in (self.by, *self.beside):
            if name not in (*SELECTIONS, UNTRAINED) or self.by == UNTRAINED:
                raise unknown_name("selection of parts", name, (*SELECTIONS, UNTRAINED))
        if (self.layers, self.width, self.neurons, self.heads) == (None,) * 4:
            raise InputError("Nothing is to be smaller. Give --layers, --width, --neurons or --heads.")

    def beginnings(self) -> tuple[str, ...]:
        """All that are compared, the one asked for first."""
        return tuple(dict.fromkeys((self.by, *self.beside)))


SELECTIONS = ("importance", "circuit", "magnitude", "uniform", "random")
"""As `circuitome.applications.SELECTIONS`, which imports torch."""


def work(settings: Subclone, context: Context) -> Work:
    """Trainings of all beginnings, as dear as those of the large model at most; the first is kept to be written."""
    large = context.model
    wide = 1.0 if settings.width is None else settings.width / large.d_model
    deep = 1.0 if settings.layers is None else settings.layers / large.graph.n_layers
    embedding = large.hf.config.vocab_size * large.d_model / sum(p.numel() for p in large.hf.parameters())
    share = wide * (embedding + (1 - embedding) * deep)
    return settings.work(len(settings.beginnings()) * settings.seeds, models=3, share=share)


def run(settings: Subclone, context: Context) -> Findings:
    """All beginnings, trained side by side."""
    model, texts = context.model, streams(settings, context.model)
    length = min(settings.length, 128)
    rows = texts.trained.ids[: min(MEASURED, len(texts.trained.ids)) // length * length].view(-1, length)
    cut = cm.neurons.packed(rows.tolist())
    task = settings.origin().draw(model) if "circuit" in settings.beginnings() else None

    def begin(name: str, seed: int) -> "cm.applications.Subclone":
        sizes = {key: getattr(settings, key) for key in ("layers", "width", "neurons", "heads")}
        by, scale = ("uniform", "none") if name == UNTRAINED else (name, settings.scale)
        setting = context.setting.but(prompts=task, seed=settings.seed + seed)
        return cm.applications.subclone(setting, cut, **sizes, by=by, scale=scale)

    sizes = begin("uniform", 0)
    look = held_loss(settings, texts.held)
    kept: dict[str, cm.Model] = {}

    def trained(name: str, seed: int) -> "cm.training.Training":
        small = begin(name, seed).model
        small = cm.training.untrained(small, seed=settings.seed + seed) if name == UNTRAINED else small
        if name == settings.by and seed == 0:
            kept["first"] = small
        if not settings.steps:
            return cm.training.Training(small, settings.schedule(seed), [{"step": 0, **look(small)}], None)
        told = options(settings, context, name, seed, watch=[look])
        return cm.training.train(small, texts.trained, settings.schedule(seed), **told)

    conditions: dict[str, Callable[[int], Any]] = {name: partial(trained, name) for name in settings.beginnings()}
    found = cm.applications.compare_trainings(conditions, range(settings.seeds))
    if settings.checkpoint is not None:
        from circuitome.models.saving import write_checkpoint

        write_checkpoint(kept["first"], Path(settings.checkpoint))
    results = measured(settings, sizes, found, look(model)["held_out"])
    return Findings(
        title=f"A smaller model from {settings.model}",
        sign="Losses are on held-out texts, in nats a token; lower is better. Brackets are 95 % intervals over seeds.",
        results=results,
        blocks=blocks(settings, results, found),
        tensors={name.replace(" ", "_"): values for name, values in found.values.items()},
        more={"data_hash": texts.data_hash, "checkpoint": settings.checkpoint},
    )


def measured(
    settings: Subclone, sizes: "cm.applications.Subclone", found: "cm.applications.Curves", large: float
) -> dict[str, Any]:
    """Sizes and losses as plain JSON."""
    reference = UNTRAINED if UNTRAINED in found.values else settings.by
    from circuitome.results import mean

    return {
        "parameters": {"large": sizes.parameters[0], "small": sizes.parameters[1]},
        "shape": {
            "layers": len(sizes.model.blocks),
            "width": sizes.model.d_model,
            "neurons": sizes.model.blocks[0].n_neurons,
            "heads": sizes.model.heads.q,
        },
        "loss_of_the_large_model": large,
        "reference": reference,
        "beginnings": {
            name: {
                "before": mean(found[name][:, 0], "nats a token").to_dict(),
                "after": found.final(name).to_dict(),
                "share_of_steps": found.share_of_steps(name, reference).to_dict(),
            }
            for name in found.values
        },
        "curves": found.to_dict(),
    }


def blocks(settings: Subclone, results: Mapping[str, Any], found: "cm.applications.Curves") -> list[Block]:
    """The answer, and the curves."""
    own, shape = results["beginnings"][settings.by], results["shape"]
    small, large = (results["parameters"][key] for key in ("small", "large"))
    text = (
        f"{shape['layers']} blocks of width {shape['width']} with {shape['heads']} heads and {shape['neurons']:,} "
        f"neurons, chosen by {settings.by}: {small / large:.0%} of the parameters. "
    )
    share = own["share_of_steps"]["value"]
    if settings.steps and results["reference"] != settings.by:
        text += (
            f"After {settings.steps:,} steps its loss is {formats.fixed(own['after']['value'], 3)} nats a token, that "
            f"of random weights {formats.fixed(results['beginnings'][UNTRAINED]['after']['value'], 3)}. "
        )
        text += (
            "It never gets there."
            if share != share or share is None
            else f"It is there after {share:.0%} of the steps."
        )
    else:
        text += f"Its loss is {formats.fixed(own['after']['value'], 3)} nats a token."
    rows = (
        (name, cell(row["before"]), cell(row["after"]), _share(row["share_of_steps"]["value"]))
        for name, row in results["beginnings"].items()
    )
    columns = (
        "beginning",
        ("loss before", "estimate", 3, "nats"),
        ("after", "estimate", 3, "nats"),
        ("there after", "percent", 0, "of the steps"),
    )
    told = [
        Lede(text=text),
        Numbers(
            items=(
                Figure(
                    name="Large model", value=results["loss_of_the_large_model"], unit="nats", about="the same texts"
                ),
                Figure(name="Parameters", value=small, style="count", about=f"of {large:,}"),
            )
        ),
        table(
            "Beginnings",
            columns,
            rows,
            note=f"Last column: after which share of the steps its loss is that of {results['reference']} at the end.",
        ),
    ]
    return [*told, lines(found, "Training", "loss on held-out texts, nats a token")] if settings.steps else told


def _share(value: float | None) -> float | None:
    return None if value is None or value != value else value


STUDY = Study("subclone", Subclone, run, work)
