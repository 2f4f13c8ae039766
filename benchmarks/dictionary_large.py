"""Dictionaries of SmolLM2-135M from two million tokens, measured on held-out text, and circuits with their features.

    python benchmarks/dictionary_large.py pack TEXTS tokens.safetensors
    python benchmarks/dictionary_large.py run tokens.safetensors [--device cuda] [--save FOLDER] [--write]

TEXTS has the folders train and held_out that `dictionary_texts.py` makes; `pack` cuts them into windows of token ids,
so that a machine without these texts can `run`. Each dictionary has 4,608 features, 32 of them active (of the
transcoder on average). The result is written after every part. `--tokens`, `--width` and `--n` make a small run.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from speed import HERE, machine

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.neurons.text_windows import Windows
from circuitome.runs.texts import documents
from circuitome.studies.dictionary_check import measured
from circuitome.studies.neuron_nodes import error_results

LENGTH, TRAIN, HELD_OUT = 256, 2_050_000, 100_000
SITES = (("resid", 15, "topk"), ("transcoder", 15, "batchtopk"), ("mlp", 15, "topk"))
NODES, TASKS, SIZES = 50, ("ioi", "subject_verb"), (100, 300, 1_000, 3_000, 10_000)


def pack(texts: Path, out: Path) -> None:
    model, tensors = cm.load("smollm2-135m"), {}
    for part, tokens in (("train", TRAIN), ("held_out", HELD_OUT)):
        cut = cm.neurons.windows(model, documents(str(texts / part)), length=LENGTH, tokens=tokens)
        flat = torch.cat([row[:length] for row, length in zip(cut.ids, cut.lengths.tolist(), strict=True)])
        tensors |= {f"{part}.ids": flat.to(torch.uint16), f"{part}.lengths": cut.lengths.to(torch.uint16)}
        print(part, cut.tokens, "tokens in", len(cut), "windows")
    save_file(tensors, str(out))


def unpacked(tensors: dict[str, torch.Tensor], part: str, tokens: int) -> Windows:
    """The windows of a part, until there are `tokens`."""
    lengths, ids = tensors[f"{part}.lengths"].int(), tensors[f"{part}.ids"].int()
    count = min(len(lengths), 1 + int((lengths.cumsum(0) < tokens).sum()))
    rows = ids.split(lengths.tolist())[:count]
    return Windows(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths[:count])


def trained(
    model: cm.Model, place: cm.features.Place, kind: str, cut: Windows, held: Windows, options: argparse.Namespace
) -> tuple[cm.features.Dictionary, dict]:
    """A dictionary, what it is worth on held-out text, and what it cost."""
    start = time.perf_counter()
    found = cm.features.train(model, cut, site=place.site, layer=place.layer, kind=kind, width=options.width, k=32)
    seconds = time.perf_counter() - start
    if options.save:
        cm.features.save(found.dictionary, options.save / f"{place.site}{place.layer}")
    speed = {name: round(value) for name, value in found.speed.items()}
    quality = measured(cm.features.quality(model, found.dictionary, held, losses=options.losses))
    result = {
        "tokens": int(found.history[-1, 0]),
        "seconds": round(seconds, 1),
        "tokens_a_second": speed,
        "harvest_over_bare": round(speed["harvest"] / speed["bare"], 2),
        "fvu_while_learning": [round(float(row[1]), 4) for row in found.history],
        "held_out": {name: quality[name] for name in ("tokens", "dead", "fits", "losses")},
    }
    if model.device.type == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(model.device) / 1e9, 2)
    return found.dictionary, result


def circuits(model: cm.Model, dictionary: cm.features.Dictionary, name: str, n: int) -> dict:
    """Faithfulness of the strongest edges with features as nodes, on prompts that did not choose them."""
    task, held = (getattr(cm.tasks, name)(model, n=n, seed=seed) for seed in (0, 1))
    start = time.perf_counter()
    view = cm.features.as_nodes(model, dictionary, task, features=NODES)
    scores = cm.neurons.graph_scores(view, task)
    judged, plain = Setting(view, held), cm.eap_ig(model, task)
    shares = [cm.faithfulness(judged, scores.top(size)).share.to_dict() for size in SIZES]
    whole = [cm.faithfulness(Setting(model, held), plain.top(size)).share.to_dict() for size in SIZES]
    features = cm.features.scores(model, dictionary, task)
    print(name, [round(share["value"], 3) for share in shares], flush=True)
    return {
        "sizes": SIZES,
        "faithfulness": shares,
        "without_features": whole,
        "errors": error_results(judged, scores.top(SIZES[2])),
        "whole_site": features.whole.to_dict(),
        "features": float(features.values.sum()),
        "error": features.error,
        "seconds": round(time.perf_counter() - start, 1),
    }


def run(options: argparse.Namespace) -> None:
    model, tensors = cm.load("smollm2-135m", device=options.device), load_file(str(options.tokens_file))
    cut, held = unpacked(tensors, "train", options.tokens), unpacked(tensors, "held_out", min(HELD_OUT, options.tokens))
    path = HERE / "results" / f"dictionary-large-{date.today()}.json"
    result: dict = {"date": date.today().isoformat(), "machine": machine(), "device": str(model.device)}
    if model.device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name(model.device)

    def keep() -> None:
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")

    found = {}
    for site, layer, kind in SITES:
        if options.sites and site not in options.sites:
            continue
        found[site], part = trained(model, cm.features.Place(site, layer), kind, cut, held, options)
        result[f"{site}{layer}"] = part
        print(site, layer, part["seconds"], "s, FVU", round(part["held_out"]["fits"]["dictionary"]["fvu"]["value"], 4))
        keep()
    for name in TASKS:
        for site, dictionary in found.items():
            result[f"{site}{dictionary.place.layer}"][name] = circuits(model, dictionary, name, options.n)
            keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("texts", type=Path)
    packing.add_argument("out", type=Path)
    packing.set_defaults(job=lambda options: pack(options.texts, options.out))
    running = commands.add_parser("run")
    running.add_argument("tokens_file", type=Path)
    running.add_argument("--device")
    running.add_argument("--sites", nargs="*", default=[])
    running.add_argument("--save", type=Path)
    running.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    running.add_argument("--tokens", type=int, default=TRAIN)
    running.add_argument("--width", type=int, default=4608)
    running.add_argument("--losses", type=int, default=64)
    running.add_argument("--n", type=int, default=64)
    running.set_defaults(job=run)
    options = parser.parse_args()
    options.job(options)


if __name__ == "__main__":
    main()
