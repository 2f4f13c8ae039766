import csv
import json

import networkx as nx
import pytest
import torch

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph

GRAPH = Graph(2, 4, 2)
CIRCUIT = Circuit.of(GRAPH, ["embed->a1.kv0.v", "a0.h3->a1.h1.q", "a1.h1->m1.in", "m1->logits"])
VALUES = torch.arange(GRAPH.mask.numel()).view(GRAPH.mask.shape) * GRAPH.mask / 10


def test_circuit_comes_back(tmp_path):
    CIRCUIT.save(tmp_path / "c.safetensors")
    assert Circuit.load(tmp_path / "c.safetensors") == CIRCUIT


def test_scores_come_back(tmp_path):
    scores = EdgeScores(GRAPH, VALUES, "logits", "eap", torch.ones(3, GRAPH.n_edges))
    scores.save(tmp_path / "s.safetensors")
    back = EdgeScores.load(tmp_path / "s.safetensors")
    assert (back.graph, back.unit, back.method) == (GRAPH, "logits", "eap")
    assert torch.equal(back.values, VALUES)
    assert torch.equal(back.samples, scores.samples)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="no file"):
        Circuit.load(path)
    CIRCUIT.save(path)
    with pytest.raises(InputError, match="holds circuit; a file of scores was expected"):
        EdgeScores.load(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        Circuit.load(path)


def test_networkx_shows_a_shared_value_once_for_each_query_head():
    network = CIRCUIT.to_networkx(VALUES)
    assert set(network.successors("embed")) == {"a1.h0", "a1.h1"}
    assert network.edges["embed", "a1.h0", "a1.kv0.v"]["input"] == "v"
    assert network.edges["m1", "logits", "logits"]["score"] == pytest.approx(float(VALUES[GRAPH.edge("m1->logits")]))
    assert nx.has_path(network, "embed", "logits")


def test_graphml_and_csv_can_be_read_back(tmp_path):
    CIRCUIT.to_graphml(tmp_path / "c.graphml", VALUES)
    assert nx.read_graphml(tmp_path / "c.graphml").number_of_edges() == 5
    CIRCUIT.to_csv(tmp_path / "c.csv", VALUES)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {f"{row['from']}->{row['to']}" for row in rows} == set(CIRCUIT)
    assert all(
        float(row["score"]) == pytest.approx(float(VALUES[GRAPH.edge(f"{row['from']}->{row['to']}")])) for row in rows
    )


def test_attribution_graph_json_has_what_the_schema_requires(tmp_path):
    CIRCUIT.to_json(tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert {"metadata", "qParams", "nodes", "links"} <= set(found)
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(found["metadata"])
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids)
    needed = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
    assert all(needed <= set(node) for node in found["nodes"])
    assert {link[end] for link in found["links"] for end in ("source", "target")} == set(ids)
    assert all(link["weight"] == 1.0 for link in found["links"])


def test_the_json_places_nodes_below_the_tokens_of_a_prompt(tmp_path):
    CIRCUIT.to_json(tmp_path / "c.json", tokens=["When", " Mary", " and"])
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["metadata"]["prompt"] == "When Mary and" and found["metadata"]["prompt_tokens"][1] == " Mary"
    assert {(node["node_id"] == "embed", node["ctx_idx"]) for node in found["nodes"]} == {(True, 0), (False, 2)}
