"""What of a finished graph stays at a share of its influence, against the definition written out with matrices."""

from dataclasses import replace

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.attribution_graphs import within_shares
from circuitome.errors import InputError

IDS = (5, 17, 42, 8, 23, 31)
SHARES = ((1.0, 1.0), (1.0, 0.7), (0.6, 1.0), (0.5, 0.5), (0.8, 0.2), (0.0, 1.0))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def graph(request):
    return cm.attribution_graph(tiny(request.param), IDS, expand=60, node_share=0.8)


def fewest_of(values, share):
    """Places of the largest values until they have the share of the sum."""
    total, kept, passed = sum(values.values()), set(), 0.0
    for place in sorted(values, key=lambda place: -values[place]):
        if passed < share * total and values[place] > 0:
            kept.add(place)
        passed += values[place]
    return kept


def slowly(graph, node_share, edge_share):
    """Nodes by name and edges by names of their ends."""
    nodes = {node.name: node for node in graph.nodes}
    free = {name: node.influence for name, node in nodes.items() if node.kind in ("neuron", "feature", "mlp")}
    kept = fewest_of(free, node_share) | (nodes.keys() - free.keys())
    matrix = graph.matrix().double().abs()
    alone = torch.tensor([name in kept for name in nodes])
    matrix = matrix * alone[:, None] * alone
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-300)
    weights = torch.tensor([n.influence if n.kind == "logit" else 0.0 for n in graph.nodes], dtype=torch.float64)
    total = torch.linalg.inv(torch.eye(len(nodes), dtype=torch.float64) - shares.T) @ weights
    names = list(nodes)
    scores = {(names[s], names[t]): float(shares[t, s] * total[t]) for t, s in matrix.nonzero().tolist()}
    edges = fewest_of(scores, edge_share)
    while True:
        lost = {name for name in kept & free.keys() if not any(source == name for source, _ in edges)}
        lost |= {n for n in kept & free.keys() if nodes[n].kind != "mlp" and not any(end == n for _, end in edges)}
        if not lost:
            return kept, edges
        kept -= lost
        edges = {edge for edge in edges if not lost & set(edge)}


@pytest.mark.parametrize("shares", SHARES)
def test_nodes_and_edges_are_those_of_the_definition(graph, shares):
    nodes, edges = within_shares(graph, node_share=shares[0], edge_share=shares[1])
    names = [node.name for node in graph.nodes]
    ends = zip(graph.sources[edges].tolist(), graph.targets[edges].tolist(), strict=True)
    expected = slowly(graph, *shares)
    assert {name for name, kept in zip(names, nodes, strict=True) if kept} == expected[0]
    assert {(names[source], names[target]) for source, target in ends} == expected[1]


def test_files_with_errors_are_pruned_too(graph, tmp_path):
    graph.save(tmp_path / "g.json")
    back = cm.attribution_graphs.read_graph(tmp_path / "g.json")
    nodes, edges = within_shares(back, node_share=0.7, edge_share=0.6)
    expected = slowly(back, 0.7, 0.6)
    assert {node.name for node, kept in zip(back.nodes, nodes, strict=True) if kept} == expected[0]
    assert int(edges.sum()) == len(expected[1]) and any(back[name].kind == "mlp" for name in expected[0])


def test_shares_lie_between_0_and_1(graph):
    with pytest.raises(InputError, match=r"edge_share .* got 1\.5"):
        within_shares(graph, edge_share=1.5)
    empty = replace(graph, sources=graph.sources[:0], targets=graph.targets[:0], weights=graph.weights[:0])
    nodes, edges = within_shares(empty)
    assert not len(edges) and {n.kind for n, kept in zip(empty.nodes, nodes, strict=True) if kept} <= {
        "embed",
        "bias",
        "logit",
    }
