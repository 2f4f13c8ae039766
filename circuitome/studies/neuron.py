"""One MLP neuron: the texts on which it fires most, what it fires on, where, and what it writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import RunError
from circuitome.present.blocks import Bars, Block, Figure, Lede, Lines, Numbers, Series, Tokens, table
from circuitome.present.formats import percent
from circuitome.studies.context import Context
from circuitome.studies.neuron_index import bins
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.neurons.neuron_census import Example

ANEW = "none"
"""In place of a run: read the texts anew."""
EXAMPLES, TRACED = 10, 3
"""Examples that are shown, and of these with the tokens that make it fire."""
LENGTH = 512
"""Tokens of a window, or as many as the model takes."""


@dataclass(frozen=True, kw_only=True)
class Neuron(ModelSettings):
    """Look at one neuron: examples, what it fires on, where, and the tokens that it promotes and suppresses."""

    arguments: ClassVar[tuple[str, ...]] = ("neuron", "run")

    neuron: Annotated[str, Argument] = ""
    """The neuron, such as m5.n123."""
    run: Annotated[str, Argument] = ANEW
    """Folder of a run of `circuitome neurons` whose census is used, with its model; by default texts are read anew."""
    texts: str | None = None
    """A file or folder of texts, or - for the standard input, where no run is given; the package's own by default."""
    tokens: int = 20_000
    """Tokens at most, where no run is given."""

    @override
    def check(self) -> None:
        from circuitome.graph.node import Node

        Node.neuron(self.neuron)

    @override
    def subject(self) -> str:
        return f"{self.neuron}-{super().subject()}"


