"""The census and language neurons on SmolLM2: speed beside bare passes, memory, and what is found; prints JSON.

    python benchmarks/neurons.py speed --texts FILE
    python benchmarks/neurons.py memory --texts FILE --tokens 10000
    python benchmarks/neurons.py census --texts FILE --tokens 300000 --checkpoint FILE
    python benchmarks/neurons.py languages --texts DIR --pairs en-us:fr,fr:en-us

With --write each part becomes an entry of today's file under benchmarks/results. Texts are the user's own;
benchmarks/plain_texts.py makes those of the figures in docs/neurons.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.runs.texts import by_name, documents
from circuitome.studies.languages import OPENING, Languages, control, measured, split
from circuitome.studies.neurons import measured as counted
from circuitome.studies.neurons import switched_off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "memory", "census", "languages"))
    parser.add_argument("--texts", required=True)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--pairs", default="en-us:fr,fr:en-us", help="from which language to which, several by commas")
    parser.add_argument("--held", type=int, default=1000)
    parser.add_argument("--windows", type=int, default=16, help="windows on which neurons are switched off")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--n", type=int, default=24, help="texts that are gone on with")
    parser.add_argument("--new", type=int, default=30, help="tokens that are generated after each")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    result = PARTS[options.part](cm.load("smollm2-135m", dtype=getattr(torch, options.dtype)), options)
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"neurons-{date.today().isoformat()}.json"
        before = json.loads(path.read_text()) if path.exists() else {"date": date.today().isoformat()}
        path.write_text(json.dumps({**before, "machine": machine(), options.part: result}, indent=1) + "\n")


def texts_of(model: cm.Model, options: argparse.Namespace) -> Any:
    return cm.neurons.windows(model, documents(options.texts), tokens=options.tokens)


def speed(model: cm.Model, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of processor time of a census and of LAPE counts over those of bare passes around them."""
    cut = texts_of(model, options)
    seconds: dict[str, list[float]] = {"bare": [], "census": [], "language": []}
    half = len(cut) // 2
    for _ in range(options.repeats):
        timed(seconds["bare"], lambda: bare(model, cut))
        timed(seconds["census"], lambda: cm.neurons.census(model, cut))
        timed(seconds["bare"], lambda: bare(model, cut))
        texts = {"a": cut.chosen(range(half)), "b": cut.chosen(range(half, len(cut)))}
        timed(seconds["language"], lambda texts=texts: cm.neurons.language_neurons(model, texts, selection="paper"))
    plain = median(seconds["bare"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tokens": cut.tokens,
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "census_share_of_bare": round(plain / median(seconds["census"]), 3),
        "language_share_of_bare": round(plain / median(seconds["language"]), 3),
        "peak_bytes": peak,
    }


def timed(seconds: list[float], work: Any) -> None:
    start = time.process_time()
    work()
    seconds.append(time.process_time() - start)


def bare(model: cm.Model, cut: "cm.neurons.Windows") -> None:
    with torch.no_grad():
        for rows in cut.blocks():
            model.logits(cut.inputs(model, rows))


def memory(model: cm.Model, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a census in a process of its own, over some tokens and over ten times as many."""
    code = (
        "import sys, resource, torch, circuitome as cm; from circuitome.runs.texts import documents;"
        "torch.set_num_threads(1);"
        "m = cm.load('smollm2-135m', dtype=getattr(torch, sys.argv[3]));"
        "c = cm.neurons.census(m, documents(sys.argv[1]), tokens=int(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    peaks = {}
    for tokens in (options.tokens, 10 * options.tokens):
        command = [sys.executable, "-c", code, options.texts, str(tokens), options.dtype]
        run = subprocess.run(command, capture_output=True, check=True)
        peaks[str(tokens)] = int(run.stdout.split()[-1])
    first, then = peaks.values()
    return {"dtype": options.dtype, "peak_bytes": peaks, "growth": round(then / first - 1, 4)}


def census(model: cm.Model, options: argparse.Namespace) -> dict[str, Any]:
    """What the census finds, and the loss with detectors and positional neurons off."""
    cut = texts_of(model, options)
    found = cm.neurons.census(model, cut, checkpoint=options.checkpoint)
    result = {"dtype": options.dtype, **counted(model, found)}
    for entry in result["positional"]:
        del entry["curve"]
    result["off"] = switched_off(Setting(model), found, options.windows)
    return result


def languages(model: cm.Model, options: argparse.Namespace) -> dict[str, Any]:
    """Language neurons, the deactivation matrix on held-out pages, and the language of what is generated."""
    settings = Languages(texts=options.texts, tokens=options.tokens, held=options.held)
    apart = {name: split(settings, model, name, texts) for name, texts in by_name(options.texts).items()}
    chosen = {name: some for name, (some, _) in apart.items()}
    neurons = cm.neurons.language_neurons(model, chosen)
    held = {name: rest.chosen(range(min(len(rest), options.windows))) for name, (_, rest) in apart.items()}
    matrix = cm.neurons.deactivation(model, neurons, held, draws=1)
    result = {
        "dtype": options.dtype,
        **measured(neurons, matrix, {name: some.tokens for name, some in chosen.items()}),
        "held": {name: part.tokens for name, part in held.items()},
        "control": [],
    }
    del result["names"]
    for pair in options.pairs.split(","):
        source, target = pair.split(":")
        rows = [row[:OPENING] for row in apart[source][1].ids.tolist() if 0 not in row[:OPENING]]
        openings = [model.decode(row) for row in rows[: options.n]]
        spoken = cm.neurons.output_language(model, neurons, openings, source, target, new=options.new)
        result["control"].append(control(replace(settings, source=source, target=target), spoken))
        print(json.dumps(result["control"][-1], ensure_ascii=False), file=sys.stderr, flush=True)
    return result


PARTS = {"speed": speed, "memory": memory, "census": census, "languages": languages}


if __name__ == "__main__":
    main()
