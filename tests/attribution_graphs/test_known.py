"""Attribution graphs of a model whose neurons are set by hand, and of SmolLM2."""

import pytest
import torch

import circuitome as cm
from circuitome.models.known import KnownConfig, KnownForCausalLM
from circuitome.models.model import Model


def chain():
    """Token 3 sets neuron 2 of block 0; a head that attends to all tokens alike takes that to neuron 5 of block 1."""
    hf = KnownForCausalLM(KnownConfig(num_hidden_layers=2))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.embed_tokens.weight[:, :8] = torch.eye(8)
        first, second = hf.layers
        first.fc1.weight[2, 3], first.fc2.weight[8, 2] = 1.0, 1.0
        second.self_attn.v_proj.weight[0, 8], second.self_attn.out_proj.weight[9, 0] = 1.0, 1.0
        second.fc1.weight[5, 9], second.fc2.weight[10, 5] = 2.0, 1.0
        second.fc1.weight[6, 7], second.fc2.weight[10, 6] = 2.0, 1.0  # for token 7, which is not there
        hf.lm_head.weight[5, 10] = 15.0
    return Model(hf.eval(), None, "chain")


def test_the_graph_of_a_known_chain_has_exactly_its_edges():
    graph = cm.attribution_graph(chain(), [1, 3, 2], first_token=True, node_share=1.0, edge_share=1.0)
    assert {node.name for node in graph.units()} == {"m0.n2@1", "m1.n5@2"}
    names = [node.name for node in graph.nodes]
    ends = zip(graph.sources.tolist(), graph.targets.tolist(), graph.weights.tolist(), strict=True)
    edges = {(names[i], names[j]): weight for i, j, weight in ends}
    third = pytest.approx(2 / 3)
    assert {key: weight for key, weight in edges.items() if key[1] != "logits.t5@2"} == {
        ("embed@1", "m0.n2@1"): 1.0,
        ("m0.n2@1", "m1.n5@2"): third,
    }
    assert edges["m1.n5@2", "logits.t5@2"] == pytest.approx(15 * (1 - 1 / 8) * 2 / 3)
    assert [key for key in edges if key[1] == "logits.t5@2"] == [("m1.n5@2", "logits.t5@2")]
    assert graph.replacement == pytest.approx(1.0) and graph.completeness == pytest.approx(1.0)
    assert graph["embed@1"].effect == pytest.approx(graph.logits()[0].value)
    loadings = cm.attribution_graphs.head_loadings(chain(), graph)
    assert loadings.strongest(int(loadings.edges[1]))[0][0] == "a1.h0"
    checks = cm.attribution_graphs.check_graph(chain(), graph)
    assert [node.measured for node in checks.off] == pytest.approx([node.predicted for node in checks.off])


def test_a_graph_of_smollm2_holds_its_promises(smollm2):
    graph = cm.attribution_graph(smollm2, "The capital of France is", contrast=(" Paris", " London"), expand=96)
    checks = cm.attribution_graphs.check_graph(smollm2, graph, nodes=12)
    assert checks.sums < 1e-4 and checks.differences < 1e-3
    assert checks.correlation.value > 0.75 and checks.correlation_held.value > 0.7
    strong, random = (sum(abs(node.measured) for node in some) for some in (checks.off, checks.random))
    assert strong > 20 * random
    loadings = cm.attribution_graphs.head_loadings(smollm2, graph)
    whole = loadings.heads.double().sum(-1) + loadings.bypass
    assert float((whole - graph.weights[loadings.edges, None]).abs().nan_to_num().max()) < 2e-5
    places = cm.attribution_graphs.attention_places(smollm2, graph, loadings, n=3)
    for found in cm.attribution_graphs.attention_of(smollm2, graph, [(p.head, p.query, p.key) for p in places]):
        assert float(found.raw.double().sum()) == pytest.approx(found.logit, abs=1e-4)
