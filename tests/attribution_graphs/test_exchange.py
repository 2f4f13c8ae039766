"""The JSON of circuit-tracer and Neuronpedia: written, held against its published schema, and read."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from families import tiny

import circuitome as cm
from circuitome.attribution_graphs.exchange import feature_details, feature_number, graph_json
from circuitome.attribution_graphs.reading import read_graph
from circuitome.errors import DataFileError

IDS = (5, 17, 42, 8, 23, 31)
SCHEMA = json.loads((Path(__file__).parent / "schema" / "graph-schema.json").read_text())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def graph(request):
    return cm.attribution_graph(tiny(request.param), IDS, expand=60, node_share=0.8)


def test_what_is_written_is_valid_and_has_no_trap(graph):
    written = graph_json(graph, "a-graph", details="features")
    jsonschema.Draft7Validator(SCHEMA).validate(written)
    known = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    assert {node["feature_type"] for node in written["nodes"]} <= known
    ids = [node["node_id"] for node in written["nodes"]]
    assert len(set(ids)) == len(ids) and {
        end for link in written["links"] for end in (link["source"], link["target"])
    } <= set(ids)
    kinds = [node["feature_type"] == "logit" for node in written["nodes"]]
    assert kinds == sorted(kinds)  # logits come last
    assert written["metadata"]["schema_version"] == 1
    logit = written["nodes"][-1]
    assert logit["clerp"].startswith('Output "') and "(p=" in logit["clerp"] and logit["layer"] == "4"
    neuron = next(node for node in written["nodes"] if node["feature_type"] == "cross layer transcoder")
    layer, index, position = map(int, neuron["node_id"].split("_"))
    assert neuron["feature"] == (layer + index) * (layer + index + 1) // 2 + index == feature_number(layer, index)
    assert neuron["clerp"].startswith(f"m{layer}.n{index}") and neuron["ctx_idx"] == position


def test_links_into_each_node_sum_to_its_activation(graph):
    written = graph_json(graph, "a-graph")
    for node in written["nodes"]:
        if node.get("activation") is not None:
            total = sum(link["weight"] for link in written["links"] if link["target"] == node["node_id"])
            assert total == pytest.approx(node["activation"], abs=2e-4)


def test_a_graph_comes_back(graph, tmp_path):
    graph.save(tmp_path / "g.json")
    back = read_graph(tmp_path / "g.json")
    assert {n.name for n in graph.nodes} <= {n.name for n in back.nodes} and back.layers == graph.layers
    assert [n.label for n in back.logits()] == [n.label for n in graph.logits()]
    for name in (graph.units()[0].name, graph.logits()[0].name):
        ours = {n.name: w for n, w in graph.incoming(name)}
        theirs = {n.name: w for n, w in back.incoming(name) if n.kind != "mlp"}
        assert theirs == pytest.approx(ours, rel=1e-4)
        assert back[name].value == graph[name].value
    others = {n.position: w for n, w in back.incoming(graph.logits()[0].name) if n.kind == "mlp" and n.layer == 1}
    expected = graph.others[graph.place[graph.logits()[0].name], 1]
    assert others == pytest.approx({i: w for i, w in enumerate(expected.tolist()) if w}, rel=1e-4)


def circuit_tracer_file(path, links):
    """Two features, an error and a token; the error of block 5 at token 3 has the id of feature 5 of block 0."""
    feature = {"feature_type": "cross layer transcoder", "clerp": "", "influence": 0.5, "activation": 2.0}
    nodes = [
        {"node_id": "0_5_3", "feature": 20, "layer": "0", "ctx_idx": 3, "jsNodeId": "0_5-0", **feature},
        {"node_id": "2_7_3", "feature": 52, "layer": "2", "ctx_idx": 3, "jsNodeId": "2_7-0", **feature},
        {
            "node_id": "0_5_3",
            "feature": -1,
            "layer": "5",
            "ctx_idx": 3,
            "jsNodeId": "5_3-0",
            **feature,
            "activation": None,
        },
        {"node_id": "E_11_0", "feature": 0, "layer": "E", "ctx_idx": 0, "jsNodeId": "E_11-0", **feature},
        {"node_id": "7_42_3", "feature": 42, "layer": "7", "ctx_idx": 3, "jsNodeId": "L_42-3", **feature},
    ]
    for i, kind in ((2, "mlp reconstruction error"), (3, "embedding"), (4, "logit")):
        nodes[i]["feature_type"] = kind
    nodes[4] |= {"token_prob": 0.9, "clerp": 'Output "x" (p=0.900)'}
    metadata = {"slug": "s", "scan": "gemma-2-2b", "prompt_tokens": ["a", "b", "c", "d"], "prompt": "abcd"}
    linked = [{"source": a, "target": b, "weight": w} for a, b, w in links]
    path.write_text(json.dumps({"metadata": metadata, "qParams": {}, "nodes": nodes, "links": linked}))
    return path


def incoming(graph, name):
    return {node.name: weight for node, weight in graph.incoming(name)}


def test_one_id_of_a_feature_and_an_error_is_told_apart(tmp_path):
    both = [("0_5_3", "7_42_3", 1.0), ("2_7_3", "7_42_3", 2.0), ("0_5_3", "7_42_3", 3.0), ("E_11_0", "7_42_3", 4.0)]
    links = [("0_5_3", "2_7_3", 0.5), ("E_11_0", "0_5_3", 0.25), *both]
    graph = read_graph(circuit_tracer_file(tmp_path / "g.json", links))
    assert incoming(graph, "logits.t42@3") == {"m0.f5@3": 1.0, "m2.f7@3": 2.0, "m5@3": 3.0, "embed@0": 4.0}
    assert incoming(graph, "m2.f7@3") == {"m0.f5@3": 0.5} and incoming(graph, "m0.f5@3") == {"embed@0": 0.25}
    assert (graph.layers, graph.units()[0].kind) == (6, "feature")
    only = read_graph(circuit_tracer_file(tmp_path / "h.json", [both[1], both[2]]))
    assert incoming(only, "logits.t42@3") == {"m2.f7@3": 2.0, "m0.f5@3": 3.0}  # nothing tells them apart: the feature
    first = read_graph(circuit_tracer_file(tmp_path / "i.json", [both[0], both[1]]))
    assert incoming(first, "logits.t42@3") == {"m0.f5@3": 1.0, "m2.f7@3": 2.0}


def test_scores_of_a_file_are_those_of_its_links(tmp_path):
    links = [("2_7_3", "7_42_3", 1.0), ("0_5_3", "7_42_3", 3.0), ("E_11_0", "2_7_3", 1.0), ("E_11_0", "7_42_3", 4.0)]
    graph = read_graph(circuit_tracer_file(tmp_path / "g.json", links))
    # weight .9: a half comes from the token, an eighth through the feature, three eighths from the feature of that id
    assert graph["embed@0"].influence == pytest.approx(0.9 * 5 / 8)
    assert graph.replacement == pytest.approx(1.0) and graph["m2.f7@3"].influence == pytest.approx(0.9 / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("links"), "no links"),
        (lambda data: data["metadata"].pop("prompt_tokens"), "prompt_tokens"),
        (lambda data: data["nodes"][0].update(feature_type="lorsa"), "the type 'lorsa'"),
        (lambda data: data["nodes"][0].pop("ctx_idx"), "no ctx_idx"),
        (lambda data: data["links"][0].update(source="nobody"), "'nobody' that is no node"),
    ],
)
def test_bad_files_are_told(change, message, tmp_path):
    path = circuit_tracer_file(tmp_path / "g.json", [("2_7_3", "7_42_3", 1.0)])
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataFileError, match=message):
        read_graph(path)


def test_unreadable_files_are_told(tmp_path):
    with pytest.raises(DataFileError, match="cannot be read"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataFileError, match="not valid JSON"):
        read_graph(tmp_path / "bad.json")


def test_details_of_a_neuron():
    made = feature_details(7, [" a"], [" b"], [(["x", "y"], [0.0, 2.0])])
    assert made["index"] == 7 and made["examples_quantiles"][0]["examples"][0]["tokens_acts_list"] == [0.0, 2.0]


def test_supernodes_and_pinned_nodes_come_back(graph, tmp_path):
    units = [node.name for node in graph.units()]
    numbers = {units[0]: 1, units[3]: 0, units[5]: 1, units[7]: 0}
    nodes = tuple(replace(node, group=numbers.get(node.name)) for node in graph.nodes)
    names = ("says Ann", 'a "capital", <b>')
    chosen = replace(graph, nodes=nodes, group_names=names, pinned=(units[0], graph.logits()[0].name))
    chosen.save(tmp_path / "g.json")
    back = read_graph(tmp_path / "g.json")
    assert back.group_names == names and back.pinned == chosen.pinned
    assert {node.name: node.group for node in back.units()} == {name: numbers.get(name) for name in units}
    written = [graph_json(some, "g")["qParams"] for some in (chosen, back)]
    assert written[0]["pinnedIds"] == written[1]["pinnedIds"]
    assert [set(some) for some in written[0]["supernodes"]] == [set(some) for some in written[1]["supernodes"]]
