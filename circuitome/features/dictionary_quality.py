"""How good a dictionary is on texts that it was not trained on, beside simpler things of the same size.

FVU            sum |y - y^|^2 / sum |y - mean y|^2: 0 is perfect, 1 as good as the mean
L0             features active on a token
recovered      (L_ablated - L_dictionary) / (L_ablated - L_model), L the model's loss with the site's values replaced:
               1 the loss does not change, 0 it is as bad as with all values 0 (or their mean)
cosine         of y and y^; shrinkage: E|y^| / E|y|; bias: E|y^|^2 / E<y^, y>, below 1 where y^ is too small

y are the values at the site, y^ what the dictionary makes of them. First and special tokens and those of massive norm
are not counted, and keep their own values when losses are measured. Intervals are over windows. Definitions: Gao et al.
2024, arXiv:2406.04093; Rajamanoharan et al. 2024, arXiv:2404.16014.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.features.activations import Activations, counted, gathered, passes
from circuitome.features.dictionary import Dictionary, random_dictionary
from circuitome.features.places import Place
from circuitome.models.inputs import Inputs
from circuitome.neurons.text_loss import token_losses
from circuitome.neurons.text_windows import Windows, windows
from circuitome.results import Estimate, Shown, bootstrap

LENGTH, TOKENS, LOSSES = 256, 20_000, 32
"""Tokens of a window, tokens in all, and windows on which losses are measured."""
FITTED = 4
"""One window in so many serves to fit what the dictionary is compared with, and is not measured on."""

Rebuilt = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Given what a dictionary reads: what it makes of the site's values, and its features, positive where one is active."""


@dataclass(frozen=True, eq=False)
class Fit:
    """How well something rebuilds the values of a site."""

    fvu: Estimate
    """Fraction of variance unexplained."""
    active: Estimate
    """Features active on a token."""
    cosine: Estimate
    """Mean cosine of y and y^."""
    shrinkage: Estimate
    """E|y^| / E|y|."""
    bias: Estimate
    """E|y^|^2 / E<y^, y>."""
    loss: Estimate | None = None
    """The model's loss with the values replaced, nats a token; None where losses were not measured."""
    recovered_zero: Estimate | None = None
    """Share of the loss recovered against values of 0."""
    recovered_mean: Estimate | None = None
    """Share of the loss recovered against mean values."""


@dataclass(frozen=True, eq=False)
class Quality(Shown):
    """A dictionary measured on texts."""

    place: Place
    """The site."""
    fits: Mapping[str, Fit]
    """By name: dictionary, random dictionary, PCA (of a transcoder, the best linear map of that rank)."""
    density: Float[Tensor, " feature"]
    """Share of tokens on which each feature is active."""
    losses: Mapping[str, Estimate]
    """The model's own loss, with zeros and with means in place of the values; empty where none were measured."""
    tokens: int
    """Tokens that were counted."""
    massive: float
    """Share of tokens that were left out because of their massive norm."""

    @property
    def fit(self) -> Fit:
        """The dictionary's own."""
        return self.fits["dictionary"]

    @property
    def dead(self) -> float:
        """Share of features that were active on none of the tokens."""
        return float((self.density == 0).float().mean())

    def __repr__(self) -> str:
        return f"Quality({self.place}, FVU {self.fit.fvu}, {self.fit.active} active, {self.tokens:,} tokens)"


