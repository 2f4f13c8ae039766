"""Is the circuit real? Every criterion in one call: value, interval, null, and whether it holds against a threshold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.ablation import Ablation
from circuitome.engine.circuit_run import check_graph
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.results import Estimate
from circuitome.tasks.task import Task
from circuitome.validation import criteria
from circuitome.validation.criteria import FAIL, Criterion
from circuitome.validation.faithfulness.auc import SHARES, Areas, areas, benchmark_sizes
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.variants import (
    OtherAblation,
    by_template,
    distribution_variants,
    faithfulness_variants,
    node_circuit,
    other_ablations,
    over_prompts,
)
from circuitome.validation.ground_truth.roc import edge_auroc, node_auroc, precision_recall
from circuitome.validation.robustness.summary import robust_criteria, robustness
from circuitome.validation.tests import hypotheses as hypothesis
from circuitome.validation.tests.completeness_minimality import Completeness, Minimality, completeness, minimality
from circuitome.validation.tests.nulls import NULLS
from circuitome.validation.tests.significance import EdgeTest, edge_test, necessity

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how much of it is done, and how much there is."""

FEWEST_PROMPTS = 8
"""Prompts below which no test over prompts is run."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    random: int
    """Random circuits; with five tests at once, 44 are the fewest that all have to be beaten."""
    shaped: int
    """Circuits of each other kind of null."""
    subsets: int
    """Random subsets knocked out for completeness."""
    greedy: int
    """Steps of the search for the worst subset."""
    halves: int
    """Random halves that minimality is asked behind, beside nothing."""
    edges: int
    """Edges that are tested one by one; 0 for no such test."""
    necessity: int
    """Random sets of edges that are cut from the model; 0 for no such test."""
    others: bool
    """Whether other ablations, the nodes alone, readers, areas under the curve and robustness are measured."""


FULL = Effort(50, 20, 30, 5, 1, 100, 50, True)
QUICK = Effort(10, 3, 8, 0, 0, 0, 0, False)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What holds of a circuit and what does not."""

    criteria: tuple[Criterion, ...]
    """In the order of the literature: faithful, complete, minimal, then nulls and tests."""
    variants: dict[str, Estimate]
    """Faithfulness in every definition."""
    templates: dict[str, Estimate]
    """Normalised faithfulness of each template's prompts, where there are several: one mean hides differences."""
    spread: dict[str, float]
    """Quartiles over prompts of (circuit - empty) / (model - empty)."""
    completeness: Completeness
    """Every subset that was knocked out."""
    minimality: Minimality
    """Every part's score."""
    nulls: dict[str, list[float]]
    """Faithfulness of circuits made by chance, by kind."""
    ablations: tuple[OtherAblation, ...] = ()
    """Faithfulness under other ablations."""
    edges: EdgeTest | None = None
    """Single edges against useless ones."""
    damage: tuple[float, list[float]] | None = None
    """What cutting the circuit out of the model costs, and what cutting out as many other edges does."""
    areas: Areas | None = None
    """CPR and CMD of the scores that the circuit comes from, where they were given."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """By size: share of the edges, faithfulness of the signed top, of the top by size."""
    robustness: dict[str, Any] = field(default_factory=dict)
    """Backups, stability, shuffled labels, other prompts and tasks, other methods; see `robustness`."""
    known: dict[str, float] | None = None
    """Where the true circuit was given: precision, recall, AUROC of the scores over edges and nodes."""

    def __getitem__(self, name: str) -> Criterion:
        return next(one for one in self.criteria if one.name == name)

    @property
    def holds(self) -> bool:
        """Whether no criterion failed."""
        return all(one.verdict != FAIL for one in self.criteria)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        found = self.completeness
        values = (found.circuit.tolist(), found.model.tolist(), found.scores.tolist())
        sets = zip(found.sets, found.kinds, *values, strict=True)
        edges = self.edges
        return {
            "criteria": [asdict(one) for one in self.criteria],
            "variants": {name: one.to_dict() for name, one in self.variants.items()},
            "ablations": [asdict(one) for one in self.ablations],
            "templates": {name: one.to_dict() for name, one in self.templates.items()},
            "spread": self.spread,
            "nulls": self.nulls,
            "completeness": [
                {"nodes": list(nodes), "kind": kind, "circuit": own, "model": model, "score": score}
                for nodes, kind, own, model, score in sets
            ],
            "minimality": dict(zip(self.minimality.names, self.minimality.scores.tolist(), strict=True)),
            "single_edges": None
            if edges is None
            else {
                "changes": dict(zip(edges.edges, edges.changes.tolist(), strict=True)),
                "useless": edges.useless.tolist(),
                "unneeded": list(edges.unneeded),
            },
            "damage": None if self.damage is None else {"circuit": self.damage[0], "others": self.damage[1]},
            "areas": None if self.areas is None else asdict(self.areas),
            "curve": [list(point) for point in self.curve],
            "robustness": self.robustness,
            "known": self.known,
        }


def validate(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    ablation: Ablation = "corrupted",
    scores: EdgeScores | None = None,
    others: Mapping[str, Task] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    quick: bool = False,
    truth: Circuit | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    memory: Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Test a circuit as the literature does: faithful, complete, minimal, against chance, and by hypothesis tests.

    Everything is measured on the prompts of `task` with `ablation` outside the circuit. `scores`, those that the
    circuit comes from, add the areas CPR and CMD; `others` are tasks with the same clean prompts and other corrupted
    ones; `groups` are sets of nodes (such as the heads of each role) to knock out together; `truth` is the true circuit
    where it is known. `quick` takes fewer subsets, so that some verdicts stay unclear. `memory` is a folder in which
    measurements are kept, from which the same call goes on after a stop.
    Raises `InputError` for an empty circuit, one of another model, or a model that does not do the task.
    """
    check_graph(model, circuit)
    if len(circuit) == 0:
        raise InputError("The circuit is empty; there is nothing to validate.")
    tell = progress or (lambda what, done, total: None)
    effort = QUICK if quick else FULL
    path = None if memory is None else memory / "measured.safetensors"
    evaluator = Evaluator(model, task, ablation, max_memory, memory=path)

    def step(what: str) -> Callable[[int, int], None]:
        return lambda done, total: tell(what, done, total)

    own, empty, shares = _circuit_and_nulls(evaluator, circuit, effort, seed, step("circuit and nulls"))
    clean = evaluator.clean
    variants = faithfulness_variants(own, clean, empty, task.unit, seed) | distribution_variants(
        evaluator, circuit, seed
    )
    complete = completeness(
        evaluator,
        circuit,
        draws=effort.subsets,
        greedy=effort.greedy,
        groups=groups,
        seed=seed,
        progress=step("completeness"),
    )
    minimal = minimality(
        evaluator, circuit, sets=effort.halves, readers=effort.others, seed=seed, progress=step("minimality")
    )
    tested, edges, damage = _tests(evaluator, circuit, own, shares, effort, seed, step)
    lines = [
        criteria.faithful(variants["normalised"], shares["random"]),
        criteria.complete(complete, seed),
        criteria.minimal(minimal, seed),
        *criteria.beats_chance(shares["own"][0], shares),
        *tested,
    ]
    robust: dict[str, Any] = {}
    if effort.others:
        robust = robustness(
            model,
            circuit,
            task,
            scores,
            ablation=ablation,
            seed=seed,
            max_memory=max_memory,
            memory=memory,
            progress=progress,
        )
        lines += robust_criteria(robust)
    area, curve = (None, ()) if scores is None or quick else _areas(evaluator, scores, empty, step("size and share"))
    if effort.others:
        nodes = evaluator.circuits([node_circuit(circuit)])[0]
        variants["nodes alone"] = faithfulness_variants(nodes, clean, empty, task.unit, seed)["normalised"]
    evaluator.save()
    return Verdict(
        criteria=tuple(lines),
        variants=variants,
        templates=by_template(task, own, clean, empty),
        spread=over_prompts(own, clean, empty),
        completeness=complete,
        minimality=minimal,
        nulls={name: shares[name] for name in NULLS},
        ablations=_others(effort, model, circuit, task, ablation, others or {}, seed, max_memory, memory, tell),
        edges=edges,
        damage=damage,
        areas=area,
        curve=curve,
        robustness=robust,
        known=None if truth is None else _against(truth, circuit, scores),
    )


