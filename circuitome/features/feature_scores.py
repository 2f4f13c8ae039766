"""What the features of a dictionary do to a task's metric: to first order for all of them, exactly for some.

    score(i) = mean over prompts of sum over tokens of (f_i(corrupted) - f_i(clean)) < W_dec,i, g >

f_i the feature's activation, g the gradient of the metric at the dictionary's site, mean over points of the straight
line from the clean to the corrupted values there. Negative: the feature helps. What the dictionary does not describe is
scored likewise, as one node: the error (and a transcoder's linear part). So scores and error add up to what it does to
patch the whole site, but for the error of the integral. Source: Marks et al. 2024, arXiv:2403.19647, sections 2 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import Batch
from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.features.places import Place
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model
from circuitome.results import Estimate, Shown


@dataclass(frozen=True, eq=False)
class FeatureScores(Shown):
    """One number for every feature of a dictionary, and one for its error."""

    values: Float[Tensor, " feature"]
    """Mean change of the metric when the feature has its corrupted value, in the metric's unit; negative: it helps."""
    error: float
    """The same for what the dictionary does not describe."""
    whole: Estimate
    """The metric's change when the whole site has its corrupted values: what all scores and the error add up to."""
    unit: str
    """Unit of the metric."""
    method: str
    """How they were made."""

    def __repr__(self) -> str:
        return f"FeatureScores({self.method}, {len(self.values)} features, error {self.error:.3f}, whole {self.whole})"

    def top(self, n: int) -> list[tuple[int, float]]:
        """The `n` features with the largest |score| and their scores. Raises `InputError` for more than there are."""
        if not 0 <= n <= len(self.values):
            raise InputError(f"There are {len(self.values):,} features; {n} were asked for.")
        order = self.values.abs().sort(descending=True, stable=True).indices[:n].tolist()
        return [(i, float(self.values[i])) for i in order]


@method
def scores(setting: Setting, dictionary: Dictionary, *, steps: int = 5) -> FeatureScores:
    """The score of every feature, the gradient averaged over `steps` midpoints between clean and corrupted values.

    Costs two forward passes and `steps` forward-backwards.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> found = cm.features.scores(model, dictionary, task, steps=50)
    >>> round(found.whole.value, 2), round(float(found.values.sum()) + found.error, 2)
    (-6.0, -6.0)

    Raises `InputError` for steps < 1, an ablation that is not corrupted, a metric that is flat at the clean model and a
    dictionary that does not fit; `NumericsError` where the metric is not finite.
    """
    _check(setting, dictionary)
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if steps == 1:
        setting.check_slope("one step")
    own, count = dictionary.to(setting.model.device), len(setting.task)
    values, error, whole = torch.zeros(len(own), device=setting.model.device), 0.0, torch.zeros(count)
    for batch in setting.batches("scoring features", gradients=True):
        clean, corrupted = _both(setting.model, own, batch)
        change, features = corrupted.target - clean.target, corrupted.features - clean.features
        gradient = torch.zeros_like(change)
        for step in range(steps):
            at = clean.target + (step + 0.5) / steps * change
            gradient += _gradient(setting, own.place, batch, at) / steps
        gradient *= batch.clean.real()[..., None]
        values += (features * (gradient @ own.W_dec.T)).sum((0, 1))
        error += float((gradient * (change - features @ own.W_dec)).sum())
        ends = (_metric(setting, own.place, batch, end.target) for end in (corrupted, clean))
        whole[list(batch.rows)] = torch.sub(*ends).float().cpu()
    name, unit = f"integrated gradients, {steps} steps", setting.task.unit
    return FeatureScores(values.cpu() / count, error / count, setting.mean(whole, unit), unit, name)


@method
def effects(setting: Setting, dictionary: Dictionary, features: Sequence[int]) -> list[Estimate]:
    """By feature, the exact change of the metric when it alone has its corrupted value; one forward pass each.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> len(cm.features.effects(model, dictionary, [3, 4], task))
    2

    Raises `UnknownNameError` for a feature that there is not, and as `scores`.
    """
    _check(setting, dictionary)
    check_features(dictionary, list(features))
    own, changes = dictionary.to(setting.model.device), torch.zeros(len(features), len(setting.task))
    for batch in setting.batches("patching features"):
        clean, corrupted = _both(setting.model, own, batch)
        before = _metric(setting, own.place, batch, clean.target)
        for feature, found in zip(features, changes, strict=True):
            moved = (corrupted.features - clean.features)[..., feature, None] * own.W_dec[feature]
            found[list(batch.rows)] = (_metric(setting, own.place, batch, clean.target + moved) - before).float().cpu()
    return [setting.mean(found, setting.task.unit) for found in changes]


def _check(setting: Setting, dictionary: Dictionary) -> None:
    """Raises `InputError` for what cannot be scored."""
    check_width(setting, dictionary)
    if setting.ablation != "corrupted":
        raise InputError(f"Features are patched with their corrupted values, not ablated by {setting.ablation}.")
    if dictionary.scaling != "none":
        raise InputError(
            f"A feature of a dictionary with scaling {dictionary.scaling!r} has no one direction to score."
        )


@dataclass(frozen=True)
class _Values:
    """A batch at the dictionary's site."""

    target: Float[Tensor, "batch pos d_out"]
    """The values that it describes."""
    features: Float[Tensor, "batch pos feature"]
    """Its features."""


def _both(model: Model, dictionary: Dictionary, batch: Batch) -> tuple[_Values, _Values]:
    """Clean and corrupted values of a batch, behind the tokens that both share."""
    assert batch.corrupted is not None
    with torch.no_grad():
        caches = model.record(batch.clean, logits=False), batch.corrupted
        pairs = [_of_cache(model, cache, dictionary.place) for cache in caches]
        clean, corrupted = (_Values(target, dictionary.encode(given)) for given, target in pairs)
    return clean, corrupted


def _of_cache(model: Model, cache: ActivationCache, place: Place) -> tuple[Tensor, Tensor]:
    """What a dictionary reads and describes, from a recorded pass; float32."""
    block, layer = model.blocks[place.layer], place.layer
    if place.site in ("resid", "z"):
        values = cache.resid_post(layer) if place.site == "resid" else cache.z[layer]
        return values.float(), values.float()
    written = cache.mlp_out[layer].float()
    if place.site == "attn":
        attention = cache.resid_post(layer).float() - cache.resid_pre[layer].float() - written
        return attention, attention
    given = cache.resid_mid[layer]
    if place.site == "transcoder" and block.mlp_norm is not None:
        given = block.mlp_norm(given)
    return written if place.site == "mlp" else given.float(), written


def _metric(setting: Setting, place: Place, batch: Batch, target: Tensor) -> Float[Tensor, " batch"]:
    """The metric of a batch with these values at the site."""
    with torch.no_grad(), hook(setting.model, place.describes, lambda values: target.to(values.dtype)):
        found = setting.task.score(setting.model.logits(batch.clean), batch.rows)
    check_numbers(found, "metric", batch.rows)
    return found


def _gradient(setting: Setting, place: Place, batch: Batch, target: Tensor) -> Float[Tensor, "batch pos d_out"]:
    """Gradient of the metric, summed over prompts, at values of the site."""
    leaf, model = target.detach().requires_grad_(True), setting.model
    with torch.enable_grad(), model.frozen_parameters():
        with hook(model, place.describes, lambda values: leaf.to(values.dtype)):
            found = setting.task.score(model.logits(batch.clean), batch.rows)
        check_numbers(found, "metric", batch.rows)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
    return gradient.float()
