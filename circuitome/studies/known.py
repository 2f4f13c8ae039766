"""Methods on models whose circuit is known: how much of it they find, under each ablation's own truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from circuitome.errors import InputError, unknown_name
from circuitome.present.blocks import Block, Column, Lede, Table
from circuitome.studies.settings import Names, Settings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.graph.circuits import Circuit
    from circuitome.graph.edge_scores import EdgeScores
    from circuitome.studies.context import Context

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


def work(settings: Known, context: "Context") -> Work:
    """Tiny models: what counts is their number, not their passes."""
    return Work(texts=PROMPTS, tokens=8, notes={"models": len(settings.names()), "methods": len(settings.methods)})


def run(settings: Known, context: "Context") -> Findings:
    """Every method on every model under every ablation, and the true circuits."""
    from circuitome.engine.setting import Setting
    from circuitome.models.loading import load
    from circuitome.validation import ground_truth
    from circuitome.validation.ground_truth.truth import TOLERANCE

    rows: list[dict[str, Any]] = []
    truths: dict[str, list[str]] = {}
    total = len(settings.names()) * len(settings.ablations) * len(settings.methods)
    for name in settings.names():
        model, task = load(name), ground_truth.task(name, PROMPTS, settings.seed)
        everything = ground_truth.task(name, TRUTH_PROMPTS, settings.seed + 1)
        for ablation in settings.ablations:
            truth = ground_truth.true_circuit(model, everything, ablation)  # type: ignore[arg-type]  # `check` has seen it
            truths[f"{name} {ablation}"] = list(truth)
            setting = Setting(model, task, ablation=ablation, seed=settings.seed, max_memory=settings.max_memory)
            for method in settings.methods:
                about = {"model": name, "ablation": ablation, "method": method, "true_edges": len(truth)}
                rows.append({**about, "all_edges": model.graph.n_edges, **rates(setting, method, truth)})
                context.progress("methods on known models", len(rows), total)
    note = (
        f"True edges: those whose ablation alone changes an output by more than {TOLERANCE:g}, on up to "
        f"{TRUTH_PROMPTS} inputs. ROC area: of thresholds, from below. Precision and recall: of as many edges as are "
        "true; for acdc, of the threshold whose circuit is nearest in size."
    )
    return Findings(
        title="Methods on models whose circuit is known",
        sign=note,
        results={"rows": rows, "truths": truths, "note": note},
        blocks=blocks(rows, truths),
    )


def rates(setting: "Setting", method: str, truth: "Circuit") -> dict[str, Any]:
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
    setting: "Setting", method: str, truth: "Circuit"
) -> tuple["EdgeScores", "Circuit", list[tuple[float, float]]]:
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
    """Area under the ROC curve of edges, method by ablation; then every rate of every model."""
    ablations, methods = (tuple(dict.fromkeys(row[key] for row in rows)) for key in ("ablation", "method"))
    table = tuple((m, *(_mean(rows, m, a, key) for a in ablations for key in RATES[:2])) for m in methods)
    columns = (Column(name="method"), *_columns(f"{a}, {key.split()[0]}s" for a in ablations for key in RATES[:2]))
    best = max(methods, key=lambda m: sum(_mean(rows, m, a, RATES[0]) or 0.0 for a in ablations))
    count = len({row["model"] for row in rows})
    parts: list[Block] = [
        Lede(text=f"{best} finds most of the true edges of {count} known models."),
        Table(
            title="Area under the ROC curve, mean over models",
            note="1 finds every true edge (or node) before any other, .5 is chance.",
            columns=columns,
            rows=table,
        ),
    ]
    for ablation in ablations:
        own = [row for row in rows if row["ablation"] == ablation]
        cells = tuple(
            (
                row["model"],
                row["method"],
                f"{row['true_edges']} of {row['all_edges']}",
                *(row[r] for r in RATES),
                row["note"],
            )
            for row in own
        )
        heads = (Column(name="model"), Column(name="method"), Column(name="true edges"), *_columns(RATES))
        title = f"Every model, {ablation} ablation"
        notes = (*heads, Column(name="why not", narrow=False))
        parts.append(Table(title=title, columns=notes, rows=cells, where="page"))
    true = tuple((name, ", ".join(edges)) for name, edges in truths.items())
    heads = (Column(name="model and ablation"), Column(name="edges"))
    return [*parts, Table(title="True circuits", columns=heads, rows=true, folded=True)]


def _columns(names: Any) -> tuple[Column, ...]:
    return tuple(Column(name=name, style="number", decimals=3) for name in names)


def _mean(rows: Sequence[Mapping[str, Any]], method: str, ablation: str, rate: str) -> float | None:
    """Mean of a rate over the models to which the method applies."""
    from circuitome.studies.pieces import finite

    own = [finite(row[rate]) for row in rows if (row["method"], row["ablation"]) == (method, ablation)]
    known = [value for value in own if value is not None]
    return sum(known) / len(known) if known else None


STUDY = Study("known", Known, run, work)
