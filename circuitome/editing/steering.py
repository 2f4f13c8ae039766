"""Turn something up and down, and see what the model says, how often as wanted, and at what price.

Whatever is turned stands beside the same of something random: directions of the same norm, other parts of the same
layers. A change that breaks the model also changes what it says; so the price, loss on neutral text, is part of the
answer, and the comparison is with random changes that cost at least as much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from scipy.stats import binomtest, fisher_exact

from circuitome.editing.edit import Edit
from circuitome.engine.batches import memory_budget
from circuitome.engine.generation import generate
from circuitome.engine.interventions.positions import At
from circuitome.engine.interventions.replace_parts import part_groups
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, NumericsError
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.loading import firing
from circuitome.models.model import Model
from circuitome.neurons.held_neurons import random_neurons
from circuitome.neurons.text_loss import COPIES, mean_loss
from circuitome.neurons.text_windows import Windows, windows
from circuitome.results import LEVEL, Estimate, Shown

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Strengths where nobody says."""
NEUTRAL = 2_000
"""Tokens of neutral text that the price is measured on."""
LIKE = 10
"""A random feature is one of at least that many, and of at most one in that many, that fire about as often."""
SAMPLES, NEW = 8, 30
"""Texts that are generated of each prompt, and their new tokens."""


@runtime_checkable
class Turned(Protocol):
    """What is turned up and down: a `Direction`, `Parts`, a feature."""

    @property
    def unchanged(self) -> float:
        """The strength at which nothing changes; NaN where there is none."""

    def edit(self, model: Model, strength: float, *, at: At = "all") -> Edit:
        """The change at a strength."""

    def random(self, model: Model, seed: int) -> "Turned":
        """Something random that is like it."""


