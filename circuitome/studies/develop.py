"""A small model trained from its first step on, and watched: when heads form, syntax appears, and losses fall."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.studies import developed
from circuitome.studies.context import Context
from circuitome.studies.settings import Names, Settings
from circuitome.studies.study import Findings, Study, Work

Kind = Literal["attention", "decoder", "masked"]
Data = Literal["text", "grammar"]
Marked = Literal["", "previous", "induction", "arcs"]
RECIPE = (
    *("kind", "layers", "heads", "width", "data", "repeated", "hidden", "steps", "batch", "length", "learning_rate"),
    *("suppress", "encourage", "strength", "until", "kept_weights"),
    *("tasks", "seed"),
)
"""Settings that a recipe takes as they are."""
CIRCUIT_SECONDS = 2.0
"""What the circuit of a task takes in a small model."""
SPEED = 1.5e10
"""Operations a second of small matrices on one core, for the estimate of the time; measured."""


@dataclass(frozen=True, kw_only=True)
class Develop(Settings):
    """Train a small model and watch it: when heads form, when losses fall, which comes first."""

    kind: Kind = "attention"
    """attention: no MLPs; decoder: with MLPs; masked: a masked language model."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 2
    """Heads of a block."""
    width: int = 64
    """Width of the stream."""
    data: Data = "text"
    """text: texts between repeated random tokens; grammar: sentences of a small grammar, with trees."""
    texts: str | None = None
    """A file or folder of texts; by default the language reference that comes with Python."""
    repeated: float = 0.75
    """Share of rows that are random tokens said again, with --data text."""
    hidden: float = 0.15
    """Share of tokens that a masked language model predicts; more is learned from a step of short rows with more."""
    steps: int = 2000
    """Steps of the optimiser."""
    batch: int = 32
    """Rows of a step."""
    length: int = 48
    """Tokens of a row."""
    learning_rate: float = 3e-3
    """The largest learning rate."""
    suppress: Marked = ""
    """Suppress attention to the previous token, behind earlier copies (induction), or along arcs of trees."""
    encourage: Marked = ""
    """Encourage such attention."""
    strength: float = 1.0
    """Weight of that in the loss, nats for full attention."""
    until: int | None = None
    """The step after which attention is released."""
    kept_weights: float = 1.0
    """Keep this share of each weight matrix, the largest, after each step: 0.1 makes the model sparse."""
    freeze: Names = ()
    """Heads whose weights stay from a step on: a0.h1 ..., or the first head of a kind: previous, induction."""
    freeze_at: int = 0
    """Steps that are done when they are frozen."""
    freeze_above: float | None = None
    """Of a kind, freeze all heads with at least that score, a share of attention, in place of the first."""
    tasks: Names = ()
    """Tasks whose circuits are watched: induction, agreement, a name of `circuitome tasks`, a file of prompt pairs."""
    checkpoints: str | None = None
    """A folder for a checkpoint at each watched step, for `circuitome series`."""

    @override
    def check(self) -> None:
        for name in ("layers", "heads", "steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.freeze and not 0 <= self.freeze_at < self.steps:
            raise InputError(f"--freeze-at {self.freeze_at} is not within the {self.steps} steps of the training.")
        if not self.freeze and (self.freeze_at or self.freeze_above is not None):
            raise InputError("Nothing is frozen. Say what with --freeze previous, induction, or names of heads.")
        if self.checkpoints and Path(self.checkpoints).is_file():
            raise InputError(f"--checkpoints {self.checkpoints} is a file. Give a folder.")

    @override
    def subject(self) -> str:
        return f"{self.kind}{self.layers}-{self.data}"


def work(settings: Develop, context: Context) -> Work:
    """Three passes' worth of operations for every token."""
    weights = settings.layers * (4 if settings.kind == "attention" else 12) * settings.width**2 + 512 * settings.width
    seconds = 6.0 * weights * settings.batch * settings.length * settings.steps / SPEED + 0.03 * settings.steps
    seconds += CIRCUIT_SECONDS * len(settings.tasks) * len(watched_steps(settings))
    return Work(texts=settings.batch, tokens=settings.length, seconds=seconds, notes={"steps": settings.steps})


def run(settings: Develop, context: Context) -> Findings:
    """The training with its measures; its state is kept for `--resume`."""
    from circuitome.runs.texts import Documents, HashedTexts

    texts = None if settings.texts is None else HashedTexts(Documents(settings.texts))
    choices = {name: getattr(settings, name) for name in RECIPE}
    frozen = (
        cm.dynamics.Freezing(settings.freeze, settings.freeze_at, settings.freeze_above) if settings.freeze else None
    )
    recipe = cm.dynamics.recipe(texts=texts, freeze=frozen, **choices)
    folder = context.file("training") if settings.checkpoints is None else Path(settings.checkpoints)
    kept = () if settings.checkpoints is None else watched_steps(settings)
    watched = recipe.develop(folder, progress=context.progress, max_memory=settings.max_memory, checkpoints=kept)
    told = {"heads": list(watched.frozen), "step": settings.freeze_at} if watched.frozen else None
    heads = developed.head_results(watched, recipe.measures.words(recipe.model))
    results = {**watched.to_dict(), "frozen": told, **heads}
    kind = {"attention": "attention-only", "masked": "masked language"}.get(settings.kind, settings.kind)
    what = f"{kind} model of {settings.layers} {'layer' if settings.layers == 1 else 'layers'}"
    return Findings(
        title=f"Development: {what} on {settings.data}",
        sign=developed.SIGN,
        results=results,
        blocks=developed.blocks(results, developed.frozen_sentence(told)),
        tensors=developed.tensors(watched),
        more={"data_hash": (texts or HashedTexts([settings.data])).hexdigest(), "training": choices},
    )


def watched_steps(settings: Develop) -> tuple[int, ...]:
    """The steps after which the model is measured."""
    from circuitome.dynamics.development import A_DOUBLING
    from circuitome.training import log_steps

    return log_steps(settings.steps, A_DOUBLING)


STUDY = Study("develop", Develop, run, work)
