"""Routes: every importance against explicit parts, whatever the architecture, batch or threshold."""

import json
import sys

import networkx as nx
import pytest
import torch
from families import CONFIGS, tiny
from referee import inputs_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from circuitome.discovery.routes import forward
from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.graph import split_node
from circuitome.discovery.routes.tracing import routes
from circuitome.errors import InputError, NumericsError, UnknownNameError
from circuitome.models.attention import attention_rows
from circuitome.models.loading import load

IDS = [5, 17, 3, 44, 17, 9, 28]
FAST = ("gemma2", "neox-parallel", "gpt2")
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def parts_of(model, ids):
    """By node name: its residual [d], attention parts [head, key, d], MLP, biases, and their total, all written out."""
    seen = {}
    with torch.no_grad():
        run = RoutePass.of(model, inputs_of(model, tuple(ids)))
        patterns = {}
        with model.watching_attention(patterns.__setitem__):
            activations = model.record(run.inputs)
        for layer, block in enumerate(model.blocks):
            v = block.split(activations.projected[layer])[0, :, model.heads.q + model.heads.kv :]
            zero_out = block.output(torch.zeros_like(activations.z[layer][:, :1]))[0, 0]
            after = activations.resid_pre[layer + 1] if layer + 1 < len(model.blocks) else activations.final
            for p in range(len(ids)):
                heads = torch.zeros(model.heads.q, p + 1, model.d_model)
                for h in range(model.heads.q):
                    z = torch.zeros(p + 1, model.heads.q, model.heads.width)
                    kv = model.graph.kv_head(h)
                    z[:, h] = patterns[layer][0, h, p, : p + 1, None] * v[: p + 1, kv]
                    heads[h] = block.output(z.flatten(1)) - zero_out
                if block.attention_post:
                    whole = block.output(activations.z[layer][:, p])[0]
                    root = (whole.square().mean() + block.attention_post.eps).sqrt()
                    heads = heads / root * block.attention_post.gain
                down = block.mlp_writer.bias if getattr(block.mlp_writer, "bias", None) is not None else 0
                mlp = activations.mlp_out[layer][0, p] - down
                mlp_bias = torch.zeros(model.d_model) + down
                none = torch.zeros(model.d_model)
                pre = activations.resid_pre[layer][0, p]
                if model.graph.parallel:
                    seen[f"x{layer + 1}@{p}"] = (pre, heads, mlp, zero_out, mlp_bias, after[0, p])
                else:
                    mid = activations.resid_mid[layer][0, p]
                    seen[f"mid{layer}@{p}"] = (pre, heads, none, zero_out, none, mid)
                    seen[f"x{layer + 1}@{p}"] = (mid, heads[:, :0], mlp, none, mlp_bias, after[0, p])
    return seen


def brute(parts, norm="l1"):
    """Importances of one node's parts, straight from the definition, float64."""
    *parts, total = (part.double() for part in parts)
    order = {"l1": 1, "l2": 2}[norm]
    near = [(total.norm(order) - (total - part).norm(order, dim=-1)).clamp(min=0) for part in parts]
    whole = sum(float(part.sum()) for part in near) or 1.0  # where no part helps, all are 0
    return [part / whole for part in near]


@pytest.fixture(scope="module")
def written():
    """Model and explicit parts of an architecture, made once."""
    made = {}

    def get(name):
        if name not in made:
            model = tiny(name)
            made[name] = (model, parts_of(model, IDS))
        return made[name]

    return get


