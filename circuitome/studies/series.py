"""A series of checkpoints that exists already: the same measures on each, the ends first and then halves."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Note, table
from circuitome.studies import developed
from circuitome.studies.context import Context
from circuitome.studies.settings import Argument, Names, ShardSettings
from circuitome.studies.shards import spread
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.syntax import GRAMMAR, sentences

if TYPE_CHECKING:
    from circuitome.dynamics.measures import Measures
    from circuitome.runs.texts import HashedTexts
    from circuitome.training.streams import Stream

LOSS = "held_out_loss"
SECONDS, PER_GB = 5.0, 20.0
"""What a checkpoint takes, for the estimate: in any case, and for each GB of its weights."""
TASK_PER_GB = {"eap-ig": 110.0, "mattr": 900.0}
"""What the circuits of a task take more by ranking, as SmolLM2 did on one core (benchmarks/series.py)."""


@dataclass(frozen=True, kw_only=True)
class Series(ShardSettings):
    """Measure checkpoints of one training: heads, losses, composition, syntax, circuits, and their onsets."""

    arguments: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Annotated[str, Argument] = ""
    """A folder of checkpoints' folders, named by their steps: step-00000512 ...; with --revisions, a hub model."""
    revisions: Names = ()
    """Revisions of a hub model, named by their steps: step512,step1000; offline, from the local cache."""
    texts: str | None = None
    """A file or folder of texts for the losses; by default the language reference that comes with Python."""
    rows: int = 32
    """Rows of text."""
    length: int = 128
    """Tokens of a row, at most as many as the model takes."""
    trees: str = ""
    """A CoNLL-U file, or grammar: sentences with trees, for syntax; none by default."""
    n: int = 150
    """Sentences with trees at most."""
    tasks: Names = ()
    """Tasks whose circuits are watched: induction, agreement, a name of `circuitome tasks`, a file of prompt pairs."""
    ranking: Literal["eap-ig", "mattr"] = "eap-ig"
    """What ranks the edges of --tasks: mattr takes minutes a checkpoint of SmolLM2 and ranks small circuits better."""

    @override
    def check(self) -> None:
        super().check()
        for name, least in (("rows", 2), ("length", 2), ("n", 2)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} must be at least {least}, got {getattr(self, name)}.")

    @override
    def subject(self) -> str:
        return Path(self.folder).name if self.revisions else Path(self.folder).resolve().name


def work(settings: Series, context: Context) -> Work:
    """A few passes for each checkpoint."""
    from circuitome.dynamics.checkpoint_series import checkpoints
    from circuitome.engine.batches import DEFAULT_MEMORY

    found = checkpoints(settings.folder, settings.revisions)
    places = [] if settings.revisions else [Path(settings.folder, checkpoint.name) for checkpoint in found]
    weights = [sum(file.stat().st_size for file in place.glob("*.safetensors")) for place in places]
    taken = max(weights, default=0) + (settings.max_memory or DEFAULT_MEMORY) * bool(settings.tasks)
    each = PER_GB + TASK_PER_GB[settings.ranking] * len(settings.tasks)
    count, seconds = len(found), SECONDS * len(found) + each * sum(weights) / 1e9
    return Work(texts=count, tokens=settings.length, seconds=seconds, bytes=taken, notes={"checkpoints": count})


def shard(settings: Series, context: Context, number: int) -> None:
    """Measure the checkpoints of a shard; what is measured is kept."""
    from circuitome.dynamics.checkpoint_series import measure_checkpoints

    texts = texts_of(settings)
    measure_checkpoints(
        settings.folder,
        lambda model: measures(settings, model, texts),
        revisions=settings.revisions,
        keep=context.file(f"measured-{number}.json"),
        shard=(number, settings.shards),
    )


def texts_of(settings: Series) -> "HashedTexts":
    """The texts for the losses."""
    from circuitome.runs.texts import Documents, HashedTexts

    return HashedTexts([cm.dynamics.python_reference()] if settings.texts is None else Documents(settings.texts))


def run(settings: Series, context: Context) -> Findings:
    """Every checkpoint, measured; what is done is kept for `--resume`."""
    from circuitome.dynamics.checkpoint_series import join_kept

    spread("series", settings, context)
    if settings.shards > 1 and context.folder is not None:
        parts = [context.folder / f"measured-{number}.json" for number in range(settings.shards)]
        join_kept(parts, context.folder / "measured.json")
    texts, words = texts_of(settings), list[str]()

    def made_measures(model: cm.Model) -> "Measures":
        made = measures(settings, model, texts)
        words.extend(made.words(model))
        return made

    watched, passed_over = cm.dynamics.series(
        settings.folder,
        made_measures,
        revisions=settings.revisions,
        keep=context.file("measured.json"),
        progress=context.progress,
    )
    results = {**watched.to_dict(), **developed.head_results(watched, words), "passed_over": passed_over}
    intro = f"{len(watched.steps)} checkpoints from step {watched.steps[0]:,} to {watched.steps[-1]:,}. "
    return Findings(
        title=f"Series of checkpoints {'of' if settings.revisions else 'in'} {settings.folder}",
        sign=developed.SIGN,
        results=results,
        blocks=[*developed.blocks(results, intro), *left_out(passed_over, LOSS in watched.values)],
        tensors=developed.tensors(watched),
        more={"data_hash": texts.hexdigest(), "checkpoints": list(watched.steps)},
    )


def measures(settings: Series, model: "cm.Model", texts: Iterable[str]) -> "Measures":
    """What is measured of each checkpoint, made for the model of the first one."""
    trees = sentences(settings.trees, settings.n, settings.seed)
    pairs = cm.dynamics.grammar_pairs(20, seed=settings.seed) if settings.trees == GRAMMAR else []
    length = min(settings.length, model.positions or settings.length)
    return cm.dynamics.Measures.of(
        model,
        stream(model, texts),
        rows=settings.rows,
        length=length,
        trees=trees,
        pairs=pairs,
        tasks=cm.dynamics.watched_tasks(model, settings.tasks, seed=settings.seed),
        ranking=settings.ranking,
        seed=settings.seed,
        max_memory=settings.max_memory,
    )


def stream(model: "cm.Model", texts: Iterable[str]) -> "Stream | None":
    """Rows of text, some tokens hidden for a masked language model; None where the model has no tokenizer."""
    from circuitome.training import MaskedStream, text_stream

    if model.tokenizer is None:
        return None
    rows = text_stream(model, texts)
    if not model.masked:
        return rows
    token, special = model.tokenizer.mask_token_id, tuple(model.tokenizer.all_special_ids)
    return None if token is None else MaskedStream(rows, int(str(token)), len(model.tokenizer), kept=special)


def left_out(passed_over: dict[str, str], losses: bool) -> list[Block]:
    """What could not be measured, and why."""
    found: list[Block] = []
    if not losses:
        found.append(Note(text="No losses on texts: the first checkpoint has no tokenizer, or none that hides tokens."))
    if passed_over:
        found.append(Note(text=f"{len(passed_over)} checkpoints were passed over."))
        found.append(table("Checkpoints passed over", ("checkpoint", "why"), sorted(passed_over.items())))
    return found


STUDY = Study("series", Series, run, work, shard=shard)
