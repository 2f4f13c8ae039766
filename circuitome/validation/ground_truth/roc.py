"""How well scores or circuits find a circuit that is known.

Sources: Conmy et al. 2023, arXiv:2304.14997, section 4 (ROC of thresholds, its area from below); Fawcett 2006.
"""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores

Point = tuple[float, float]
"""Share of false edges that were found, share of true ones."""


def auroc(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> float:
    """Chance that a true item scores above a false one, ties counting one half. In [0, 1]; .5 is chance.

    Raises `InputError` where all items or none are true, or a score is NaN.
    """
    positives, n = int(truth.sum()), len(truth)
    _check_both(positives, n)
    if bool(scores.isnan().any()):
        raise InputError(f"{int(scores.isnan().sum())} of {n} scores are NaN.")
    ranks = rankdata(scores.double().numpy())
    above = float(ranks[truth.numpy()].sum()) - positives * (positives + 1) / 2
    return above / (positives * (n - positives))


def edge_auroc(scores: EdgeScores, truth: Circuit) -> float:
    """`auroc` of |score| over all edges of the graph. Raises as `auroc`, and `InputError` for another graph."""
    _check(scores, truth)
    mask = scores.graph.mask
    return auroc(scores.values[mask].abs(), truth.mask[mask])


def node_auroc(scores: EdgeScores, truth: Circuit) -> float:
    """`auroc` over writers; one's score is the largest |score| of the edges that leave it, true if a true edge does.

    Raises as `edge_auroc`.
    """
    _check(scores, truth)
    return auroc(scores.values.abs().amax(1), truth.mask.any(1))


def roc_points(circuits: Iterable[Circuit], truth: Circuit) -> list[Point]:
    """One point for each circuit.

    Raises `InputError` where all edges or none are true, or a circuit belongs to another graph.
    """
    true, false = len(truth), len(~truth)
    _check_both(true, true + false)
    return [(len(circuit - truth) / false, len(circuit & truth) / true) for circuit in circuits]


def score_points(scores: EdgeScores, truth: Circuit) -> list[Point]:
    """The points of all circuits {|score| >= t}: edges of equal score come in together."""
    levels = scores.values[scores.graph.mask].abs().unique().tolist()
    return roc_points((scores.above(level) for level in levels), truth)


def pessimistic_area(points: Iterable[Point]) -> float:
    """Area under the points' lower staircase, (0, 0) and (1, 1) included.

    Sum over neighbours on the Pareto front of (1 - x[i+1]) (y[i+1] - y[i]): between two points nothing is taken for
    granted. Chance points on the diagonal give less than one half. Source: Conmy et al. 2023, appendix.
    """
    area, height = 0.0, 0.0
    for x, y in sorted([(0.0, 0.0), (1.0, 1.0), *points], key=lambda point: (point[0], -point[1])):
        if y > height:
            area += (1 - x) * (y - height)
            height = y
    return area


def precision_recall(circuit: Circuit, truth: Circuit) -> tuple[float, float]:
    """Share of `circuit` that is true, and share of the truth that it holds; NaN for an empty denominator."""
    both = len(circuit & truth)
    return (both / len(circuit) if len(circuit) else float("nan"), both / len(truth) if len(truth) else float("nan"))


def _check_both(positives: int, n: int) -> None:
    if not 0 < positives < n:
        raise InputError(f"An ROC curve needs true and false items; {positives} of {n} are true.")


def _check(scores: EdgeScores, truth: Circuit) -> None:
    if scores.graph != truth.graph:
        raise InputError(f"The true circuit belongs to another graph: {truth.graph}; the scores to {scores.graph}.")
