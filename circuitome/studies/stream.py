"""Loss on a long text when the cache keeps everything, a window, or the first few tokens and a window."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from circuitome.errors import InputError, MemoryBudgetError
from circuitome.present.blocks import Block, Column, HeatMap, Lede, Lines, Series, Table
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.heads.long_context.sinks import SinkMass
    from circuitome.models.model import Model
    from circuitome.results import Estimate
    from circuitome.studies.context import Context

UNIT = "nats a token"
PIECE, PIECES = 128, 8
"""Tokens of a text whose attention is measured, and how many such texts."""
BEFORE, AFTER = 4, 40
"""Stretches of positions before the first eviction, and at most after it."""


@dataclass(frozen=True, kw_only=True)
class Stream(ModelSettings):
    """Loss on a long text when the cache keeps everything, a window, or the first few tokens and a window."""

    sinks: int = 4
    """First tokens that the cache keeps."""
    window: int = 256
    """Latest tokens that it keeps."""
    text: str | None = None
    """A UTF-8 file; the package's own prose by default."""
    tokens: int = 2048
    """Tokens of the text at most."""

    @override
    def check(self) -> None:
        from circuitome.heads.long_context.streaming import check_sizes

        check_sizes(self.sinks, self.window)
        if self.tokens < self.sinks + self.window + 2:
            raise InputError(
                f"--tokens {self.tokens} ends before anything is evicted from {self.sinks} sinks and a window of "
                f"{self.window}. Read at least {self.sinks + self.window + 2} tokens, or give a smaller --window."
            )