@pytest.mark.parametrize("name", EVERY)
def test_parts_of_every_node_add_up(name, written):
    _, parts = written(name)
    for residual, heads, mlp, a_bias, m_bias, total in parts.values():
        torch.testing.assert_close(residual + heads.sum((0, 1)) + mlp + a_bias + m_bias, total, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", EVERY)
def test_importances_equal_explicit_parts(name, norm, written):
    model, parts = written(name)
    graph = routes(model, IDS, threshold=1e-7, norm=norm)
    assert len(graph.incoming) > len(IDS) * (len(model.blocks) - 1)
    for node, found in graph.incoming.items():
        residual, heads, mlp, a_bias, m_bias = brute(parts[node], norm)
        torch.testing.assert_close(found.attention.double(), heads, atol=3e-6, rtol=1e-5)
        single = [found.residual, found.mlp, found.attention_bias, found.mlp_bias]
        assert single == pytest.approx([float(t) for t in (residual, mlp, a_bias, m_bias)], abs=3e-6)
        expected = float(residual + heads.sum() + mlp + a_bias + m_bias)
        assert found.total() == pytest.approx(expected, abs=1e-5) and round(expected, 9) in (0, 1)


def test_biases_are_parts_of_their_own(written):
    """GPT-2 has both biases, Llama none."""
    found = routes(written("gpt2")[0], IDS, threshold=1e-6).incoming.values()
    assert any(parts.attention_bias for parts in found) and any(parts.mlp_bias for parts in found)
    none = routes(tiny("llama"), IDS, threshold=1e-6).incoming.values()
    assert not any(parts.attention_bias or parts.mlp_bias for parts in none)


@pytest.mark.parametrize("name", FAST)
def test_route_is_what_the_threshold_reaches(name, written):
    """Kept edges are those of at least the threshold into reached nodes, from explicit parts alone."""
    model, parts = written(name)
    tau = 0.1
    expected, todo = {}, [f"x{len(model.blocks)}@{len(IDS) - 1}"]
    while todo:
        node = todo.pop()
        kind, p = str(split_node(node)[0]), split_node(node)[1]
        if node not in parts or node in expected:
            continue
        residual, heads, mlp, a_bias, m_bias = brute(parts[node])
        layer = int(kind[3:]) if kind.startswith("mid") else int(kind[1:]) - 1
        by_key = heads.sum(0)
        into = {f"m{layer}@{p}": float(mlp), f"a{layer}.bias@{p}": float(a_bias), f"m{layer}.bias@{p}": float(m_bias)}
        if len(by_key):
            by_key[p] += residual
            into |= {f"x{layer}@{k}": float(share) for k, share in enumerate(by_key)}
        else:
            into |= {f"mid{layer}@{p}": float(residual)}
        expected[node] = {source: share for source, share in into.items() if share >= tau}
        todo += expected[node]
        if f"m{layer}@{p}" in expected[node]:
            todo.append(f"x{layer}@{p}" if model.graph.parallel else f"mid{layer}@{p}")
    graph = routes(model, IDS, threshold=tau)
    found = {node: {} for node in graph.incoming}
    for edge in graph.edges:
        if edge.kind != "reads":
            found[edge.target][edge.source] = edge.importance
    assert found.keys() == expected.keys()
    for node, into in found.items():
        assert into == pytest.approx(expected[node], abs=1e-5)


def test_same_token_keeps_both_numbers(written):
    graph = routes(written("gpt2")[0], IDS, threshold=0.01)
    for edge in graph.edges:
        if edge.kind == "stay" and edge.heads:
            assert edge.importance == pytest.approx(edge.residual + sum(edge.heads), abs=1e-6)
    assert any(edge.kind == "stay" and edge.residual and sum(edge.heads) for edge in graph.edges)


def same(a, b, tolerance=2e-6):
    assert a.tokens == b.tokens and a.incoming.keys() == b.incoming.keys()
    for node, parts in a.incoming.items():
        other = b.incoming[node]
        torch.testing.assert_close(parts.attention, other.attention, atol=tolerance, rtol=0)
        assert parts.residual == pytest.approx(other.residual, abs=tolerance)
        assert parts.mlp == pytest.approx(other.mlp, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "neox-parallel", pytest.param("opt", marks=pytest.mark.slow)])
def test_batch_and_padding_do_not_matter(name):
    model = tiny(name)
    prompts = [IDS, IDS[:3], IDS[::-1], IDS + IDS]
    together = routes(model, prompts, threshold=0.02)
    budget = 18 * model.bytes_per_token(gradients=False)
    for prompt, one, small in zip(
        prompts, together, routes(model, prompts, threshold=0.02, max_memory=budget), strict=True
    ):
        same(one, routes(model, prompt, threshold=0.02))
        same(one, small)


