"""What circuits are good for: pruning, unlearning and merging of SmolLM2-135M, each beside what needs no circuit.

    python benchmarks/uses.py prune|edit|merge [--device cuda] [--write]
    python benchmarks/uses.py tables

Parts are scored on texts that the model itself draws at temperature 1, and losses are measured on the package's own
prose, which nothing else sees. Every row is written when it is done. `--small` runs all of it at toy size.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.applications.component_masks import random_components
from circuitome.applications.distance import circuit_distance
from circuitome.applications.quality import done_tasks, forward_seconds, quality, readings
from circuitome.applications.rankings import metrics
from circuitome.applications.relearning import answers, forget, relearn
from circuitome.applications.unlearning import held, random_like
from circuitome.engine.generation import generate
from circuitome.engine.setting import Setting
from circuitome.models.saving import write_checkpoint
from circuitome.neurons.text_windows import Windows, packed, windows
from circuitome.training.objectives import next_token

TASKS = ("ioi", "subject-verb", "gendered-pronoun", "greater-than", "induction", "capitals")
LENGTH = 128


class Result:
    """Rows that are written after each of them."""

    def __init__(self, part: str, write: bool) -> None:
        self.path = HERE / "results" / f"{part}-{date.today()}.json" if write else None
        self.found: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Keep and show a row."""
        print(name, json.dumps(row)[:400], flush=True)
        self.found[name] = row
        if self.path is not None:
            self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def drawn_texts(model: cm.Model, rows: int, seed: int) -> Windows:
    """Windows that the model itself draws, each from the beginning of a text."""
    start = model.encode("") or [model.tokenizer.bos_token_id or 0]
    ids = [[*start, *more] for more in generate(model, [start] * rows, LENGTH - len(start), seed=seed)]
    return packed([row for row in ids if len(row) > 8])


def set_up(options: argparse.Namespace) -> tuple[cm.Model, Windows, Windows, dict[str, cm.Task]]:
    """The model, texts to score on, texts to measure on, and held-out prompts of tasks that it does."""
    model = cm.load("smollm2-135m", device=options.device)
    rows, n = (4, 8) if options.small else (96, 64)
    scored = drawn_texts(model, rows, 0)
    measured = windows(model, cm.heads.own_text(), length=LENGTH, tokens=300 if options.small else None)
    tasks, _ = done_tasks(model, TASKS[:2] if options.small else TASKS, n, 1)
    return model, scored, measured, tasks


def beside(setting: Setting, texts: Windows, tasks: Mapping[str, cm.Task], first: Any) -> dict[str, Any]:
    """A model's quality as a row."""
    return quality(readings(setting, texts, tasks), first, tasks).to_dict()


def prune(options: argparse.Namespace) -> None:
    """All rankings at several shares; rounds; training afterwards; circuits before and after."""
    result = Result("prune", options.write)
    model, scored, measured, tasks = set_up(options)
    ioi = cm.tasks.ioi(model, n=8 if options.small else 64, seed=0)
    setting = Setting(model, ioi)
    first = readings(setting, measured, tasks)
    result.add("the model itself", quality(first, first, tasks).to_dict())
    whats = {"heads and neurons": {}, "neurons": {"heads": False}, "heads": {"neurons": False}}
    whats["blocks"] = {"heads": False, "neurons": False, "blocks": True}
    rankings = [("importance", 0), ("circuit", 0), ("magnitude", 0), *(("random", seed) for seed in range(3))]
    for what, chosen in list(whats.items())[: 1 if options.small else None]:
        for share in (0.1, 0.2, 0.4) if what == "heads and neurons" and not options.small else (0.2,):
            for by, seed in rankings[:: 3 if options.small else 1]:
                smaller = cm.prune(setting.but(seed=seed), share, texts=scored, by=by, **chosen)
                row = beside(setting.but(model=smaller.model), measured, tasks, first)
                row |= {"removed": smaller.removed, "parameters": smaller.parameters}
                if by in ("importance", "circuit") and share == 0.2:
                    row |= saved_and_read(model, smaller, measured)
                    row["circuits"] = distance(setting, smaller, 50 if options.small else 1000)
                result.add(f"{what}, {share:g}, {by} {seed}", row)
    for rounds in (2,) if options.small else (4,):
        for by in ("importance", "circuit"):
            smaller = cm.prune(setting, 0.2, texts=scored, by=by, rounds=rounds)
            row = beside(setting.but(model=smaller.model), measured, tasks, first)
            result.add(f"heads and neurons, 0.2, {by}, {rounds} rounds", row)
    for by in ("importance", "random"):
        smaller = cm.prune(setting, 0.2, texts=scored, by=by)
        trained(smaller.model, scored, options)
        row = beside(setting.but(model=smaller.model), measured, tasks, first)
        result.add(f"heads and neurons, 0.2, {by}, and trained", row)


