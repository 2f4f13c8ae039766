"""Intervals hold the truth as often as they say, also with few prompts, or few templates."""

import pytest
import torch

from circuitome.errors import UnknownNameError
from circuitome.results import EffectMap, Samples, bootstrap, intervals, mean, over

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert mean(values, "logits", groups=tuple(range(6))).over == "6 prompts" == over(6)
    assert over(6, (0, 0, 1, 1, 2, 2)) == "6 prompts of 3 templates"


def test_one_prompt_has_no_interval():
    estimate = bootstrap(torch.ones(1, 2), lambda means: means[:, 0] / means[:, 1], "share")
    assert estimate.value == 1.0
    assert estimate.low != estimate.low


def table(samples, **more) -> Samples:
    return Samples(samples=samples, axes=(("a0", "a1"), ("h0", "h1")), unit="logits", **more)


def test_a_table_gives_every_cell_as_the_estimate_of_that_cell():
    samples = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    groups = (0, 0, 1, 1, 2, 2)
    found = table(samples, groups=groups)
    expected = mean(samples[:, 1, 0], "logits", groups=groups)
    assert found["a1.h0"] == expected
    low, high = found.interval
    assert (float(low[1, 0]), float(high[1, 0])) == pytest.approx((expected.low, expected.high), abs=1e-6)
    with pytest.raises(UnknownNameError, match=r"a1\.h7"):
        found["a1.h7"]


def test_the_strongest_cells_come_first_and_cells_that_do_not_exist_never():
    found = table(torch.tensor([[[1.0, -3.0], [2.0, torch.nan]]] * 2))
    assert [name for name, _ in found.top(9)] == ["a0.h1", "a1.h0", "a0.h0"]
    assert [name for name, _ in found.top(2, signed=True)] == ["a1.h0", "a0.h0"]
    assert found.to_dict()["mean"] == [[1.0, -3.0], [2.0, None]]


def test_a_table_of_one_prompt_has_no_intervals():
    assert all(end.isnan().all() for end in table(torch.ones(1, 2, 2)).interval)


@pytest.mark.slow
def test_large_tables_are_resampled_in_parts_that_change_nothing():
    samples = torch.randn(5, 5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(intervals(samples)[:, 4990:], intervals(samples[:, 4990:]))


def test_results_show_themselves_in_a_line():
    effects = EffectMap(
        samples=torch.ones(3, 2, 2),
        axes=(("a0", "a1"), ("h0", "mlp")),
        unit="logits",
        name="patching heads",
        clean=torch.ones(3),
        corrupted=torch.zeros(3),
    )
    assert repr(effects) == "EffectMap(2 x 2 cells, 3 prompts, logits)"
    assert [name for name, _ in effects.top(4)] == ["a0.h0", "m0", "a1.h0", "m1"]
