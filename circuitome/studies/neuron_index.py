"""Every neuron of a census as one block: numbers and tokens of all, examples of those that stand out."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.present.blocks import NeuronCard, NeuronExample, NeuronIndex, NeuronValues

if TYPE_CHECKING:
    import torch

CARDS, EXAMPLES, TRACED = 300, 5, 24
"""Neurons that are shown with examples, examples of each, and neurons of which is told what makes them fire."""
LISTED, DIGITS = 3, 3
"""Tokens of a list, and digits of a number."""


def neuron_index(
    model: "cm.Model", census: "cm.neurons.Census", tell: Callable[[int, int], None] = lambda done, total: None
) -> NeuronIndex:
    """All neurons of a census; `tell` is called as layers are projected onto the vocabulary."""
    from circuitome.neurons.projections import promoted_ids
    from circuitome.weights.folding import outputs_are_tokens

    number = Numbering(model)
    shown = chosen(census)
    cards = tuple(card(model, census, name, number, traced=i < TRACED) for i, name in enumerate(shown))
    lists = {"fires on": fired_on(census)}
    if outputs_are_tokens(model):
        lists |= zip(("promotes", "suppresses"), promoted_ids(model, census.layers, LISTED, tell), strict=True)
    return NeuronIndex(
        title="Every neuron",
        note=(
            "Fires on: the tokens of most of its activations where few explain these, else those of its largest ones. "
            "Promoted and suppressed: by a positive activation. Tokens that explain it: how many cover 95 % of its "
            "activations, where 50 do. Orange above 0, blue below."
        ),
        layers=census.layers,
        width=census.active.shape[1],
        numbers=tuple(
            NeuronValues(name=name, style=style, values=joined(rounded(values)))
            for name, style, values in numbers(census)
        ),
        lists=tuple(
            NeuronValues(name=name, values=joined(map(number.of, ids.flatten().tolist())))
            for name, ids in lists.items()
        ),
        listed=LISTED,
        bins=bins(),
        cards=cards,
        tokens=tuple(number.texts),
        where="page",
    )


def index_tokens(model: "cm.Model", length: int) -> float:
    """What the index costs, in tokens of a forward pass: all outputs times the vocabulary, and what is traced."""
    from circuitome.studies.frame import BACKWARD
    from circuitome.weights.folding import outputs_are_tokens, vocabulary

    neurons = sum(block.n_neurons for block in model.blocks)
    parameters = sum(p.numel() for p in model.hf.parameters())
    projected = neurons * model.d_model * vocabulary(model) / parameters if outputs_are_tokens(model) else 0.0
    return projected + TRACED * BACKWARD * length / 2


class Numbering:
    """Tokens as numbers in the order in which they come."""

    def __init__(self, model: "cm.Model") -> None:
        self.model, self.texts, self.known = model, list[str](), dict[int, int]()

    def of(self, token: int) -> int:
        """The number of a token; -1 for -1."""
        from circuitome.weights.pairs import token_name

        if token >= 0 and token not in self.known:
            self.known[token] = len(self.texts)
            self.texts.append(token_name(self.model, token))
        return self.known.get(token, -1)


def numbers(census: "cm.neurons.Census") -> Iterable[tuple[str, Any, "torch.Tensor"]]:
    """What is told of every neuron: name, style and values."""
    from circuitome.neurons.ngrams import MOST

    covered = census.coverage[:, 0].double()
    yield "active", "percent", census.active.double() / census.tokens
    yield "mean", "number", census.mean
    yield "deviation", "number", census.deviation
    yield "largest", "number", census.top[:, 0]
    yield "information about position, nats", "number", census.information
    yield "tokens that explain it", "count", covered.where(covered <= MOST, float("nan"))


def rounded(values: "torch.Tensor") -> list[float | int | None]:
    """Numbers with few digits; whole ones as such, None for NaN."""
    short = (float(f"{value:.{DIGITS}g}") for value in values.flatten().tolist())
    return [None if value != value else int(value) if value.is_integer() else value for value in short]


def joined(values: Iterable[float | int | None]) -> str:
    """Values in one text, with spaces between: a block of many numbers stays small."""
    return " ".join("nan" if value is None else str(value) for value in values)


def fired_on(census: "cm.neurons.Census") -> "torch.Tensor":
    """Tokens that each neuron fires on, [layer, neuron, LISTED]; -1 where there are fewer."""
    import torch

    grams = census.grams[:, 0, :LISTED].transpose(1, 2)
    places = census.places[:, :LISTED].transpose(1, 2)
    strongest = torch.where(places >= 0, census.windows.ids.flatten().long()[places.clamp(min=0)], -1)
    if missing := LISTED - strongest.shape[-1]:
        strongest = torch.nn.functional.pad(strongest, (0, missing), value=-1)
    return torch.where(grams[..., :1] >= 0, grams, strongest)


def chosen(census: "cm.neurons.Census") -> list[str]:
    """Neurons worth showing: detectors, those that few tokens explain, positional ones, and the most peaked."""
    import torch

    few = census.coverage[:, 0].double()
    few = torch.where((few > 0) & (few <= 50) & (census.events[:, 0] >= 10), few, torch.inf)
    peak = census.top[:, 0].abs() / census.deviation.clamp(min=1e-12)
    ranks = (
        torch.where(census.detector > 0, census.detector.double(), torch.inf),
        few,
        torch.where(census.positional, -census.information.double(), torch.inf),
        torch.where(census.active > 0, -peak.double(), torch.inf),
    )
    names = dict[str, None]()
    for rank, most in zip(ranks, (CARDS // 4, CARDS // 4, CARDS // 4, CARDS), strict=True):
        order = rank.flatten().argsort(stable=True)[:most]
        for place in order[rank.flatten()[order].isfinite()].tolist():
            layer, i = divmod(place, rank.shape[1])
            names[f"m{census.layers[layer]}.n{i}"] = None
    return list(names)[:CARDS]


def card(model: "cm.Model", census: "cm.neurons.Census", name: str, number: Numbering, *, traced: bool) -> NeuronCard:
    """Examples, histogram and curve of a neuron, and what makes it fire in the first example."""
    import torch

    row, column = census.at(name)
    examples = list[NeuronExample]()
    for i, example in enumerate(census.examples(name)[:EXAMPLES]):
        causes: tuple[float | int | None, ...] = ()
        if traced and not i:
            given = cm.neurons.neuron_context(model, name, example.context).contributions[-example.at - 1 :]
            causes = (*rounded(given), *[0] * (len(example.ids) - example.at - 1))
        tokens, values = tuple(map(number.of, example.ids)), tuple(rounded(torch.tensor(example.values)))
        examples.append(NeuronExample(tokens=tokens, values=values, at=example.at, causes=causes))
    return NeuronCard(
        neuron=name,
        examples=tuple(examples),
        histogram=tuple(census.histogram[row, :, column].tolist()),
        curve=tuple(rounded(census.curve[row, :, column])),
    )


def bins() -> tuple[str, ...]:
    """Names of a histogram's bins: where each begins, farther from 0."""
    from circuitome.neurons.layer_counts import LEVELS, SMALLEST

    sizes = ["0", *(f"{2.0 ** (SMALLEST + level):.3g}" for level in range(LEVELS - 1))]
    return (*(f"-{size}" for size in reversed(sizes)), *sizes)
