"""Dictionaries as other tools store them: read into `Dictionary`, and written as SAELens reads them.

SAELens               folder with cfg.json and sae_weights.safetensors: standard, topk, jumprelu, gated, transcoders
Gemma Scope           params.npz; what it belongs to stands in its path, or is given
dictionary_learning   folder with ae.pt and config.json
sparsify              folder with cfg.json and sae.safetensors
circuit-tracer        folder with config.yaml and layer_N.safetensors, a transcoder for each MLP
circuitome            a run of `circuitome dictionary train`

No pickled objects are read: .pt files only where they hold plain tensors (torch's weights_only), .npz without pickles.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitome.errors import DataFileError, InputError
from circuitome.features.dictionary import Dictionary, checked
from circuitome.features.places import Place

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""Files of SAELens."""
_HOOKS = {
    r"blocks\.(\d+)\.hook_resid_post": "resid",
    r"blocks\.(\d+)\.hook_mlp_out": "mlp",
    r"blocks\.(\d+)\.hook_attn_out": "attn",
    r"blocks\.(\d+)\.attn\.hook_z": "z",
    r"blocks\.(\d+)\.(ln2\.hook_normalized|mlp\.hook_in|hook_mlp_in)": "transcoder",
    r"blocks\.(\d+)\.hook_resid_mid": "stream-transcoder",
}
"""Names of TransformerLens's hooks, and the sites that they are."""
_WRITTEN = {
    "resid": ("blocks.{}.hook_resid_post", "blocks.{}.hook_resid_post"),
    "mlp": ("blocks.{}.hook_mlp_out", "blocks.{}.hook_mlp_out"),
    "attn": ("blocks.{}.hook_attn_out", "blocks.{}.hook_attn_out"),
    "z": ("blocks.{}.attn.hook_z", "blocks.{}.attn.hook_z"),
    "transcoder": ("blocks.{}.mlp.hook_in", "blocks.{}.hook_mlp_out"),
    "stream-transcoder": ("blocks.{}.hook_resid_mid", "blocks.{}.hook_mlp_out"),
}
_SCALINGS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "unit_norm"}
_SCALINGS |= {"expected_average_only_in": "none"}  # folded into the weights when such a dictionary was saved


def read(path: str | Path, *, site: str | None = None, layer: int | None = None) -> Dictionary:
    """The dictionary in a file or folder. `site` and `layer` say what it belongs to, where the file does not.

    Raises `DataFileError` for what is no dictionary, is damaged or holds a pickle, and `InputError` where it is not
    said what it belongs to.
    """
    path = Path(path)
    if not path.exists():
        raise DataFileError(f"There is no {path}. Give the file or folder of a dictionary.")
    for fits, reader in _READERS:
        if fits(path):
            try:
                return reader(path, _Said(path, site, layer))
            except (KeyError, TypeError, json.JSONDecodeError, yaml.YAMLError) as error:
                raise DataFileError(f"{path}: the dictionary lacks what its format needs ({error!r}).") from None
    if (path / "W_enc_0.safetensors").is_file():
        raise DataFileError(f"{path} is a cross-layer transcoder. Read it with cm.features.load_cross_layer.")
    raise DataFileError(
        f"{path} is no dictionary of a known format: SAELens (cfg.json, sae_weights.safetensors), Gemma Scope "
        "(params.npz), dictionary_learning (ae.pt, config.json), sparsify (cfg.json, sae.safetensors), circuit-tracer "
        "(config.yaml, layer_N.safetensors), or a run of `circuitome dictionary train`."
    )


