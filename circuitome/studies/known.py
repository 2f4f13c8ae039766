"""Methods on models whose circuit is known: how much of it they find, under each ablation's own truth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Table, table
from circuitome.studies.context import Context
from circuitome.studies.settings import Names, Settings, command_line
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting

TRIED = ("acdc", "exact", "eap", "eap-ig", "clean-corrupted", "atp", "magnitude", "random")
"""Methods by default."""
ABLATIONS = ("zero", "corrupted")
"""Ablations for which there is a truth."""
THRESHOLDS = tuple(10 ** (-5 + k / 2) for k in range(9))
"""ACDC's sweep: 1e-5 to 1e-1, in squared logits."""
PROMPTS = 40
"""Inputs that methods see; each position with an output is a prompt of its own."""
TRUTH_PROMPTS = 200
"""Inputs on which the truth is computed, at most."""
LOSS = "l2"
"""Squared change of the outputs: the only loss that also fits programs whose output is a number."""
SECONDS = 0.9
"""About how long one method takes on one model."""
PREFIX = "tracr-"
"""What names of compiled models begin with."""
RATES = ("edge AUROC", "node AUROC", "ROC area", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Known(Settings):
    """Run methods on models whose circuit is known, and say how much of it they find."""

    models: Names = ()
    """Names of known models (`circuitome models` lists them), with commas between; all by default."""
    methods: Names = TRIED
    """Names that `circuitome methods` lists, with commas between; all but learned masks by default."""
    ablations: Names = ABLATIONS
    """What cut edges carry: zero, corrupted or both. The true circuit depends on it."""

    def names(self) -> tuple[str, ...]:
        """The known models."""
        from circuitome.validation.ground_truth import NAMES

        return self.models or NAMES

    @override
    def check(self) -> None:
        from circuitome.studies.methods import METHODS
        from circuitome.validation.ground_truth import NAMES

        for kind, names, allowed in (
            ("known model", self.names(), NAMES),
            ("method", self.methods, tuple(METHODS)),
            ("ablation of a known circuit", self.ablations, ABLATIONS),
        ):
            for name in names:
                if name not in allowed:
                    raise unknown_name(kind, name, allowed)


def work(settings: Known, context: Context) -> Work:
    """Tiny models: what counts is the number of searches, not their passes."""
    searches = len(settings.names()) * len(settings.methods) * len(settings.ablations)
    return Work(texts=PROMPTS, tokens=8, seconds=SECONDS * searches, notes={"searches": searches})


def run(settings: Known, context: Context) -> Findings:
    """Every method on every model under every ablation, and the true circuits; what is done is kept for `--resume`."""
    from circuitome.engine.checkpoint import Checkpoint
    from circuitome.validation.ground_truth.truth import TOLERANCE

    kept = Checkpoint(context.file("known.safetensors"), "known", command_line("known", settings))
    before = kept.read()
    results: dict[str, Any] = before[1] if before else {"rows": [], "truths": {}}
    pairs = [(name, ablation) for name in settings.names() for ablation in settings.ablations]
    for name, ablation in pairs[len(results["truths"]) :]:
        truth, rows = measured(settings, context, name, ablation, len(results["rows"]), len(pairs))
        results["truths"][f"{name} {ablation}"] = truth
        results["rows"] += rows
        kept.write({}, results)
    note = (
        f"True edges: those whose ablation alone changes an output by more than {TOLERANCE:g}, on up to "
        f"{TRUTH_PROMPTS} inputs. ROC area: of thresholds, from below. Precision and recall: of as many edges as are "
        "true; for acdc, of the threshold whose circuit is nearest in size."
    )
    return Findings(
        title="Methods on models whose circuit is known",
        sign=note,
        results={**results, "note": note},
        blocks=blocks(results["rows"], results["truths"]),
    )


def measured(
    settings: Known, context: Context, name: str, ablation: str, done: int, pairs: int
) -> tuple[list[str], list[dict[str, Any]]]:
    """The true edges of one model under one ablation, and a row for each method."""
    from circuitome.engine.setting import Setting
    from circuitome.validation import ground_truth

    model, rows = cm.load(name), list[dict[str, Any]]()
    everything = ground_truth.task(name, TRUTH_PROMPTS, settings.seed + 1)
    truth = ground_truth.true_circuit(model, everything, ablation=ablation)
    task = ground_truth.task(name, PROMPTS, settings.seed)
    setting = Setting(model, task, ablation=ablation, seed=settings.seed, max_memory=settings.max_memory)
    about = {"model": name, "ablation": ablation}
    size = {"true_edges": len(truth), "all_edges": model.graph.n_edges}
    for method in settings.methods:
        context.progress("methods on known models", done + len(rows), pairs * len(settings.methods))
        rows.append({**about, "method": method, **size, **rates(setting, method, truth)})
    return list(truth), rows


def rates(setting: "Setting", method: str, truth: "cm.Circuit") -> dict[str, Any]:
    """How much of `truth` one method finds; None and the reason where it cannot apply."""
    from circuitome.validation.ground_truth.roc import edge_auroc, node_auroc, pessimistic_area, precision_recall

    try:
        scores, circuit, points = search(setting, method, truth)
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
        return {**dict.fromkeys(RATES), "note": str(error)}


def search(
    setting: "Setting", method: str, truth: "cm.Circuit"
) -> tuple["cm.EdgeScores", "cm.Circuit", list[tuple[float, float]]]:
    """Scores, the circuit that is held against the truth, and the points of the ROC curve."""
    from circuitome.discovery.search.pruning import roc_sweep
    from circuitome.studies.methods import METHODS, Search
    from circuitome.validation.ground_truth.roc import roc_points, score_points

    if method == "acdc":
        scores, circuits = roc_sweep(setting, THRESHOLDS, loss=LOSS)
        circuit = min(circuits.values(), key=lambda c: abs(len(c) - len(truth)))
        return scores, circuit, roc_points(circuits.values(), truth)
    chosen = METHODS[method]
    options = {"loss": LOSS} if LOSS in chosen.losses else {}
    result = chosen.run(Search(setting, len(truth), options))
    return result.scores, result.circuit, score_points(result.scores, truth)


def blocks(rows: Sequence[Mapping[str, Any]], truths: Mapping[str, Sequence[str]]) -> list[Block]:
    """Which method finds the most; by ablation means over models and a model a row; then every rate and every truth."""
    ablations, methods, models = (
        tuple(dict.fromkeys(row[key] for row in rows)) for key in ("ablation", "method", "model")
    )
    parts: list[Block] = [Lede(text=" ".join(_best(rows, methods, ablation, len(models)) for ablation in ablations))]
    for ablation in ablations:
        rates_of = {(row["model"], row["method"]): row for row in rows if row["ablation"] == ablation}
        parts += [_means(rates_of, ablation, methods, models), _by_model(rates_of, ablation, methods, models)]
    parts += [_every_rate(rows, ablation) for ablation in ablations]
    true = ((name, ", ".join(edges)) for name, edges in truths.items())
    return [*parts, table("True circuits", ("model and ablation", "edges"), true, folded=True)]


def _best(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], ablation: str, models: int) -> str:
    """The method with the largest mean area over edges, in a sentence."""
    means = {m: _mean(r for r in rows if (r["method"], r["ablation"]) == (m, ablation)) or 0.0 for m in methods}
    top = [name for name, value in means.items() if value == max(means.values())]
    verb = "ranks" if len(top) == 1 else "rank"
    return (
        f"Under {ablation} ablation {' and '.join(top)} {verb} the true edges of {models} known models best, with a "
        f"mean area under the ROC curve of {formats.rounded(max(means.values()), 3)}."
    )