@method
def quality(
    setting: Setting,
    dictionary: Dictionary,
    texts: str | Sequence[str] | Windows,
    *,
    length: int = LENGTH,
    tokens: int | None = TOKENS,
    losses: int = LOSSES,
) -> Quality:
    """FVU, active features, dead ones, loss recovered, cosine and shrinkage of a dictionary on `texts`.

    Beside it stand random directions and principal components, as many active on a token. A quarter of the windows
    serves to fit means, components and the random directions' scale; the rest is measured on, the model's loss on at
    most `losses` windows (0: on none).

    >>> model = cm.load("known-ioi")
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> found = cm.features.quality(model, dictionary, ["Ann and Bob met then Bob gave to"] * 8, length=8, losses=2)
    >>> sorted(found.fits), found.fit.active.value
    (['PCA', 'dictionary', 'random dictionary'], 4.0)

    Raises `InputError` for texts of fewer than four windows, and where the dictionary's width is not the site's.
    """
    place, model = dictionary.place, setting.model
    check_width(setting, dictionary)
    cut = (
        texts if isinstance(texts, Windows) else windows(model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    if len(cut) < FITTED:
        raise InputError(f"The texts give {len(cut)} windows; at least {FITTED} are needed. Give longer texts.")
    first = max(1, len(cut) // FITTED)
    sample = gathered(setting, place, cut, range(first))
    if not len(sample):
        raise InputError("The texts hold only first and special tokens, so nothing can be measured. Give texts.")
    limits = sample.limits()
    sample = sample.ordinary(limits)
    active = max(1, round(float(dictionary.to(model.device).encode(sample.given).count_nonzero() / len(sample))))
    rebuilt: dict[str, Rebuilt] = {
        "dictionary": of_dictionary(dictionary.to(model.device)),
        "random dictionary": scaled_random(dictionary, sample, active, setting.seed),
        "PCA": components(sample, active),
    }
    rows = range(first, len(cut))
    sums = Sums(setting, place, cut, rows, limits, rebuilt)
    fits = {name: sums.fit(name) for name in rebuilt}
    measured: dict[str, Estimate] = {}
    if losses:
        some = cut.chosen(list(rows)[:losses])
        fits, measured = with_losses(setting, place, some, limits, rebuilt, fits, sample.target.mean(0))
    return Quality(place, fits, sums.density(), measured, sums.tokens, sums.massive)


def check_width(setting: Setting, dictionary: Dictionary) -> None:
    """Raises `InputError` where the model has no such site, or one of another width."""
    dictionary.place.check(setting.model)
    expected = dictionary.place.widths(setting.model)
    came = (dictionary.W_enc.shape[0], dictionary.W_dec.shape[1])
    if came != expected:
        raise InputError(
            f"The dictionary reads {came[0]} and describes {came[1]} numbers; the {dictionary.place} of "
            f"{setting.model.name} has {expected[0]} and {expected[1]}. It belongs to another model or site."
        )


def of_dictionary(dictionary: Dictionary) -> Rebuilt:
    """What a dictionary makes of what it reads."""

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        features = dictionary.encode(x)
        return dictionary.decode(features, x), features

    return rebuild


def scaled_random(dictionary: Dictionary, sample: Activations, active: int, seed: int) -> Rebuilt:
    """Random directions around the mean, as many active, with the one scale that fits best."""
    place, (width, features) = dictionary.place, dictionary.W_enc.shape
    centre, target = sample.given.mean(0), sample.target.mean(0)
    k = min(active, features)
    directions = random_dictionary(place, width, features, k=k, centre=centre.cpu(), seed=seed).to(centre.device)
    if target.shape != centre.shape:
        raise InputError("A random dictionary needs inputs and outputs of one width.")

    def raw(x: Tensor) -> tuple[Tensor, Tensor]:
        encoded = directions.encode(x)
        return encoded @ directions.W_dec, encoded

    out = raw(sample.given)[0]
    scale = ((sample.target - target) * out).sum() / out.square().sum().clamp(min=1e-12)

    def rebuild(x: Tensor) -> tuple[Tensor, Tensor]:
        out, encoded = raw(x)
        return target + scale * out, encoded

    return rebuild


def components(sample: Activations, rank: int) -> Rebuilt:
    """The best linear map of a rank from what is read to what is described: its principal components where it is one.

    Of a transcoder, least squares and then the components of what these predict (reduced-rank regression).
    """
    given, target = sample.given.double(), sample.target.double()
    centre, mean = given.mean(0), target.mean(0)
    x, y = given - centre, target - mean
    matrix = x.T @ x
    if sample.target is sample.given:
        whole = torch.eye(len(matrix), dtype=x.dtype, device=x.device)
        values = matrix
    else:
        ridge = 1e-6 * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=x.dtype, device=x.device)
        whole = torch.linalg.solve(matrix + ridge, x.T @ y)
        values = whole.T @ matrix @ whole
    vectors = torch.linalg.eigh(values).eigenvectors[:, -min(rank, len(values)) :]
    mapped, ones = (whole @ vectors @ vectors.T).float(), torch.ones(vectors.shape[1], device=given.device)
    return lambda x: (mean.float() + (x - centre.float()) @ mapped, ones.expand(len(x), -1))


class Sums:
    """Sums by window, from which all but losses follows."""

    def __init__(
        self,
        setting: Setting,
        place: Place,
        cut: Windows,
        rows: range,
        limits: tuple[float, float],
        rebuilt: Mapping[str, Rebuilt],
    ) -> None:
        self.setting, windows = setting, len(cut)
        width = place.widths(setting.model)[1]
        self.count = torch.zeros(windows, dtype=torch.double)
        self.total, self.square = torch.zeros(windows, width, dtype=torch.double), torch.zeros_like(self.count)
        self.norm = torch.zeros_like(self.count)
        self.by_name = {name: torch.zeros(windows, 6, dtype=torch.double) for name in rebuilt}
        self.fired: Tensor | None = None
        self.rank: dict[str, float] = {}
        seen, tell = 0, setting.tell("measuring")
        for part in passes(setting, place, cut, rows):
            seen += len(part)
            self._add(part.ordinary(limits), rebuilt)
            tell(int(part.window[-1]) + 1 - rows.start if len(part) else 0, len(rows))
        self.tokens = int(self.count.sum())
        if not self.tokens:
            raise InputError("The texts hold no token that can be measured on. Give longer texts.")
        self.massive = 1 - self.tokens / seen
        kept = self.count > 0
        self.mean = self.total.sum(0) / self.count.sum()
        self.kept = kept

    def _add(self, part: Activations, rebuilt: Mapping[str, Rebuilt]) -> None:
        """Add the tokens of a pass."""
        window, y = part.window.cpu(), part.target
        norm = y.norm(dim=1)
        self.count.index_add_(0, window, torch.ones(len(part), dtype=torch.double))
        self.total.index_add_(0, window, y.double().cpu())
        self.square.index_add_(0, window, norm.double().square().cpu())
        self.norm.index_add_(0, window, norm.double().cpu())
        for name, rebuild in rebuilt.items():
            out, features = rebuild(part.given)
            active = (features > 0).sum(1).float()
            dot, size = (out * y).sum(1), out.norm(dim=1)
            cosine = dot / (size * norm).clamp(min=1e-12)
            columns = torch.stack([(y - out).square().sum(1), dot, size.square(), size, cosine, active], 1)
            self.by_name[name].index_add_(0, window, columns.double().cpu())
            if name == "dictionary":
                fired = (features > 0).sum(0).cpu()
                self.fired = fired if self.fired is None else self.fired + fired

    def density(self) -> Float[Tensor, " feature"]:
        """Share of tokens on which each feature is active."""
        assert self.fired is not None
        return self.fired.double().div(self.tokens).float()

    def fit(self, name: str) -> Fit:
        """What the sums say of one."""
        variance = self.square - 2 * self.total @ self.mean + self.count * self.mean.square().sum()
        columns = torch.cat([self.by_name[name], variance[:, None], self.norm[:, None], self.count[:, None]], 1)[
            self.kept
        ]

        def ratio(above: int, below: int, unit: str) -> Estimate:
            floor = torch.finfo(torch.double).tiny
            return bootstrap(
                columns, lambda means: means[:, above] / means[:, below].clamp(min=floor), unit, seed=self.setting.seed
            )

        return Fit(
            fvu=ratio(0, 6, "share of the variance"),
            active=ratio(5, 8, "features a token"),
            cosine=ratio(4, 8, "cosine"),
            shrinkage=ratio(3, 7, "share of the norm"),
            bias=ratio(2, 1, "share"),
        )


def with_losses(
    setting: Setting,
    place: Place,
    some: Windows,
    limits: tuple[float, float],
    rebuilt: Mapping[str, Rebuilt],
    fits: Mapping[str, Fit],
    mean: Float[Tensor, " d_out"],
) -> tuple[dict[str, Fit], dict[str, Estimate]]:
    """The fits with losses, and the losses of the model as it is, with zeros and with means in place of the values."""
    constant: dict[str, Rebuilt] = {
        "zero": lambda x: (x.new_zeros(len(x), len(mean)), x),
        "mean": lambda x: (mean.expand(len(x), -1), x),
    }
    values = {"model": token_losses(setting, some, "loss of the model")}
    for name, rebuild in {**constant, **rebuilt}.items():
        during = replacing(setting, place, limits, rebuild)
        values[name] = token_losses(setting, some, f"loss with {name}", during)
    counts = (~values["model"].isnan()).sum(1)
    names = list(values)
    columns = torch.stack([*(value.nan_to_num().double().sum(1) for value in values.values()), counts.double()], 1)

    def loss(name: str) -> Estimate:
        at = names.index(name)
        return bootstrap(columns, lambda means: means[:, at] / means[:, -1], "nats a token", seed=setting.seed)

    def recovered(name: str, ablated: str) -> Estimate:
        own, worst, best = names.index(name), names.index(ablated), names.index("model")

        def share(means: Tensor) -> Tensor:
            gap = means[:, worst] - means[:, best]
            return (means[:, worst] - means[:, own]) / torch.where(gap == 0, torch.nan, gap)

        return bootstrap(columns, share, "share of the loss", seed=setting.seed)

    with_them = {
        name: replace(
            fit, loss=loss(name), recovered_zero=recovered(name, "zero"), recovered_mean=recovered(name, "mean")
        )
        for name, fit in fits.items()
    }
    return with_them, {name: loss(name) for name in ("model", "zero", "mean")}


def replacing(
    setting: Setting, place: Place, limits: tuple[float, float], rebuild: Rebuilt
) -> Callable[[Inputs], AbstractContextManager[None]]:
    """What puts in place of a site's values what `rebuild` makes of what a dictionary reads, where tokens count."""

    @contextmanager
    def during(inputs: Inputs) -> Iterator[None]:
        where, seen = counted(setting.model, inputs), list[Tensor]()

        def look(values: Tensor) -> None:
            seen[:] = [values]

        def put(values: Tensor) -> Tensor:
            given = values if place.one_site else seen.pop()
            ordinary = where & (given.norm(dim=-1) <= limits[0]) & (values.norm(dim=-1) <= limits[1])
            out = values.clone()
            out[ordinary] = rebuild(given[ordinary].float())[0].to(values.dtype)
            return out

        with ExitStack() as stack:
            if not place.one_site:
                stack.enter_context(hook(setting.model, place.reads, look))
            stack.enter_context(hook(setting.model, place.describes, put))
            yield

    return during