@pytest.mark.parametrize("name", EVERY)
def test_long_prompts_have_only_the_rows_of_attention_that_are_needed(name, monkeypatch):
    model, prompts, rows = tiny(name), [IDS, IDS[:3], IDS + IDS], []
    whole = routes(model, prompts, threshold=0.05)
    monkeypatch.setattr(forward, "PATTERN_NUMBERS", 0)

    def noting(*given):
        rows.append(given[-1].tolist())
        return attention_rows(*given)

    monkeypatch.setattr(forward, "attention_rows", noting)
    for one, other in zip(whole, routes(model, prompts, threshold=0.05), strict=True):
        same(one, other)
    assert rows and any(len(some) < 2 * len(IDS) for some in rows)


def test_position_counts_from_both_ends_and_later_tokens_do_not_matter():
    model = tiny("qwen2")
    cut = routes(model, IDS[:4], threshold=0.02)
    same(cut, routes(model, IDS, position=3, threshold=0.02))
    same(cut, routes(model, IDS, position=-4, threshold=0.02))


def test_a_higher_threshold_needs_no_new_pass(written):
    model = written("gpt2")[0]
    low = routes(model, IDS, threshold=0.01)
    high = routes(model, IDS, threshold=0.08)
    ends = [[(edge.source, edge.target, edge.kind) for edge in graph.edges] for graph in (low.at(0.08), high, low)]
    assert ends[0] == ends[1] and len(ends[1]) < len(ends[2])
    with pytest.raises(InputError, match=r"made at 0\.08"):
        high.at(0.01)


def test_renormalised_nodes_sum_to_one_again(written):
    graph = routes(written("gpt2")[0], IDS, threshold=0.05, renormalize=True)
    plain = routes(written("gpt2")[0], IDS, threshold=1e-6)
    for node, parts in graph.incoming.items():
        assert parts.total() == pytest.approx(1, abs=1e-5)
        before = plain.incoming[node].attention
        kept = torch.where(before >= 0.05, before, 0)
        assert bool(((parts.attention > 0) == (kept > 0)).all())
    with pytest.raises(InputError, match="renormalised"):
        graph.at(0.5)


def test_flow_is_kept_where_nothing_is_cut(written):
    """With every edge on the route, all that leaves the target ends in embeddings and biases."""
    graph = routes(written("gpt2")[0], IDS, threshold=1e-9)
    ends = sum(flow for node, flow in graph.flow.items() if node.startswith("x0@") or ".bias" in node)
    assert ends == pytest.approx(1, abs=1e-4)


def test_non_causal_models_see_later_tokens():
    model = load("tracr-reverse")
    ids = model.encode("1 2 3")
    graph = routes(model, ids, position=1, threshold=0.01)
    assert len(graph.tokens) == len(ids)
    assert any(split_node(edge.source)[1] > split_node(edge.target)[1] for edge in graph.edges)
    assert all(parts.total() == pytest.approx(1, abs=1e-5) for parts in graph.incoming.values())


def test_known_induction_model_shows_its_circuit():
    """After A B C A, what says B comes from B, over an induction head."""
    model = load("known-induction")
    words = model.tokenizer.convert_ids_to_tokens(range(1, 5))
    text = " ".join([words[0], words[1], words[2], words[0]])
    graph = routes(model, text, threshold=0.05)
    assert graph.predictions[0][0] == words[1]
    b = graph.tokens.index(words[1])
    assert any(edge.kind == "attention" and edge.source == f"x1@{b}" for edge in graph.edges)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pair"), [("gpt2", (11, 29)), ("gemma2", (29, 11)), ("neox-parallel", (11, 29))])
