"""Dictionaries that prove on the model's own activations that they belong to it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.features.activations import gathered
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.features.formats import read
from circuitome.heads.long_context.needles import own_text
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows, packed, windows
from circuitome.weights.folding import vocabulary

WINDOWS, LENGTH = 8, 128
"""Windows of the package's own prose that a dictionary is proved on, and tokens of each."""
WORST = 0.9
"""Fraction of variance unexplained above which a dictionary is refused; the mean alone leaves 1."""


@dataclass(frozen=True)
class Proof:
    """What a dictionary made of the model's own activations."""

    fvu: float
    """Fraction of variance unexplained."""
    active: float
    """Features active on a token."""


def load(
    path: str | Path, *, model: Model, site: str | None = None, layer: int | None = None, check: bool = True
) -> Dictionary:
    """The dictionary in a file or folder, proved on `model`; `facts["proof"]` says how well it does there.

    Read are runs of `circuitome dictionary train`, SAELens, Gemma Scope, dictionary_learning, sparsify and
    circuit-tracer's transcoders; see `formats`. `site` and `layer` say where it belongs, where the file does not.
    Without `check` it is taken as it is.

    >>> model = cm.load("known-ioi")
    >>> trained = cm.features.train(model, "Ann and Bob met then Bob gave to", layer=0, width=16, k=2, length=5)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cm.features.save(trained.dictionary, folder)
    ...     cm.features.load(folder, model=model, check=False)
    Dictionary(16 features, resid of layer 0, topk)

    Raises `DataFileError` for what is no dictionary, `InputError` where it leaves more than 90 % of the variance of the
    model's activations unexplained: then it belongs to another model, site or scaling.
    """
    dictionary = read(path, site=site, layer=layer)
    if not check:
        return dictionary
    check_width(Setting(model), dictionary)
    found = proof(model, dictionary)
    if not found.fvu <= WORST:
        raise InputError(
            f"{path} does not fit the {dictionary.place} of {model.name}: with {found.active:.1f} of "
            f"{len(dictionary):,} features active on a token it leaves {found.fvu:.3g} of the variance of the model's "
            f"own activations unexplained, where at most {WORST} is expected and the mean alone leaves 1. It belongs "
            "to another model, site, layer or scaling of the values; give the right site and layer."
        )
    facts = {**dictionary.facts, "proof": {"fvu": found.fvu, "active": found.active}}
    return replace(dictionary, facts=facts)


@torch.no_grad()
def proof(model: Model, dictionary: Dictionary) -> Proof:
    """How much of the variance of the model's activations a dictionary leaves unexplained, on the package's prose."""
    cut = sample(model)
    data = gathered(Setting(model), dictionary.place, cut, range(len(cut)))
    data = data.ordinary(data.limits())
    features = dictionary.to(model.device).encode(data.given)
    error = data.target - dictionary.to(model.device).decode(features, data.given)
    variance = (data.target - data.target.mean(0)).square().sum()
    active = float(features.count_nonzero() / len(data))
    return Proof(float(error.square().sum() / variance), active)


@torch.no_grad()
def firing(model: Model, dictionary: Dictionary) -> Float[Tensor, " feature"]:
    """Share of the tokens of the package's prose on which each feature is active."""
    cut = sample(model)
    data = gathered(Setting(model), dictionary.place, cut, range(len(cut)))
    return (dictionary.to(model.device).encode(data.given) > 0).float().mean(0).cpu()


def sample(model: Model) -> Windows:
    """The package's prose in windows; random tokens for a model that cannot read it, such as the known ones."""
    longest = model.positions or LENGTH
    length = min(LENGTH, longest)
    try:
        return windows(model, own_text(), length=length, tokens=WINDOWS * length)
    except InputError:
        generator = torch.Generator().manual_seed(0)
        return packed(torch.randint(vocabulary(model), (WINDOWS, length), generator=generator).tolist())
