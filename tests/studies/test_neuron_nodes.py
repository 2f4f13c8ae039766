"""Circuits of heads and neurons: found, opened again, tested, exported."""

import json
from types import SimpleNamespace

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.studies.explained_neurons import census_of

GIVEN = {"--model": "tracr-reverse", "--ablation": "zero", "--nodes": "neurons", "--n": "32"}


def given(**more):
    options = GIVEN | {f"--{name}": value for name, value in more.items()}
    return ("find", "tracr-reverse", *(text for option in options.items() for text in option))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    from circuitome.studies.find import STUDY, Find
    from circuitome.studies.frame import perform

    out = tmp_path_factory.mktemp("neurons") / "run"
    settings = Find(
        task="tracr-reverse",
        model="tracr-reverse",
        ablation="zero",
        nodes="neurons",
        neurons=60,
        layers=(0, 1),
        n=32,
        steps=60,
    )
    perform(STUDY, settings, out=out)
    return out


@pytest.mark.slow
def test_the_circuit_has_neurons_that_the_page_shows_and_that_come_back(found):
    run_ = cm.open(found)
    names = [name for name in run_.circuit.nodes if ".n" in name]
    assert names and all(name.startswith(("m0.", "m1.")) for name in names)
    assert run_.circuit.graph == run_.model.graph == run_.graph and run_.graph.apart == (0, 1)
    assert f"{len(names)} of them neurons" in lede_of(found)
    rows = blocks_of(found)["Neurons of the circuit"].rows
    assert {row[0] for row in rows} == set(names) and rows[0][1] >= rows[-1][1]
    text, page = check_shown(found)
    assert "neurons" in text and f'data-node="{names[0]}"' in page
    share = cm.faithfulness(run_.model, run_.circuit, run_.held_out, ablation="zero").share
    assert share.value == pytest.approx(run_.results["faithfulness"]["value"], abs=1e-6)


@pytest.mark.slow
def test_it_is_tested_and_written_out(capsys, found, tmp_path):
    code, printed, error = run(capsys, "validate", found, "--quick", "--out", tmp_path / "verdict")
    assert code == 0, error
    assert "minimality" in printed
    code, _, error = run(capsys, "export", found, "--to", "csv", "--out", tmp_path / "circuit.csv")
    assert code == 0, error
    assert ".n" in (tmp_path / "circuit.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eap", "eap-ig", "mattr"])
def test_other_methods_rank_the_same_edges(capsys, tmp_path, method):
    steps = {"steps": "30"} if method == "mattr" else {}
    code, _, error = run(capsys, *given(neurons="20", method=method, edges="30", **steps), "--out", tmp_path / "run")
    assert code == 0, error
    opened = cm.open(tmp_path / "run")
    assert opened.scores.graph == opened.graph and len(opened.circuit) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "acdc"}, "acdc knows MLPs as one node each"),
        ({"neurons": "0"}, "at least 1; got 0"),
        ({"nodes": "neuron"}, "Did you mean 'neurons'"),
        ({"nodes": "mlps", "neurons": "5"}, "add --nodes neurons"),
        ({"ablation": "mean"}, "corrupted or zero"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(capsys, tmp_path, options, message):
    code, _, error = run(capsys, *given(**options), "--out", tmp_path / "run")
    assert code == 1 and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_explained_as_a_circuit_of_whole_mlps(capsys, tmp_path, folder, data):
    options = ("--data", data, "--model", folder, "--nodes", "neurons", "--edges", "60", "--method", "eap")
    assert run(capsys, "find", "letters", *options, "--out", tmp_path / "run")[0] == 0
    code, printed, error = run(capsys, "explain", tmp_path / "run", "--out", tmp_path / "explained")
    assert code == 0, error
    assert "as the MLPs that they belong to" in " ".join(printed.split())
    explained = cm.open(tmp_path / "explained")
    found = cm.open(tmp_path / "run")
    assert any(".n" in name for name in found.circuit.nodes)
    assert torch.equal(explained.run.tensors["circuit"], found.circuit.with_whole_mlps().mask)


@pytest.mark.slow
def test_a_census_says_what_a_circuits_neurons_fire_on(capsys, tmp_path, folder, data):
    options = ("--data", data, "--model", folder, "--method", "eap", "--edges", "60")
    assert run(capsys, "find", "letters", *options, "--nodes", "neurons", "--out", tmp_path / "run")[0] == 0
    assert run(capsys, "find", "letters", *options, "--out", tmp_path / "whole")[0] == 0
    texts = ("--length", "16", "--tokens", "400")
    assert run(capsys, "neurons", "--model", folder, *texts, "--out", tmp_path / "census")[0] == 0
    more = ("--census", tmp_path / "census", "--out", tmp_path / "explained")
    code, _, error = run(capsys, "explain", tmp_path / "run", *more)
    assert code == 0, error
    found, census, model = cm.open(tmp_path / "run"), cm.open(tmp_path / "census").census, cm.load(folder)
    rows = {row[0]: row for row in blocks_of(tmp_path / "explained")["What its neurons fire on"].rows}
    assert set(rows) == {name for name in found.circuit.nodes if ".n" in name}
    for name, row in rows.items():
        assert row[1] == pytest.approx(int(census.active[census.at(name)]) / census.tokens)
        assert row[2].count("%") == min(5, len(census.fires_on(name)))
        layer, neuron = census.at(name)
        largest = int(census.windows.ids.flatten()[census.places[layer, 0, neuron]])
        assert row[3].startswith(formats.quoted(model.decode([largest])))
    whole = tmp_path / "whole"
    code, _, error = run(capsys, "explain", whole, "--census", tmp_path / "census", "--out", tmp_path / "mlps")
    assert code == 0, error
    rows = blocks_of(tmp_path / "mlps")["What the neurons of its MLPs fire on"].rows
    mlps = [name for name in cm.open(whole).circuit.nodes if name.startswith("m")]
    assert sorted({row[0].split(".")[0] for row in rows}) == sorted(mlps) and len(rows) == 3 * len(mlps)
    scores = cm.neurons.scores(model, cm.open(whole).task)
    for name, effect, *_ in rows:
        layer = cm.Node.parse(name).layer
        assert effect == pytest.approx(scores[name], rel=1e-4, abs=1e-6)
        assert abs(effect) >= float(scores.values[layer].abs().topk(3).values[-1]) - 1e-6
    circuit = cm.open(whole).circuit
    heads = SimpleNamespace(reopened=SimpleNamespace(model=model, circuit=type(circuit).empty(circuit.graph)))
    with pytest.raises(InputError, match="neither neurons nor MLPs"):
        census_of(str(tmp_path / "census"), heads)
    code, _, error = run(capsys, "export", tmp_path / "census", "--to", "jsonl", "--out", tmp_path / "census.jsonl")
    assert code == 0, error
    lines = [json.loads(line) for line in (tmp_path / "census.jsonl").read_text().splitlines()]
    assert len(lines) == census.active.numel() and lines[5] == census.row(lines[5]["neuron"])
