"""A census of MLP neurons: how often each is active, on which tokens, at which positions, and which are dead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import USED, InputError, MemoryBudgetError, memory_option
from circuitome.present.blocks import Block, Column, Figure, Lede, Lines, Note, Numbers, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import plain_bytes
from circuitome.studies.neuron_index import index_tokens, neuron_index
from circuitome.studies.pieces import cell
from circuitome.studies.settings import Flag, ModelSettings, ShardSettings
from circuitome.studies.shards import spread
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.texts_read import about, expected_tokens, windows_of

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting

LISTED, SHOWN = 500, 10
"""Neurons of a kind that a run names, and of these in a terminal."""
RATES = (0.01, 0.001, 0.0001)
"""Shares of active tokens for which the chance to look dead is told."""
COUNTED, DRAWS, EVALUATED = 0.5, 3, 32
"""What counting costs in forward passes beside the pass itself; sets of random neurons that detectors are compared
with; windows for that."""


@dataclass(frozen=True, kw_only=True)
class Neurons(ShardSettings, ModelSettings):
    """Count what every MLP neuron fires on: dead ones, detectors of tokens and n-grams, positional ones."""

    texts: str | None = None
    """.txt, .jsonl(.zst), .csv or .parquet, or a folder of them; - for the standard input; hf:DATASET; or our own."""
    tokens: int = 100_000
    """Tokens at most, in windows drawn at random from the texts."""
    length: int = 512
    """Tokens of a window."""
    quantile: float | None = None
    """Count a neuron as active where |activation| is above this quantile of its MLP, in place of by its sign."""
    off: Flag = False
    """Switch detectors and positional neurons off, too, beside random neurons of the same layers."""

    @override
    def check(self) -> None:
        super().check()
        for name in ("tokens", "length"):
            if getattr(self, name) < 2:
                raise InputError(f"--{name} must be at least 2, got {getattr(self, name)}.")


def work(settings: Neurons, context: Context) -> Work:
    """One pass over the windows, what the page's index of neurons takes, and with --off some more for the losses."""
    tokens = expected_tokens(settings)
    count = max(1, tokens // settings.length)
    passes = 1.0 + index_tokens(context.model, settings.length) / (count * settings.length)
    passes += (2 * (DRAWS + 2) * min(1.0, EVALUATED / count)) if settings.off else 0.0
    length = min(tokens, settings.length)
    taken = counted_bytes(settings, context.model) + plain_bytes(context.model, settings.max_memory, count, length)
    return Work(texts=count, tokens=length, forward=passes, rest=COUNTED, bytes=taken)


def counted_bytes(settings: Neurons, model: "cm.Model") -> int:
    """What the counts of all neurons take, those of n-grams twice: of the segment that is read, and of all before."""
    from circuitome.neurons.counting import KEEP
    from circuitome.neurons.layer_counts import bytes_a_neuron

    neurons = sum(block.n_neurons for block in model.blocks) if model.graph.mlps else 0
    return neurons * bytes_a_neuron(settings.length, KEEP)


def shard(settings: Neurons, context: Context, number: int) -> None:
    """Count one of the shards."""
    counting(settings, context, windows_of(settings, context), number).run()


def counting(settings: Neurons, context: Context, cut: "cm.neurons.Windows", number: int) -> "cm.neurons.Counting":
    """The census of a shard, while it is made; what it has counted is kept."""
    setting = context.setting.but(checkpoint=context.file(f"census-{number}.safetensors"))
    if (budget := settings.max_memory) is not None:
        counts = counted_bytes(settings, context.model)
        window = cut.length * context.model.bytes_per_token(gradients=False) / USED
        if (need := counts + window) > budget:
            raise MemoryBudgetError(
                f"The counts of all neurons and one window of {cut.length} tokens take {need / 1e6:,.0f} MB beside "
                f"the weights, the budget is {budget / 1e6:,.0f} MB. Raise {memory_option(need)}, or "
                "shorten the windows (--length)."
            )
        setting = setting.but(max_memory=budget - counts)
    return cm.neurons.Counting(setting, cut, quantile=settings.quantile, shard=(number, settings.shards))


def counted(settings: Neurons, context: Context, cut: "cm.neurons.Windows") -> "cm.neurons.Census":
    """The census of all shards, those that are not done yet done here."""
    whole = counting(settings, context, cut, 0)
    whole.run()
    for number in range(1, settings.shards):
        part = counting(settings, context, cut, number)
        part.run()
        whole.add(part)
    return whole.census()


def run(settings: Neurons, context: Context) -> Findings:
    """The census, and what detectors and positional neurons do."""
    cut = windows_of(settings, context)
    spread("neurons", settings, context)
    census = counted(settings, context, cut)
    results = measured(context.model, census)
    if settings.off:
        results["off"] = switched_off(context.setting, census)
    return Findings(
        title=f"Neurons of {settings.model}",
        sign=(
            f"Active: {census.rule}. The first token of a window and special tokens are not counted. Changes of the "
            "loss are in nats a token; positive: the neurons help."
        ),
        results=results,
        blocks=[*blocks(results), neuron_index(context.model, census, context.tell("reading tokens off weights"))],
        tensors=census.tensors(),
        more={**about(settings, cut, census.tokens), "census": census.facts()},
    )


def measured(model: "cm.Model", census: "cm.neurons.Census") -> dict[str, Any]:
    """Counts by layer, and the neurons of every kind."""
    own = _suppressed(model, census)
    return {
        "tokens": census.tokens,
        "windows": len(census.windows),
        "full_windows": census.full,
        "rule": census.rule,
        "neurons": census.active.numel(),
        "uncertain": int((~census.certain).any(1).sum()),
        "looks_dead": [[rate, census.looks_dead(rate)] for rate in RATES],
        "layers": layers(census),
        "dead": census.names(census.dead)[:LISTED],
        "detectors": [detector(model, census, name, own) for name in census.names(census.detector > 0)[:LISTED]],
        "suppressed": _share(own),
        "positional": [positional(census, name) for name in ranked_positional(census)[:LISTED]],
    }


def layers(census: "cm.neurons.Census") -> list[dict[str, Any]]:
    """Counts of each layer."""
    from circuitome.neurons.ngrams import FEW, MOST

    rows = []
    for row, layer in enumerate(census.layers):
        covered = {
            f"covered_{n}": [int(((part > 0) & (part <= most)).sum()) for most in (FEW, MOST)]
            for n, part in enumerate(census.coverage[row], 1)
        }
        rows.append(
            {
                "layer": f"m{layer}",
                "active": float(census.active[row].double().mean() / census.tokens),
                "dead": int(census.dead[row].sum()),
                **{f"detectors_{n}": int((census.detector[row] == n).sum()) for n in (1, 2, 3)},
                **covered,
                "positional": int(census.positional[row].sum()),
            }
        )
    return rows


def _suppressed(model: "cm.Model", census: "cm.neurons.Census") -> "cm.neurons.OwnTokens | None":
    """What token detectors write about their tokens; None for a model whose outputs are not its tokens."""
    from circuitome.weights.folding import outputs_are_tokens

    return cm.neurons.own_tokens(model, census) if outputs_are_tokens(model) else None


def _share(own: "cm.neurons.OwnTokens | None") -> dict[str, Any] | None:
    """Of token detectors, how many suppress their tokens, and how many random ones."""
    if own is None or not own.neurons:
        return None
    return {
        "detectors": len(own.neurons),
        "own": int(own.suppresses.sum()),
        "random": int((own.random < 0).sum()),
    }


def detector(
    model: "cm.Model", census: "cm.neurons.Census", name: str, own: "cm.neurons.OwnTokens | None"
) -> dict[str, Any]:
    """A detector: its n-grams, activations, and what it writes about its tokens."""
    row, column = census.at(name)
    n = int(census.detector[row, column])
    effect = None if own is None or name not in own.neurons else float(own.effect[own.neurons.index(name)])
    return {
        "neuron": name,
        "n": n,
        "fires_on": [model.decode(gram) if model.tokenizer else str(gram) for gram in census.detected(name)],
        "activations": int(census.events[row, n - 1, column]),
        "own_tokens": effect,
    }


def ranked_positional(census: "cm.neurons.Census") -> list[str]:
    """Positional neurons, the most informed first."""
    names = census.names(census.positional)
    return sorted(names, key=lambda name: -float(census.information[census.at(name)]))


def positional(census: "cm.neurons.Census", name: str) -> dict[str, Any]:
    """A positional neuron: type, strength, information."""
    from circuitome.neurons.positional import KINDS

    at = census.at(name)
    return {
        "neuron": name,
        "type": KINDS[int(census.kind[at])],
        "strong": bool(census.strong[at]),
        "information": float(census.information[at]),
        "shuffled": float(census.shuffled[at]),
        "curve": census.curve[at[0], :, at[1]].tolist(),
    }


def switched_off(setting: "Setting", census: "cm.neurons.Census", windows: int = EVALUATED) -> dict[str, Any]:
    """The loss with all neurons of a kind off: after their tokens where they have some, and elsewhere.

    Kinds are token detectors, neurons whose activations five tokens explain, and positional neurons.
    """
    effects: dict[str, Any] = {}
    texts = census.windows.chosen(range(min(windows, len(census.windows))))
    names = census.names(census.detector == 1)
    if names:
        tokens = sorted({gram[0] for name in names for gram in census.detected(name)})
        effect = cm.neurons.off_effect(setting, names, texts, after=tokens, draws=DRAWS)
        effects["token detectors"] = effect
    names, tokens = explained_by_few(census)
    if names and tokens:
        effects["few tokens"] = cm.neurons.off_effect(setting, names, texts, after=tokens, draws=DRAWS)
    if names := census.names(census.positional):
        effects["positional neurons"] = cm.neurons.off_effect(setting, names, texts, draws=DRAWS)
    keys = ("after", "elsewhere", "random_after", "random_elsewhere")
    return {
        kind: {
            "neurons": len(effect.neurons),
            "draws": list(effect.draws),
            **{key: None if (value := getattr(effect, key)) is None else value.to_dict() for key in keys},
        }
        for kind, effect in effects.items()
    }


def explained_by_few(census: "cm.neurons.Census") -> tuple[list[str], list[int]]:
    """Neurons whose activations five tokens explain, and the tokens of these on half of whose occurrences one fires."""
    from circuitome.neurons.ngrams import EVENTS, FEW

    number, events = census.coverage[:, 0], census.events[:, 0]
    few = (number > 0) & (number <= FEW) & (events >= EVENTS)
    parts = (part[:, 0] for part in (census.grams, census.gram_counts, census.gram_occurrences))
    grams, counts, often = (part.transpose(1, 2)[few] for part in parts)
    return census.names(few), grams[(grams >= 0) & (2 * counts >= often)].unique().tolist()


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, counts by layer, and the neurons of every kind."""
    return [
        Lede(text=sentence(results)),
        Numbers(items=tuple(cards(results))),
        by_layer(results["layers"]),
        lines(results["layers"]),
        *off_table(results.get("off", {})),
        *detectors_table(results["detectors"]),
        *positional_blocks(results["positional"]),
        Note(text=dead_words(results)),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """What there is, in one sentence."""
    sums = {key: sum(row[key] for row in results["layers"]) for key in ("dead", "detectors_1", "positional")}
    longer = sum(row[f"detectors_{n}"] for row in results["layers"] for n in (2, 3))
    return (
        f"Of {results['neurons']:,} neurons, {sums['dead']:,} were never active on {results['tokens']:,} tokens; "
        f"{sums['detectors_1']:,} detect single tokens and {longer:,} longer n-grams; {sums['positional']:,} know "
        "where a token stands."
    )


def cards(results: Mapping[str, Any]) -> list[Figure]:
    """Shares of all neurons, as headline numbers."""
    total, rows = results["neurons"], results["layers"]

    def count(name: str, key: str, about: str) -> Figure:
        return Figure(name=name, value=sum(row[key] for row in rows) / total, style="percent", about=about)

    covered = sum(row["covered_1"][1] for row in rows) / total
    figures = [
        count("Dead", "dead", "of all neurons"),
        count("Token detectors", "detectors_1", "of all neurons"),
        Figure(name="At most 50 tokens", value=covered, style="percent", about="cover 95 % of activations"),
        count("Positional", "positional", "of all neurons"),
    ]
    if share := results["suppressed"]:
        about = f"of {share['detectors']} detectors; by chance {share['random']}"
        figures.append(Figure(name="Suppress their token", value=share["own"], style="count", about=about))
    return figures


def by_layer(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Counts of every layer."""
    columns = (
        ("MLP", "node"),
        ("active", "percent", None, "", "Mean share of tokens on which its neurons are active."),
        ("dead", "count", None, "", "Neurons that were never active."),
        *((f"{n}-gram", "count", None, "", f"Detectors of {n}-grams.") for n in (1, 2, 3)),
        ("<= 5 tokens", "count", None, "", "Neurons whose activations 5 tokens cover to 95 %."),
        Column("<= 50", "count", about="The same with 50 tokens."),
        Column("<= 50 bigrams", "count", narrow=False),
        Column("<= 50 trigrams", "count", narrow=False),
        ("positional", "count", None, "", "Neurons whose activity says more than 0.05 nats about position."),
    )
    cells = (
        (
            *(row[key] for key in ("layer", "active", "dead", "detectors_1", "detectors_2", "detectors_3")),
            *row["covered_1"],
            *(row[f"covered_{n}"][1] for n in (2, 3)),
            row["positional"],
        )
        for row in rows
    )
    return table("By layer", columns, cells)


def lines(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Counts over layers."""
    counts = {"dead": "dead", "token detectors": "detectors_1", "positional": "positional"}
    at = tuple(map(float, range(len(rows))))
    series = [Series(name=name, x=at, y=tuple(float(row[key]) for row in rows)) for name, key in counts.items()]
    covered = tuple(float(row["covered_1"][1]) for row in rows)
    series.append(Series(name="at most 50 tokens", x=at, y=covered))
    return Lines(title="Neurons by layer", x="layer", y="neurons", series=tuple(series), where="page")


def off_table(effects: Mapping[str, Any]) -> list[Block]:
    """What switching kinds of neurons off does to the loss."""
    if not effects:
        return []
    names = ("after", "elsewhere", "random, after")
    columns = (
        *("off", ("neurons", "count")),
        *((name, "estimate", 3) for name in names),
        Column("random, elsewhere", "estimate", 3, narrow=False),
    )
    keys = ("after", "elsewhere", "random_after", "random_elsewhere")
    rows = ((kind, effect["neurons"], *(cell(effect[key]) for key in keys)) for kind, effect in effects.items())
    note = "Change of the loss in nats a token, after the detected tokens and after others; intervals over windows."
    return [table("Switched off", columns, rows, note=note)]


def detectors_table(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The detectors."""
    if not found:
        return []
    columns = (("neuron", "node"), ("n", "count"), "fires on", ("activations", "count"), ("own tokens", "signed", 2))
    rows = (
        (d["neuron"], d["n"], ", ".join(map(repr, d["fires_on"])), d["activations"], d["own_tokens"]) for d in found
    )
    note = (
        "A detector fires in at least 95 % of the occurrences of at most five n-grams, which explain 95 % of its "
        "activations. Own tokens: what it adds to their logits, in standard deviations; negative suppresses."
    )
    return [table("Detectors", columns, rows, note=note, top=SHOWN)]


def positional_blocks(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The positional neurons and their curves."""
    if not found:
        return []
    columns = (("neuron", "node"), "type", "strong", ("information", "number", 3), ("shuffled", "number", 3))
    rows = ((p["neuron"], p["type"], "yes" if p["strong"] else "", p["information"], p["shuffled"]) for p in found)
    note = "Information in nats, at most 0.693; shuffled: the same with the positions of each window turned round."
    curves = tuple(
        Series(name=p["neuron"], x=tuple(i / len(p["curve"]) for i in range(len(p["curve"]))), y=tuple(p["curve"]))
        for p in found[:SHOWN]
    )
    drawn = Lines(
        title="Activity by position", x="share of the window", y="share of windows", series=curves, where="page"
    )
    return [table("Positional neurons", columns, rows, note=note, top=SHOWN), drawn]


def dead_words(results: Mapping[str, Any]) -> str:
    """How sure it is that a dead neuron is dead, and that coverage is exact."""
    chances = (f"1 in {round(1 / rate):,}: {chance:.2g}" for rate, chance in results["looks_dead"])
    text = (
        "Chance that a neuron active on so many tokens was never active here, were tokens independent: "
        f"{', '.join(chances)}."
    )
    if uncertain := results["uncertain"]:
        text += f" Coverage numbers of {uncertain:,} neurons may be too large."
    return text


STUDY = Study("neurons", Neurons, run, work, shard=shard)
