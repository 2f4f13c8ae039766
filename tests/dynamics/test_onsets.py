"""Onsets: planted steps are found, smooth curves are not called sudden, and order is seen."""

import math

import pytest
import torch

import circuitome as cm
from circuitome.errors import InputError

STEPS = sorted({round(2 ** (i / 2)) for i in range(27)})
X = torch.tensor(STEPS).double().log()
SPAN = float(X[-1] - X[0])
SMOOTH = {
    "linear in log steps": X / SPAN,
    "power law": torch.exp(-0.5 * X),
    "inverse steps": torch.exp(-X),
    "linear in steps": torch.exp(X) / math.exp(SPAN),
    "wide sigmoid": torch.sigmoid((X - SPAN / 2) * 4.4 / (0.5 * SPAN)),
    "exponential late": torch.exp(-X.exp() / 3000),
}


RETURNING = {
    "exponential": torch.exp(-X.exp() / 91),
    "bump": torch.exp(-(((X / SPAN - 0.5) / 0.2) ** 2)),
    "peak": (torch.arange(len(STEPS)) == 13).double(),
}
"""Shapes that a cubic does not fit, and are no sudden change."""


def draws(curve: torch.Tensor, noise: float, n: int, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    scale = noise * float(curve.max() - curve.min())
    return curve + scale * rows**0.5 * torch.randn(n, rows, len(curve), generator=generator).double()


@pytest.mark.parametrize("background", [0.0, 1.0])
@pytest.mark.parametrize("at", [6, 12, 18])
def test_a_planted_step_is_found_within_one_checkpoint(at, background):
    curve = (torch.arange(len(STEPS)) > at).double() + background * torch.exp(-0.5 * X)
    found = [cm.dynamics.onset(STEPS, rows) for rows in draws(curve, 0.1, 40, 5)]
    near = [abs(STEPS.index(onset.step) - at) <= 1 for onset in found]
    assert sum(near) >= 0.95 * len(near)
    assert sum(onset.sudden for onset in found) >= 0.9 * len(found)
    held = [onset.low <= STEPS[at] <= onset.high for onset in found]
    assert sum(held) >= 0.9 * len(held)


@pytest.mark.parametrize("noise", [0.001, 0.03, 0.1])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_curves_are_rarely_called_sudden(name, noise):
    found = [cm.dynamics.onset(STEPS, rows) for rows in draws(SMOOTH[name], noise, 40, 1)]
    assert sum(onset.sudden for onset in found) <= 0.05 * len(found)


@pytest.mark.parametrize("name", RETURNING)
def test_shapes_that_no_cubic_fits_are_not_sudden_either(name):
    found = [cm.dynamics.onset(STEPS, rows) for rows in draws(RETURNING[name], 0.05, 20, 1)]
    assert sum(onset.sudden for onset in found) <= 0.05 * len(found)


def test_noise_that_wanders_is_rarely_called_sudden():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(60, len(STEPS), generator=generator).double()
    for i in range(1, len(STEPS)):
        noise[:, i] = 0.5 * noise[:, i - 1] + 0.75**0.5 * noise[:, i]
    found = [cm.dynamics.onset(STEPS, curve) for curve in X / SPAN + 0.1 * noise]
    assert sum(onset.sudden for onset in found) <= 0.05 * len(found)


def test_the_fit_equals_least_squares_pair_by_pair():
    curve = torch.sin(X) + (X > 4)
    x = 2 * X / SPAN - 1
    errors = {}
    for i in range(1, len(STEPS) - 2):
        for j in range(i + 1, len(STEPS) - 1):
            if j > i + 1 and X[j] - X[i] > 0.2 * SPAN:
                continue
            ramp = ((X - X[i]) / (X[j] - X[i])).clamp(0, 1)
            design = torch.stack([x**0, x, x**2, x**3, ramp], 1)
            solved = torch.linalg.lstsq(design, curve[:, None]).solution
            errors[i, j] = float((design @ solved - curve[:, None]).square().sum()), float(solved[-1])
    best = min(errors, key=lambda pair: errors[pair][0])
    found = cm.dynamics.onset(STEPS, curve)
    assert (found.step, found.end) == tuple(STEPS[i] for i in best)
    assert found.size == pytest.approx(errors[best][1], rel=1e-6)


def test_order_and_nearness_of_two_onsets():
    def at(k):
        return cm.dynamics.onset(STEPS, draws((torch.arange(len(STEPS)) > k).double(), 0.05, 1, 5)[0])

    early, next_to_it, late = at(8), at(9), at(15)
    assert cm.dynamics.precedes(early, late) == 1.0 and cm.dynamics.precedes(late, early) == 0.0
    assert cm.dynamics.precedes(early, early) == pytest.approx(0.5)
    assert early.near(next_to_it) and not early.near(late)


def test_step_zero_is_left_out_and_the_rest_is_the_same():
    curve = [0.0] * 12 + [1.0] * 13
    steps = STEPS[: len(curve)]
    assert cm.dynamics.onset([0, *steps], [5.0, *curve]).step == cm.dynamics.onset(steps, curve).step == steps[11]


@pytest.mark.parametrize(
    ("steps", "values", "words"),
    [
        ([1, 2, 4], [0.0, 1.0, 2.0], "at least 8 steps"),
        ([1, 3, 2, *range(4, 12)], [0.0] * 11, "must rise"),
        (STEPS, [math.nan] * len(STEPS), "not finite"),
        (STEPS, [0.0], "one a step"),
    ],
)
def test_bad_curves_are_refused(steps, values, words):
    with pytest.raises(InputError, match=words):
        cm.dynamics.onset(steps, values)
