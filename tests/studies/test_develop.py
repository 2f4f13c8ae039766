"""The studies `develop`, `series` and `syntax`: what they say, what they keep, and what they refuse."""

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.graph.node import Node
from circuitome.present.drawings.checkpoints import at_end
from circuitome.studies import develop, developed, diff, diffed_trainings, series, syntax, watched_steps
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
    (run,) = blocks_of(folder, "checkpoints")["Step by step"].runs
    assert run.steps == tuple(results["curves"]["held_out_loss"]["steps"]) and (run.layers, run.heads) == (2, 2)
    assert run.tokens[-1] == "." and {part.head for part in run.attention} == {"a0.h0", "a0.h1", "a1.h0", "a1.h1"}
    patterns = made.tensors["attention"]
    for part in run.attention:
        head = Node.parse(part.head)
        for step, pattern in enumerate(part.values):
            for query, row in enumerate(pattern):
                known = patterns[step, head.layer, head.index, query]
                assert torch.allclose(torch.tensor([*row, *[0.0] * (len(known) - len(row))]), known, atol=6e-3)
    for score in run.scores:
        assert all(grid is not None for grid in score.values)
    check_shown(folder)


@pytest.fixture(scope="module")
def measured(grown, tmp_path_factory):
    settings = series.Series(
        folder=str(grown[1].parent / "c"), trees="grammar", n=60, rows=8, length=24, tasks=("agreement",)
    )
    return perform(series.STUDY, settings, out=tmp_path_factory.mktemp("measured") / "run")


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
def test_a_series_of_its_checkpoints_measures_them_again(grown, measured):
    made, (read, place) = grown[0], measured
    steps = made.manifest["results"]["curves"]["held_out_loss"]["steps"]
    assert read.manifest["checkpoints"] == steps and not read.manifest["results"]["passed_over"]
    norms = [run.manifest["results"]["curves"]["weight_norm"]["value"] for run in (made, read)]
    assert norms[0] == pytest.approx(norms[1])
    circuits = [run.manifest["results"]["circuits"]["agreement"] for run in (made, read)]
    assert circuits[0]["metric"] == pytest.approx(circuits[1]["metric"], abs=1e-4)
    assert [edges[0][0] for edges in circuits[0]["edges"]] == [edges[0][0] for edges in circuits[1]["edges"]]
    assert lede_of(place).startswith("11 checkpoints from step 0 to 16.")
    assert blocks_of(place, "checkpoints")["Step by step"].runs[0].attention
    check_shown(place)


@pytest.mark.slow
def test_a_series_says_what_it_could_not_measure():
    assert series.left_out({}, losses=True) == []
    note, passed, table = series.left_out({"step-3": "it is damaged"}, losses=False)
    assert note.text.startswith("No losses on texts") and passed.text == "1 checkpoints were passed over."
    assert table.rows == (("step-3", "it is damaged"),)


def test_two_trainings_side_by_side(grown, measured, tmp_path):
    both, place = perform(diff.STUDY, diff.Diff(first=str(grown[1]), second=str(measured[1])), out=tmp_path / "both")
    found = both.manifest["results"]["trainings"]["curves"]
    first, second = cm.open(grown[1]), cm.open(measured[1])
    assert set(found) == set(first.results["curves"]) & set(second.results["curves"])
    for name, curve in found.items():
        ends = [run.results["curves"][name]["value"][-1] for run in (first, second)]
        assert curve["difference"]["value"] == pytest.approx(ends[1] - ends[0], abs=1e-4), name
        assert curve["difference"]["low"] is None  # they were measured on other rows
    same = diffed_trainings.compared(first, first)["curves"]
    assert {curve["difference"]["value"] for curve in same.values()} == {0.0}
    assert same["held_out_loss"]["difference"]["low"] == 0.0 and len(first.tensors["held_out_loss"][-1]) > 1
    assert [len(chart.series) for chart in blocks_of(place, "lines").values()] == [2] * len(found)
    assert [run.name[:6] for run in blocks_of(place, "checkpoints")["Step by step"].runs] == ["first:", "second"]
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


def test_circuits_of_tasks_are_shown_step_by_step():
    results = {
        "name": "x",
        "curves": {"held_out_loss": {"title": "loss", "steps": [0, 1, 2], "value": [3.0, None, 1.0]}},
        "heads": {"previous": {"about": "before", "steps": [0, 2], "mean": [[[0.1, 0.2]], [[0.7, 0.2]]]}},
        "circuits": {
            "ioi": {
                "steps": [1, 2],
                "sizes": [1, 5],
                "faithfulness": [[], [0.2, 0.9]],
                "size_for_.9": [None, 5],
                "jaccard": [None, 1.0],
                "edges": [[], [["embed->a0.h1.q", -0.5], ["a0.h1->logits", 0.25]]],
            }
        },
    }
    (block,) = watched_steps.checkpoints(results)
    (run,) = block.runs
    assert run.steps == (0, 1, 2) and run.scores[0].values[1] is None and run.scores[0].best == "a0.h0"
    assert run.circuits[0].values[:2] == (None, None)
    assert run.circuits[0].values[2]["numbers"] == {
        "edges for .9 of the gap": 5.0,
        "Jaccard index with the last step": 1.0,
    }
    last = at_end(block)
    assert [part.title for part in last] == ["before, at step 2", "circuit of ioi at step 2"]
    assert last[1].edges[1].reader == "logits"


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
        (("syntax", "known-ioi", "nowhere.conllu"), "Known: grammar"),
        (("syntax", "known-ioi", "grammar", "--n", "1"), "--n must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *arguments)
    assert code == 1 and words in " ".join(error.split())
    assert not any(path.name != "runs" for path in tmp_path.iterdir())
