"""Tests of tests: the level under the null, the power under planted effects, and single values by hand."""

import pytest
import torch
from scipy.stats import binomtest

from circuitome.errors import InputError
from circuitome.validation.tests.hypotheses import better_than_random, equivalence, holm, independence, needed_edges

REPEATS = 1000


def rate_is_at_most(rejections, alpha, repeats=REPEATS):
    """Whether so many rejections are likely enough if each has chance alpha or less."""
    return binomtest(rejections, repeats, alpha, alternative="greater").pvalue > 0.001


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
def test_equivalence_keeps_its_level_at_the_edge_of_the_null_and_finds_shifts():
    draws = torch.rand(REPEATS, 100, generator=generator())
    model = torch.zeros(100)
    at_edge = sum(equivalence((row < 0.6).float() * 2 - 1, model).rejected() for row in draws)
    shifted = sum(equivalence((row < 0.85).float() * 2 - 1, model).rejected() for row in draws[:200])
    assert rate_is_at_most(at_edge, 0.05) and at_edge > 0.01 * REPEATS
    assert shifted > 0.95 * 200


def test_equivalence_by_hand():
    same = torch.randn(40, generator=generator())
    assert equivalence(same, same).p_value == 1.0
    ties = torch.where(torch.arange(40) < 20, same, same + torch.randn(40, generator=generator(1)))
    assert not equivalence(ties, same).rejected()
    assert equivalence(same + 1, same).rejected() and equivalence(same - 1, same).rejected()
    three = equivalence(torch.tensor([1.0, 1, 1]), torch.zeros(3))
    assert three.p_value == pytest.approx(0.6**3 + 0.4**3)


@pytest.mark.slow
def test_independence_keeps_its_level_and_finds_dependence():
    scores = torch.randn(REPEATS, 2, 30, generator=generator())
    false = sum(independence(a, b, permutations=99, seed=i).rejected() for i, (a, b) in enumerate(scores))
    assert rate_is_at_most(false, 0.05) and false > 0.02 * REPEATS
    noisy = [(a, a + 0.5 * b) for a, b in scores[:100]]
    squared = [(a, a**2 + 0.1 * b) for a, b in scores[:100]]  # not seen by a correlation
    for pairs in (noisy, squared):
        assert sum(independence(a, b, permutations=99).rejected() for a, b in pairs) > 90
    assert independence(torch.ones(9), torch.randn(9)).p_value == 1.0


def test_beating_random_draws():
    values = torch.rand(REPEATS, 41, generator=generator())
    # at the edge of the null: better than 90 % of what is drawn
    at_edge = sum(better_than_random("sufficiency", 0.9, row[1:].tolist()).rejected() for row in values)
    assert rate_is_at_most(at_edge, 0.05)
    assert all(better_than_random("sufficiency", 1.1, row[1:].tolist()).rejected() for row in values[:50])
    assert better_than_random("sufficiency", 1.1, [0.0] * 29).rejected()
    assert not better_than_random("sufficiency", 1.1, [0.0] * 28).rejected()
    assert better_than_random("sufficiency", 1.0, [1.0] * 50).statistic == 0.0


def test_needed_edges_holds_over_many_edges_at_once():
    draws = generator()
    any_false = 0
    for _ in range(REPEATS // 4):
        random = torch.rand(100, generator=draws)
        edges = torch.full((20,), 0.9)  # each beats exactly 90 %
        any_false += any(one.rejected() for one in needed_edges(edges, random))
    assert rate_is_at_most(any_false, 0.05, REPEATS // 4)
    found = needed_edges(torch.tensor([2.0, 0.5]), torch.rand(100, generator=draws))
    assert [one.rejected() for one in found] == [False, True]


def test_holm_by_hand_and_bad_input():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(InputError, match="at least two"):
        equivalence(torch.ones(1), torch.ones(1))
    with pytest.raises(InputError, match="at least one"):
        better_than_random("sufficiency", 1.0, [])
