"""Importances over a corpus: sums of the routes' own numbers, whatever the batch, and groups by label."""

import pytest
import torch
from families import CONFIGS, tiny

from circuitome.discovery.routes.importance import _piece, route_importance, token_labels
from circuitome.discovery.routes.tracing import RouteSettings, trace
from circuitome.errors import InputError, UnknownNameError

TEXTS = [[5, 17, 3, 44, 17, 9, 28], [8, 9, 10], [44, 3, 5, 5, 6, 11, 2, 9]]
FAST = ("gemma2", "neox-parallel", "gpt2")


SEEDS = {"neox-sequential": 1, "opt": 1}
"""With seed 0 an MLP outweighs the stream at one token there, so that no route reaches it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_importance_is_the_mean_over_tokens_of_what_routes_show(name):
    model = tiny(name, seed=SEEDS.get(name, 0))
    found = route_importance(model, TEXTS)
    n, heads = found.n_layers, torch.zeros(found.n_layers, found.n_heads)
    mlps, tokens = torch.zeros(n), 0
    everywhere = [list(range(len(text))) for text in TEXTS]
    for graphs in trace(model, TEXTS, everywhere, RouteSettings(1e-9)):
        for place, graph in enumerate(graphs):
            tokens += 1
            for layer in range(n):
                into = f"x{layer + 1}@{place}" if model.graph.parallel else f"mid{layer}@{place}"
                heads[layer] += graph.incoming[into].attention.sum(1)
                mlps[layer] += graph.incoming[f"x{layer + 1}@{place}"].mlp
    torch.testing.assert_close(found.heads("all"), heads / tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.mlps("all"), mlps / tokens, atol=1e-5, rtol=1e-5)
    assert found.tokens("all") == tokens == 18


def test_batches_and_order_do_not_matter():
    model = tiny("gemma2")
    whole = route_importance(model, TEXTS)
    small = route_importance(model, TEXTS, max_memory=11 * model.bytes_per_token(gradients=False))
    torch.testing.assert_close(whole.sums, small.sums, atol=1e-5, rtol=1e-5)
    turned = route_importance(model, TEXTS[::-1])
    torch.testing.assert_close(whole.mean, turned.mean, atol=1e-6, rtol=1e-5)


def test_groups_by_text_and_by_token_add_up():
    model = tiny("gpt2")
    whole = route_importance(model, TEXTS)
    by_text = route_importance(model, TEXTS, ["a", "b", "a"])
    assert by_text.groups == ("a", "b")
    alone = route_importance(model, [TEXTS[1]])
    torch.testing.assert_close(by_text.heads("b"), alone.heads("all"), atol=1e-6, rtol=1e-5)
    by_token = route_importance(model, TEXTS, token_labels(model, TEXTS, "position"))
    assert by_token.groups == ("first", "1-3", "4-15")
    assert [by_token.tokens(g) for g in by_token.groups] == [3, 8, 7]
    weights = torch.tensor([by_token.tokens(g) for g in by_token.groups]) / 18
    torch.testing.assert_close((by_token.mean * weights[:, None]).sum(0), whole.mean[0], atol=1e-6, rtol=1e-5)


def test_general_and_specific_heads():
    found = route_importance(tiny("gpt2"), TEXTS, ["a", "b", "c"])
    name, least = found.general(1)[0]
    assert least == pytest.approx(min(found.estimate(name, g).value for g in "abc"), abs=1e-6)
    name, lead = found.specific("b", 1)[0]
    others = max(found.estimate(name, g).value for g in "ac")
    assert lead == pytest.approx(found.estimate(name, "b").value - others, abs=1e-6)
    two = route_importance(tiny("gpt2"), TEXTS, ["a", "b", "a"])
    part = two.estimate("m1", "a")
    assert part.low < part.value < part.high and part.n == 2


def test_pieces_of_words():
    assert [_piece(text, i) for i, text in enumerate(["The", " cat", "tle", " 5", ".", " ("])] == [
        "word start", "word start", "inside word", "word start", "other", "other",
    ]  # fmt: skip


def test_bad_input_is_told():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="no texts"):
        route_importance(model, [])
    with pytest.raises(InputError, match="no tokens"):
        route_importance(model, [[3], []])
    with pytest.raises(InputError, match="2 labels for 3 texts"):
        route_importance(model, TEXTS, ["a", "b"])
    with pytest.raises(InputError, match="Text 1 has 3 tokens and 1 labels"):
        route_importance(model, TEXTS, [["x"] * 7, ["x"], ["x"] * 8])
    with pytest.raises(UnknownNameError, match="no group 'b'"):
        route_importance(model, TEXTS).heads("b")
    with pytest.raises(InputError, match="nothing is specific"):
        route_importance(model, TEXTS).specific("all")
    with pytest.raises(UnknownNameError, match="subword"):
        token_labels(model, TEXTS, "subwords")
