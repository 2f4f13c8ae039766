"""Is the circuit real? Every criterion in one call: value, interval, null, and whether it holds against a threshold."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph import Circuit
from circuitome.interventions import Ablation, check_graph
from circuitome.models import Model
from circuitome.results import Estimate, bootstrap
from circuitome.tasks import Task
from circuitome.validation import hypothesis
from circuitome.validation.evaluate import Evaluator
from circuitome.validation.faithfulness import SHARE
from circuitome.validation.hypothesis import TestResult
from circuitome.validation.nulls import NULLS
from circuitome.validation.subsets import Completeness, Minimality, completeness, minimality

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how much of it is done, and how much there is."""

FAITHFUL = (0.8, 1.2)
"""Faithfulness within these passes."""
INCOMPLETE = 0.2
"""Mean incompleteness of random subsets up to this passes, as a share of the gap."""
USELESS = 0.01
"""Nodes that change less than this share of the gap are useless; a minimal circuit has none."""
FEWEST_PROMPTS = 8
"""Prompts below which no test over prompts is run."""
PASS, FAIL, UNCLEAR = "pass", "fail", "unclear"


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict."""

    name: str
    """What was tested."""
    value: float
    """The number."""
    low: float | None
    """Lower end of its 95 % interval over prompts, where there is one."""
    high: float | None
    """Upper end."""
    null: str
    """What it stands beside: a null hypothesis, or the value of circuits made by chance."""
    threshold: str
    """What passes."""
    verdict: str
    """pass, fail or unclear."""
    note: str = ""
    """What else to know."""


@dataclass(frozen=True)
class Verdict:
    """What holds of a circuit and what does not."""

    criteria: tuple[Criterion, ...]
    """In the order of the literature: faithful, complete, minimal, then tests and nulls."""
    variants: dict[str, Estimate]
    """Faithfulness in every definition."""
    templates: dict[str, float]
    """Normalised faithfulness of each template's prompts, where there are several: one mean hides differences."""
    spread: dict[str, float]
    """Quartiles over prompts of (circuit - empty) / (model - empty)."""
    completeness: Completeness
    """Every subset that was knocked out."""
    minimality: Minimality
    """Every node's score."""
    nulls: dict[str, list[float]] = field(default_factory=dict)
    """Faithfulness of circuits made by chance, by kind."""

    def __getitem__(self, name: str) -> Criterion:
        return next(one for one in self.criteria if one.name == name)

    @property
    def holds(self) -> bool:
        """Whether no criterion failed."""
        return all(one.verdict != FAIL for one in self.criteria)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            "criteria": [asdict(one) for one in self.criteria],
            "variants": {name: one.to_dict() for name, one in self.variants.items()},
            "templates": self.templates,
            "spread": self.spread,
            "nulls": self.nulls,
            "completeness": [
                {"nodes": list(nodes), "kind": kind, "circuit": own, "model": model, "score": score}
                for nodes, kind, own, model, score in zip(
                    self.completeness.sets,
                    self.completeness.kinds,
                    self.completeness.circuit.tolist(),
                    self.completeness.model.tolist(),
                    self.completeness.scores.tolist(),
                    strict=True,
                )
            ],
            "minimality": dict(zip(self.minimality.nodes, self.minimality.scores.tolist(), strict=True)),
        }


