"""Loss on a long text when the cache keeps everything, a window, or the first few tokens and a window."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, MemoryBudgetError
from circuitome.present import formats
from circuitome.present.blocks import Block, Column, HeatMap, Lede, Lines, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import plain_bytes
from circuitome.studies.pieces import cell, head_map, series_of
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

UNIT = "nats a token"
PIECE, PIECES = 128, 8
"""Tokens of a text whose attention is measured, and how many such texts."""
BEFORE, AFTER = 4, 40
"""Stretches of positions before the first eviction, and at most after it."""
SHOWN = 14
"""Rows of a table in a terminal at most; of more, every second, third, ... is shown."""


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


def work(settings: Stream, context: Context) -> Work:
    """Three passes over the text in chunks, and one over pieces of it."""
    texts = max(1, settings.tokens // PIECE)
    taken = plain_bytes(context.model, settings.max_memory, texts, PIECE)
    return Work(texts=texts, tokens=PIECE, forward=5.0, bytes=taken)


def run(settings: Stream, context: Context) -> Findings:
    """Losses of the dense cache, of a window, and of sinks and a window that hold as many tokens; sink mass."""
    from circuitome.heads.long_context.sinks import pieces
    from circuitome.runs.texts import OWN, read_text, text_hash

    text = read_text(settings.text)
    model, size = context.model, settings.sinks + settings.window
    ids, chunk = tokens_of(settings, model, text), at_once(model, settings.max_memory)

    def told(cache: str) -> Any:
        tell = context.tell(f"loss with {cache} in the cache")
        return context.setting.but(progress=lambda what, done, total: tell(done, total))

    whole, latest, both = map(told, ("everything", "a window", "sinks and a window"))
    losses = {
        "dense": cm.dense_losses(whole, ids, chunk=chunk),
        "window": cm.stream_losses(latest, ids, sinks=0, window=size, chunk=chunk),
        "sinks and window": cm.stream_losses(both, ids, sinks=settings.sinks, window=settings.window, chunk=chunk),
    }
    piece = min(PIECE, len(ids), model.learned_positions or PIECE)
    masses = cm.sink_mass(context.setting, pieces(model, model.encode_answer(text), piece, PIECES))
    first = [model.decode([token]) for token in ids[: settings.sinks].tolist()]
    about = {"source": settings.text or OWN, "hash": text_hash(text), "tokens": len(ids), "sinks": first}
    results = measured(losses, size, masses)
    tensors = {name.replace(" ", "_"): values.cpu() for name, values in losses.items()}
    return Findings(
        title=f"A long text in {settings.model}",
        sign=(
            "Loss is the negative log-likelihood of the next token, mean in nats; perplexity is its exponential. All "
            f"three caches hold the same up to token {size}; window and sinks and window then hold {size} tokens each. "
            "Intervals are over tokens, as if these were independent."
        ),
        results=results,
        blocks=blocks(settings, results, first),
        tensors={**tensors, "ids": ids, "sink_mass": masses.samples},
        more={
            "data_hash": about["hash"],
            "text": about,
            "cache": {"sinks": settings.sinks, "window": settings.window, "first_evicted_at": size},
        },
    )


def at_once(model: "cm.Model", max_memory: int | None) -> int:
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


def tokens_of(settings: Stream, model: "cm.Model", text: str) -> "Tensor":
    """The text's tokens. Raises `InputError` where nothing would be evicted or the dense cache cannot hold them."""
    import torch

    from circuitome.heads.long_context.streaming import check_stream
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
    limit = model.learned_positions
    if limit is not None and len(ids) - 1 > limit:
        raise InputError(
            f"{model.name} has learned positions for {limit} tokens, so its dense cache cannot hold {len(ids):,}. Read "
            f"fewer with --tokens {limit + 1}."
        )
    return ids


def measured(losses: Mapping[str, "Tensor"], size: int, masses: "cm.heads.SinkMass") -> dict[str, Any]:
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

    parts = {"before": mean(losses[:size], UNIT), "after": mean(losses[size:], UNIT)}
    perplexities = {f"perplexity_{name}": math.exp(min(loss.value, 700.0)) for name, loss in parts.items()}
    return {name: loss.to_dict() for name, loss in parts.items()} | perplexities


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


def blocks(settings: Stream, results: Mapping[str, Any], sinks: Sequence[str]) -> list[Block]:
    """The answer, each cache's loss, losses by position, and attention to the first tokens."""
    return [
        Lede(text=sentence(settings, results)),
        by_cache(results, sinks),
        lines(results, settings.sinks + settings.window),
        *by_position(results),
        *attention(results["sink_mass"]),
    ]