def work(settings: Neuron, context: Context) -> Work:
    """A pass over the texts, where no run has made it."""
    return Work(texts=max(1, settings.tokens // LENGTH), tokens=LENGTH, forward=1.2 if settings.run == ANEW else 0.5)


def run(settings: Neuron, context: Context) -> Findings:
    """What the census says of the neuron, and its activation in the texts on which it fires most."""
    model, census = opened(settings, context)
    results = measured(model, census, settings.neuron)
    at = census.at(settings.neuron)
    tensors = {
        name: getattr(census, name)[at[0], :, at[1]].contiguous() for name in ("top", "places", "curve", "histogram")
    }
    return Findings(
        title=f"Neuron {settings.neuron} of {model.name}",
        sign=f"Active: {census.rule}. Activations are what the neuron writes with; of a gated MLP they have signs.",
        results=results,
        blocks=blocks(results),
        tensors=tensors,
        more={"data_hash": census.windows.data_hash(), "texts": {"tokens": census.tokens}},
    )


def opened(settings: Neuron, context: Context) -> tuple["cm.Model", "cm.neurons.Census"]:
    """The model and a census of the neuron's layer. Raises `RunError` for a run of another study or other weights."""
    if settings.run == ANEW:
        from circuitome.runs.texts import documents

        layers = [context.model.neuron(settings.neuron).layer]
        texts = documents(settings.texts)
        length = min(LENGTH, context.model.learned_positions or LENGTH)
        census = cm.neurons.census(context.setting, texts, length=length, tokens=settings.tokens, layers=layers)
        return context.model, census
    from circuitome.models.loading import weights_hash

    kept = cm.open(settings.run)
    census, name = kept.census, kept.manifest["model"]["name"]
    model = context.model if name == settings.model else context.load(name)
    if weights_hash(model) != kept.manifest["model"]["weights_hash"]:
        raise RunError(f"{settings.run} was made with other weights of {name}. Repeat {kept.manifest['command']}.")
    return model, census


def measured(model: "cm.Model", census: "cm.neurons.Census", name: str) -> dict[str, Any]:
    """Everything about the neuron, as plain JSON values."""
    from circuitome.neurons.positional import KINDS

    row, column = census.at(name)
    information, shuffled = (float(x[row, column]) for x in (census.information, census.shuffled))
    tokens = cm.neurons.promoted_tokens(model, name)
    return {
        "neuron": name,
        "tokens": census.tokens,
        "active": int(census.active[row, column]),
        "mean": float(census.mean[row, column]),
        "deviation": float(census.deviation[row, column]),
        "information": information if information == information else None,
        "shuffled": shuffled if shuffled == shuffled else None,
        "type": KINDS[int(census.kind[row, column])],
        "curve": census.curve[row, :, column].tolist(),
        "histogram": census.histogram[row, :, column].tolist(),
        "coverage": census.coverage[row, :, column].tolist(),
        "detector": int(census.detector[row, column]),
        "grams": fired_on(model, census, name),
        "promoted": [list(pair) for pair in tokens.promoted],
        "suppressed": [list(pair) for pair in tokens.suppressed],
        "examples": examples(model, census, name),
    }


def fired_on(model: "cm.Model", census: "cm.neurons.Census", name: str) -> list[dict[str, Any]]:
    """The n-grams on which it fires most."""
    return [
        {"n": n, "text": model.decode(gram) if model.tokenizer else str(gram), "fired": fired, "occurs": often}
        for n in range(1, census.grams.shape[1] + 1)
        for gram, fired, often in census.fires_on(name, n)
    ]


def examples(model: "cm.Model", census: "cm.neurons.Census", name: str) -> list[dict[str, Any]]:
    """The contexts of its largest activations: tokens, activations, and which of the first make it fire."""
    return [
        {
            "value": example.value,
            "tokens": [model.decode([token]) if model.tokenizer else f"#{token}" for token in example.ids],
            "activations": example.values,
            "from": _traced(model, name, example) if number < TRACED else None,
        }
        for number, example in enumerate(census.examples(name)[:EXAMPLES])
    ]


def _traced(model: "cm.Model", name: str, example: "Example") -> list[float]:
    """How far each token makes the neuron fire at the example's place; 0 behind it."""
    given = cm.neurons.neuron_context(model, name, example.context).contributions[-example.at - 1 :].tolist()
    return [*given, *[0.0] * (len(example.ids) - len(given))]


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, examples, n-grams, tokens, curve and histogram."""
    return [
        Lede(text=sentence(results)),
        Numbers(items=tuple(cards(results))),
        *example_blocks(results["examples"]),
        grams_table(results["grams"]),
        tokens_table(results),
        curve(results),
        histogram(results["histogram"]),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """What the neuron is, in a sentence or two."""
    share = percent(results["active"] / results["tokens"])
    text = f"{results['neuron']} is active on {share} of {results['tokens']:,} tokens."
    if not results["active"]:
        return f"{results['neuron']} was never active on {results['tokens']:,} tokens."
    if n := results["detector"]:
        grams = (gram["text"] for gram in results["grams"] if gram["n"] == n and gram["fired"] >= 0.95 * gram["occurs"])
        text += f" It detects {', '.join(map(repr, grams))}."
    if results["type"] != "not positional":
        text += f" It is positional ({results['type']})."
    return text


def cards(results: Mapping[str, Any]) -> list[Figure]:
    """Headline numbers."""
    return [
        Figure(name="Active", value=results["active"] / results["tokens"], style="percent", about="of all tokens"),
        Figure(name="Mean", value=results["mean"], about="activation over all tokens"),
        Figure(name="Deviation", value=results["deviation"], about="standard deviation of the activation"),
        Figure(name="Information", value=results["information"], unit="nats", about="of activity about position"),
    ]


def example_blocks(found: list[dict[str, Any]]) -> list[Block]:
    """Contexts with tokens coloured by activation, and by what makes the neuron fire."""
    if not found:
        return []
    labels = tuple(f"{example['value']:.3g}" for example in found)
    lines = tuple(tuple(zip(e["tokens"], e["activations"], strict=True)) for e in found)
    note = "The contexts of the largest activations, tokens coloured by activation; at most one a window."
    traced = [example for example in found if example["from"]]
    why = tuple(tuple(zip(e["tokens"], e["from"], strict=True)) for e in traced)
    said = "The same contexts, tokens coloured by how far they raise the neuron's input, to first order."
    return [
        Tokens(title="Examples", note=note, lines=lines, labels=labels, unit="activation"),
        Tokens(title="What makes it fire", note=said, lines=why, labels=labels[: len(why)], where="page"),
    ]


def grams_table(grams: list[dict[str, Any]]) -> Block:
    """The n-grams on which it fires most."""
    rows = ((g["n"], repr(g["text"]), g["fired"], g["occurs"], g["fired"] / max(1, g["occurs"])) for g in grams)
    columns = (("n", "count"), "n-gram", ("fired", "count"), ("occurs", "count"), ("share", "percent"))
    return table("What it fires on", columns, rows, note="For neurons whose activations few n-grams explain.", top=10)


def tokens_table(results: Mapping[str, Any]) -> Block:
    """Tokens that it promotes and suppresses."""
    columns = ("promoted", ("by", "signed", 2), "suppressed", ("down by", "signed", 2))
    pairs = zip(results["promoted"], results["suppressed"], strict=True)
    rows = ((repr(a), x, repr(b), y) for (a, x), (b, y) in pairs)
    note = (
        "What a unit of positive activation adds to logits, over the final norm's scale, less the mean of all tokens."
    )
    return table("Tokens", columns, rows, note=note)


def curve(results: Mapping[str, Any]) -> Block:
    """Activity by position."""
    y = tuple(results["curve"])
    series = Series(name=results["neuron"], x=tuple(i / len(y) for i in range(len(y))), y=y)
    return Lines(
        title="Activity by position", x="share of the window", y="share of windows", series=(series,), where="page"
    )


def histogram(counts: list[int]) -> Block:
    """Tokens by size of the activation."""
    note = "Sampled tokens by activation; each bar begins at its label and ends at the next one, farther from 0."
    return Bars(
        title="Activations", note=note, labels=bins(), values=tuple(map(float, counts)), x="tokens", where="page"
    )


STUDY = Study("neuron", Neuron, run, work)
