"""`graph` end to end on a small saved model: what is printed, written, drawn, and every bad input."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from command import run
from shown import blocks_of, check_shown

from circuitome.attribution_graphs import read_graph
from circuitome.runs.store import load_run

SCHEMA = Path(__file__).parents[1] / "attribution_graphs" / "schema" / "graph-schema.json"
QUICK = ("--expand", 40, "--off", 4, "--heads", 2)


@pytest.mark.slow
def test_a_graph_is_printed_written_and_drawn(capsys, folder, tmp_path):
    out = tmp_path / "g"
    code, printed, err = run(capsys, "graph", "a b c d", "--model", folder, *QUICK, "--out", out)
    assert (code, err) == (0, "")
    assert "Neurons switched off" in printed and "Where heads attend, and why" in printed
    text, page = check_shown(out)
    assert "--first-token" in text and 'data-view="attribution_graph"' in page
    kept = load_run(out)
    graph, checks = kept.manifest["results"]["graph"], kept.manifest["results"]["checks"]
    assert graph["expanded"] == 40 and checks["sums"] < 1e-3 and len(checks["off"]) == 4
    (block,) = blocks_of(out, "attribution graph").values()
    assert len(block.edges) == graph["edges"] == len(kept.tensors["weights"])
    scores = [edge[3] for edge in block.edges]
    assert scores == sorted(scores, reverse=True)
    code, again, _ = run(capsys, "show", out)
    assert code == 0 and again == printed


@pytest.mark.slow
def test_its_json_is_valid_and_every_neuron_has_details(capsys, folder, tmp_path):
    out = tmp_path / "g"
    assert run(capsys, "graph", "a b c d", "--model", folder, *QUICK, "--first-token", "--out", out)[0] == 0
    data = json.loads((out / "graph.json").read_text())
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(data)
    assert data["metadata"]["feature_details"] == {"feature_json_base_url": "features"}
    units = [node for node in data["nodes"] if node["feature_type"] == "cross layer transcoder"]
    for node in units:
        details = json.loads((out / "features" / f"{node['feature']}.json").read_text())
        assert details["index"] == node["feature"] and len(details["top_logits"]) == 10
    assert len(data["attention"]) == 2 and data["attention"][0]["pair_wise_contributors"]
    assert len(read_graph(out / "graph.json").units()) == len(units)


@pytest.mark.slow
def test_a_census_gives_texts_in_the_details(capsys, folder, tmp_path):
    (tmp_path / "t.txt").write_text("a b c d e f g h i j k l m n o p " * 8)
    census = ("neurons", "--texts", tmp_path / "t.txt", "--model", folder, "--length", 16, "--out", tmp_path / "n")
    assert run(capsys, *census)[0] == 0
    out = tmp_path / "g"
    given = ("--census", tmp_path / "n", "--out", out)
    assert run(capsys, "graph", "a b c d", "--model", folder, *QUICK, *given)[0] == 0
    files = [json.loads(path.read_text()) for path in (out / "features").iterdir()]
    shown = [group["examples"][0] for file in files for group in file["examples_quantiles"]]
    assert shown and all(len(example["tokens"]) == len(example["tokens_acts_list"]) for example in shown)


@pytest.mark.slow
def test_a_model_with_attention_of_its_own_has_a_graph_without_attention_logits(capsys, tmp_path):
    given = ("graph", "Ann and Bob met then Bob gave to", "--model", "known-ioi", "--first-token")
    code, out, _ = run(capsys, *given, "--json", "--out", tmp_path / "k")
    assert code == 0 and json.loads(out)["results"]["attention"] == []
    code, out, _ = run(capsys, *given, "--contrast", "Ann", "Bob", "--json", "--out", tmp_path / "c")
    assert code == 0 and json.loads(out)["results"]["graph"]["contrast"] == ["Ann", "Bob"]


BAD = [
    (("",), r"has no tokens"),
    (("a b", "--expand", "0"), r"--expand is a number and must be at least 1, got 0"),
    (("a b", "--node-share", "0"), r"--node-share is a share and must lie between 0 and 1, got 0"),
    (("a b", "--edge-share", "1.5"), r"--edge-share is a share"),
    (("a b", "--contrast", "a b c", "d"), r"'a b c' must be one token"),
    (("a b", "--census", "nowhere"), r"no run folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_leaves_no_run(arguments, message, capsys, folder, tmp_path):
    code, _, err = run(capsys, "graph", *arguments, "--model", folder, "--out", tmp_path / "bad")
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "bad").exists()


def test_a_file_is_shown_without_a_model(capsys, tmp_path):
    ids = ("E_1_0", "0_5_0", "1_7_0", "err_1_0", "3_9_0")
    types = ("embedding", *["cross layer transcoder"] * 2, "mlp reconstruction error", "logit")
    nodes = [
        {"node_id": i, "layer": i[0].replace("e", "1"), "ctx_idx": 0, "feature_type": kind, "clerp": f"says {i}"}
        for i, kind in zip(ids, types, strict=True)
    ]
    nodes[-1] |= {"token_prob": 0.9}
    links = [("E_1_0", "0_5_0", 2.0), ("0_5_0", "1_7_0", 1.0), ("1_7_0", "3_9_0", 3.0), ("err_1_0", "3_9_0", 1.0)]
    data = {
        "metadata": {"slug": "s", "scan": "a-model", "prompt_tokens": ["Ann"], "prompt": "Ann"},
        "qParams": {"pinnedIds": ["1_7_0"], "supernodes": [["of names", "0_5_0", "1_7_0"]]},
        "nodes": nodes,
        "links": [{"source": a, "target": b, "weight": w} for a, b, w in links],
    }
    (tmp_path / "theirs.json").write_text(json.dumps(data))
    out = tmp_path / "g"
    code, printed, error = run(capsys, "graph", tmp_path / "theirs.json", "--out", out)
    assert (
        (code, error) == (0, "")
        and ["Features", "2"] in [line.split()[:2] for line in printed.splitlines()]
        and "of names" in printed
    )
    check_shown(out)
    kept = load_run(out)
    assert kept.manifest["model"] == {"name": "a-model"} and kept.manifest["results"]["replacement"] == pytest.approx(
        0.75, abs=1e-6
    )
    (block,) = blocks_of(out, "attribution graph").values()
    assert [block.nodes[i].id for i in block.pinned] == ["m1.f7@0"]
    assert [dot.key for dot in block.nodes if dot.group == "of names"] == ["0_5_0", "1_7_0"]
    assert json.loads((out / "graph.json").read_text()) == data
    code, _, error = run(capsys, "graph", tmp_path / "none.json", "--out", tmp_path / "h")
    assert code == 1 and "there is no such file" in error and not (tmp_path / "h").exists()
