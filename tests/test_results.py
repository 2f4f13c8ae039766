"""Intervals hold the truth as often as they say, also with few prompts, or few templates."""

import pytest
import torch

from circuitome.results import bootstrap, mean

REPEATS = 400


def covered(n: int, groups: tuple[int, ...], intraclass: float, skewed: bool = False) -> float:
    """Share of repeats in which a 95 % interval of a mean holds the truth, 0."""
    generator = torch.Generator().manual_seed(n)
    count = 0
    for repeat in range(REPEATS):
        own = torch.randn(n, generator=generator)
        shared = torch.randn(max(groups, default=0) + 1, generator=generator)[list(groups)] if groups else 0.0
        values = (1 - intraclass) ** 0.5 * own + intraclass**0.5 * shared
        estimate = mean(values, "logits", seed=repeat, groups=groups)
        count += estimate.low <= 0 <= estimate.high
    return count / REPEATS


@pytest.mark.parametrize(
    ("n", "groups", "intraclass"),
    [
        (64, tuple(i % 4 for i in range(64)), 0.5),
        (64, tuple(i % 12 for i in range(64)), 0.5),
        (8, (), 0.0),
        (64, (), 0.0),
    ],
)
def test_intervals_cover_what_they_say(n, groups, intraclass):
    assert 0.92 <= covered(n, groups, intraclass) <= 0.99


def test_intervals_over_prompts_alone_are_too_narrow_where_templates_differ():
    groups = tuple(i % 4 for i in range(64))
    generator, count = torch.Generator().manual_seed(0), 0
    for repeat in range(REPEATS):
        values = 0.5**0.5 * (torch.randn(64, generator=generator) + torch.randn(4, generator=generator)[list(groups)])
        estimate = mean(values, "logits", seed=repeat)
        count += estimate.low <= 0 <= estimate.high
    assert count / REPEATS < 0.6


def test_an_estimate_says_what_its_interval_is_over():
    values = torch.arange(6.0)
    assert mean(values, "logits").over == "6 prompts"
    assert mean(values, "logits", groups=(0, 0, 1, 1, 2, 2)).over == "6 prompts of 3 templates"
    assert mean(values, "logits", groups=(0,) * 6).over == "6 prompts"  # one template: nothing to resample but prompts
    assert mean(values, "logits", groups=tuple(range(6))).over == "6 prompts"


def test_one_prompt_has_no_interval():
    estimate = bootstrap(torch.ones(1, 2), lambda means: means[:, 0] / means[:, 1], "share")
    assert estimate.value == 1.0
    assert estimate.low != estimate.low