class _Said:
    """What a dictionary belongs to, from what the user says and else from its file."""

    def __init__(self, path: Path, site: str | None, layer: int | None) -> None:
        self.path, self.site, self.layer = path, site, layer

    def place(self, site: str | None = None, layer: int | None = None) -> Place:
        """Raises `InputError` where neither says it."""
        site, layer = self.site or site, layer if self.layer is None else self.layer
        if site is None or layer is None:
            raise InputError(
                f"{self.path} does not say which values it belongs to. Give its site (resid, mlp, attn, z or "
                "transcoder) and layer."
            )
        return Place(site, layer)

    def of_hook(self, hook: str | None) -> Place:
        """The place of a TransformerLens hook."""
        before = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", hook or "")
        if before and int(before[1]):
            return self.place("resid", int(before[1]) - 1)
        for pattern, site in _HOOKS.items():
            if match := re.fullmatch(pattern, hook or ""):
                return self.place(site, int(match[1]))
        return self.place()


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataFileError(f"{path}: expected an object, got {type(value).__name__}.")
    return value


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .npz or .pt file, float32; a pickle of anything else is refused."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                raw: Any = {name: torch.from_numpy(held[name]) for name in held.files}
        elif path.suffix == ".safetensors":
            raw = load_file(path)
        else:
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataFileError(f"There is no {path}, which this dictionary needs.") from None
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DataFileError(f"{path}: damaged, or no such file ({str(error).splitlines()[0]}).") from None
    except Exception as error:  # torch raises pickle's own errors for what is not plain tensors
        raise DataFileError(
            f"{path} holds a pickle of more than plain tensors, which could run code when it is read, so it is refused "
            f"({type(error).__name__}). Convert it to safetensors where you trust it."
        ) from None
    if not isinstance(raw, Mapping):
        raise DataFileError(f"{path}: expected named tensors, got {type(raw).__name__}.")
    return {str(name): torch.as_tensor(value).float() for name, value in raw.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor | int | float) and not isinstance(value, bool)


def _gated(z_scale: Tensor, gate: Tensor, magnitude: Tensor, W_enc: Tensor) -> dict[str, Tensor]:
    """A gated dictionary as one with thresholds.

    f = ReLU(e^r z + b_mag) where z + b_gate > 0, so where e^r z + b_mag exceeds b_mag - e^r b_gate (Rajamanoharan et
    al. 2024, arXiv:2404.16014, section 3.2).
    """
    factor = z_scale.exp()
    return {"W_enc": W_enc * factor, "b_enc": magnitude, "threshold": magnitude - factor * gate}


def _sae_lens(path: Path, said: _Said) -> Dictionary:
    cfg, held = _json(path / CFG), tensors_of(path / WEIGHTS)
    about = {**cfg, **cfg.get("metadata", {})}
    kind = cfg.get("architecture", "standard")
    if about.get("activation_fn_str", about.get("activation_fn")) == "topk":
        kind, cfg = "topk", {**cfg, "k": about["activation_fn_kwargs"]["k"]}
    known = ("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder")
    scaling = cfg.get("normalize_activations") or "none"
    if kind not in (*known, "jumprelu_skip_transcoder") or scaling not in _SCALINGS:
        raise DataFileError(
            f"{path}: SAELens' architecture {kind!r} with normalize_activations {scaling!r} is not one that can be "
            f"read; known are {', '.join(known)} and {', '.join(_SCALINGS)}."
        )
    place = said.of_hook(about.get("hook_name") or about.get("hook_point"))
    if kind == "gated":
        held |= _gated(held["r_mag"], held["b_gate"], held["b_mag"], held["W_enc"])
    crossing = kind.endswith("transcoder")
    if cfg.get("rescale_acts_by_decoder_norm"):
        norms = held["W_dec"].norm(dim=1)
        held |= {
            "W_enc": held["W_enc"] * norms,
            "b_enc": held["b_enc"] * norms,
            "W_dec": held["W_dec"] / norms[:, None],
        }
    own = about.get("circuitome") or {}
    return checked(
        place=place,
        W_enc=held["W_enc"],
        b_enc=held.get("b_enc", held["W_enc"].new_zeros(held["W_enc"].shape[1])),
        W_dec=held["W_dec"],
        b_dec=held["b_dec"],
        b_in=held["b_dec"] if cfg.get("apply_b_dec_to_input", True) and not crossing else None,
        W_skip=held["W_skip"].T.contiguous() if "skip" in kind else None,
        k=int(cfg["k"]) if kind == "topk" else None,
        threshold=held["threshold"] if kind.startswith("jumprelu") or kind == "gated" else None,
        scaling=_SCALINGS[scaling],
        facts={"format": "SAELens", "model": about.get("model_name"), **own},
    )


