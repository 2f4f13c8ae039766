"""Circuits of features: found, opened again, tested, exported, and refused where the dictionary is another."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.errors import RunError
from circuitome.features.dictionary import Dictionary


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """Both signs of every coordinate of the stream behind block 1: nothing is left but what is no node."""
    d = cm.load("known-ioi").d_model
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    place = cm.features.Place("resid", 1)
    found = Dictionary(
        place=place, W_enc=both.T.contiguous(), b_enc=torch.zeros(2 * d), W_dec=both, b_dec=torch.zeros(d)
    )
    folder = tmp_path_factory.mktemp("dictionary") / "signs"
    cm.features.save(found, folder)
    return folder


@pytest.fixture(scope="module")
def found(dictionary, tmp_path_factory):
    from circuitome.studies.find import STUDY, Find
    from circuitome.studies.frame import perform

    out = tmp_path_factory.mktemp("features") / "run"
    settings = Find(task="known-ioi", model="known-ioi", nodes=str(dictionary), neurons=12, n=32, steps=40)
    perform(STUDY, settings, out=out)
    return out


@pytest.mark.slow
def test_the_circuit_has_features_that_the_page_shows_and_that_come_back(found):
    opened = cm.open(found)
    names = [name for name in opened.circuit.nodes if name.startswith("x2.f")]
    assert names and opened.circuit.graph == opened.model.graph == opened.graph
    assert f"{len(names)} of them features" in lede_of(found)
    rows = blocks_of(found)["Features of the circuit"].rows
    assert {row[0] for row in rows} == set(names)
    errors = {row["edges"]: row["share"]["value"] for row in opened.results["errors"]}
    share = cm.faithfulness(opened.model, opened.circuit, opened.held_out).share
    assert errors["the circuit"] == pytest.approx(share.value, abs=1e-6)
    assert (
        len({f"x2.f{i}" for i in range(1, 9)} & set(names)) > 4
    )  # coordinates of the names, which the last heads move
    text, page = check_shown(found)
    assert "features" in text and f'data-node="{names[0]}"' in page


@pytest.mark.slow
def test_it_is_tested_explained_and_written_out(capsys, found, tmp_path):
    code, printed, error = run(capsys, "validate", found, "--quick", "--out", tmp_path / "verdict")
    assert code == 0, error
    assert "minimality" in printed
    for to in ("csv", "json", "graphml"):
        code, _, error = run(capsys, "export", found, "--to", to, "--out", tmp_path / f"circuit.{to}")
        assert code == 0, error
        assert "x2.f" in (tmp_path / f"circuit.{to}").read_text()
    code, _, error = run(capsys, "explain", found, "--out", tmp_path / "explained")
    assert code == 1 and "features of the stream" in error


@pytest.mark.slow
def test_another_dictionary_in_its_place_is_refused(found, dictionary, tmp_path):
    path = found / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["feature_nodes"][0]["fingerprint"] = "0"
    other = tmp_path / "run"
    other.mkdir()
    for file in found.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="is not that of"):
        _ = cm.open(other).model
    manifest["feature_nodes"][0]["dictionary"] = str(tmp_path / "gone")
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="not there any more"):
        _ = cm.open(other).model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes", "nowhere"), "There is no kind of nodes, or dictionary"),
        (("--nodes", "DICT", "--method", "acdc"), "knows MLPs as one node each"),
        (("--nodes", "DICT", "--layers", "3"), "leave out --layers"),
        (("--nodes", "DICT", "--neurons", "0"), "at least 1"),
        (("--nodes", "DICT", "--ablation", "mean"), "corrupted or zero"),
        (("--nodes", "DICT", "--model", "tracr-reverse"), "belongs to another model or site"),
    ],
)
def test_nodes_that_cannot_be_are_refused(capsys, dictionary, tmp_path, options, message):
    options = tuple(str(dictionary) if option == "DICT" else option for option in options)
    task = "tracr-reverse" if "tracr-reverse" in options else "known-ioi"
    model = () if "--model" in options else ("--model", "known-ioi")
    code, _, error = run(capsys, "find", task, *model, "--n", "16", *options, "--out", tmp_path / "run")
    assert code in (1, 2) and message in error.replace("\n", " ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_graph_of_a_prompt_holds_features_of_a_transcoder(capsys, dictionary, tmp_path):
    model = cm.load("tracr-reverse")
    first, last = model.blocks[1].mlp_readers[0], model.blocks[1].mlp_writer
    weights = {"W_enc": first.weight.T, "b_enc": first.bias, "W_dec": last.weight.T, "b_dec": last.bias}
    made = {name: weight.detach().clone().contiguous() for name, weight in weights.items()}
    cm.features.save(Dictionary(place=cm.features.Place("transcoder", 1), **made), tmp_path / "transcoder")
    prompt = model.decode(cm.ground_truth.task("tracr-reverse", 4).pairs[0].clean[1:])
    asked = ("graph", prompt, "--model", "tracr-reverse", "--first-token")
    code, printed, error = run(capsys, *asked, "--transcoders", tmp_path / "transcoder", "--out", tmp_path / "run")
    assert code == 0, error
    assert "Neurons and features" in printed
    assert cm.open(tmp_path / "run").manifest["dictionaries"] == [str(tmp_path / "transcoder")]
    code, _, error = run(
        capsys, "graph", "Ann and Bob", "--model", "known-ioi", "--transcoders", dictionary, "--out", tmp_path / "no"
    )
    assert code == 1 and "Only transcoders" in error and not (tmp_path / "no").exists()


@pytest.mark.slow
def test_methods_are_compared_with_features_as_nodes(capsys, dictionary, tmp_path):
    given = ("--model", "known-ioi", "--n", 16, "--exact-edges", 0, "--edges", 20, "--nodes", dictionary)
    out = tmp_path / "run"
    code, text, error = run(
        capsys, "compare", "known-ioi", *given, "--neurons", 8, "--methods", "eap,eap-ig,acdc", "--out", out
    )
    assert code == 0, error
    manifest = json.loads((out / "manifest.json").read_text())
    rows = {row["name"]: row for row in manifest["results"]["methods"]}
    assert list(rows) == ["eap", "eap-ig", "acdc", "eap, features", "eap-ig, features"]
    assert "eap-ig, features" in text and len(manifest["feature_nodes"][0]["features"]) == 8
    # the row's circuits are those of the view itself
    task = cm.ground_truth.task("known-ioi", 16)
    model = cm.load("known-ioi")
    view = cm.features.as_nodes(model, cm.features.load(dictionary, model=model), task, features=8)
    scores = cm.neurons.graph_scores(view, task)
    share = cm.faithfulness(view, scores.top(20), task).share
    mine = next(point for point in rows["eap-ig, features"]["points"] if point["edges"] == 20)
    assert mine["value"] == pytest.approx(share.value, abs=1e-5)
    check_shown(out)
