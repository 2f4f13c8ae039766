"""What language neurons do: perplexity with them off, and the language of what is generated with them held.

Beside LAPE neurons stand random neurons of the same layers, and a direction: the difference between the mean streams
of two languages behind one block, added at every position.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from circuitome.engine.generation import generate
from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.neurons.held_neurons import control, random_neurons
from circuitome.neurons.language import LanguageNeurons, Texts, language_windows
from circuitome.neurons.text_loss import mean_loss, token_losses
from circuitome.neurons.text_windows import LENGTH, Windows, packed
from circuitome.results import Estimate, Samples, Shown, mean, proportion

NEW = 40
"""Tokens that are generated after each prompt."""


@dataclass(frozen=True, eq=False)
class Deactivation(Shown):
    """Loss by language with each language's neurons off."""

    languages: tuple[str, ...]
    """Rows, whose neurons are off, and columns, whose texts are read."""
    neurons: tuple[int, ...]
    """How many neurons each row switches off."""
    plain: tuple[Estimate, ...]
    """Loss of the model itself on each language, nats a token."""
    change: tuple[tuple[Estimate, ...], ...]
    """By row and column: change of the loss, nats a token; exp of it is what perplexity is multiplied by."""
    random: tuple[tuple[Estimate, ...], ...]
    """The same with as many random neurons of the same layers off, mean over draws."""

    def perplexity(self) -> Float[Tensor, "off language"]:
        """Change of perplexity, as the paper's table has it."""
        plain = torch.tensor([loss.value for loss in self.plain])
        change = torch.tensor([[cell.value for cell in row] for row in self.change])
        return (plain + change).exp() - plain.exp()


@method
def deactivation(
    setting: Setting,
    neurons: LanguageNeurons,
    texts: Texts,
    *,
    draws: int = 2,
    length: int = LENGTH,
    tokens: int | None = None,
) -> Deactivation:
    """The loss on each language's `texts` with each language's neurons off; give other texts than for the selection.

    Intervals are over windows, paired with the model's own loss. Source: Tang et al. 2024, arXiv:2402.16438, figure 4
    (their script prints mean log-perplexity, not perplexity).

    >>> model = cm.load("known-ioi")
    >>> texts = {"a": "Ann and Bob met then Bob gave to", "b": "Bob and Ann met then Ann gave to"}
    >>> found = cm.neurons.language_neurons(model, texts, length=8, share=0.3, quantile=0.1)
    >>> cm.neurons.deactivation(model, found, texts, draws=1, length=8).languages
    ('a', 'b')

    Raises `InputError` for other languages than those of `neurons`, and draws < 1.
    """
    if set(texts) != set(neurons.languages):
        raise InputError(f"Neurons are of {', '.join(neurons.languages)}; texts of {', '.join(texts)}. Give the same.")
    if draws < 1:
        raise InputError(f"draws is the number of random sets of neurons and must be at least 1, got {draws}.")
    given = language_windows(setting, texts, length, tokens)
    cut = {name: given[name] for name in neurons.languages}
    plain = {name: token_losses(setting, part, f"loss on {name}") for name, part in cut.items()}
    change, random = list[tuple[Estimate, ...]](), list[tuple[Estimate, ...]]()
    for name in neurons.languages:
        off = neurons.of(name)
        sets = [off, *(random_neurons(setting.model, off, setting.seed + draw) for draw in range(draws))] if off else []
        rows = [_changes(setting, cut, plain, some, f"{name} off") for some in sets]
        still = {language: torch.zeros_like(losses) for language, losses in plain.items()}
        change.append(_estimates(rows[0] if rows else still, plain))
        drawn = {k: torch.stack([row[k] for row in rows[1:]]).mean(0) for k in plain} if rows else still
        random.append(_estimates(drawn, plain))
    counts = tuple(len(neurons.of(name)) for name in neurons.languages)
    own = tuple(mean_loss(losses) for losses in plain.values())
    return Deactivation(neurons.languages, counts, own, tuple(change), tuple(random))


def _changes(
    setting: Setting, cut: Mapping[str, Windows], plain: Mapping[str, Tensor], off: Sequence[str], what: str
) -> dict[str, Tensor]:
    """By language, the change of every token's loss with some neurons off."""
    with control(setting.model, off=off):
        return {name: token_losses(setting, part, f"{name} with {what}") - plain[name] for name, part in cut.items()}