def _gemma_scope(path: Path, said: _Said) -> Dictionary:
    file = path / "params.npz" if path.is_dir() else path
    held, words = tensors_of(file), str(file.resolve())
    layer = re.search(r"layer_(\d+)", words)
    sites = {"transcoder": "transcoder", "-res": "resid", "-mlp": "mlp", "-att": "z"}
    site = next((site for mark, site in sites.items() if mark in words), None)
    return checked(
        place=said.place(site, int(layer[1]) if layer else None),
        **{name: held[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")},
        facts={"format": "Gemma Scope"},
    )


def _dictionary_learning(path: Path, said: _Said) -> Dictionary:
    folder = path if path.is_dir() else path.parent
    trainer = _json(folder / "config.json")["trainer"] if (folder / "config.json").is_file() else {}
    held, kind = tensors_of(folder / "ae.pt" if path.is_dir() else path), str(trainer.get("dict_class", "AutoEncoder"))
    b_dec = next(held[name] for name in ("b_dec", "bias", "decoder_bias") if name in held)
    W_enc = held["W_enc"] if "W_enc" in held else held["encoder.weight"].T.contiguous()
    W_dec = held["W_dec"] if "W_dec" in held else held["decoder.weight"].T.contiguous()
    b_enc = held.get("b_enc", held.get("encoder.bias", W_enc.new_zeros(W_enc.shape[1])))
    threshold, k = None, None
    if "gate_bias" in held:
        own = _gated(held["r_mag"], held["gate_bias"], held["mag_bias"], W_enc)
        W_enc, b_enc, threshold = own["W_enc"], own["b_enc"], own["threshold"]
    elif "TopK" in kind and "Batch" not in kind:
        k = int(held["k"] if "k" in held else trainer["k"])
    elif "threshold" in held:
        threshold = held["threshold"].expand(W_enc.shape[1]).clone()
    name = str(trainer.get("submodule_name") or "resid_post")
    site = next((site for mark, site in (("mlp", "mlp"), ("att", "attn"), ("resid", "resid")) if mark in name), None)
    return checked(
        place=said.place(site, trainer.get("layer")),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        b_in=None if kind.startswith("JumpRelu") else b_dec,
        k=k,
        threshold=threshold,
        facts={"format": "dictionary_learning", "model": trainer.get("lm_name")},
    )


def _sparsify(path: Path, said: _Said) -> Dictionary:
    cfg, held = _json(path / CFG), tensors_of(path / "sae.safetensors")
    crossing = bool(cfg.get("transcode"))
    if (activation := cfg.get("activation", "topk")) != "topk" or cfg.get("signed"):
        raise DataFileError(f"{path}: sparsify's activation {activation!r} (or signed) is not one that can be read.")
    layer = re.search(r"(?:layers|h)[._](\d+)(.*)", path.name)
    part = "" if layer is None else layer[2]
    site = "transcoder" if crossing else "mlp" if "mlp" in part else "attn" if "att" in part else "resid"
    return checked(
        place=said.place(site, int(layer[1]) if layer else None),
        W_enc=held["encoder.weight"].T.contiguous(),
        b_enc=held["encoder.bias"],
        W_dec=held["W_dec"],
        b_dec=held["b_dec"],
        b_in=None if crossing else held["b_dec"],
        W_skip=held["W_skip"].T.contiguous() if "W_skip" in held else None,
        k=int(cfg["k"]),
        facts={"format": "sparsify"},
    )


def _circuit_tracer(path: Path, said: _Said) -> Dictionary:
    folder = path if path.is_dir() else path.parent
    about = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").is_file() else {}
    layer = re.search(r"(\d+)", path.stem) if path.is_file() else None
    number = int(layer[1]) if layer else said.layer
    if number is None:
        raise InputError(f"{path} holds a transcoder for each layer. Say which with layer.")
    held = tensors_of(path if path.is_file() else folder / f"layer_{number}.safetensors")
    place = said.of_hook(f"blocks.{number}.{about.get('feature_input_hook', 'mlp.hook_in')}")
    threshold = held.get("activation_function.threshold", held.get("threshold"))
    return checked(
        place=replace(place, layer=number),
        W_enc=held["W_enc"].T.contiguous(),
        b_enc=held["b_enc"],
        W_dec=held["W_dec"],
        b_dec=held["b_dec"],
        W_skip=held["W_skip"].T.contiguous() if "W_skip" in held else None,
        k=int(held["activation_function.k"]) if "activation_function.k" in held else None,
        threshold=None if threshold is None else threshold.expand(len(held["b_enc"])).clone(),
        facts={"format": "circuit-tracer", "model": about.get("model_name")},
    )


def _own_run(path: Path, said: _Said) -> Dictionary:
    described = _json(path / "manifest.json").get("dictionary")
    if described is None:
        raise DataFileError(f"{path} is a run of another study. Give one of `circuitome dictionary train`.")
    held = tensors_of(path / "tensors.safetensors")
    return Dictionary.of(held, {**described, "facts": {"format": "circuitome", **described["facts"]}})


_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path, _Said], Dictionary]], ...] = (
    (lambda path: (path / "manifest.json").is_file(), _own_run),
    (lambda path: (path / CFG).is_file() and (path / "sae.safetensors").is_file(), _sparsify),
    (lambda path: (path / CFG).is_file(), _sae_lens),
    (lambda path: path.suffix == ".npz" or (path / "params.npz").is_file(), _gemma_scope),
    (lambda path: (path / "ae.pt").is_file() or path.suffix in (".pt", ".pth", ".bin"), _dictionary_learning),
    (
        lambda path: (
            path.suffix == ".safetensors"
            or ((path / "config.yaml").is_file() and not (path / "W_enc_0.safetensors").is_file())
        ),
        _circuit_tracer,
    ),
)
"""By format: what tells it, and what reads it."""