@dataclass(frozen=True)
class Parts:
    """Parts that are multiplied by the strength: 1 is the model itself, 0 switches them off.

    >>> print(cm.Parts(("a1.h0",)).edit(cm.load("known-ioi"), 0.5))
    a1.h0 times 0.5
    """

    names: tuple[str, ...]
    """Heads, or neurons."""
    unchanged: ClassVar[float] = 1.0
    """Strength of the model itself."""

    def __str__(self) -> str:
        return ", ".join(self.names) if len(self.names) <= 4 else f"{len(self.names)} parts"

    def edit(self, model: Model, strength: float, *, at: At = "all") -> Edit:
        """The parts times `strength`."""
        return Edit.scale(model, self.names, strength, at=at)

    def random(self, model: Model, seed: int) -> "Parts":
        """As many other heads, or neurons, of the same layers. Raises `InputError` where there are no others."""
        generator, drawn = torch.Generator().manual_seed(seed), list[str]()
        for group in part_groups(model, self.names):
            kind, layer, taken = group[0].kind, group[0].layer, {node.index for node in group}
            if kind == "neuron":
                drawn += random_neurons(model, [str(node) for node in group], seed)
                continue
            others = [i for i in range(model.heads.q) if i not in taken] if kind == "head" else []
            if len(others) < len(taken):
                raise InputError(
                    f"There are not {len(taken)} other parts like {group[0]} in block {layer} to compare with."
                )
            order = torch.randperm(len(others), generator=generator)[: len(taken)]
            drawn += [f"a{layer}.h{others[i]}" for i in order.tolist()]
        return Parts(tuple(drawn))


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature of a dictionary, held at the strength: in units of the dictionary's features.

    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), 64, 40, k=4)
    >>> print(cm.Feature(dictionary, 3).edit(cm.load("known-ioi"), 2.0))
    feature 3 of resid of layer 0 held at 2
    """

    dictionary: Dictionary
    """The dictionary."""
    number: int
    """The feature."""
    unchanged: ClassVar[float] = math.nan
    """No strength is the model itself."""

    def __str__(self) -> str:
        return f"feature {self.number} of {self.dictionary.place}"

    def edit(self, model: Model, strength: float, *, at: At = "all") -> Edit:
        """The feature held at `strength`. Raises `UnknownNameError` for a feature that there is not."""
        check_features(self.dictionary, [self.number])
        return Edit.clamp(self.dictionary, self.number, strength, at=at)

    def random(self, model: Model, seed: int) -> "Feature":
        """Another feature that fires, drawn from those about as often active on the package's prose.

        Raises `InputError` where no other fires there.
        """
        density = firing(model, self.dictionary)
        own, density[self.number] = float(density[self.number]), 0.0
        others = (density > 0).nonzero()[:, 0]
        if not len(others):
            raise InputError(
                f"No other feature of the dictionary of {self.dictionary.place} fires on the package's prose, so there "
                "is no feature to compare with. Give draws=0 (--draws 0)."
            )
        if own:
            distance = (density[others].log() - math.log(own)).abs()
            others = others[distance.argsort(stable=True)[: max(LIKE, len(others) // LIKE)]]
        drawn = int(torch.randint(len(others), (1,), generator=torch.Generator().manual_seed(seed)))
        return Feature(self.dictionary, int(others[drawn]))


@dataclass(frozen=True, kw_only=True)
class Steered:
    """What the model says, and pays, with one change at one strength."""

    what: str
    """What is turned."""
    strength: float
    """How far."""
    random: bool
    """Whether it is a random change, there to compare with."""
    texts: tuple[str, ...]
    """What was generated, sample after sample of each prompt, without the prompts."""
    wanted: Estimate
    """Share of these texts that are as wanted, with Wilson's interval."""
    loss: Estimate
    """Change of the loss on neutral text, nats a token."""
    divergence: Estimate
    """KL(model || changed model) on neutral text, nats a token."""
    p: float | None = None
    """One-sided Fisher test that texts are as wanted more often than with the random changes that cost at least as
    much; None for random ones, for the model itself, and where no random change costs as much."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Steering(Shown):
    """A sweep over strengths, of something and of random things like it."""

    rows: tuple[Steered, ...]
    """By what is turned, then by strength."""
    prompts: tuple[str, ...]
    """What was gone on with."""

    def __repr__(self) -> str:
        best = max((row for row in self.rows if not row.random), key=lambda row: row.wanted.value)
        share, price = best.wanted.value, best.loss.value
        return f"Steering({best.what} at {best.strength:g}: {share:.0%} as wanted, {price:+.3f} nats a token)"


@method
def steer(
    setting: Setting,
    what: Turned,
    prompts: str | Sequence[str],
    wanted: Callable[[str], bool],
    *,
    strengths: Sequence[float] = STRENGTHS,
    neutral: str | Sequence[str] | Windows,
    at: At = "all",
    samples: int = SAMPLES,
    new: int = NEW,
    draws: int = 2,
) -> Steering:
    """What the model says after `prompts` with `what` turned to each of `strengths`, beside `draws` random things.

    `samples` texts of `new` tokens are drawn of each prompt at temperature 1, with the same random numbers at every
    strength. `wanted` says of a text whether it is as wanted. `neutral` is text on which the price is measured: change
    of loss, and KL from the plain model, with intervals over windows.

    >>> model = cm.load("known-ioi")
    >>> neutral = cm.neurons.packed([model.encode("Ann and Bob met then Bob gave to")])
    >>> found = cm.steer(model, cm.Parts(("a1.h0",)), "Ann and Bob met then Bob gave to",
    ...     lambda text: text.startswith("Ann"), strengths=[0, 1], neutral=neutral, samples=4, new=1, draws=0)
    >>> [row.wanted.value for row in found.rows]
    [0.0, 1.0]

    Raises `InputError` for no prompts or strengths, and counts below 1; `NumericsError` where a strength makes logits
    that are not finite.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given or not len(strengths):
        raise InputError("Give at least one prompt and one strength.")
    if samples < 1 or new < 1 or draws < 0:
        raise InputError(f"samples and new must be at least 1 and draws at least 0, got {samples}, {new} and {draws}.")
    model = setting.model
    what.edit(model, float(strengths[0]), at=at)  # refuses what cannot be, before any work
    cut = neutral if isinstance(neutral, Windows) else neutral_windows(model, neutral, setting.seed)
    turned = [(what, False), *((what.random(model, setting.seed + draw), True) for draw in range(draws))]
    rows, say = list[Steered](), setting.tell("steering")
    for i, (thing, random) in enumerate(turned):
        for k, strength in enumerate(strengths):
            if random and strength == what.unchanged:
                continue  # the model itself, which is a row already
            edit = thing.edit(model, float(strength), at=at)
            label = f"random {i}" if random else str(what)
            texts = _texts(setting, edit, given, samples, new)
            loss, kl = _price(setting, edit, cut, f"{label}, {strength:g}")
            share = _share([wanted(text) for text in texts])
            about: dict[str, Any] = {"what": label, "strength": float(strength), "random": random, "texts": texts}
            rows.append(Steered(**about, wanted=share, loss=loss, divergence=kl))
            say(i * len(strengths) + k + 1, len(turned) * len(strengths))
    return Steering(rows=tuple(_tested(row, rows) for row in rows), prompts=tuple(given))