def trained(model: cm.Model, texts: Windows, options: argparse.Namespace) -> None:
    """Train on texts that the larger model drew."""
    rows = [ids[:length].long() for ids, length in zip(texts.ids, texts.lengths.tolist(), strict=True)]
    steps = 2 if options.small else 300
    schedule = cm.training.Schedule(steps=steps, batch=4 if options.small else 32, length=64, learning_rate=1e-4)
    cm.training.train(model, cm.training.TextStream(torch.cat(rows)), schedule, objective=next_token)


def saved_and_read(model: cm.Model, smaller: Any, texts: Windows) -> dict[str, Any]:
    """Seconds of bare forward passes of the saved and read checkpoint, and its size."""
    with TemporaryDirectory() as folder:
        path = smaller.save(Path(folder) / "smaller")
        read = cm.load(path, device=model.device)
        seconds = forward_seconds((model, read), texts)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {"seconds": seconds, "times_faster": seconds[0] / seconds[1], "bytes": size}


def distance(setting: Setting, smaller: Any, edges: int) -> dict[str, Any]:
    """Circuits of IOI before and after, where the smaller model still does it."""
    try:
        return circuit_distance(setting, setting.but(model=smaller.model), edges=edges, kept=smaller.kept).to_dict()
    except cm.errors.InputError as error:
        return {"note": str(error)}


def edit(options: argparse.Namespace) -> None:
    """Every task unlearnt by heads, neurons, both; beside random parts and fine-tuning; and relearnt."""
    result = Result("edit", options.write)
    model, scored, measured, tasks = set_up(options)
    first = readings(Setting(model), measured, tasks)
    result.add("the model itself", quality(first, first, tasks).to_dict())
    kinds = {"heads": ["heads"], "neurons": ["neurons"], "heads and neurons": ["heads", "neurons"]}
    for name, held_out in list(tasks.items())[: 1 if options.small else None]:
        data = cm.tasks.TASKS[name](model, n=len(held_out), seed=0)
        setting, own_gap = Setting(model, data), float(first.gaps[name].mean())
        some = replace(held_out, pairs=held_out.pairs[:32])
        for kind, chosen in list(kinds.items())[: 3 if name == "ioi" and not options.small else 1]:
            found = cm.unlearn(setting, texts=scored, kinds=chosen)
            with model.edited(found.edit):
                row = beside(setting, measured, tasks, first)
            row |= {"parts": found.parts, "left_by_round": found.left, "random": []}
            for seed in range(1 if options.small else 3):
                with model.edited(held(random_like(model, found.parts, seed), means(model, scored))):
                    row["random"].append(beside(setting, measured, tasks, first))
            row["relearning"] = relearnt(model, found.edit, data, some, own_gap, options)
            result.add(f"{name}, {kind}", row)
        away = forget(Setting(model, some), data, gap=0.05 * own_gap, steps=3 if options.small else 60)
        row = beside(Setting(away.model), measured, tasks, first)
        back = relearn(Setting(away.model, some), data, gap=0.9 * own_gap, steps=3 if options.small else 60)
        shares = [gap / own_gap for gap in back.gaps]
        row |= {"steps": away.steps, "reached": away.reached, "relearning": {"reached": back.reached, "share": shares}}
        result.add(f"{name}, fine-tuned away", row)


def means(model: cm.Model, texts: Windows, kept: dict[int, Any] = {}) -> Any:  # noqa: B006, measured once
    """Means of all parts over texts."""
    from circuitome.applications.gates import text_gates

    return kept.setdefault(id(texts), text_gates(Setting(model), texts)[1])