def work(settings: Stream, context: "Context") -> Work:
    """Three passes over the text in chunks, and one over pieces of it."""
    return Work(texts=max(1, settings.tokens // PIECE), tokens=PIECE, forward=5.0)


def run(settings: Stream, context: "Context") -> Findings:
    """Losses of the dense cache, of a window, and of sinks and a window that hold as many tokens; sink mass."""
    from circuitome.heads.long_context.sinks import pieces, sink_mass
    from circuitome.heads.long_context.streaming import dense_losses, learned_positions, stream_losses
    from circuitome.runs.texts import OWN, read_text, text_hash

    text = read_text(settings.text)
    model, size = context.model, settings.sinks + settings.window
    ids, chunk = tokens_of(settings, model, text), at_once(model, settings.max_memory)

    def streamed(what: str, sinks: int, window: int) -> "Tensor":
        return stream_losses(model, ids, sinks=sinks, window=window, chunk=chunk, progress=context.tell(what))

    losses = {
        "dense": dense_losses(model, ids, chunk=chunk, progress=context.tell("dense")),
        "window": streamed("window", 0, size),
        "sinks and window": streamed("sinks and window", settings.sinks, settings.window),
    }
    piece = min(PIECE, len(ids), learned_positions(model) or PIECE)
    texts = pieces(model, model.encode_answer(text), piece, PIECES)
    masses = sink_mass(model, texts, progress=context.tell("attention to the first tokens"))
    first = [model.decode([token]) for token in ids[: settings.sinks].tolist()]
    about = {
        "source": settings.text or OWN,
        "hash": text_hash(text),
        "tokens": len(ids),
        "sinks": first,
    }
    results = measured(losses, size, masses)
    tensors = {name.replace(" ", "_"): values.cpu() for name, values in losses.items()}
    return Findings(
        title=f"Streaming with {settings.model}",
        sign=(
            "Loss is the negative log-likelihood of the next token, mean in nats; perplexity is its exponential. All "
            f"three caches hold the same up to token {size}; window and sinks and window then hold {size} tokens each. "
            "Intervals are over tokens, as if these were independent."
        ),
        results=results,
        blocks=blocks(settings, results, first),
        tensors={**tensors, "ids": ids, "sink_mass": masses.samples},
        more={
            "data_hash": text_hash(text),
            "text": about,
            "cache": {"sinks": settings.sinks, "window": settings.window, "first_evicted_at": size},
        },
    )


def at_once(model: "Model", max_memory: int | None) -> int:
    """Tokens that run at once. Raises `MemoryBudgetError` where not even one fits into the budget."""
    from circuitome.engine.batches import tokens_within
    from circuitome.heads.long_context.streaming import CHUNK

    fits = tokens_within(model, max_memory, gradients=False)
    if fits < 1:
        need = model.bytes_per_token(gradients=False)
        raise MemoryBudgetError(
            f"One token takes about {need / 1e6:,.1f} MB beside the weights, the budget is "
            f"{(max_memory or 0) / 1e6:,.1f} MB. Raise --max-memory."
        )
    return min(CHUNK, fits)


def tokens_of(settings: Stream, model: "Model", text: str) -> "Tensor":
    """The text's tokens. Raises `InputError` where nothing would be evicted or the dense cache cannot hold them."""
    import torch

    from circuitome.heads.long_context.streaming import check_stream, learned_positions
    from circuitome.runs.texts import OWN

    ids = torch.tensor(model.encode(text), dtype=torch.long)[: settings.tokens]
    size = settings.sinks + settings.window
    check_stream(model, ids, settings.sinks, settings.window)
    if len(ids) < size + 2:
        raise InputError(
            f"The text {settings.text or OWN} has {len(ids):,} tokens; {settings.sinks} sinks and a window of "
            f"{settings.window} hold the first {size:,}, so nothing would be evicted. Give a longer text, or a "
            f"--window of at most {max(1, len(ids) - 2 - settings.sinks):,}."
        )
    limit = learned_positions(model)
    if limit is not None and len(ids) - 1 > limit:
        raise InputError(
            f"{model.name} has learned positions for {limit} tokens, so its dense cache cannot hold {len(ids):,}. Read "
            f"fewer with --tokens {limit + 1}."
        )
    return ids


def measured(losses: Mapping[str, "Tensor"], size: int, masses: "SinkMass") -> dict[str, Any]:
    """Losses before and after the first eviction, by stretch of positions, and attention to the first tokens."""
    from circuitome.results import mean

    after = {name: mean(v[size:] - losses["dense"][size:], UNIT).to_dict() for name, v in losses.items()}
    return {
        "policies": {name: _policy(values, size) for name, values in losses.items()},
        "against_dense": {name: estimate for name, estimate in after.items() if name != "dense"},
        "stretches": _stretches(losses, size),
        "sink_mass": {
            "first": list(masses.first),
            "start": masses.start,
            "texts": masses.samples.shape[1],
            "uniform": masses.uniform.tolist(),
            "heads": masses.mean.tolist(),
            "layers": [
                [masses.layer(index, layer).to_dict() for layer in range(masses.samples.shape[2])]
                for index in range(len(masses.first))
            ],
            "share_above_0.3": masses.share_above(),
        },
    }


def _policy(losses: "Tensor", size: int) -> dict[str, Any]:
    from circuitome.results import mean

    def perplexity(loss: "Estimate") -> float:
        return math.exp(min(loss.value, 700.0))

    before, after = mean(losses[:size], UNIT), mean(losses[size:], UNIT)
    return {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "perplexity_before": perplexity(before),
        "perplexity_after": perplexity(after),
    }


def _stretches(losses: Mapping[str, "Tensor"], size: int) -> list[dict[str, Any]]:
    """Mean loss by stretch of positions; one begins where the first token is evicted."""
    import torch

    from circuitome.results import mean

    n = len(losses["dense"])
    after = max(1, min(AFTER, round((n - size) / max(1, size // BEFORE))))
    ends = [*torch.linspace(0, size, min(BEFORE, size) + 1).long().tolist()]
    ends += torch.linspace(size, n, after + 1).long().tolist()[1:]
    return [
        {"start": a, "end": b, **{name: mean(values[a:b], UNIT).to_dict() for name, values in losses.items()}}
        for a, b in pairwise(ends)
        if a < b
    ]


def blocks(settings: Stream, results: Mapping[str, Any], sinks: list[str]) -> list[Block]:
    """The answer, each cache's loss, losses by position, and attention to the first tokens."""
    size, policies = settings.sinks + settings.window, results["policies"]
    dense, window, kept = (policies[name]["after"]["value"] for name in ("dense", "window", "sinks and window"))
    text = (
        f"From token {size:,} on, the loss is {dense:.3f} nats a token with everything in the cache, {window:.3f} "
        f"with the latest tokens alone, and {kept:.3f} when the first {settings.sinks} are kept with the latest "
        f"{settings.window}."
    )
    columns = (
        Column(name="cache"),
        *(Column(name=name, style="estimate", decimals=3) for name in ("loss before", "loss after")),
        Column(name="more than dense", style="estimate", decimals=3, narrow=False),
        *(Column(name=name, style="number", decimals=2, narrow=False) for name in ("perplexity before", "after")),
    )
    rows = tuple(
        (
            name,
            *(_cell(p[when]) for when in ("before", "after")),
            _cell(results["against_dense"].get(name)),
            p["perplexity_before"],
            p["perplexity_after"],
        )
        for name, p in policies.items()
    )
    note = f"Before and after the first eviction. Tokens kept as sinks: {', '.join(map(repr, sinks)) or 'none'}."
    return [
        Lede(text=text),
        Table(title="Loss by cache", note=note, columns=columns, rows=rows),
        by_position(results, size),
        *sink_maps(results["sink_mass"]),
    ]


def _cell(estimate: Mapping[str, Any] | None) -> Any:
    return None if estimate is None else (estimate["value"], estimate["low"], estimate["high"])


def by_position(results: Mapping[str, Any], size: int) -> Lines:
    """Loss over position, one line a cache."""
    rows = results["stretches"]
    series = tuple(
        Series(name=name, x=tuple((r["start"] + r["end"]) / 2 for r in rows), **_ends([r[name] for r in rows]))
        for name in results["policies"]
    )
    marks = (("first eviction", float(size)),)
    x, y = "position in the text, tokens", "loss, nats a token"
    return Lines(title="Loss by position", x=x, y=y, series=series, marks=marks, where="page")


def _ends(estimates: list[Mapping[str, Any]]) -> dict[str, Any]:
    from circuitome.studies.pieces import finite

    names = {"y": "value", "low": "low", "high": "high"}
    return {name: tuple(finite(e[key]) for e in estimates) for name, key in names.items()}


def sink_maps(found: Mapping[str, Any]) -> list[HeatMap]:
    """Attention of every head to the first tokens, with the mean of each layer."""
    maps = []
    for index, first in enumerate(found["first"]):
        mean, layers = found["heads"][index], found["layers"][index]
        what = "the first token" if first == 1 else f"the first {first} tokens"
        note = (
            f"Mean over queries from position {found['start']} on, in {found['texts']} stretches of the text; even "
            f"attention would give {found['uniform'][index]:.3f}. {found['share_above_0.3']:.0%} of heads give 30 % or "
            "more to the first token."
        )
        maps.append(
            HeatMap(
                title=f"Attention to {what}",
                note=note,
                rows=tuple(f"a{layer}" for layer in range(len(mean))),
                columns=(*(f"h{head}" for head in range(len(mean[0]))), "mean"),
                values=tuple((*row, e["value"]) for row, e in zip(mean, layers, strict=True)),
                unit="share of attention",
                scale="positive",
                upwards=True,
                top=5,
                where="page" if index else "everywhere",
            )
        )
    return maps


STUDY = Study("stream", Stream, run, work)
