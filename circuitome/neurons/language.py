"""Neurons that are active in one language and not in others, by the entropy of their activity (LAPE).

    P[k, n] = share of tokens of language k on which neuron n is active,  P' = P / sum over k of P,
    LAPE[n] = - sum over k of P' ln P'    (nats; low: the neuron belongs to few languages)

The paper's selection: neurons whose largest P exceeds the .95 quantile of all P; of these the 1 % of all neurons with
the lowest LAPE; each belongs to every language in which P exceeds that same quantile. It gives more neurons to a
language in which more neurons are active. The balanced one reads as many tokens of each language, takes each language's
own quantile, divides P by the mean of its language before the entropy, and gives every language equally many neurons.
Source: Tang et al. 2024, arXiv:2402.16438; RUCAIBox/Language-Specific-Neurons: identify.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.neurons.activity import Rule, check_mlps, watching_activity
from circuitome.neurons.counting import special_tokens, windows_at_once
from circuitome.neurons.layer_counts import Batch
from circuitome.neurons.text_windows import LENGTH, Windows, windows
from circuitome.results import Shown
from circuitome.weights.folding import vocabulary

SHARE, QUANTILE = 0.01, 0.95
"""Share of all neurons that is selected, and the quantile that activity must exceed."""
Selection = Literal["balanced", "paper"]
Texts = Mapping[str, str | Sequence[str] | Windows]
"""By language, its texts."""


@dataclass(frozen=True, eq=False)
class LanguageNeurons(Shown):
    """Which neurons speak which language."""

    languages: tuple[str, ...]
    """Names, in the order of the language axis."""
    tokens: tuple[int, ...]
    """Tokens of each that were counted."""
    active: Float[Tensor, "language layer neuron"]
    """P: share of tokens on which each neuron was active."""
    mean: Float[Tensor, "language layer neuron"]
    """Mean of what each neuron writes with."""
    entropy: Float[Tensor, "layer neuron"]
    """LAPE in nats; infinite for a neuron that is not active enough in any language."""
    selected: Bool[Tensor, "language layer neuron"]
    """Whether a neuron belongs to a language."""
    selection: Selection
    """How they were selected."""
    stream: Float[Tensor, "language layer d_model"]
    """Mean of the residual stream behind each block."""

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(self.of(name)):,}" for name in self.languages)
        return f"LanguageNeurons({self.selection}: {counts})"

    def index(self, language: str) -> int:
        """Row of a language. Raises `UnknownNameError`."""
        if language not in self.languages:
            raise unknown_name("language", language, self.languages)
        return self.languages.index(language)

    def of(self, language: str) -> list[str]:
        """Names of a language's neurons, layer by layer."""
        return [str(Node("neuron", *place)) for place in self.selected[self.index(language)].nonzero().tolist()]

    def means(self, language: str) -> dict[str, float]:
        """A language's neurons with their mean activations in it: what `control(set_to=...)` takes."""
        row = self.index(language)
        places = self.selected[row].nonzero().tolist()
        return {str(Node("neuron", *place)): float(self.mean[row][tuple(place)]) for place in places}

    def reselected(self, selection: Selection, share: float = SHARE, quantile: float = QUANTILE) -> "LanguageNeurons":
        """Another selection from the same counts."""
        entropy, selected = (_paper if selection == "paper" else _balanced)(self.active, share, quantile)
        return replace(self, entropy=entropy, selected=selected, selection=selection)

    def by_layer(self) -> dict[str, list[int]]:
        """How many neurons of each layer belong to each language."""
        return {name: self.selected[row].sum(-1).tolist() for row, name in enumerate(self.languages)}


@method
def language_neurons(
    setting: Setting,
    texts: Texts,
    *,
    selection: Selection = "balanced",
    share: float = SHARE,
    quantile: float = QUANTILE,
    length: int = LENGTH,
    tokens: int | None = None,
) -> LanguageNeurons:
    """The neurons of each language, by LAPE over `texts`, {language: texts}; see the module for both selections.

    Active: what goes into the activation function, the gate of a gated MLP, is above 0. `share` of all neurons is
    selected, `quantile` is what activity must exceed. At most `tokens` of each language are read; with "balanced" no
    more of one than of the shortest. First positions of windows and special tokens are not counted.

    >>> model = cm.load("known-ioi")
    >>> texts = {"a": "Ann and Bob met then Bob gave to", "b": "Bob and Ann met then Ann gave to"}
    >>> found = cm.neurons.language_neurons(model, texts, length=8)
    >>> found.languages, found.tokens
    (('a', 'b'), (8, 8))

    Raises `InputError` for fewer than two languages, texts without two tokens, shares outside of 0 to 1 and a model
    without MLPs; `MemoryBudgetError` where not even one window fits.
    """
    model = setting.model
    check_mlps(model)
    if len(texts) < 2:
        raise InputError(f"A neuron's language shows beside other languages: give at least two, got {len(texts)}.")
    if selection not in ("balanced", "paper"):
        raise unknown_name("selection", selection, ("balanced", "paper"))
    if not (0 < share <= 1 and 0 < quantile < 1):
        raise InputError(f"share and quantile must lie between 0 and 1, got {share} and {quantile}.")
    cut = language_windows(setting, texts, length, tokens)
    if selection == "balanced":
        least = min(part.tokens for part in cut.values())
        cut = {name: _shortened(part, least) for name, part in cut.items()}
    counted = {name: _count(setting, part, f"reading {name}") for name, part in cut.items()}
    active, mean, stream = (torch.stack(list(column)) for column in list(zip(*counted.values(), strict=True))[:3])
    select = _paper if selection == "paper" else _balanced
    entropy, selected = select(active, share, quantile)
    counts = tuple(part[3] for part in counted.values())
    return LanguageNeurons(tuple(texts), counts, active, mean, entropy, selected, selection, stream)