def save(dictionary: Dictionary, folder: str | Path) -> None:
    """Write a dictionary as SAELens reads it: cfg.json and sae_weights.safetensors in `folder`.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> cm.features.save(cm.features.random_dictionary(cm.features.Place("mlp", 3), 8, 32, k=2), folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['cfg.json', 'sae_weights.safetensors']

    Raises `InputError` for a transcoder that is TopK or scales its inputs, which SAELens has no name for, and for a
    folder that is a file.
    """
    folder, crossing = Path(folder), not dictionary.place.one_site
    if crossing and (dictionary.k is not None or dictionary.scaling != "none"):
        raise InputError("SAELens knows no transcoder that is TopK or scales its inputs. Save one with thresholds.")
    names = ("jumprelu" * (dictionary.threshold is not None), "skip" * (dictionary.W_skip is not None), "transcoder")
    plain = "topk" if dictionary.k is not None else "standard" if dictionary.threshold is None else "jumprelu"
    shift = dictionary.b_in is not None and torch.equal(dictionary.b_in, dictionary.b_dec) and not crossing
    b_enc = dictionary.b_enc
    if dictionary.b_in is not None and not shift:
        b_enc = b_enc - dictionary.b_in @ dictionary.W_enc
    tensors = {"W_enc": dictionary.W_enc, "b_enc": b_enc, "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
    cfg: dict[str, Any] = {
        "architecture": "_".join(filter(None, names)) if crossing else plain,
        "d_in": dictionary.W_enc.shape[0],
        "d_sae": len(dictionary),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": shift,
        "normalize_activations": next(name for name, own in _SCALINGS.items() if own == dictionary.scaling),
        "reshape_activations": "hook_z" if dictionary.place.site == "z" else "none",
        "metadata": _metadata(dictionary),
    }
    cfg |= {"k": dictionary.k} if dictionary.k is not None else {}
    cfg |= {"d_out": dictionary.W_dec.shape[1]} if crossing else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The dictionary cannot be written to {folder}: {error.strerror or error}.") from None
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / CFG).write_text(json.dumps(cfg, indent=1), encoding="utf-8")


def _metadata(dictionary: Dictionary) -> dict[str, Any]:
    """What the file says about where the dictionary belongs, with SAELens' names, and our own facts."""
    reads, writes = (name.format(dictionary.place.layer) for name in _WRITTEN[dictionary.place.site])
    facts = dict(dictionary.facts)
    return {
        "model_name": facts.get("model"),
        "hook_name": reads,
        **({} if dictionary.place.one_site else {"hook_name_out": writes}),
        "hook_head_index": None,
        "prepend_bos": False,
        "context_size": facts.get("length"),
        "model_from_pretrained_kwargs": {"fold_ln": False, "center_writing_weights": False},
        "sae_lens_version": "6.0.0",
        "circuitome": facts,
    }
