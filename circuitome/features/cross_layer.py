"""Cross-layer transcoders: features of each layer's MLP input that write to the outputs of this and all later MLPs.

f_s = act(x_s W_enc,s + b_enc,s)                 x_s what the MLP of layer s reads (or the stream in front of its norm)
y_l = sum over s <= l of f_s W_dec,s,l-s + b_dec,l   what stands for what the MLP of layer l writes

Files are those of circuit-tracer: config.yaml, and for each layer s W_enc_s.safetensors (W_enc_s [feature, d_model],
b_enc_s, b_dec_s, perhaps threshold_s) and W_dec_s.safetensors (W_dec_s [feature, later layers, d_model]).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import DataFileError, InputError
from circuitome.features.activations import counted, values_at
from circuitome.features.dictionary import activated
from circuitome.features.formats import tensors_of
from circuitome.features.loading import WORST, sample
from circuitome.features.places import Place
from circuitome.models.model import Model

_SITES = {"hook_resid_mid": "stream-transcoder"}
"""What features read, by the name that a folder's config gives; else the MLP's normed input."""


@dataclass(frozen=True, eq=False)
class CrossLayer:
    """A cross-layer transcoder. Lists are by layer."""

    site: str
    """What features read: transcoder, the MLP's normed input, or stream-transcoder, the stream in front of its norm."""
    W_enc: list[Tensor]
    """Encoders [d_model, feature]."""
    b_enc: list[Tensor]
    """Their biases [feature]."""
    W_dec: list[Tensor]
    """Decoders [feature, later layers, d_model], the layer itself first."""
    b_dec: list[Tensor]
    """Biases of the outputs [d_model]."""
    threshold: list[Tensor | None]
    """What a feature must exceed [feature]; None: 0."""

    def __repr__(self) -> str:
        return f"CrossLayer({len(self)} layers of {len(self.b_enc[0])} features, {self.site})"

    def __len__(self) -> int:
        return len(self.W_enc)

    def encode(self, layer: int, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token feature"]:
        """The features of a layer for what its MLP reads."""
        return activated(x.float() @ self.W_enc[layer] + self.b_enc[layer], None, self.threshold[layer])

    def reconstruct(self, given: list[Float[Tensor, "token d_model"]]) -> list[Float[Tensor, "token d_model"]]:
        """What every MLP writes, for what every MLP reads."""
        out = [bias.expand(len(x), -1).clone() for bias, x in zip(self.b_dec, given, strict=True)]
        for layer, x in enumerate(given):
            features = self.encode(layer, x)
            for later in range(self.W_dec[layer].shape[1]):
                out[layer + later] += features @ self.W_dec[layer][:, later]
        return out


def load_cross_layer(path: str | Path, *, model: Model, check: bool = True) -> tuple[CrossLayer, list[float]]:
    """The cross-layer transcoder in a folder, and by layer the variance of the MLP's own outputs left unexplained.

    Without `check` it is taken as it is, and there are no figures.

    >>> cm.features.load_cross_layer("nowhere", model=cm.load("known-ioi"))
    Traceback (most recent call last):
        ...
    circuitome.errors.DataFileError: nowhere is no cross-layer transcoder: it has no W_enc_0.safetensors.

    Raises `DataFileError` for a folder that is none or
    lacks files, `InputError` where it has other layers or widths than the model, or leaves more than 90 % of the
    variance unexplained in half of the layers.
    """
    found = _read(Path(path))
    widths = {tuple(weight.shape[:1]) for weight in found.W_enc} | {bias.shape for bias in found.b_dec}
    if len(found) != len(model.blocks) or widths != {(model.d_model,)}:
        raise InputError(
            f"{path} has {len(found)} layers of widths {sorted(w[0] for w in widths)}; {model.name} has "
            f"{len(model.blocks)} of width {model.d_model}. It belongs to another model."
        )
    if not check:
        return found, []
    unexplained = _unexplained(model, found)
    middle = sorted(unexplained)[len(unexplained) // 2]
    if not middle <= WORST:
        raise InputError(
            f"{path} does not fit {model.name}: in the middle of its layers it leaves {middle:.3g} of the variance of "
            f"what the MLPs write unexplained, where at most {WORST} is expected and the mean alone leaves 1. It "
            "belongs to another model, or reads other values than its config.yaml says."
        )
    return found, unexplained


def _read(folder: Path) -> CrossLayer:
    if not (folder / "W_enc_0.safetensors").is_file():
        raise DataFileError(f"{folder} is no cross-layer transcoder: it has no W_enc_0.safetensors.")
    config = folder / "config.yaml"
    about = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    count = len(list(folder.glob("W_enc_*.safetensors")))
    held: list[dict[str, Tensor]] = []
    for layer in range(count):
        parts = {
            **tensors_of(folder / f"W_enc_{layer}.safetensors"),
            **tensors_of(folder / f"W_dec_{layer}.safetensors"),
        }
        held.append({name.removesuffix(f"_{layer}"): value for name, value in parts.items()})
        if lacking := {"W_enc", "b_enc", "b_dec", "W_dec"} - set(held[-1]):
            raise DataFileError(f"{folder}: layer {layer} lacks {', '.join(sorted(lacking))}.")
        if tuple(held[-1]["W_dec"].shape[:2]) != (len(held[-1]["b_enc"]), count - layer):
            raise DataFileError(
                f"{folder}: W_dec_{layer} has shape {list(held[-1]['W_dec'].shape)}; expected "
                f"[{len(held[-1]['b_enc'])}, {count - layer}, d_model]."
            )
    return CrossLayer(
        _SITES.get(str((about or {}).get("feature_input_hook")), "transcoder"),
        [part["W_enc"].T.contiguous() for part in held],
        [part["b_enc"] for part in held],
        [part["W_dec"] for part in held],
        [part["b_dec"] for part in held],
        [part["threshold"].expand(len(part["b_enc"])) if "threshold" in part else None for part in held],
    )


@torch.no_grad()
def _unexplained(model: Model, found: CrossLayer) -> list[float]:
    """By layer, the variance of the MLP's outputs on the package's own prose that is left unexplained."""
    places = [Place(found.site, layer) for layer in range(len(found))]
    cut = sample(model)
    inputs = cut.inputs(model, range(len(cut)))
    names = {name for place in places for name in (place.reads, place.describes)}
    values, where = values_at(model, names, inputs, len(found)), counted(model, inputs)
    given = [values[place.reads][where].float() for place in places]
    unexplained = list[float]()
    for place, out in zip(places, found.reconstruct(given), strict=True):
        target = values[place.describes][where].float()
        error, variance = (target - out).square().sum(), (target - target.mean(0)).square().sum()
        unexplained.append(float(error / variance))
    return unexplained
