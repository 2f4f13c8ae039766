"""Proximity: the numbers of the published tests, and the fast form against explicit parts."""

import pytest
import torch

from circuitome.discovery.routes import proximity as module
from circuitome.discovery.routes.proximity import (
    attention_projection,
    attention_proximity,
    check_norm,
    importances,
    proximity,
    renormalized,
)
from circuitome.errors import UnknownNameError

T = torch.tensor


def shares(parts, total, norm="l2"):
    """Importances of the parts of one node."""
    near = proximity(T(parts)[None], T(total)[None, None], norm)
    return importances(near)[0][0].tolist()


# Numbers of facebookresearch/llm-transparency-tool, routes/test_contributions.py
PUBLISHED = [
    ("attention", [[2.0, 1.0], [1.0, 1.0], [-1.0, 0.0]], [2.0, 2.0], [0.56387, 0.43613, 0]),
    ("neurons", [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]], [4.0, 4.0], [0.25, 0.25, 0.5]),
    ("one way", [[10.0, 10.0], [0.0, 1.0], [1.0, 0.0], [-21.0, -1.0]], [-10.0, 10.0], [0, 1, 0, 0]),
    ("mlp alone", [[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0], [0, 1]),
]


@pytest.mark.parametrize(
    ("parts", "total", "expected"), [case[1:] for case in PUBLISHED], ids=[c[0] for c in PUBLISHED]
)
def test_published_numbers(parts, total, expected):
    assert shares(parts, total) == pytest.approx(expected, abs=5e-5)


def test_published_attention_numbers_through_the_fast_form():
    near = attention_proximity(
        torch.ones(1, 1, 2), T([[[1.0, 1.0], [-1.0, 0.0]]]), torch.eye(2)[None], T([[2.0, 2.0]]), "l2"
    )
    residual = proximity(T([[2.0, 1.0]]), T([[2.0, 2.0]]), "l2")
    heads, rest = importances(near, residual)
    assert heads.flatten().tolist() == pytest.approx([0.43613, 0], abs=5e-5)
    assert rest.tolist() == pytest.approx([0.56387], abs=5e-5)


def test_published_renormalisation():
    blocks, residual = renormalized(0.1, T([[0.05, 0.15], [0.05, 0.05]]), T([0.8, 0.9]))
    torch.testing.assert_close(blocks, T([[0, 0.157894], [0, 0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(residual, T([0.842105, 1.0]), atol=1e-5, rtol=0)


def explicit(pattern, values, weights, total, norm):
    """Every part written out, float64."""
    parts = torch.einsum("nhk,hke,hed->nhkd", *(t.double() for t in (pattern, values, weights)))
    total = total.double()[:, None, None]
    order = {"l1": 1, "l2": 2}[norm]
    return (total.norm(order, dim=-1) - (total - parts).norm(order, dim=-1)).clamp(min=0)


def case(seed=0, nodes=5, heads=3, keys=7, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    pattern = torch.rand(nodes, heads, keys, generator=g) ** 4
    for node in range(nodes):
        pattern[node, :, 1 + node :] = 0  # what a node does not see
        pattern[node, :, : max(0, node - 2)] = 0  # what has left its window
    values, weights = torch.randn(heads, keys, 4, generator=g), torch.randn(heads, 4, 11, generator=g)
    total = torch.einsum("nhk,hke,hed->nd", pattern, values, weights) + scale * torch.randn(nodes, 11, generator=g)
    total[:, ::4] = 0
    return pattern, values, weights, total


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("piece", [1, 60, 400, 10**6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_fast_form_equals_explicit_parts(norm, piece, scale, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    given = case(scale=scale)
    expected = explicit(*given, norm=norm)
    assert expected.count_nonzero() > 5
    torch.testing.assert_close(attention_proximity(*given, norm=norm).double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_tiny_parts_are_not_lost_to_rounding(norm):
    pattern, values, weights, total = case(scale=10)
    total[:, 1] = 1e4  # a massive activation, as at attention sinks
    pattern = pattern * 1e-6
    expected = explicit(pattern, values, weights, total, norm)
    found = attention_proximity(pattern, values, weights, total, norm).double()
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-3)
    assert float(found[expected == 0].abs().max()) < 1e-8


def test_projection_equals_explicit_parts():
    pattern, values, weights, direction = case()
    parts = torch.einsum("nhk,hke,hed->nhkd", pattern, values, weights)
    expected = (parts * direction[:, None, None]).sum(-1)
    torch.testing.assert_close(attention_projection(pattern, values, weights, direction), expected)


def test_where_no_part_helps_all_are_zero():
    near = proximity(T([[[1.0, 0.0], [-1.0, 0.0]]]), torch.zeros(1, 1, 2))
    assert importances(near)[0].tolist() == [[0, 0]]


def test_l1_parts_point_along_their_sum():
    """Without overshooting, L1 importances are shares of |y|: a quarter and three quarters."""
    assert shares([[1.0, -0.5], [3.0, -1.5]], [4.0, -2.0], "l1") == pytest.approx([0.25, 0.75])


def test_unknown_norm_is_told():
    with pytest.raises(UnknownNameError, match=r"no norm 'l3'.*'l1'"):
        check_norm("l3")