def validate(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    ablation: Ablation = "corrupted",
    quick: bool = False,
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Test a circuit as the literature does: faithful, complete, minimal, against chance, and by hypothesis tests.

    Everything is measured on the prompts of `task` with `ablation` outside the circuit. `quick` takes fewer subsets,
    so that some verdicts stay unclear. Raises `InputError` for an empty circuit, one of another model, or a model that
    does not do the task.
    """
    check_graph(model, circuit)
    if len(circuit) == 0:
        raise InputError("The circuit is empty; there is nothing to validate.")
    tell = progress or (lambda what, done, total: None)
    evaluator = Evaluator(model, task, ablation, max_memory)
    draws, subsets = (4, 4) if quick else (30, 30)
    generator = torch.Generator().manual_seed(seed)
    chance = {
        name: [make(circuit, generator) for _ in range(draws if name == "random" else max(2, draws // 3))]
        for name, make in NULLS.items()
    }
    every = [circuit, Circuit.empty(model.graph), *(one for group in chance.values() for one in group)]
    metrics = evaluator.circuits(every, lambda done, total: tell("circuits and nulls", done, total))
    clean, own, empty = evaluator.clean, metrics[0], metrics[1]
    gap = float(clean.mean() - empty.mean())
    if not gap > 0:
        raise InputError(
            f"{model.name} does not do the task {task.name}: its mean {task.metric} is {float(clean.mean()):.3f}, and "
            f"{float(empty.mean()):.3f} with everything ablated, so there is no behaviour to explain."
        )
    shares = ((metrics.mean(1) - empty.mean()) / gap).tolist()
    nulls, at = {}, 2
    for name, group in chance.items():
        nulls[name] = shares[at : at + len(group)]
        at += len(group)
    variants = faithfulness_variants(own, clean, empty, task.unit, seed)
    complete = completeness(
        evaluator,
        circuit,
        draws=subsets,
        greedy=0 if quick else 5,
        seed=seed,
        progress=lambda done, total: tell("completeness", done, total),
    )
    minimal = minimality(
        evaluator,
        circuit,
        sets=0 if quick else 1,
        seed=seed,
        progress=lambda done, total: tell("minimality", done, total),
    )
    criteria = [
        _faithful(variants["normalised"], nulls),
        _complete(complete),
        _minimal(minimal),
        *_chance(shares[0], nulls),
        *_tests(evaluator, circuit, own, clean, seed, draws),
    ]
    return Verdict(
        tuple(criteria),
        variants,
        _by_template(task, own, clean, empty),
        _spread(own, clean, empty),
        complete,
        minimal,
        nulls,
    )


def faithfulness_variants(own: Tensor, clean: Tensor, empty: Tensor, unit: str, seed: int = 0) -> dict[str, Estimate]:
    """Faithfulness as different papers define it, from per-prompt metrics of circuit, model and empty circuit.

    - difference: |F(M) - F(C)|, in the metric's unit (Wang et al. 2022).
    - ratio of means: F(C) / F(M); mean of ratios: the mean over prompts of the same, unstable where the model's metric
      is near 0.
    - normalised: (F(C) - F(0)) / (F(M) - F(0)) (Hanna et al. 2024).
    """
    columns = torch.stack([own, clean, empty, own / clean], 1)

    def estimate(statistic: Callable[[Tensor], Tensor], unit: str) -> Estimate:
        return bootstrap(columns, statistic, unit, seed=seed)

    return {
        "normalised": estimate(lambda m: (m[:, 0] - m[:, 2]) / (m[:, 1] - m[:, 2]), SHARE),
        "difference": estimate(lambda m: (m[:, 1] - m[:, 0]).abs(), unit),
        "ratio of means": estimate(lambda m: m[:, 0] / m[:, 1], "share of the model's metric"),
        "mean of ratios": estimate(lambda m: m[:, 3], "share of the model's metric"),
    }


def _faithful(share: Estimate, nulls: dict[str, list[float]]) -> Criterion:
    low, high = FAITHFUL
    inside = low <= share.value <= high
    surely = low <= share.low and share.high <= high
    verdict = PASS if inside and surely else FAIL if share.high < low or share.low > high else UNCLEAR
    beside = f"random circuits {_mean(nulls['random']):.3f}"
    return Criterion("faithfulness", share.value, share.low, share.high, beside, f"{low} to {high}", verdict)


def _complete(found: Completeness) -> Criterion:
    value, worst = found.mean("random"), found.worst
    verdict = UNCLEAR if value != value else PASS if value <= INCOMPLETE else FAIL
    note = f"worst {float(found.scores[worst]):.3f} ({found.kinds[worst]}, {len(found.sets[worst])} nodes knocked out)"
    return Criterion("completeness", value, None, None, "0 for the whole model", f"at most {INCOMPLETE}", verdict, note)


def _minimal(found: Minimality) -> Criterion:
    useless = found.useless(USELESS)
    share = len(useless) / len(found.nodes)
    note = f"can go: {', '.join(useless[:12])}{' ...' if len(useless) > 12 else ''}" if useless else ""
    threshold = f"every node changes at least {100 * USELESS:.0f} % of the gap"
    return Criterion(
        "minimality",
        share,
        None,
        None,
        f"{len(useless)} of {len(found.nodes)} nodes useless",
        threshold,
        FAIL if useless else PASS,
        note,
    )


def _chance(own: float, nulls: dict[str, list[float]]) -> list[Criterion]:
    """The circuit beside circuits made by chance."""
    sufficiency = hypothesis.better_than_random("sufficiency", own, nulls["random"])
    rows = [_tested(sufficiency, good=True)]
    for name in ("layered", "rewired"):
        best = max(nulls[name])
        verdict = PASS if own > best else FAIL
        beside = f"mean {_mean(nulls[name]):.3f} of {len(nulls[name])}"
        rows.append(Criterion(f"beats {name} circuits", own - best, None, None, beside, "above the best", verdict))
    return rows


def _tests(
    evaluator: Evaluator, circuit: Circuit, own: Tensor, clean: Tensor, seed: int, draws: int
) -> list[Criterion]:
    """Hypothesis tests over prompts, and the damage of knocking the circuit's nodes out."""
    generator = torch.Generator().manual_seed(seed + 1)
    graph = circuit.graph
    nodes = circuit.mask.any(1)
    nodes[0] = False
    others = (~nodes).nonzero().flatten()[1:]  # without `embed`
    count = min(int(nodes.sum()), len(others))
    sets = [nodes]
    for _ in range(draws if count else 0):
        drawn = torch.zeros_like(nodes)
        drawn[others[torch.randperm(len(others), generator=generator)[:count]]] = True
        sets.append(drawn)
    damage = clean.mean() - evaluator.knocked_out(torch.stack(sets)).mean(1)
    rows = []
    if count:
        necessity = hypothesis.better_than_random("necessity", float(damage[0]), damage[1:].tolist())
        note = "" if count == int(nodes.sum()) else f"random sets have {count} nodes, all that are outside the circuit"
        rows.append(_tested(necessity, good=True, note=note))
    else:
        note = "the circuit touches every node, so there are no others to knock out"
        rows.append(Criterion("necessity", float("nan"), None, None, "", "", UNCLEAR, note))
    if len(clean) < FEWEST_PROMPTS:
        note = f"{len(clean)} prompts; tests over prompts need at least {FEWEST_PROMPTS}"
        return [*rows, Criterion("equivalence", float("nan"), None, None, "", "", UNCLEAR, note)]
    rest = evaluator.circuits([Circuit(graph, graph.mask & ~circuit.mask)])[0]
    rows.append(_tested(hypothesis.equivalence(own, clean), good=False))
    rows.append(_tested(hypothesis.independence(rest, clean, seed=seed), good=False))
    return rows


def _tested(test: TestResult, *, good: bool, note: str = "") -> Criterion:
    """A test as a criterion; `good` says that rejecting the null is what a real circuit does."""
    words = f"p {test.p_value:.3g} of: {test.null}"
    if good:
        possible = hypothesis.better_than_random("", 1.0, [0.0] * test.n).rejected()
        verdict = PASS if test.rejected() else FAIL if possible else UNCLEAR
        threshold = f"p below {hypothesis.ALPHA}"
    else:
        verdict, threshold = FAIL if test.rejected() else PASS, f"p at least {hypothesis.ALPHA}"
    return Criterion(test.name, test.statistic, None, None, words, threshold, verdict, note)


def _by_template(task: Task, own: Tensor, clean: Tensor, empty: Tensor) -> dict[str, float]:
    names = sorted({pair.template for pair in task.pairs})
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        rows = [i for i, pair in enumerate(task.pairs) if pair.template == name]
        gap = float(clean[rows].mean() - empty[rows].mean())
        found[name or "none"] = float(own[rows].mean() - empty[rows].mean()) / gap if gap else float("nan")
    return found


def _spread(own: Tensor, clean: Tensor, empty: Tensor) -> dict[str, float]:
    ratios = (own - empty) / (clean - empty)
    known = ratios[torch.isfinite(ratios)]
    if not len(known):
        return {}
    quartiles = torch.quantile(known, torch.tensor([0.25, 0.5, 0.75])).tolist()
    return dict(zip(("lower quartile", "median", "upper quartile"), quartiles, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