def neutral_windows(model: Model, texts: str | Sequence[str], seed: int = 0) -> Windows:
    """Some of `texts` in windows short enough for the model."""
    return windows(model, texts, length=min(128, model.positions or 128), tokens=NEUTRAL, seed=seed)


def _texts(setting: Setting, edit: Edit, prompts: Sequence[str], samples: int, new: int) -> tuple[str, ...]:
    """What the edited model says after each prompt, the same random numbers whatever the edit."""
    model = setting.model
    ids = [model.encode(prompt) for prompt in prompts for _ in range(samples)]
    with model.edited(edit):
        said = generate(model, ids, new, seed=setting.seed)
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    return tuple(model.decode([token for token in more if token not in special]).strip() for more in said)


def _price(setting: Setting, edit: Edit, texts: Windows, what: str) -> tuple[Estimate, Estimate]:
    """Change of the loss, and divergence, on neutral text."""
    model = setting.model
    each = texts.length * (model.hf.config.vocab_size * 4 * 2 * COPIES + model.bytes_per_token(gradients=False))
    size = max(1, memory_budget(model, setting.max_memory) // each)
    changes, divergences = (torch.full((len(texts), texts.length - 1), torch.nan) for _ in range(2))
    for start in range(0, len(texts), size):
        rows = range(start, min(start + size, len(texts)))
        inputs = texts.inputs(model, rows)
        with torch.no_grad():
            plain = model.every_logits(inputs)[:, :-1].float().log_softmax(-1)
            with model.edited(edit):
                edited = model.every_logits(inputs)[:, :-1].float().log_softmax(-1)
        if not bool(torch.isfinite(edited).all()):
            raise NumericsError(f"With {what} the model's logits are not finite; take smaller strengths.")
        real = inputs.real()[:, 1:].bool()
        following = inputs.ids[:, 1:, None]
        change = (plain - edited).gather(-1, following)[..., 0]
        for whole, values in ((changes, change), (divergences, (plain.exp() * (plain - edited)).sum(-1))):
            whole[rows.start : rows.stop, : values.shape[1]] = torch.where(real, values, torch.nan).cpu()
    return mean_loss(changes), mean_loss(divergences)


def _share(hits: Sequence[bool]) -> Estimate:
    """The share of texts that are as wanted, with Wilson's interval."""
    ends = binomtest(sum(hits), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(sum(hits) / len(hits), float(ends.low), float(ends.high), "share of texts", len(hits))


def _tested(row: Steered, rows: Sequence[Steered]) -> Steered:
    """The row with its test against random changes that cost at least as much: of those, the cheapest strength each."""
    dearer = [other for other in rows if other.random and other.loss.value >= row.loss.value]
    cheapest = {other.what: other for other in sorted(dearer, key=lambda other: -other.loss.value)}
    if row.random or not cheapest or not row.divergence.value:
        return row
    hits, n = _counts([row])
    random_hits, random_n = _counts(list(cheapest.values()))
    table = [[hits, n - hits], [random_hits, random_n - random_hits]]
    return replace(row, p=float(fisher_exact(table, alternative="greater").pvalue))


def _counts(rows: Sequence[Steered]) -> tuple[int, int]:
    """Texts as wanted, and all, of some rows."""
    return sum(round(row.wanted.value * row.wanted.n) for row in rows), sum(row.wanted.n for row in rows)
