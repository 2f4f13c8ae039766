"""Runs whose result are maps of effects: activation patching, and path patching with its trace back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from circuitome.discovery.patching.activation import WHAT, patch
from circuitome.discovery.patching.path import Trace, path_patch, trace_back
from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model
from circuitome.results import EffectMap
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run
from circuitome.tasks.task import Task

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

STRONGEST = 20
"""Cells of each map that a manifest names."""


@dataclass(frozen=True, kw_only=True)
class PatchSpec(PromptSpec):
    """Everything that decides what `patch` computes."""

    what: str = "heads"
    """heads, mlps or resid."""
    by_position: bool = False
    """Whether positions are patched one by one; always so for resid."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "patch", self.task, "--what", self.what, *self.prompt_words()]
        return words + (["--by-position"] if self.by_position else [])

    def check(self) -> None:
        """Raises for prompts or parts that cannot be."""
        if self.what not in WHAT:
            raise unknown_name("part", self.what, WHAT)
        super().check()


@dataclass(frozen=True, kw_only=True)
class PathSpec(PromptSpec):
    """Everything that decides what `path` computes."""

    to: tuple[str, ...] = ("logits",)
    """Receivers."""
    senders: tuple[str, ...] = ()
    """Senders; none for all."""
    positions: tuple[str, ...] = ("all",)
    """Positions at which senders are patched: all, end, roles, or numbers."""
    to_positions: tuple[str, ...] = ()
    """Positions at which receivers are; none for their own (the end for queries and logits, all for others)."""
    freeze_mlps: bool = False
    """Whether MLPs between sender and receiver stay clean."""
    depth: int = 0
    """Steps of the trace back from the logits; 0 for a single map."""
    width: int = 5
    """Senders that the trace keeps for a receiver at most."""
    threshold: float = 0.02
    """Effect that a kept sender has at least, as a share of the gap between clean and corrupted."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "path", self.task, *self.prompt_words()]
        if self.depth:
            words += ["--depth", str(self.depth), "--width", str(self.width), "--threshold", str(self.threshold)]
        else:
            words += ["--to", ",".join(self.to), "--positions", ",".join(self.positions)]
        words += ["--from", ",".join(self.senders)] if self.senders else []
        words += ["--to-positions", ",".join(self.to_positions)] if self.to_positions else []
        return words + (["--freeze-mlps"] if self.freeze_mlps else [])

    def check(self) -> None:
        """Raises for prompts or a depth that cannot be."""
        if self.depth < 0:
            raise InputError(f"--depth counts steps back from the logits and must be 0 or more, got {self.depth}.")
        if self.depth and (self.to != ("logits",) or self.senders):
            raise InputError("A trace back (--depth) starts at the logits with all senders; leave out --to and --from.")
        super().check()


def run_patch(spec: PatchSpec, progress: Progress | None = None) -> Run:
    """Activation patching of every head, MLP or place, in both directions."""
    start, tell = time.perf_counter(), progress or _silent
    tell("loading", 0, 1)
    model, task = spec.prepare()
    maps = []
    for direction in ("noise", "denoise"):
        found = patch(
            model,
            task,
            spec.what,
            direction=direction,
            by_position=spec.by_position or None,
            max_memory=spec.max_memory,
            progress=tell,
        )
        maps.append(found)
    sign = (
        "An effect is the metric of the patched run minus that of the unpatched one, mean over prompts. "
        "noise: corrupted activations in the clean run, negative where the part helps. "
        "denoise: clean activations in the corrupted run, positive where the part brings back some of the behaviour."
    )
    return _run(spec, "patch", model, task, maps, sign, start, {"what": spec.what})


def run_path(spec: PathSpec, progress: Progress | None = None) -> Run:
    """Path patching into some receivers, or the trace back from the logits."""
    start, tell = time.perf_counter(), progress or _silent
    tell("loading", 0, 1)
    model, task = spec.prepare()
    sign = (
        "An effect is the metric when the receiver gets what the sender writes on the corrupted prompt, minus that of "
        "the clean run, mean over prompts: negative where the path helps."
    )
    if spec.depth:
        trace = trace_back(
            model,
            task,
            depth=spec.depth,
            width=spec.width,
            threshold=spec.threshold,
            freeze_mlps=spec.freeze_mlps,
            max_memory=spec.max_memory,
            progress=tell,
        )
        maps = [effects for level in trace.levels for effects in level]
        more = {"tree": _tree(trace), "edges": len(trace.circuit), "circuit": list(trace.circuit)}
        run = _run(spec, "path", model, task, maps, sign, start, more)
        return Run(run.manifest, {**run.tensors, "circuit": trace.circuit.mask})
    found = path_patch(
        model,
        task,
        spec.to,
        senders=spec.senders or None,
        sender_positions=_positions(spec.positions),
        receiver_positions=_positions(spec.to_positions) if spec.to_positions else None,
        freeze_mlps=spec.freeze_mlps,
        max_memory=spec.max_memory,
        progress=tell,
    )
    return _run(spec, "path", model, task, [found], sign, start, {"to": list(spec.to)})


def _silent(what: str, done: int, total: int) -> None:
    pass


def _positions(names: Sequence[str]) -> str | list[str | int]:
    """Positions as `path_patch` wants them: digits are indices."""
    if len(names) == 1 and not _is_number(names[0]):
        return names[0]
    return [int(name) if _is_number(name) else name for name in names]


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _tree(trace: Trace) -> list[dict[str, Any]]:
    """Every receiver with its strongest senders and which of them were kept."""
    graph, rows = trace.circuit.graph, []
    for depth, (receivers, maps) in enumerate(zip(trace.receivers, trace.levels, strict=True)):
        for receiver, effects in zip(receivers, maps, strict=True):
            kept = trace.circuit.mask[:, graph.column(receiver)]
            strongest = effects.top(max(5, int(kept.sum())))
            senders = [
                {"label": name, **_ends(estimate), "kept": bool(kept[graph.row(name)])} for name, estimate in strongest
            ]
            rows.append({"receiver": receiver, "depth": depth, "senders": senders})
    return rows


def _ends(estimate: Any) -> dict[str, Any]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _run(
    spec: PatchSpec | PathSpec,
    kind: str,
    model: Model,
    task: Task,
    maps: Sequence[EffectMap],
    sign: str,
    start: float,
    more: dict[str, Any],
) -> Run:
    manifest = {
        **spec.manifest(kind, model, task),
        "sign": sign,
        **more,
        "results": {
            "maps": [found.to_dict() for found in maps],
            "top": [
                {"map": found.name, "label": label, **_ends(estimate)}
                for found in maps
                for label, estimate in found.top(STRONGEST)
            ],
        },
        "seconds": round(time.perf_counter() - start, 2),
    }
    tensors = {f"samples{i}": found.samples for i, found in enumerate(maps)}
    return Run(manifest, tensors | {"clean": maps[0].clean, "corrupted": maps[0].corrupted})
