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
    "list": Samples(samples=SCORES.samples[:, :3], axes=(("a", "b", "c"),), unit="logits"),
}
PICTURES = ("scores", "circuit", "effects", "attention", "list")


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


def test_progress_true_draws_a_bar(capsys):
    assert cm.eap(MODEL, TASK, progress=True).values.equal(SCORES.values)
    assert "scoring edges" in capsys.readouterr().err
    tell = bars()
    tell("work", 1, 3)
    tell("work", 3, 3)
    assert "3/3" in capsys.readouterr().err
