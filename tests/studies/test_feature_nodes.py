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
