"""One number for a whole curve of faithfulness over size: CPR (how much is carried) and CMD (how far from the model).

Source: Mueller et al. 2025, arXiv:2504.13151 (MIB), with its limits: sizes are shares of all edges from .001 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.integrate import trapezoid

from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the benchmark, as shares of the graph's edges."""


@dataclass(frozen=True)
class AreaUnderCurve:
    """Areas of a faithfulness curve f(p), p the share of edges. The linear axis weighs p from .5 to 1 half."""

    cpr: float
    """Integral of f dp from the first share to the last: .999 for a circuit that carries all at every size; may be more
    where circuits overshoot."""
    cmd: float
    """Integral of |1 - f| dp: 0 for one that behaves as the model at every size."""
    cpr_log: float
    """Mean of f over the logarithm of p: every decade counts alike."""
    cmd_log: float
    """Mean of |1 - f| over the logarithm of p."""


def area_under_curve(shares: Sequence[float], faithfulness: Sequence[float]) -> AreaUnderCurve:
    """Trapezoidal areas of `faithfulness` at `shares` of the edges, on a linear and on a logarithmic axis.

    Raises `InputError` unless shares ascend from above 0 to at most 1 and there are at least two.
    """
    if len(shares) != len(faithfulness) or len(shares) < 2:
        raise InputError(f"An area needs at least two points; got {len(shares)} sizes, {len(faithfulness)} values.")
    if not shares[0] > 0 or shares[-1] > 1 or any(a >= b for a, b in pairwise(shares)):
        raise InputError(f"Sizes must ascend within (0, 1]; got {list(shares)}.")
    curve, missing = np.array(faithfulness), np.abs(1 - np.array(faithfulness))
    logs = np.log(shares)
    span = logs[-1] - logs[0]
    return AreaUnderCurve(
        float(trapezoid(curve, shares)),
        float(trapezoid(missing, shares)),
        float(trapezoid(curve, logs) / span),
        float(trapezoid(missing, logs) / span),
    )


def benchmark_sizes(graph: Graph) -> tuple[int, ...]:
    """The benchmark's sizes in edges of `graph`, at least one each; equal ones once."""
    return tuple(dict.fromkeys(max(1, round(share * graph.n_edges)) for share in SHARES))
