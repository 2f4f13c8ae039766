"""Is the circuit real? Every criterion in one call: value, interval, null, and whether it holds against a threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.circuit_run import check_graph
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import Estimate, Shown, plain, plain_fields
from circuitome.tasks.task import Task
from circuitome.validation import criteria
from circuitome.validation.criteria import Criterion
from circuitome.validation.faithfulness import variants
from circuitome.validation.faithfulness.auc import SHARES, AreaUnderCurve, area_under_curve, benchmark_sizes
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import normalised
from circuitome.validation.faithfulness.variants import OtherAblation
from circuitome.validation.ground_truth.roc import edge_auroc, node_auroc, precision_recall
from circuitome.validation.robustness.summary import robust_criteria, robustness
from circuitome.validation.tests import hypotheses
from circuitome.validation.tests.completeness import Completeness, completeness
from circuitome.validation.tests.minimality import Minimality, minimality
from circuitome.validation.tests.nulls import NULLS
from circuitome.validation.tests.significance import EdgeTest, edge_test, necessity


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
QUICK = Effort(44, 3, 8, 0, 0, 0, 0, False)


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict(Shown):
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
    auc: AreaUnderCurve | None = None
    """CPR and CMD of the scores that the circuit comes from, where they were given."""
    curve: tuple[tuple[float, float, float], ...] = ()
    """By size: share of the edges, faithfulness of the signed top, of the top by size."""
    robustness: dict[str, Any] = field(default_factory=dict)
    """Backups, stability, shuffled labels, other prompts, tasks, wordings and methods; see `robustness`."""
    known: dict[str, float] | None = None
    """Where the true circuit was given: precision, recall, AUROC of the scores over edges and nodes."""

    def __repr__(self) -> str:
        return f"Verdict({self.answer}: {self.reason})"

    def __getitem__(self, name: str) -> Criterion:
        return next(criterion for criterion in self.criteria if criterion.name == name)

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
        """Why, in a sentence; and one more where the circuit belongs to the wording of its prompts."""
        specific = self.robustness.get("rephrasing", {}).get("template_specific", "")
        return f"{criteria.answer(self.criteria)[1]} {specific}".strip()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        plain_ones = ("criteria", "variants", "ablations", "templates", "spread", "nulls", "completeness", "auc")
        return {
            **plain_fields(self, "answer", "reason", *plain_ones, "curve", "robustness", "known"),
            "minimality": dict(zip(self.minimality.names, self.minimality.scores.tolist(), strict=True)),
            "single_edges": plain(self.edges),
            "damage": self.damage and {"circuit": self.damage[0], "others": self.damage[1]},
        }


@method
@on_neurons
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
    Raises `InputError` for an empty circuit, one of another model, or a model that does not do the task;
    `NumericsError` where a metric is not finite.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> cm.validate(model, cm.ground_truth.true_circuit(model, task), task, quick=True).answer
    'ESTABLISHED'
    """
    check_graph(setting.model, circuit)
    if len(circuit) == 0:
        raise InputError("The circuit is empty; there is nothing to validate.")
    effort, folder, seed = QUICK if quick else FULL, setting.checkpoint, setting.seed
    evaluator = Evaluator(setting.but(checkpoint=None if folder is None else folder / "measured.safetensors"))
    metric, share, null_shares = _circuit_and_nulls(evaluator, circuit, effort)
    samples = evaluator.samples(metric)
    shares = variants.faithfulness_variants(setting, samples) | variants.distribution_variants(evaluator, circuit)
    complete = completeness(evaluator, circuit, draws=effort.subsets, greedy=effort.greedy, groups=groups, seed=seed)
    minimal = minimality(evaluator, circuit, sets=effort.halves, readers=effort.others, seed=seed)
    sufficiency = hypotheses.sufficiency(share, null_shares["random"])
    tested, edges, damage = _tests(evaluator, circuit, metric, sufficiency, effort)
    more = _others(setting, evaluator, circuit, scores, others or {}) if effort.others else {}
    lines = [
        criteria.faithful(shares["normalised"], null_shares["random"]),
        criteria.complete(complete, seed),
        criteria.minimal(minimal, seed),
        *criteria.beats_chance(share, null_shares),
        *tested,
        *(robust_criteria(more["robustness"]) if more else ()),
    ]
    evaluator.save()
    return Verdict(
        criteria=tuple(lines),
        variants=shares | more.pop("variants", {}),
        templates=variants.by_template(setting, samples),
        spread=variants.over_prompts(samples),
        completeness=complete,
        minimality=minimal,
        nulls=null_shares,
        edges=edges,
        damage=damage,
        known=None if truth is None else _against(truth, circuit, scores),
        **more,
    )