def _estimates(changes: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> tuple[Estimate, ...]:
    """Mean changes, over the tokens that there are."""
    return tuple(mean_loss(torch.where(plain[name].isnan(), torch.nan, change)) for name, change in changes.items())


@contextmanager
def adding(model: Model, layer: int, vector: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Inside, `vector` is added to the stream behind a block at every position, in every pass of `model.hf`.

    >>> model = cm.load("known-ioi")
    >>> with cm.neurons.adding(model, 1, torch.zeros(model.d_model)):
    ...     shape = model.hf(torch.tensor([[0, 1, 2]])).logits.shape
    >>> tuple(shape)
    (1, 3, 14)

    Raises `InputError` for a layer that does not exist.
    """
    if not 0 <= layer < len(model.blocks):
        raise InputError(f"There is no block {layer}; {model.name} has 0 to {len(model.blocks) - 1}.")
    with hook(model, f"a{layer}.resid_post", lambda values: values + vector.to(values)):
        yield


def identifier(languages: Sequence[str]) -> Callable[[str], str]:
    """A function that tells which of some languages a text is in, by py3langid (BSD-3-Clause).

    Names are codes of two letters, with more behind a hyphen: zh-cn is zh. Raises `InputError` where py3langid is not
    installed, or does not know one of the languages.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise InputError(
            "Telling the language of a text needs py3langid: pip install 'circuitome[languages]'."
        ) from None
    codes = {name.split("-")[0].lower(): name for name in languages}
    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    if unknown := [code for code in codes if code not in set(found.labels)]:
        raise InputError(f"py3langid does not know {unknown[0]!r}. Name languages by codes such as en, de, zh-cn.")
    found.set_languages(sorted(codes))
    return lambda text: codes[str(found.classify(text)[0])]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class OutputLanguage(Samples):
    """Share of generated texts in the wanted language, for each way to ask for it; prompts are rows."""

    losses: tuple[Estimate | None, ...]
    """The model's own loss on what was generated, nats a token: how well the text reads; None for empty texts."""
    examples: tuple[str, ...]
    """What was generated after the first prompt, by way."""

    @override
    def estimate(self, *cell: int) -> Estimate:
        """Share of a way with its Wilson interval."""
        return proportion(self.samples[:, cell[0]], self.unit)

    @override
    @cached_property
    def interval(self) -> tuple[Float[Tensor, " way"], Float[Tensor, " way"]]:
        """Ends of the Wilson intervals."""
        found = [self.estimate(way) for way in range(self.samples.shape[1])]
        return torch.tensor([part.low for part in found]), torch.tensor([part.high for part in found])


@method
def output_language(
    setting: Setting,
    neurons: LanguageNeurons,
    prompts: Sequence[str],
    source: str,
    target: str,
    *,
    tell: Callable[[str], str] | None = None,
    layer: int | None = None,
    strength: float = 1.0,
    new: int = NEW,
) -> OutputLanguage:
    """How often the model goes on in `target` after `prompts` in `source`, as it is and when it is made to.

    Ways: "plain"; "neurons", the source's off and the target's set to their means in it; "random", as many random
    neurons of the same layers off, and set to their means in the target; "direction", `strength` times the difference
    of the mean streams added behind `layer` (the middle one by default). Generation is greedy. `tell` says which
    language a text is in; None: py3langid. Source of the neurons' way: Tang et al. 2024, arXiv:2402.16438.

    >>> model = cm.load("known-ioi")
    >>> texts = {"a": "Ann and Bob met then Bob gave to", "b": "Bob and Ann met then Ann gave to"}
    >>> found = cm.neurons.language_neurons(model, texts, length=8, share=0.3, quantile=0.1)
    >>> shares = cm.neurons.output_language(model, found, ["Ann and"], "a", "b", tell=lambda text: "b", new=2)
    >>> shares.axes, float(shares["plain"].value)
    ((('plain', 'neurons', 'random', 'direction'),), 1.0)

    Raises `UnknownNameError` for a language that is none of `neurons`, `InputError` for no prompts, and where py3langid
    is needed and not installed.
    """
    if not prompts:
        raise InputError("There are no prompts to go on from; give some texts in the source language.")
    spoken = identifier(neurons.languages) if tell is None else tell
    tell_ways = setting.tell("generating")
    ways = _ways(setting, neurons, source, target, len(setting.model.blocks) // 2 if layer is None else layer, strength)
    hits, losses, examples = list[Tensor](), list[Estimate | None](), list[str]()
    begun = [setting.model.encode(prompt) for prompt in prompts]
    for number, enter in enumerate(ways.values()):
        with enter():
            said = generate(setting.model, begun, new)
        texts = [setting.model.decode(more) for more in said]
        hits.append(torch.tensor([float(spoken(text) == target) for text in texts]))
        losses.append(_own_loss(setting, begun, said))
        examples.append(texts[0])
        tell_ways(number + 1, len(ways))
    samples = torch.stack(hits, 1)
    axes = (tuple(ways),)
    return OutputLanguage(samples=samples, axes=axes, unit="share", losses=tuple(losses), examples=tuple(examples))


def _ways(
    setting: Setting, neurons: LanguageNeurons, source: str, target: str, layer: int, strength: float
) -> dict[str, Callable[[], Any]]:
    """By way: what enters its context."""
    model = setting.model
    a, b = neurons.index(source), neurons.index(target)
    off, on = neurons.of(source), neurons.means(target)
    nothing = random_neurons(model, off, setting.seed)
    others = random_neurons(model, list(on), setting.seed + 1)
    places = [(int(layer_), int(i)) for layer_, i in (name[1:].split(".n") for name in others)]
    random = {name: float(neurons.mean[b][place]) for name, place in zip(others, places, strict=True)}
    vector = strength * (neurons.stream[b, layer] - neurons.stream[a, layer])
    return {
        "plain": lambda: model.locked(),
        "neurons": lambda: control(model, off=off, set_to=on),
        "random": lambda: control(model, off=nothing, set_to=random),
        "direction": lambda: adding(model, layer, vector),
    }


def _own_loss(setting: Setting, prompts: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> Estimate | None:
    """The plain model's loss on what was generated, over prompts."""
    some = [(ids, more) for ids, more in zip(prompts, said, strict=True) if more]
    if not some:
        return None
    losses = token_losses(setting, packed([[*ids, *more] for ids, more in some]))
    values = [losses[row, len(ids) - 1 : len(ids) + len(more) - 1].mean() for row, (ids, more) in enumerate(some)]
    return mean(torch.stack(values), "nats a token", seed=setting.seed)
