"""Results show themselves: in a notebook, as a picture, as a data frame, in a line of text."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError
from circuitome.progress import bars
from circuitome.results import Samples
from circuitome.studies.result_views import views

MODEL, TASK = tiny("llama"), random_task(4)
SCORES = cm.eap(MODEL, TASK)
CIRCUIT = SCORES.top(40)
RESULTS = {
    "scores": SCORES,
    "circuit": CIRCUIT,
    "nodes": cm.atp(MODEL, TASK),
    "effects": cm.patch(MODEL, TASK, "mlps"),
    "faithfulness": cm.faithfulness(
        MODEL, CIRCUIT, TASK.measured_by(lambda logits, pairs: logits[:, 3] - logits[:, 5])
    ),
    "curve": None,
    "attention": cm.attention(MODEL, [[3, 4, 5], [6, 7]], ["a0.h1", "a2"]),
    "stable": cm.stable(MODEL, TASK, method=cm.eap, size=40, share=0.5, whole=SCORES),
    "attribution graph": cm.attribution_graph(MODEL, [3, 4, 5, 6], expand=20),
    "list": Samples(samples=SCORES.samples[:, :3], axes=(("a", "b", "c"),), unit="logits"),
}
PICTURES = ("scores", "circuit", "stable", "effects", "attention", "attribution graph", "list")


@pytest.fixture(params=[name for name, result in RESULTS.items() if result is not None])
def name(request):
    return request.param


def test_every_result_is_shown_in_a_notebook_and_said_in_a_line(name):
    html, said = RESULTS[name]._repr_html_(), repr(RESULTS[name])
    assert (
        html.startswith('<div class="circuitome">') and len(said) < 200 and "\n" not in said and "tensor(" not in said
    )


def test_pictures_can_be_drawn_and_what_has_none_says_so(name):
    if name in PICTURES:
        assert RESULTS[name].plot() is not None
    else:
        with pytest.raises(InputError, match="has no picture"):
            RESULTS[name].plot()


def test_numbers_are_data_frames(name):
    pandas = pytest.importorskip("pandas")
    frame = RESULTS[name].to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame)


def test_what_is_shown_are_the_results_own_numbers():
    edges = views(SCORES)[0].edges
    assert all(edge.score == SCORES[f"{edge.source}->{edge.reader}"] for edge in edges[:20])
    values = views(RESULTS["effects"])[0].values
    assert values[1][0] == pytest.approx(float(RESULTS["effects"].mean[1, 0]))
    table = Samples(samples=torch.arange(12.0).view(2, 2, 3), axes=(("a0", "a1"), ("h0", "h1", "h2")), unit="logits")
    assert views(table)[0].values == ((3.0, 4.0, 5.0), (6.0, 7.0, 8.0)) and views(table)[0].labels[1][2] == "a1.h2"
    assert views(RESULTS["list"])[0].values == tuple(RESULTS["list"].mean.tolist())
    with pytest.raises(InputError, match="no view of a str"):
        views("text")


def test_of_a_long_list_the_largest_are_shown_in_their_order():
    names = tuple(f"part {i}" for i in range(100))
    samples = torch.arange(100.0).sub(50).expand(4, 100)
    bars_shown = views(Samples(samples=samples, axes=(names,), unit="logits"))[0]
    assert len(bars_shown.labels) == 40 and bars_shown.note == "The 40 largest of 100."
    assert bars_shown.labels[:2] == ("part 0", "part 1") and bars_shown.labels[-1] == "part 99"
    assert bars_shown.values[0] == -50 and bars_shown.values[-1] == 49


@pytest.mark.parametrize(("lowest", "scale"), [(0.0, "positive"), (-1.0, "signed")])
def test_colours_of_a_table_start_at_zero_where_nothing_is_negative(lowest, scale):
    samples = torch.tensor([[lowest, 0.5], [0.2, 1.0]]).expand(3, 2, 2)
    assert views(Samples(samples=samples, axes=(("a0", "a1"), ("h0", "h1")), unit="share"))[0].scale == scale


@pytest.mark.slow
def test_an_explanation_shows_its_classes_of_heads_and_every_head():
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    found = cm.heads.explain(model, cm.ground_truth.true_circuit(model, task), task)
    classes, heads = views(found)
    assert {kind.name: kind.members for kind in classes.classes}["name mover"] == ("a2.h0",)
    assert {row[0] for row in heads.rows} == set(found.heads)
    assert "name mover" in found._repr_html_() and found.plot() is not None


def test_progress_true_draws_a_bar(capsys):
    assert cm.eap(MODEL, TASK, progress=True).values.equal(SCORES.values)
    assert "scoring edges" in capsys.readouterr().err
    tell = bars()
    tell("work", 1, 3)
    tell("work", 3, 3)
    assert "3/3" in capsys.readouterr().err
