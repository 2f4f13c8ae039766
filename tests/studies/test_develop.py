"""The studies `develop`, `series` and `syntax`: what they say, what they keep, and what they refuse."""

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.studies import develop, developed, series, syntax
from circuitome.studies.frame import perform


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    place = tmp_path_factory.mktemp("grown")
    settings = develop.Develop(
        data="grammar",
        kind="decoder",
        width=16,
        heads=2,
        steps=16,
        batch=8,
        length=24,
        checkpoints=str(place / "c"),
        tasks=("agreement",),
        freeze=("a0.h1",),
        freeze_at=8,
    )
    return perform(develop.STUDY, settings, out=place / "run")


@pytest.mark.slow
def test_a_development_has_curves_onsets_and_maps(grown):
    made, folder = grown
    results = made.manifest["results"]
    assert set(results["curves"]) >= {"held_out_loss", "induction", "uas", "pairs", "k_composition"}
    assert results["curves"]["held_out_loss"]["steps"] == [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    assert made.tensors["induction"].shape[2:] == (2, 2) and len(made.tensors["induction.steps"]) == 11
    assert "curves" in lede_of(folder)
    charts = blocks_of(folder, "lines")
    assert next(iter(charts)) == "Loss" and all(chart.log_x for chart in charts.values())
    assert len([title for title in blocks_of(folder, "heat map") if title.startswith("All heads")]) == 3
    check_shown(folder)


@pytest.mark.slow
def test_circuits_and_frozen_heads_are_in_the_manifest(grown):
    made, folder = grown
    results = made.manifest["results"]
    found = results["circuits"]["agreement"]
    assert found["steps"] == results["curves"]["held_out_loss"]["steps"]
    assert {len(found[name]) for name in ("metric", "faithfulness", "size_for_.9", "jaccard", "edges")} == {11}
    assert all(len(edges) == min(60, found["all_edges"]) for edges in found["edges"])
    assert found["jaccard_of_strongest"][-1] == 1.0 and "task_metric:agreement" in results["curves"]
    assert "How well agreement is done" in blocks_of(folder, "lines")
    assert results["frozen"] == {"heads": ["a0.h1"], "step": 8}
    assert lede_of(folder).startswith("From step 8 on a0.h1 learned nothing.")
    assert len(blocks_of(folder)["Strongest heads over steps"].columns) == 5


def test_a_circuit_is_shown_where_there_is_one():
    found = {
        "steps": [1, 2, 4],
        "unit": "logits",
        "score_unit": "logits",
        "sizes": [2, 7],
        "faithfulness": [None, [0.4, 0.9], [0.6, 1.0]],
        "edges": [[["a0.h0->logits", -1.0], ["embed->a0.kv0.v", -0.5]]] * 3,
        "since": [2, None],
    }
    heat, edges = developed.circuit_blocks("made", found)
    assert heat.rows == ("2", "4") and heat.columns == ("2", "7") and heat.values == ((0.4, 0.9), (0.6, 1.0))
    assert edges.rows == (("a0.h0->logits", -1.0, "2"), ("embed->a0.kv0.v", -0.5, ""))
    [note] = developed.circuit_blocks("made", {**found, "faithfulness": [None] * 3})
    assert "made is done at no step" in note.text


@pytest.mark.slow
def test_a_series_of_its_checkpoints_measures_them_again(grown, tmp_path):
    made, folder = grown
    settings = series.Series(
        folder=str(folder.parent / "c"), trees="grammar", n=60, rows=8, length=24, tasks=("agreement",)
    )
    read, place = perform(series.STUDY, settings, out=tmp_path / "run")
    steps = made.manifest["results"]["curves"]["held_out_loss"]["steps"]
    assert read.manifest["checkpoints"] == steps and not read.manifest["results"]["passed_over"]
    norms = [run.manifest["results"]["curves"]["weight_norm"]["value"] for run in (made, read)]
    assert norms[0] == pytest.approx(norms[1])
    circuits = [run.manifest["results"]["circuits"]["agreement"] for run in (made, read)]
    assert circuits[0]["metric"] == pytest.approx(circuits[1]["metric"], abs=1e-4)
    assert [edges[0][0] for edges in circuits[0]["edges"]] == [edges[0][0] for edges in circuits[1]["edges"]]
    assert lede_of(place).startswith("11 checkpoints from step 0 to 16.")
    check_shown(place)


@pytest.mark.slow
def test_syntax_of_a_saved_model(grown, tmp_path):
    _, folder = grown
    model = folder.parent / "c" / "step-00000016"
    settings = syntax.Syntax(model=str(model), n=40, min_arcs=20, n_pairs=2)
    made, place = perform(syntax.STUDY, settings, out=tmp_path / "run")
    results = made.manifest["results"]
    rows = blocks_of(place)["Minimal pairs"].rows
    assert len(rows) == 6 and results["pairs"]["pairs"] == 12
    assert made.tensors["by_head"].shape[1:] == (2, 2, 2)
    assert results["syntax"]["arcs"] == len(made.tensors["kind"])
    check_shown(place)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("develop", "--steps", "0"), "--steps must be at least 1"),
        (("develop", "--suppress", "arcs"), "sentences of the grammar only"),
        (("develop", "--freeze", "previous", "--freeze-at", "9999"), "not within the 2000 steps"),
        (("develop", "--freeze-at", "5"), "Nothing is frozen"),
        (("develop", "--freeze", "previus"), "Did you mean 'previous'"),
        (("develop", "--tasks", "ioi"), "ioi does not suit the vocabulary"),
        (("series", "nowhere"), "There is no folder nowhere"),
        (("syntax", "known-ioi", "nowhere.conllu"), "cannot be read"),
        (("syntax", "known-ioi", "grammar", "--n", "1"), "--n must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *arguments)
    assert code == 1 and words in " ".join(error.split())
    assert not any(path.name != "runs" for path in tmp_path.iterdir())
