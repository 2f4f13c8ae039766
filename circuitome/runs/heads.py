"""Runs about single heads: the atlas of all of them, and induction with its ablation."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitome.errors import InputError
from circuitome.heads.atlas.all_heads import Atlas, head_atlas
from circuitome.heads.atlas.head_score import HeadScore, named
from circuitome.heads.atlas.induction_heads import induction
from circuitome.heads.atlas.repeated import Repeated
from circuitome.heads.long_context.retrieval import RetrievalScores, retrieval_scores
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.runs.spec import ModelSpec
from circuitome.runs.store import Run

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

STRONGEST = 10
"""Heads of each score that a manifest names."""


@dataclass(frozen=True, kw_only=True)
class HeadsSpec(ModelSpec):
    """Everything that decides what `heads` computes."""

    n: int = 16
    """Number of repeated random sequences."""
    period: int | None = None
    """Tokens of a sequence before it starts again; None for as many as suit the model."""
    retrieval: bool = False
    """Whether retrieval is measured as well."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "heads", *self.model_words(), *sequence_words(self.n, self.period)]
        return words + (["--retrieval"] if self.retrieval else [])


@dataclass(frozen=True, kw_only=True)
class InductionSpec(ModelSpec):
    """Everything that decides what `induction` computes."""

    n: int = 8
    """Number of repeated random sequences."""
    period: int | None = None
    """Tokens of a sequence before it starts again; None for as many as suit the model."""
    k: int = 5
    """Heads that are switched off."""
    draws: int = 3
    """Random sets of as many heads."""
    text: str | None = None
    """A text file for in-context learning; None for the package's own text."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "induction", *self.model_words(), *sequence_words(self.n, self.period)]
        words += ["--k", str(self.k), "--draws", str(self.draws)]
        return words + (["--text", self.text] if self.text else [])


def sequence_words(n: int, period: int | None) -> list[str]:
    """Command-line options for repeated sequences."""
    return ["--n", str(n), *(["--period", str(period)] if period is not None else [])]


def run_heads(spec: HeadsSpec, progress: Progress | None = None) -> Run:
    """The atlas of a model's heads."""
    start, tell = time.perf_counter(), progress or _silent
    tell("loading", 0, 1)
    model = load(spec.model)
    found = head_atlas(
        model,
        n=spec.n,
        period=spec.period,
        seed=spec.seed,
        max_memory=spec.max_memory,
        progress=tell,
    )
    more: dict[str, Any] = {}
    if spec.retrieval:
        result = retrieval_scores(model, progress=tell)
        found = found.joined(retrieval_score(result))
        more = {"retrieval": {"runs": len(result.cases), "answered": int(result.success.sum())}}
    sign = (
        "Scores are means over repeated random tokens; chance is even attention, or 0; noise is the largest score of "
        "any head when the weights are noise of the same size."
    )
    manifest = {
        **_manifest(spec, "heads", model, found.repeated),
        "sign": sign,
        **more,
        "results": {"scores": found.to_dict()["scores"], "top": strongest(found)},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, {name: score.samples for name, score in found.scores.items()})


def retrieval_score(result: RetrievalScores) -> HeadScore:
    """Retrieval as a column of the atlas: the paper's score on the runs that count."""
    what = "tokens of a needle that the head copies while the model answers"
    return HeadScore("retrieval", what, "share of the needle", result.samples[result.counted], 0.0)


def strongest(found: Atlas) -> dict[str, list[dict[str, Any]]]:
    """The heads with the largest values of each score, as plain JSON."""
    return {
        name: [
            {"label": head, "mean": one.value, "low": one.low, "high": one.high} for head, one in score.top(STRONGEST)
        ]
        for name, score in found.scores.items()
    }


def run_induction(spec: InductionSpec, progress: Progress | None = None) -> Run:
    """Induction heads of a model, and what goes without them."""
    start, tell = time.perf_counter(), progress or _silent
    tell("loading", 0, 1)
    text = None if spec.text is None else read_text(spec.text)
    model = load(spec.model)
    found = induction(
        model,
        n=spec.n,
        period=spec.period,
        k=spec.k,
        draws=spec.draws,
        text=text,
        seed=spec.seed,
        max_memory=spec.max_memory,
        progress=tell,
    )
    sign = (
        "Effects are rises of the loss in nats a token when heads write nothing and every pattern stays as it was; "
        "in-context learning is loss late in a text minus loss early in it, negative where context helps."
    )
    scores = named([score for score in (found.prefix, found.copying) if score])
    manifest = {
        **_manifest(spec, "induction", model, found.layout, text or ""),
        "sign": sign,
        "results": found.to_dict(),
        "seconds": round(time.perf_counter() - start, 2),
    }
    tensors = {name: score.samples for name, score in scores.items()}
    for name, one in {"whole": found.whole, "without": found.without}.items():
        tensors |= {f"{name}.repeated": one.repeated} | ({} if one.text is None else {f"{name}.text": one.text})
    return Run(manifest, tensors)


def read_text(path: str) -> str:
    """A text file. Raises `InputError` where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"--text {path} cannot be read: {reason}. Give a file of plain text.") from error


def _manifest(spec: ModelSpec, kind: str, model: Model, repeated: Repeated, text: str = "") -> dict[str, Any]:
    ids = repeated.inputs.ids
    data = hashlib.sha256(ids.cpu().numpy().tobytes() + text.encode()).hexdigest()
    front = ids[0, : repeated.front].tolist()
    return {
        **spec.model_manifest(kind, model, data=data),
        "sequences": {
            "n": len(ids),
            "period": repeated.period,
            "repeats": repeated.repeats,
            "in_front": model.decode(front) if front else "nothing",
            "data_hash": data,
        },
    }


def _silent(what: str, done: int, total: int) -> None:
    pass
