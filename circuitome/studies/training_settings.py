"""What studies that train share: options of a training, texts to train on and held-out ones, curves side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, RunError
from circuitome.present.blocks import Block, Lines, Series
from circuitome.studies.context import Context
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Work

if TYPE_CHECKING:
    from circuitome.runs.draw import Origin
    from circuitome.training.streams import TextStream

HELD = 0.1
"""Share of the texts' tokens, at their end, on which losses are measured."""
LOOKS = 20
"""About how often that is done in a training."""
WINDOWS = 32
"""Windows of held-out text."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ModelSettings):
    """A study that trains; abstract."""

    steps: int = 200
    """Steps of training."""
    batch: int = 8
    """Rows of text that a step reads."""
    length: int = 128
    """Tokens of a row."""
    learning_rate: float = 1e-3
    """The largest learning rate; it falls to a tenth of it."""
    seeds: int = 1
    """Trainings of each kind, which differ in the order of the texts and what else is drawn."""
    texts: str | None = None
    """Texts, a file or folder, of which the last tenth is held out; the package's own by default, which is little."""

    @override
    def check(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("length", 2), ("seeds", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise InputError(f"--learning-rate must be above 0, got {self.learning_rate}.")
        folder = getattr(self, "checkpoint", None)
        if folder is not None and Path(folder).exists():
            raise RunError(f"{folder} exists already. Choose another folder for the checkpoint.")

    def schedule(self, seed: int) -> "cm.training.Schedule":
        """The schedule of the training with a seed."""
        numbers = {name: getattr(self, name) for name in ("batch", "length", "learning_rate")}
        return cm.training.Schedule(steps=self.steps, seed=self.seed + seed, **numbers)

    def looks(self) -> list[int]:
        """Steps after which the held-out loss is measured."""
        return sorted({*range(0, self.steps, max(1, self.steps // LOOKS)), self.steps})

    def work(self, trainings: int, passes: float = 0.0, models: int = 1, share: float = 1.0) -> Work:
        """What so many trainings cost, and so many passes over a row for each row that is trained on once.

        Beside the model that was asked for there are `models` at a time of `share` times its weights, and of the one
        that learns also its gradients and the optimiser's two means.
        """
        rows = self.batch * max(1, self.steps)
        looked = LOOKS * WINDOWS / rows
        return Work(
            texts=rows,
            tokens=self.length,
            forward=trainings * (looked + passes),
            backward=float(trainings),
            copies=share * (models + 3),
        )


@dataclass(frozen=True, kw_only=True)
class TaskTrainingSettings(TrainingSettings):
    """A study that trains and measures a task; abstract."""

    task: str = "ioi"
    """The task that is measured, or whose circuit counts."""
    n: int = 32
    """Prompt pairs of the task."""
    data: str | None = None
    """JSONL or CSV file with columns clean, corrupted, answer, wrong, in place of the task's generator."""

    @override
    def check(self) -> None:
        super().check()
        self.origin().check()

    def origin(self, ahead: int = 0) -> "Origin":
        """Where the prompts come from; those of another draw `ahead`."""
        from circuitome.runs.draw import Origin

        given = {name: getattr(self, name) for name in ("task", "model", "n", "data")}
        return Origin(**given, seed=self.seed + ahead)


@dataclass(frozen=True)
class Streams:
    """Texts in two parts."""

    trained: "TextStream"
    """To train on."""
    held: "TextStream"
    """To measure on."""
    data_hash: str
    """Hash of all of it."""


def streams(settings: TrainingSettings, model: "cm.Model") -> Streams:
    """The texts of the settings. Raises `InputError` where they are too few for a row of each part."""
    from circuitome.runs.texts import HashedTexts, each_document

    texts = HashedTexts(each_document(settings.texts))
    ids = cm.training.text_stream(model, texts).ids
    end = len(ids) - max(settings.length, round(HELD * len(ids)))
    if end < settings.length:
        raise InputError(
            f"The texts hold {len(ids):,} tokens, too few for rows of {settings.length}. Give more --texts."
        )
    return Streams(cm.training.TextStream(ids[:end]), cm.training.TextStream(ids[end:]), texts.hexdigest())


def held_loss(settings: TrainingSettings, held: "TextStream") -> Callable[["cm.Model"], dict[str, float]]:
    """The loss on held-out texts, for a training to watch."""
    rows = max(1, min(8, len(held.ids) // settings.length))
    batches = max(1, min(WINDOWS // rows, len(held.ids) // settings.length // rows))
    sizes: dict[str, Any] = {"batches": batches, "rows": rows, "length": settings.length}
    sizes |= {"max_memory": settings.max_memory}
    return lambda model: {"held_out": cm.training.mean_loss(model, held, **sizes)}


def options(settings: TrainingSettings, context: Context, name: str, seed: int, **more: Any) -> dict[str, Any]:
    """What `cm.training.train` is given besides model, data and schedule; it goes on with `--resume`."""
    folder = context.file(f"{name.replace(' ', '-')}-{seed}")

    def tell(what: str, done: int, total: int) -> None:
        context.progress(f"{name}, seed {seed}: {what}", done, total)

    return {"folder": folder, "at": settings.looks(), "max_memory": settings.max_memory, "progress": tell, **more}


def lines(found: "cm.applications.Curves", title: str, y: str, names: Mapping[str, str] | None = None) -> Block:
    """Curves of several conditions: means over seeds, with the range of the seeds where there are several."""
    series = []
    for condition, values in found.values.items():
        band: dict[str, Any] = {}
        if len(values) > 1:
            band = {"low": tuple(values.amin(0).tolist()), "high": tuple(values.amax(0).tolist())}
        name = (names or {}).get(condition, condition)
        series.append(Series(name=name, x=found.steps, y=tuple(values.mean(0).tolist()), **band))
    note = (
        f"Means over {len(found.seeds)} seeds; bands go from the lowest to the highest." if len(found.seeds) > 1 else ""
    )
    return Lines(title=title, x="steps", y=y, series=tuple(series), note=note)


Checkpoint = Annotated[str | None, Parameter(negative="")]
"""A folder for a checkpoint."""