def _others(
    setting: Setting, evaluator: Evaluator, circuit: Circuit, scores: EdgeScores | None, others: Mapping[str, Task]
) -> dict[str, Any]:
    """What only the whole suite measures: robustness, areas under the curve, nodes alone, other ablations."""
    auc, curve = (None, ()) if scores is None else _auc(evaluator, scores)
    nodes = evaluator.circuits([variants.node_circuit(circuit)])[0]
    alone = normalised(setting, evaluator.samples(nodes))
    return {
        "robustness": robustness(setting, circuit, scores),
        "auc": auc,
        "curve": curve,
        "variants": {"nodes alone": alone},
        "ablations": variants.other_ablations(setting, circuit, others),
    }


def _circuit_and_nulls(
    evaluator: Evaluator, circuit: Circuit, effort: Effort
) -> tuple[Float[Tensor, " prompts"], float, dict[str, list[float]]]:
    """Metric of the circuit on each prompt, its faithfulness, and that of each kind of circuit made by chance.

    Raises `InputError` where the model does not do the task.
    """
    generator = torch.Generator().manual_seed(evaluator.setting.seed)
    nulls = {
        name: [draw(circuit, generator) for _ in range(effort.random if name == "random" else effort.shaped)]
        for name, draw in NULLS.items()
    }
    every = [Circuit.empty(circuit.graph), circuit, *(null for group in nulls.values() for null in group)]
    metrics = evaluator.circuits(every, "circuit and random circuits")
    gap = evaluator.checked_gap()
    _, share, *rest = ((metrics.mean(1) - metrics[0].mean()) / gap).tolist()
    shares = iter(rest)
    return metrics[1], share, {name: list(islice(shares, len(group))) for name, group in nulls.items()}


def _tests(
    evaluator: Evaluator,
    circuit: Circuit,
    metric: Float[Tensor, " prompts"],
    sufficiency: hypotheses.TestResult,
    effort: Effort,
) -> tuple[list[Criterion], EdgeTest | None, tuple[float, list[float]] | None]:
    """The lines of all hypothesis tests, corrected together; what single edges change, and what cutting C out costs."""
    clean, seed, notes, untested = evaluator.clean, evaluator.setting.seed, dict[str, str](), list[Criterion]()
    tests, edges, damage = [sufficiency], None, None
    if effort.necessity:
        test, hurt, others = necessity(evaluator, circuit, draws=effort.necessity, seed=seed)
        tests, damage = [*tests, test], (hurt, others)
    if len(clean) < hypotheses.FEWEST_PROMPTS:
        note = f"{len(clean)} prompts; tests over prompts need at least {hypotheses.FEWEST_PROMPTS}"
        untested = [criteria.missing(name, note) for name in ("equivalence", "independence")]
    else:
        rest = evaluator.circuits([~circuit])[0]
        tests += [hypotheses.equivalence(metric, clean), hypotheses.independence(rest, clean, seed=seed)]
    if effort.edges:
        edges = edge_test(evaluator, circuit, most=effort.edges, seed=seed)
        tests.append(edges.summary)
        notes["minimal edges"] = f"{len(edges.unneeded)} of {len(edges.edges)} edges are no better than useless ones"
    return [*criteria.hypothesis_criteria(tests, notes), *untested], edges, damage


def _auc(evaluator: Evaluator, scores: EdgeScores) -> tuple[AreaUnderCurve, tuple[tuple[float, float, float], ...]]:
    """CPR and CMD at the benchmark's sizes: circuits by signed score for the one, by its size for the other."""
    sizes = benchmark_sizes(scores.graph)
    circuits = [scores.top(n, signed=signed) for signed in (True, False) for n in sizes]
    means = (evaluator.circuits(circuits, "size and share").mean(1) - evaluator.empty.mean()) / evaluator.gap
    shares = [n / scores.graph.n_edges for n in sizes] if len(sizes) < len(SHARES) else list(SHARES)
    signed, absolute = means[: len(sizes)].tolist(), means[len(sizes) :].tolist()
    performance, distance = area_under_curve(shares, signed), area_under_curve(shares, absolute)
    both = replace(performance, cmd=distance.cmd, cmd_log=distance.cmd_log)
    return both, tuple(zip(shares, signed, absolute, strict=True))


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