def language_windows(
    setting: Setting, texts: Texts, length: int = LENGTH, tokens: int | None = None
) -> dict[str, Windows]:
    """By language, its texts as windows."""
    return {
        name: part
        if isinstance(part, Windows)
        else windows(setting.model, part, length=length, tokens=tokens, seed=setting.seed)
        for name, part in texts.items()
    }


def _shortened(cut: Windows, tokens: int) -> Windows:
    """The first windows that hold `tokens`."""
    enough = int((cut.lengths.cumsum(0) < tokens).sum()) + 1
    return cut.chosen(torch.arange(min(enough, len(cut))))


def _count(setting: Setting, cut: Windows, what: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """Share of tokens on which each neuron is active, mean of what it writes, mean of the stream, and tokens."""
    model, tell, special = setting.model, setting.tell(what), special_tokens(setting.model)
    neurons = model.blocks[0].n_neurons
    sums = torch.zeros(2, len(model.blocks), neurons, dtype=torch.double)
    stream = torch.zeros(len(model.blocks), model.d_model, dtype=torch.double)
    tokens, rule = 0, Rule()
    for rows in _pieces(cut, windows_at_once(setting, cut.length)):
        batch = Batch.of(cut, rows, special, vocabulary(model), 1)
        at = batch.rows.to(model.device)

        def look(layer: int, given: Tensor, written: Tensor, at: Tensor = at) -> None:
            sums[0, layer] += rule.fires(layer, given, written)[at].sum(0).cpu()
            sums[1, layer] += written[at].sum(0).cpu()

        with watching_activity(model, look), watching_stream(model, at, stream):
            model.logits(cut.inputs(model, rows))
        tokens += len(batch.ids)
        tell(rows.stop, len(cut))
    if not tokens:
        raise InputError(f"There is nothing to count in {what}: its texts hold only first and special tokens.")
    active, mean = (sums / tokens).float()
    return active, mean, (stream / tokens).float(), tokens


def _pieces(cut: Windows, most: int) -> Iterator[range]:
    """Windows that run together: as many as are counted together, or fewer where memory is short."""
    for block in cut.blocks():
        for start in range(block.start, block.stop, most):
            yield range(start, min(start + most, block.stop))


def watching_stream(model: Model, at: Tensor, total: Float[Tensor, "layer d_model"]) -> ExitStack:
    """Inside, what the stream is behind each block at some tokens is added to `total`."""
    stack = ExitStack()
    for layer, block in enumerate(model.blocks):

        def add(module: nn.Module, args: tuple[Any, ...], output: Any, layer: int = layer) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            total[layer] += hidden.reshape(-1, hidden.shape[-1])[at].float().sum(0).cpu()

        stack.enter_context(hooked(block.layer.register_forward_hook, add))
    return stack


def lape(active: Float[Tensor, "language layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """Entropy of each neuron's activity over languages, in nats; infinite for one that is active in none."""
    total = active.sum(0)
    shares = active / total
    entropy = -torch.special.xlogy(shares, shares).sum(0)
    return torch.where(total > 0, entropy, torch.inf)


def _quantile(values: Tensor, quantile: float) -> Float[Tensor, " row"]:
    """The value at that rank of each row (identify.py takes a value, not an interpolation)."""
    return values.kthvalue(max(1, round(quantile * values.shape[-1])), dim=-1).values


def _paper(active: Tensor, share: float, quantile: float) -> tuple[Tensor, Tensor]:
    """Entropies and the paper's selection."""
    bar = _quantile(active.flatten()[None], quantile)
    entropy = torch.where((active > bar).any(0), lape(active), torch.inf)
    chosen = _lowest(entropy, round(share * entropy.numel()))
    return entropy, (active > bar) & chosen


def _balanced(active: Tensor, share: float, quantile: float) -> tuple[Tensor, Tensor]:
    """Entropies of rates relative to their language, and equally many neurons for each language."""
    languages = len(active)
    bars = _quantile(active.flatten(1), quantile)[:, None, None]
    relative = active / active.mean((1, 2), keepdim=True).clamp(min=1e-12)
    entropy = torch.where((active > bars).any(0), lape(relative), torch.inf)
    strongest = relative.argmax(0)
    candidates = [torch.where((strongest == k) & (active[k] > bars[k]), entropy, torch.inf) for k in range(languages)]
    fewest = min(int(part.isfinite().sum()) for part in candidates)
    each = min(max(1, round(share * entropy.numel() / languages)), fewest)
    return entropy, torch.stack([_lowest(part, each) for part in candidates])


def _lowest(entropy: Float[Tensor, "layer neuron"], n: int) -> Bool[Tensor, "layer neuron"]:
    """The `n` finite entries that are lowest; of equal ones the first."""
    order = entropy.flatten().argsort(stable=True)[:n]
    chosen = torch.zeros(entropy.numel(), dtype=torch.bool)
    chosen[order] = True
    return chosen.view_as(entropy) & entropy.isfinite()