def test_contrast_parts_sum_to_the_logit_difference(name, pair, monkeypatch, written):
    model, parts = written(name)
    module = sys.modules["circuitome.discovery.routes.tracing"]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "contrast_tokens", lambda model, contrast: pair)
    graph = routes(model, IDS, threshold=1e-7, contrast=("a", "b"))
    top = parts[graph.target]
    with torch.no_grad():
        normed = model.final_norm.module(top[-1])
        weight = model.unembedding.weight
        assert graph.logit_diff == pytest.approx(float(normed @ (weight[pair[0]] - weight[pair[1]])), abs=1e-4)
        apart = (weight[pair[0]] - weight[pair[1]]) * model.final_norm.gain
        direction = model.final_norm.centre(apart) / model.final_norm.sigma(top[-1])
    for node in (graph.target, *(n for n in graph.incoming if n.endswith(f"@{len(IDS) - 1}"))):
        residual, heads, mlp, a_bias, m_bias, total = parts[node]
        signed = [part @ direction for part in (residual, heads, mlp, a_bias, m_bias)]
        assert sum(float(s.sum()) for s in signed) == pytest.approx(float(total @ direction), abs=1e-4)
        whole = sum(float(s.clamp(min=0).sum()) for s in signed) or 1.0
        found = graph.incoming[node]
        torch.testing.assert_close(found.attention, signed[1].clamp(min=0) / whole, atol=1e-5, rtol=1e-4)
        assert found.residual == pytest.approx(max(0, float(signed[0])) / whole, abs=1e-5)
    plain = routes(model, IDS, threshold=1e-7)
    others = [n for n in graph.incoming if not n.endswith(f"@{len(IDS) - 1}")]
    assert others
    for node in others:  # tokens before the last are measured by proximity
        torch.testing.assert_close(graph.incoming[node].attention, plain.incoming[node].attention, atol=1e-6, rtol=0)


def test_exports(tmp_path, written):
    graph = routes(written("gpt2")[0], IDS, threshold=0.05)
    graph.to_json(tmp_path / "route.json")
    data = json.loads((tmp_path / "route.json").read_text())
    assert [edge["source"] for edge in data["edges"]] == [edge.source for edge in graph.edges]
    graph.to_graphml(tmp_path / "route.graphml")
    network = nx.read_graphml(tmp_path / "route.graphml")
    assert set(network) == set(graph.nodes) and network.number_of_edges() == len(graph.edges)
    edge = graph.edges[0]
    assert network.edges[edge.source, edge.target]["importance"] == pytest.approx(edge.importance)
    assert network.nodes[graph.target] == {
        "kind": "x3", "layer": 3, "position": len(IDS) - 1, "token": str(IDS[-1]), "flow": 1.0,
    }  # fmt: skip


BAD = [
    ({"prompts": []}, r"has no tokens"),
    ({"position": 7}, r"Position 7 is outside the prompt, which has 7 tokens: 0 to 6"),
    ({"position": -8}, r"Position -8 is outside"),
    ({"threshold": 0.0}, r"between 0 and 1, got 0"),
    ({"threshold": 1.0}, r"between 0 and 1, got 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_told(change, message):
    with pytest.raises(InputError, match=message):
        routes(tiny("gpt2"), **{"prompts": IDS, **change})


def test_unknown_norm_and_bad_contrast_are_told():
    model = tiny("gpt2")
    words = WordLevel({"[UNK]": 0, **{f"w{i}": i for i in range(1, 61)}}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    with pytest.raises(UnknownNameError, match="no norm"):
        routes(model, "w3 w4", norm="linf")
    with pytest.raises(InputError, match=r"'w5 w6 w7' must be one token, got 2: w6\|w7"):
        routes(model, "w3 w4", contrast=("w5 w6 w7", "w8"))
    with pytest.raises(InputError, match="one and the same"):
        routes(model, "w3 w4", contrast=("w5", "w5"))
    assert routes(model, "w3 w4", contrast=("w5", "w6")).contrast == ("w5", "w6")


def test_nan_is_told():
    model = tiny("gpt2")
    with torch.no_grad():
        model.blocks[1].output.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="NaN"):
        routes(model, IDS)


@pytest.mark.slow
def test_smollm2_parts_add_up_and_names_move(smollm2):
    graph = routes(smollm2, "When Mary and John went to the store, John gave a drink to")
    assert graph.predictions[0][0] == " Mary"
    assert all(parts.total() == pytest.approx(1, abs=1e-5) for parts in graph.incoming.values())
    assert [head for head, _ in graph.heads()[:5] if head.startswith("a23.")]