def _circuit_and_nulls(
    evaluator: Evaluator, circuit: Circuit, effort: Effort, seed: int, progress: Callable[[int, int], None]
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """Metric of the circuit and of the empty one on each prompt; faithfulness of it ("own") and of each kind of null.

    Raises `InputError` where the model does not do the task.
    """
    generator = torch.Generator().manual_seed(seed)
    chance = {
        name: [make(circuit, generator) for _ in range(effort.random if name == "random" else effort.shaped)]
        for name, make in NULLS.items()
    }
    every = [circuit, Circuit.empty(circuit.graph), *(one for group in chance.values() for one in group)]
    metrics = evaluator.circuits(every, progress)
    clean, empty = evaluator.clean, metrics[1]
    gap = float(clean.mean() - empty.mean())
    if not gap > 0:
        name, metric = evaluator.model.name, evaluator.task.metric
        raise InputError(
            f"{name} does not do the task {evaluator.task.name}: its mean {metric} is {float(clean.mean()):.3f}, and "
            f"{float(empty.mean()):.3f} with everything ablated, so there is no behaviour to explain."
        )
    values = ((metrics.mean(1) - empty.mean()) / gap).tolist()
    shares, at = {"own": values[:1]}, 2
    for name, group in chance.items():
        shares[name] = values[at : at + len(group)]
        at += len(group)
    return metrics[0], empty, shares


def _tests(
    evaluator: Evaluator,
    circuit: Circuit,
    own: Tensor,
    shares: Mapping[str, list[float]],
    effort: Effort,
    seed: int,
    step: Callable[[str], Callable[[int, int], None]],
) -> tuple[list[Criterion], EdgeTest | None, tuple[float, list[float]] | None]:
    """The lines of all hypothesis tests, corrected together; what single edges change, and what cutting C out costs."""
    clean, notes, rows = evaluator.clean, dict[str, str](), list[Criterion]()
    tests = [hypothesis.better_than_random("sufficiency", shares["own"][0], shares["random"])]
    edges, damage = None, None
    if effort.necessity:
        test, hurt, others = necessity(
            evaluator, circuit, draws=effort.necessity, seed=seed, progress=step("necessity")
        )
        tests, damage = [*tests, test], (hurt, others)
    if len(clean) < FEWEST_PROMPTS:
        note = f"{len(clean)} prompts; tests over prompts need at least {FEWEST_PROMPTS}"
        rows = [criteria.missing(name, note) for name in ("equivalence", "independence")]
    else:
        rest = evaluator.circuits([~circuit])[0]
        tests += [hypothesis.equivalence(own, clean), hypothesis.independence(rest, clean, seed=seed)]
    if effort.edges:
        edges = edge_test(evaluator, circuit, most=effort.edges, seed=seed, progress=step("single edges"))
        tests.append(edges.summary)
        notes["minimal edges"] = f"{len(edges.unneeded)} of {len(edges.edges)} edges are no better than useless ones"
    return [*criteria.tested(tests, notes), *rows], edges, damage


def _areas(
    evaluator: Evaluator, scores: EdgeScores, empty: Tensor, progress: Callable[[int, int], None]
) -> tuple[Areas, tuple[tuple[float, float, float], ...]]:
    """CPR and CMD at the benchmark's sizes: circuits by signed score for the one, by its size for the other."""
    sizes = benchmark_sizes(scores.graph)
    circuits = [scores.top(n, signed=signed) for signed in (True, False) for n in sizes]
    clean = evaluator.clean
    gap = float(clean.mean() - empty.mean())
    means = (evaluator.circuits(circuits, progress).mean(1) - empty.mean()) / gap
    shares = [n / scores.graph.n_edges for n in sizes] if len(sizes) < len(SHARES) else list(SHARES)
    signed, absolute = means[: len(sizes)].tolist(), means[len(sizes) :].tolist()
    performance, distance = areas(shares, signed), areas(shares, absolute)
    found = Areas(performance.cpr, distance.cmd, performance.cpr_log, distance.cmd_log)
    return found, tuple(zip(shares, signed, absolute, strict=True))


def _against(truth: Circuit, circuit: Circuit, scores: EdgeScores | None) -> dict[str, float]:
    """How much of the truth the circuit holds; AUROC of the scores, or of being in the circuit."""
    ranked = scores or EdgeScores(circuit.graph, circuit.mask.float())
    precision, recall = precision_recall(circuit, truth)
    return {
        "precision": precision,
        "recall": recall,
        "edge AUROC": edge_auroc(ranked, truth),
        "node AUROC": node_auroc(ranked, truth),
    }


def _others(
    effort: Effort,
    model: Model,
    circuit: Circuit,
    task: Task,
    ablation: str,
    others: Mapping[str, Task],
    seed: int,
    max_memory: int | None,
    memory: Path | None,
    tell: Progress,
) -> tuple[OtherAblation, ...]:
    if not effort.others:
        return ()
    rows = other_ablations(
        model,
        circuit,
        task,
        ablation,
        others,
        seed=seed,
        max_memory=max_memory,
        memory=memory,
        progress=lambda done, total: tell("other ablations", done, total),
    )
    return tuple(rows)