def _mean(rows: Iterable[Mapping[str, Any]], rate: str = RATES[0]) -> float | None:
    """Mean of a rate over the models to which the method applies."""
    known = [value for row in rows if (value := formats.finite(row[rate])) is not None]
    return sum(known) / len(known) if known else None


Rates = Mapping[tuple[str, str], Mapping[str, Any]]
"""By model and method."""


def _means(rates_of: Rates, ablation: str, methods: Sequence[str], models: Sequence[str]) -> Table:
    """Every rate of a method, mean over models."""
    rows = ((m, *(_mean([rates_of[name, m] for name in models], rate) for rate in RATES)) for m in methods)
    note = "AUROC: the chance that a true edge (or node) scores above another one; .5 is chance."
    return table(f"Mean over models, {ablation} ablation", ("method", *_numbers(RATES)), rows, note=note)


def _by_model(rates_of: Rates, ablation: str, methods: Sequence[str], models: Sequence[str]) -> Table:
    """Edge AUROC of every method on every model."""
    rows = ((name.removeprefix(PREFIX), *(rates_of[name, method][RATES[0]] for method in methods)) for name in models)
    note = f"Compiled models without their {PREFIX} in front."
    return table(f"Edge AUROC by model, {ablation} ablation", ("model", *_numbers(methods, 2)), rows, note=note)


def _every_rate(rows: Sequence[Mapping[str, Any]], ablation: str) -> Table:
    """All that was measured under one ablation."""
    measured = (
        (
            *(row["model"], row["method"], f"{row['true_edges']} of {row['all_edges']}"),
            *(row[rate] for rate in RATES),
            row["note"] or "",
        )
        for row in rows
        if row["ablation"] == ablation
    )
    columns = ("model", "method", "true edges", *_numbers(RATES), "why not")
    return table(f"Every rate, {ablation} ablation", columns, measured, folded=True)


def _numbers(names: Sequence[str], decimals: int = 3) -> list[tuple[str, str, int]]:
    return [(name, "number", decimals) for name in names]


STUDY = Study("known", Known, run, work)
