"""Methods on models whose circuit is known: how much of it they find, under each ablation's own truth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from circuitome.discovery.search.pruning import roc_sweep
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.runs.methods import METHODS, Job
from circuitome.tasks.task import Task
from circuitome.validation import ground_truth
from circuitome.validation.ground_truth.roc import (
    edge_auroc,
    node_auroc,
    pessimistic_area,
    precision_recall,
    roc_points,
    score_points,
)
from circuitome.validation.ground_truth.truth import TOLERANCE

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

TRIED = ("acdc", "exact", "eap", "eap-ig", "clean-corrupted", "atp", "magnitude", "random")
"""Methods by default."""
THRESHOLDS = tuple(10 ** (-5 + k / 2) for k in range(9))
"""ACDC's sweep: 1e-5 to 1e-1, in squared logits."""
PROMPTS = 40
"""Inputs that methods see; each position with an output is a prompt of its own."""
TRUTH_PROMPTS = 200
"""Inputs on which the truth is computed, at most."""
LOSS = "l2"
"""Squared change of the outputs: the only loss that also fits programs whose output is a number."""
NOTE = (
    f"True edges: those whose ablation alone changes an output by more than {TOLERANCE:g}, on up to "
    f"{TRUTH_PROMPTS} inputs. ROC area: of thresholds, from below. Precision and recall: of as many edges as are true; "
    "for acdc, of the threshold whose circuit is nearest in size."
)


@dataclass(frozen=True, kw_only=True)
class KnownSpec:
    """Which methods on which models, under which ablations."""

    models: tuple[str, ...] = ground_truth.NAMES
    """Known models."""
    methods: tuple[str, ...] = TRIED
    """Names in `METHODS`."""
    ablations: tuple[str, ...] = ("zero", "corrupted")
    """zero, corrupted or both."""
    seed: int = 0
    """Seed of the inputs."""

    @classmethod
    def of(cls, models: tuple[str, ...], methods: tuple[str, ...], ablations: tuple[str, ...]) -> "KnownSpec":
        """A spec in which empty tuples stand for the defaults."""
        return cls(
            models=models or ground_truth.NAMES, methods=methods or TRIED, ablations=ablations or ("zero", "corrupted")
        )

    def check(self) -> None:
        """Raises `UnknownNameError` for names that do not exist."""
        for kind, names, allowed in (
            ("known model", self.models, ground_truth.NAMES),
            ("method", self.methods, tuple(METHODS)),
            ("ablation of a known circuit", self.ablations, ("zero", "corrupted")),
        ):
            for name in names:
                if name not in allowed:
                    raise unknown_name(kind, name, allowed)


def run_known(spec: KnownSpec, progress: Progress | None = None) -> dict[str, Any]:
    """Rows of model, ablation, method and rates, and the true circuits; plain JSON."""
    spec.check()
    tell = progress or (lambda what, done, total: None)
    rows: list[dict[str, Any]] = []
    truths: dict[str, list[str]] = {}
    total = len(spec.models) * len(spec.ablations) * len(spec.methods)
    for name in spec.models:
        model = load(name)
        task = ground_truth.task(name, PROMPTS, spec.seed)
        everything = ground_truth.task(name, TRUTH_PROMPTS, spec.seed + 1)
        for ablation in spec.ablations:
            truth = ground_truth.true_circuit(model, everything, ablation)  # type: ignore[arg-type]  # `check` has seen it
            truths[f"{name} {ablation}"] = list(truth)
            for method in spec.methods:
                tell("methods on known models", len(rows), total)
                rows.append(
                    {
                        "model": name,
                        "ablation": ablation,
                        "method": method,
                        "true_edges": len(truth),
                        "all_edges": model.graph.n_edges,
                        **rates(model, task, method, ablation, truth, spec.seed),
                    }
                )
    return {"kind": "known", "rows": rows, "truths": truths, "note": NOTE}


def rates(model: Model, task: Task, method: str, ablation: str, truth: Circuit, seed: int) -> dict[str, Any]:
    """How much of `truth` one method finds; None and the reason where it cannot apply."""
    try:
        scores, circuit, points = _search(model, task, method, ablation, truth, seed)
        precision, recall = precision_recall(circuit, truth)
        return {
            "edge AUROC": edge_auroc(scores, truth),
            "node AUROC": node_auroc(scores, truth) if not bool(truth.mask.any(1).all()) else None,
            "ROC area": pessimistic_area(points),
            "precision": precision,
            "recall": recall,
            "note": None,
        }
    except InputError as error:
        nothing = dict.fromkeys(("edge AUROC", "node AUROC", "ROC area", "precision", "recall"))
        return {**nothing, "note": str(error)}


def _search(
    model: Model, task: Task, method: str, ablation: str, truth: Circuit, seed: int
) -> tuple[EdgeScores, Circuit, list[tuple[float, float]]]:
    """Scores, the circuit that is compared with the truth, and the points of the ROC curve."""
    if method == "acdc":
        scores, circuits = roc_sweep(model, task, THRESHOLDS, loss=LOSS, ablation=ablation)
        nearest = min(circuits.values(), key=lambda circuit: abs(len(circuit) - len(truth)))
        return scores, nearest, roc_points(circuits.values(), truth)
    settings = {"loss": LOSS} if LOSS in METHODS[method].losses else {}
    job = Job(model, task, len(truth), seed, ablation, None, settings, lambda done, total: None, None)
    found = METHODS[method].run(job)
    return found.scores, found.circuit, score_points(found.scores, truth)
