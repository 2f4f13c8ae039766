"""What benchmarks that train have in common: options, texts, and results that are written after every finished part."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from datetime import date
from itertools import pairwise
from typing import Any

import torch
from installed_texts import installed_texts, parted
from speed import HERE, machine

import circuitome as cm
from circuitome.runs.store import to_json
from circuitome.runs.texts import documents

MEMORY = 30_000_000_000
"""Bytes beside the weights on a GPU; on a CPU the default."""


def parser(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--texts", help="file or folder of texts; docstrings of the installed packages by default")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--write", action="store_true")
    for name, value in defaults.items():
        made.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return made


def texts_of(options: argparse.Namespace, most: int = 30_000_000) -> tuple[list[str], list[str]]:
    """Texts to train on, and held-out ones; a few long files are cut into pieces first."""
    if options.texts is None:
        return parted(installed_texts(most))
    whole = documents(options.texts)
    return parted([text[i : i + 20_000] for text in whole for i in range(0, len(text), 20_000)])


def memory(options: argparse.Namespace) -> int | None:
    return MEMORY if options.device.startswith("cuda") else None


def held_out(stream: "cm.training.TextStream", length: int, batches: int = 4) -> Callable[[cm.Model], dict[str, float]]:
    """The loss on held-out texts, for `watch`."""
    return lambda model: {"held_out": cm.training.mean_loss(model, stream, batches=batches, rows=16, length=length)}


class Results:
    """A dated JSON file, written after every part; parts that it holds are not measured again."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        asked = {key: value for key, value in vars(options).items() if key != "write"}
        self.path = HERE / "results" / f"{name}-{date.today().isoformat()}.json" if options.write else None
        self.data: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "options": asked}
        if options.device.startswith("cuda"):
            self.data["device"] = torch.cuda.get_device_name()
        if self.path is not None and self.path.exists():
            before = json.loads(self.path.read_text())
            if before["options"] == asked:
                self.data = before
        self.data.setdefault("parts", {})

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or gave before."""
        parts = self.data["parts"]
        if name not in parts:
            start = time.time()
            parts[name] = made = make()
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
            if isinstance(made, dict):
                made["seconds"] = round(time.time() - start, 1)
            self.write()
        return parts[name]

    def write(self, **more: Any) -> None:
        """Write all parts, and `more` beside them."""
        self.data |= more
        if self.path is not None:
            self.path.parent.mkdir(exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(to_json(self.data) + "\n")
            part.replace(self.path)


def curve(training: "cm.training.Training", *names: str) -> dict[str, Any]:
    """What was measured at watched steps, and the training losses as their means between them."""
    steps, values = training.curve(names[0])
    losses = dict(zip(*training.curve("loss"), strict=True))
    means = [sum(losses[i] for i in range(a + 1, b + 1)) / (b - a) for a, b in pairwise(steps)]
    return {
        "steps": steps,
        names[0]: values,
        **{name: training.curve(name)[1] for name in names[1:]},
        "loss": means,
    }


def collected(
    parts: Mapping[str, Any], conditions: list[str], seeds: int, name: str
) -> "cm.applications.Curves | None":
    """Curves of the parts called CONDITION/SEED; None until all of a condition's seeds are there."""
    whole = [c for c in conditions if all(f"{c}/{seed}" in parts for seed in range(seeds))]
    if not whole:
        return None
    steps = tuple(parts[f"{whole[0]}/0"]["steps"])
    values = {c: torch.tensor([parts[f"{c}/{seed}"][name] for seed in range(seeds)]) for c in whole}
    return cm.applications.Curves(steps, values, tuple(range(seeds)), name)
