"""Reconstructions of SAELens and of circuitome from the same files, in both directions.

In an environment that holds both (SAELens 6 needs an older transformers or TransformerLens than circuitome, so not in
circuitome's own):

    python -m venv sae-lens && sae-lens/bin/pip install sae-lens -e .
    sae-lens/bin/python benchmarks/sae_lens_parity.py [--write]

Every kind of dictionary that circuitome trains is written, read by SAELens and compared on values of the model; every
kind that SAELens has is made with random weights, written by it, read by circuitome and compared. The numbers are the
largest difference over the largest value.
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import sae_lens
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.features.activations import gathered
from circuitome.features.formats import read
from circuitome.heads.long_context.needles import own_text

LAYER, WIDTH, K, TOKENS = 15, 1024, 16, 4096
OURS = [
    *(("resid", kind, {}) for kind in ("topk", "batchtopk", "jumprelu", "l1")),
    *((site, "topk", {}) for site in ("mlp", "attn", "z")),
    *(("transcoder", kind, {"skip": skip}) for kind in ("batchtopk", "l1") for skip in (False, True)),
]
THEIRS = {
    "standard": {},
    "topk": {"k": K},
    "topk, norms rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "gated": {},
    "standard, layer_norm": {"normalize_activations": "layer_norm"},
    "transcoder": {"d_out": 576},
    "skip_transcoder": {"d_out": 576},
    "jumprelu_transcoder": {"d_out": 576},
    "jumprelu_skip_transcoder": {"d_out": 576},
}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def written_by_us(model: cm.Model, folder: Path) -> dict[str, float]:
    cut = cm.neurons.windows(model, own_text(), length=128, tokens=TOKENS)
    found = {}
    for site, kind, options in OURS:
        trained = cm.features.train(model, cut, site=site, layer=LAYER, kind=kind, width=WIDTH, k=K, **options)
        own, name = trained.dictionary, f"{site}, {kind}{', skip' * bool(options.get('skip'))}"
        cm.features.save(own, folder / name)
        data = gathered(Setting(model), own.place, cut, range(4))
        data = data.ordinary(data.limits())
        sae = SAE.load_from_disk(folder / name)
        with torch.no_grad():
            x = data.given.unflatten(-1, (9, 64)) if site == "z" else data.given
            found[name] = difference(own.reconstruct(data.given), sae(x).flatten(1))
    return found


def written_by_them(folder: Path) -> dict[str, float]:
    found, x = {}, torch.randn(500, 576, generator=torch.Generator().manual_seed(0)) * 3
    for name, options in THEIRS.items():
        kind = name.split(",")[0]
        crossing = kind.endswith("transcoder")
        sae_class, config_class = get_sae_class(kind)
        config = config_class(
            d_in=576,
            d_sae=WIDTH,
            apply_b_dec_to_input=not crossing,
            metadata=SAEMetadata(hook_name=f"blocks.{LAYER}." + ("mlp.hook_in" if crossing else "hook_resid_post")),
            **options,
        )
        sae = sae_class(config)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(0.1 * torch.randn_like(parameter))
        sae.save_model(folder / name)
        with torch.no_grad():
            found[name] = difference(read(folder / name).reconstruct(x), sae(x))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "sae_lens": sae_lens.__version__,
            "torch": torch.__version__,
            "date": str(date.today()),
            "written by circuitome, read by SAELens": written_by_us(cm.load("smollm2-135m"), Path(folder) / "ours"),
            "written by SAELens, read by circuitome": written_by_them(Path(folder) / "theirs"),
        }
    print(json.dumps(results, indent=1))
    if write:
        path = Path(__file__).parent / "results" / f"sae-lens-{date.today()}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