def sentence(settings: Stream, results: Mapping[str, Any]) -> str:
    """What evicting the first tokens does, in one sentence."""
    size = settings.sinks + settings.window
    after = {name: formats.fixed(policy["after"]["value"], 3) for name, policy in results["policies"].items()}
    return (
        f"From token {size:,} on, the loss is {after['dense']} nats a token with everything in the cache, "
        f"{after['window']} with the latest tokens alone, and {after['sinks and window']} when the first "
        f"{settings.sinks} are kept with the latest {settings.window}."
    )


def by_cache(results: Mapping[str, Any], sinks: Sequence[str]) -> Table:
    """Loss and perplexity of each cache, before and after the first eviction."""
    columns = (
        "cache",
        *((name, "estimate", 3) for name in ("loss before", "loss after")),
        Column("more than dense, after", "estimate", 3, narrow=False),
        *((name, "number", 2) for name in ("perplexity before", "perplexity after")),
    )
    rows = []
    for name, policy in results["policies"].items():
        losses = policy["before"], policy["after"], results["against_dense"].get(name)
        rows.append((name, *map(cell, losses), policy["perplexity_before"], policy["perplexity_after"]))
    kept = ", ".join(map(repr, sinks)) or "none"
    note = f"In nats a token, before and after the first eviction. Tokens kept as sinks: {kept}."
    return table("Loss by cache", columns, rows, note=note)


def lines(results: Mapping[str, Any], size: int) -> Lines:
    """Loss over position, one line a cache."""
    stretches = results["stretches"]
    middles = [(stretch["start"] + stretch["end"]) / 2 for stretch in stretches]
    return Lines(
        title="Loss by position",
        x="position in the text, tokens",
        y="loss, nats a token",
        series=tuple(series_of(name, middles, (s[name] for s in stretches)) for name in results["policies"]),
        marks=(("first eviction", float(size)),),
        where="page",
    )


def by_position(results: Mapping[str, Any]) -> list[Table]:
    """Mean loss of each stretch of positions, one column a cache."""
    rows = [
        (f"{part['start']:,} to {part['end'] - 1:,}", *(cell(part[name]) for name in results["policies"]))
        for part in results["stretches"]
    ]
    return numbers_of("Loss by position", ("tokens", *results["policies"]), rows)


def numbers_of(title: str, names: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> list[Table]:
    """The estimates of a chart: all of them folded on the page, some without intervals in a terminal."""
    columns = (names[0], *((name, "estimate", 3) for name in names[1:]))
    some = ((row[0], *(value for value, _, _ in row[1:])) for row in rows[:: -(-len(rows) // SHOWN)])
    return [
        table(title, columns, some, note=note, where="terminal"),
        table("The numbers as a table", columns, rows, folded=True),
    ]


def attention(masses: Mapping[str, Any]) -> list[Block]:
    """Attention to the first tokens: the mean of each layer, and every head."""
    names = ["the first token" if first == 1 else f"the first {first} tokens" for first in masses["first"]]
    layers, uniform = masses["layers"], masses["uniform"]
    even = (f"{formats.fixed(u, 3)} to {name}" for name, u in zip(names, uniform, strict=True))
    note = (
        f"Mean over queries from position {masses['start']} on, in {masses['texts']} stretches of the text, and over "
        f"the heads of a layer. {formats.percent(masses['share_above_0.3'])} of heads give 30 % or more to "
        f"the first token. Even attention would give {', '.join(even)}."
    )
    rows = [(f"a{layer}", *map(cell, means)) for layer, means in enumerate(zip(*layers, strict=True))]
    drawn = Lines(
        title="Attention to the first tokens, by layer",
        note=note,
        x="layer",
        y="share of attention",
        series=tuple(series_of(name, range(len(mean)), mean) for name, mean in zip(names, layers, strict=True)),
        levels=tuple((f"even, {name}", value) for name, value in zip(names, uniform, strict=True)),
        where="page",
    )
    maps = (sink_map(masses, index, name) for index, name in enumerate(names))
    return [drawn, *numbers_of(drawn.title, ("layer", *names), rows, note), *maps]


def sink_map(masses: Mapping[str, Any], index: int, name: str) -> HeatMap:
    """Attention of every head to the first tokens, with the mean of each layer."""
    layers, uniform = masses["layers"][index], masses["uniform"][index]
    values = [[*heads, mean["value"]] for heads, mean in zip(masses["heads"][index], layers, strict=True)]
    low, high = ([[*[None] * (len(values[0]) - 1), mean[end]] for mean in layers] for end in ("low", "high"))
    note = f"Even attention would give {formats.fixed(uniform, 3)}."
    options = {"unit": "share of attention", "chance": uniform, "extra": "mean", "where": "page"}
    return head_map(f"Attention of every head to {name}", values, low, high, note=note, **options)


STUDY = Study("stream", Stream, run, work)
