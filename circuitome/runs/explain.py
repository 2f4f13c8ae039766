"""The heads of a finished run's circuit named, on the very prompts, weights and ablation that it was found with."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from circuitome.heads.roles.explanation import explain
from circuitome.heads.roles.narrative import summary
from circuitome.heads.roles.result import Explanation
from circuitome.results import mean
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run, load_run
from circuitome.runs.validate import reopened

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

SIGN = (
    "An effect is the change of the metric when the head is ablated: negative where it helps. Tests "
    "of attention and copying are 0 by chance and 1 at most. Intervals are 99 %, since many heads are asked at once."
)


@dataclass(frozen=True, kw_only=True)
class ExplainSpec:
    """Everything that decides what `explain` computes."""

    run: str
    """Folder of a run that holds a circuit."""
    heads: tuple[str, ...] = ()
    """Heads to explain; none for all of the circuit."""
    seed: int = 0
    """Seed of the repeated random tokens."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["circuitome", "explain", self.run, "--seed", str(self.seed)]
        words += ["--heads", ",".join(self.heads)] if self.heads else []
        return shlex.join(words + (["--max-memory", str(self.max_memory)] if self.max_memory else []))


def run_explain(spec: ExplainSpec, progress: Progress | None = None) -> Run:
    """Roles of the heads of a run's circuit.

    Raises `RunError` if its data file or model changed since, or it has no circuit, and what `heads.explain` raises.
    """
    start, tell = time.perf_counter(), progress or (lambda what, done, total: None)
    tell("loading", 0, 1)
    found = load_run(Path(spec.run))
    model, task, circuit = reopened(found, spec.run)
    ablation = found.manifest.get("ablation", "corrupted")
    named = explain(
        model,
        circuit,
        task,
        heads=spec.heads or None,
        ablation=ablation,
        seed=spec.seed,
        max_memory=spec.max_memory,
        progress=tell,
    )
    again = PromptSpec(**found.manifest["prompts_from"])
    measurements = named.measurements
    manifest = {
        **again.manifest("explain", model, task, spec.command()),
        "ablation": ablation,
        "run": {"folder": spec.run, "key": found.manifest["key"], "command": found.manifest["command"]},
        "sign": SIGN,
        "edges": len(circuit),
        "summary": summary(named, task.name),
        "results": {
            **named.to_dict(),
            "clean": mean(measurements.metric, task.unit).to_dict(),
            "ablated": mean(measurements.ablated_metric, task.unit).to_dict(),
            "token_roles": list(measurements.places.names),
        },
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, {"circuit": circuit.mask, **tensors(named)})


def tensors(named: Explanation) -> dict[str, torch.Tensor]:
    """The measurements; their head axis is in the order of layers and heads."""
    measured, ablations = named.measurements, named.ablations
    return {
        "heads": torch.tensor(measured.heads),
        "attention_by_role": measured.attention_by_role,
        "attention_from_end": measured.attention_from_end,
        "attention_by_relation": measured.by_relation,
        "copied": measured.copied,
        "suppressed": measured.suppressed,
        "role_logits": measured.role_logits,
        "metric": measured.metric,
        "ablated_metric": measured.ablated_metric,
        **named.effects,
        "direct_without_movers": ablations.direct_without_movers,
        "attention_to_answers_without_movers": ablations.to_right_without_movers,
        "copied_without_movers": ablations.copied_without_movers,
        "movers_attention_removed": ablations.movers_attention_removed,
        "attention_changes": ablations.attention_changes,
    }
