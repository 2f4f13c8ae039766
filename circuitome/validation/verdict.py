"""Is the circuit real? Every criterion in one call: value, interval, null, and whether it holds against a threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.circuit_run import check_graph
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import Estimate
from circuitome.tasks.task import Task
from circuitome.validation import criteria
from circuitome.validation.criteria import Criterion
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
        return self.answer != "NOT ESTABLISHED"

    @property
    def answer(self) -> str:
        """ESTABLISHED, NOT ESTABLISHED or INCONCLUSIVE; see `criteria.answer`."""
        return criteria.answer(self.criteria)[0]

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return criteria.answer(self.criteria)[1]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        found = self.completeness
        values = (found.circuit.tolist(), found.model.tolist(), found.scores.tolist())
        sets = zip(found.sets, found.kinds, *values, strict=True)
        edges = self.edges
        return {
            "answer": self.answer,
            "reason": self.reason,
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


@method
def validate(
    setting: Setting,
    circuit: Circuit,
    *,
    scores: EdgeScores | None = None,
    others: Mapping[str, Task] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    quick: bool = False,
    truth: Circuit | None = None,
) -> Verdict:
    """Test a circuit as the literature does: faithful, complete, minimal, against chance, and by hypothesis tests.

    Everything is measured on the prompts of `task` with `ablation` outside the circuit. `scores`, those that the
    circuit comes from, add the areas CPR and CMD; `others` are tasks with the same clean prompts and other corrupted
    ones; `groups` are sets of nodes (such as the heads of each role) to knock out together; `truth` is the true circuit
    where it is known. `quick` takes fewer subsets, so that some verdicts stay unclear. The setting's
    checkpoint is a folder in which measurements are kept, from which the same call goes on after a stop.
    Raises `InputError` for an empty circuit, one of another model, or a model that does not do the task.
    """
    check_graph(setting.model, circuit)
    if len(circuit) == 0:
        raise InputError("The circuit is empty; there is nothing to validate.")
    effort, folder, seed = QUICK if quick else FULL, setting.checkpoint, setting.seed
    evaluator = Evaluator(setting.but(checkpoint=None if folder is None else folder / "measured.safetensors"))
    own, empty, shares = _circuit_and_nulls(evaluator, circuit, effort)
    variants = faithfulness_variants(setting, own, evaluator.clean, empty) | distribution_variants(evaluator, circuit)
    complete = completeness(evaluator, circuit, draws=effort.subsets, greedy=effort.greedy, groups=groups, seed=seed)
    minimal = minimality(evaluator, circuit, sets=effort.halves, readers=effort.others, seed=seed)
    tested, edges, damage = _tests(evaluator, circuit, own, shares, effort)
    more = _others(evaluator, setting, circuit, scores, others or {}) if effort.others else {}
    lines = [
        criteria.faithful(variants["normalised"], shares["random"]),
        criteria.complete(complete, seed),
        criteria.minimal(minimal, seed),
        *criteria.beats_chance(shares["own"][0], shares),
        *tested,
        *(robust_criteria(more["robustness"]) if more else ()),
    ]
    evaluator.save()
    return Verdict(
        criteria=tuple(lines),
        variants=variants | more.pop("variants", {}),
        templates=by_template(setting, own, evaluator.clean, empty),
        spread=over_prompts(own, evaluator.clean, empty),
        completeness=complete,
        minimality=minimal,
        nulls={name: shares[name] for name in NULLS},
        edges=edges,
        damage=damage,
        known=None if truth is None else _against(truth, circuit, scores),
        **more,
    )


def _others(
    evaluator: Evaluator, setting: Setting, circuit: Circuit, scores: EdgeScores | None, others: Mapping[str, Task]
) -> dict[str, Any]:
    """What only the whole suite measures: robustness, areas under the curve, nodes alone, other ablations."""
    robust = robustness(setting, circuit, scores)
    area, curve = (None, ()) if scores is None else _areas(evaluator, scores)
    nodes = evaluator.circuits([node_circuit(circuit)])[0]
    alone = faithfulness_variants(setting, nodes, evaluator.clean, evaluator.empty)["normalised"]
    return {
        "robustness": robust,
        "areas": area,
        "curve": curve,
        "variants": {"nodes alone": alone},
        "ablations": other_ablations(setting, circuit, others, setting.checkpoint),
    }


def _circuit_and_nulls(
    evaluator: Evaluator, circuit: Circuit, effort: Effort
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """Metric of the circuit and of the empty one on each prompt; faithfulness of it ("own") and of each kind of null.

    Raises `InputError` where the model does not do the task.
    """
    generator = torch.Generator().manual_seed(evaluator.setting.seed)
    chance = {
        name: [make(circuit, generator) for _ in range(effort.random if name == "random" else effort.shaped)]
        for name, make in NULLS.items()
    }
    every = [circuit, Circuit.empty(circuit.graph), *(one for group in chance.values() for one in group)]
    metrics = evaluator.circuits(every, "circuit and random circuits")
    empty, gap = metrics[1], evaluator.checked_gap()
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
) -> tuple[list[Criterion], EdgeTest | None, tuple[float, list[float]] | None]:
    """The lines of all hypothesis tests, corrected together; what single edges change, and what cutting C out costs."""
    clean, seed, notes, rows = evaluator.clean, evaluator.setting.seed, dict[str, str](), list[Criterion]()
    nearest = [hypothesis.nearness(share) for share in shares["random"]]
    tests = [hypothesis.better_than_random("sufficiency", hypothesis.nearness(shares["own"][0]), nearest)]
    edges, damage = None, None
    if effort.necessity:
        test, hurt, others = necessity(evaluator, circuit, draws=effort.necessity, seed=seed)
        tests, damage = [*tests, test], (hurt, others)
    if len(clean) < FEWEST_PROMPTS:
        note = f"{len(clean)} prompts; tests over prompts need at least {FEWEST_PROMPTS}"
        rows = [criteria.missing(name, note) for name in ("equivalence", "independence")]
    else:
        rest = evaluator.circuits([~circuit])[0]
        tests += [hypothesis.equivalence(own, clean), hypothesis.independence(rest, clean, seed=seed)]
    if effort.edges:
        edges = edge_test(evaluator, circuit, most=effort.edges, seed=seed)
        tests.append(edges.summary)
        notes["minimal edges"] = f"{len(edges.unneeded)} of {len(edges.edges)} edges are no better than useless ones"
    return [*criteria.tested(tests, notes), *rows], edges, damage


def _areas(evaluator: Evaluator, scores: EdgeScores) -> tuple[Areas, tuple[tuple[float, float, float], ...]]:
    """CPR and CMD at the benchmark's sizes: circuits by signed score for the one, by its size for the other."""
    sizes = benchmark_sizes(scores.graph)
    circuits = [scores.top(n, signed=signed) for signed in (True, False) for n in sizes]
    means = (evaluator.circuits(circuits, "size and share").mean(1) - evaluator.empty.mean()) / evaluator.gap
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