def relearnt(
    model: cm.Model, change: cm.Edit, data: cm.Task, some: cm.Task, own_gap: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Steps of fine-tuning until the behaviour is back in the saved and read checkpoint."""
    with TemporaryDirectory() as folder:
        read = cm.load(change.save(model, Path(folder) / "edited"), device=model.device)
    back = relearn(Setting(read, some), data, gap=0.9 * own_gap, steps=3 if options.small else 60)
    return {"reached": back.reached, "share": [gap / own_gap for gap in back.gaps]}


PAIRS = (("capitals", "greater-than"),)
"""Tasks that two models are fine-tuned on."""


def merge(options: argparse.Namespace) -> None:
    """Two fine-tunings on two tasks merged in every way, whole and by parts of circuits."""
    result = Result("merge", options.write)
    model, _, measured, _ = set_up(options)
    first = readings(Setting(model), measured, {})
    for one, two in PAIRS[: 1 if options.small else None]:
        with TemporaryDirectory() as scratch:
            merge_pair(options, result, model, (one, two), measured, first, Path(scratch))


def merge_pair(
    options: argparse.Namespace,
    result: Result,
    model: cm.Model,
    names: Sequence[str],
    texts: Windows,
    first: Any,
    scratch: Path,
) -> None:
    """One pair of tasks."""
    base, n = write_checkpoint(model, scratch / "base"), 16 if options.small else 256
    held_out = {name: cm.tasks.TASKS[name](model, n=n, seed=1).measured_by("log_prob") for name in names}
    folders, parts, circuits = [], [], {}
    for name in names:
        data = cm.tasks.TASKS[name](model, n=n, seed=0)
        folders.append(tuned(options, base, data, scratch / name))
        live = cm.load(folders[-1], device=model.device)
        circuit = cm.eap_ig(live, data, steps=5).top(100 if options.small else 1000)
        parts.append(list(circuit.without_dangling().nodes))
        circuits[name] = {"parts": parts[-1]}
    answers_of: dict[str, list[float]] = {}

    def measure(label: str, folder: Path) -> None:
        live = cm.load(folder, device=model.device)
        answers_of[label] = [float(metrics(Setting(live, held_out[name]))[0].mean()) for name in names]
        row = beside(Setting(live), texts, {}, first) | {"answers": answers_of[label]}
        if len(answers_of) > 3:
            gains = [answers_of[name][i] - answers_of["base"][i] for i, name in enumerate(names)]
            row["kept"] = [(answers_of[label][i] - answers_of["base"][i]) / gains[i] for i in range(2)]
        result.add(f"{' and '.join(names)}: {label}", row)

    for label, folder in (("base", base), *zip(names, folders, strict=True)):
        measure(label, folder)
    shape = cm.applications.component_masks.shape_of(base)
    chosen = {"all": None, "circuits": parts}
    for seed in range(1 if options.small else 3):
        chosen[f"random {seed}"] = [random_components(shape, some, seed) for some in parts]
    for label, recipe in recipes(options).items():
        for which, only in chosen.items():
            if only is not None and "0.7" not in label and label != "ties, density 0.2":
                continue
            out = cm.merge(base, folders, scratch / f"{label}-{which}", recipe, only=only)
            measure(f"{label}, {which}", out)


def recipes(options: argparse.Namespace) -> dict[str, cm.Recipe]:
    """All ways of merging."""
    found = {f"task arithmetic, {w:g}": cm.Recipe(weight=w) for w in (0.4, 0.5, 0.7, 1.0)}
    found |= {f"ties, density {d:g}": cm.Recipe(method="ties", density=d) for d in (0.2, 0.5, 1.0)}
    found |= {f"dare, drop {p:g}": cm.Recipe(method="dare", drop=p, weight=0.7) for p in (0.5, 0.9)}
    found["slerp"] = cm.Recipe(method="slerp")
    return dict(list(found.items())[2:6:3]) if options.small else found


def tuned(options: argparse.Namespace, base: Path, data: cm.Task, out: Path) -> Path:
    """A model fine-tuned on the answers of a task."""
    model = cm.load(base, device=options.device)
    steps, rows = (3, 4) if options.small else (200, 32)
    length = max(len(pair.clean) for pair in data.pairs) + 1
    schedule = cm.training.Schedule(steps=steps, batch=rows, length=length, learning_rate=2e-5, warm_up=0.1)
    cm.training.train(model, lambda step, drawn: answers(data, rows, drawn), schedule)
    return write_checkpoint(model, out)


def tables(options: argparse.Namespace) -> None:
    """Markdown of the newest results, for docs/uses.md."""
    for part in ("prune", "edit", "merge"):
        files = sorted((HERE / "results").glob(f"{part}-*.json"))
        if not files:
            continue
        found = json.loads(files[-1].read_text())
        print(f"\n{files[-1].name}: {found['machine']}\n")
        for name, row in found.items():
            if isinstance(row, dict) and "change" in row:
                print(f"| {name} | {shown(row['change'], 3)} | {' | '.join(cells(part, row))} |")


def cells(part: str, row: Mapping[str, Any]) -> list[str]:
    """The cells of a row behind its change of loss."""
    left = [f"{name} {shown(value, 2)}" for name, value in row["kept"].items()] if part != "merge" else []
    if part == "merge":
        left = [f"{value:.2f}" for value in row["answers"]]
        left += [f"{value:.0%}" for value in row.get("kept", [])] if isinstance(row.get("kept"), list) else []
    if "parts" in row:
        random = [f"{value['change']['value']:+.3f}" for value in row["random"]]
        left += [f"{len(row['parts'])} parts", f"random {', '.join(random)}"]
    if "relearning" in row:
        left.append(f"back in {len(row['relearning']['share']) - 1} steps: {row['relearning']['reached']}")
    if "times_faster" in row:
        left.append(f"{row['times_faster']:.2f} times faster")
    return left


def shown(estimate: Mapping[str, Any], decimals: int) -> str:
    """An estimate with its interval."""
    value, low, high = (f"{estimate[name]:.{decimals}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prune", "edit", "merge", "tables"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="toy size, to see that it runs")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    if options.device == "cpu":
        one_thread()
    start = time.perf_counter()
    {"prune": prune, "edit": edit, "merge": merge, "tables": tables}[options.part](options)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
