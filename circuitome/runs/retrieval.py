"""Runs that look for retrieval heads, and mask them to see whether answers need them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitome.errors import InputError, unknown_name
from circuitome.heads.long_context.decoding import MODES, read_prompts
from circuitome.heads.long_context.masking import WHERE, MaskCheck, mask_heads
from circuitome.heads.long_context.needles import DEPTHS, LENGTHS, needle_cases, own_needles, read_needles
from circuitome.heads.long_context.retrieval import RETRIEVAL, STEPS, STRONG, RetrievalScores, score_read
from circuitome.models.loading import load
from circuitome.runs.spec import ModelSpec
from circuitome.runs.store import Run
from circuitome.runs.texts import OWN, read_text, text_hash

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

NAMED = 20
"""Heads that a manifest names."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSpec(ModelSpec):
    """Everything that decides what `retrieval` computes."""

    lengths: tuple[int, ...] = LENGTHS
    """Tokens of the prompts."""
    depths: tuple[float, ...] = DEPTHS
    """Shares of the text in front of the needle."""
    text: str | None = None
    """A UTF-8 file of haystack; None for the package's own prose."""
    needles: str | None = None
    """A JSONL file of needles; None for the package's own."""
    top_k: int = 10
    """Heads that are masked."""
    mode: str = "zero"
    """How: zero or even."""
    where: str = "decode"
    """Where: decode or everywhere."""
    draws: int = 3
    """How often as many random heads are masked."""
    steps: int = STEPS
    """Tokens of an answer at most."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "retrieval", "--lengths", ",".join(map(str, self.lengths))]
        words += ["--depths", ",".join(f"{depth:g}" for depth in self.depths), "--top-k", str(self.top_k)]
        words += ["--mode", self.mode, "--where", self.where, "--draws", str(self.draws), "--steps", str(self.steps)]
        words += self.model_words()
        words += ["--text", self.text] if self.text else []
        return words + (["--needles", self.needles] if self.needles else [])

    def check(self) -> None:
        """Raises for names and counts that cannot be."""
        for name, value, known in (("mode", self.mode, MODES), ("place to mask", self.where, WHERE)):
            if value not in known:
                raise unknown_name(name, value, known)
        for name, count in (("--top-k", self.top_k), ("--draws", self.draws), ("--steps", self.steps)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, got {count}.")


def run_retrieval(spec: RetrievalSpec, progress: Progress | None = None) -> Run:
    """Scores of all heads, and answers with the strongest masked beside answers with random others masked."""
    start, tell = time.perf_counter(), progress or (lambda what, done, total: None)
    spec.check()
    text = read_text(spec.text)
    needles = read_needles(Path(spec.needles)) if spec.needles else own_needles()
    tell("loading", 0, 1)
    model = load(spec.model)
    cases = needle_cases(model, lengths=spec.lengths, depths=spec.depths, text=text, needles=needles)
    tell("reading", 0, 1)
    batches = read_prompts(model, cases, more=spec.steps, max_memory=spec.max_memory)
    tell("reading", 1, 1)
    scores = score_read(model, batches, steps=spec.steps, progress=tell)
    check = mask_heads(
        model,
        batches,
        scores.heads(spec.top_k),
        avoid=scores.retrieval_heads(),
        mode=spec.mode,
        where=spec.where,
        draws=spec.draws,
        steps=spec.steps,
        seed=spec.seed,
        progress=tell,
    )
    hashed = text_hash(text, *(part for one in needles for part in (one.text, one.question, one.answer)))
    manifest = {
        **spec.model_manifest("retrieval", model, data=hashed),
        "prompts_of": {
            "text": spec.text or OWN,
            "needles": spec.needles or "the package's own three",
            "data_hash": hashed,
            "runs": len(cases),
            "chat_template": "none",
        },
        "sign": (
            "A score is the share of the needle's different tokens that a head copied while the model said them, mean "
            f"over {'successful' if scores.conditional else 'ALL'} runs"
            + (". " if scores.conditional else ", since no run succeeded. ")
            + "Hits count every step, over the needle's tokens, and can exceed 1: published files hold these."
        ),
        "results": {**_scores(scores), "masking": _masking(check, scores)},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, _tensors(scores, check))


def _tensors(scores: RetrievalScores, check: MaskCheck) -> dict[str, Tensor]:
    return {
        "scores": scores.samples,
        "hits": scores.hits,
        "recall": scores.recall,
        "masked_log_probs": check.log_probs,
        "masked_recall": check.recalls,
    }


def _scores(scores: RetrievalScores) -> dict[str, Any]:
    low, high = scores.interval
    layers, heads = scores.mean.shape
    return {
        "conditional": scores.conditional,
        "successes": int(scores.success.sum()),
        "runs": [
            {
                "length": len(case.ids),
                "depth": case.depth,
                "needle": case.needle,
                "recall": float(found),
                "said": said,
                "expected": case.answer,
            }
            for case, said, found in zip(scores.cases, scores.answers, scores.recall, strict=True)
        ],
        "heads": scores.mean.numel(),
        "retrieval_heads": [f"a{layer}.h{head}" for layer, head in scores.retrieval_heads()],
        "strong": int((scores.mean > STRONG).sum()),
        "never": int((scores.mean_hits == 0).sum()),
        "threshold": RETRIEVAL,
        "top": [
            {
                "label": name,
                "mean": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "hits": float(scores.mean_hits[place]),
                "frequency": float(scores.frequency[place]),
            }
            for place, (name, estimate) in zip(scores.heads(NAMED), scores.top(NAMED), strict=True)
        ],
        "map": {
            "name": "Retrieval score",
            "unit": "share of the needle's tokens",
            "rows": [f"a{layer}" for layer in range(layers)],
            "columns": [f"h{head}" for head in range(heads)],
            "mean": scores.mean.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        },
    }


def _masking(check: MaskCheck, scores: RetrievalScores) -> dict[str, Any]:
    return {
        "heads": [f"a{layer}.h{head}" for layer, head in check.heads],
        "draws": [[f"a{layer}.h{head}" for layer, head in draw] for draw in check.draws],
        "never_drawn": [f"a{layer}.h{head}" for layer, head in scores.retrieval_heads()],
        "mode": check.mode,
        "where": check.where,
        "estimates": {
            name: {condition: one.to_dict() for condition, one in rows.items()}
            for name, rows in check.estimates().items()
        },
        "by_draw": check.log_probs[2:].mean(1).tolist(),
    }
