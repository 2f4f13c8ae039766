"""The studies `heads` and `induction`: what they say of a model whose heads are known, and what they refuse."""

import json

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run
from circuitome.studies import heads, induction
from circuitome.studies.frame import perform


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    settings = heads.Heads(model="known-induction", n=3)
    return perform(heads.STUDY, settings, out=tmp_path_factory.mktemp("atlas") / "run")


@pytest.mark.slow
def test_heads_are_called_what_they_do(atlas, capsys):
    made, folder = atlas
    results = made.manifest["results"]
    assert made.manifest["kind"] == "heads" and made.manifest["sequences"]["in_front"] == "BOS"
    assert made.manifest["command"] == "circuitome heads --model known-induction --n 3"
    assert results["top"]["induction"][0]["label"] in ("a1.h0", "a1.h1")
    assert made.tensors["induction"].shape == (3, 2, 3) and made.tensors["copy_top5"].shape[1:] == (2, 3)
    assert lede_of(folder).startswith(
        "Of 6 heads, 2 attend to the token before, 2 to what stands behind earlier copies"
    )
    rows = blocks_of(folder)["Heads by kind"].rows
    assert rows[:2] == (("previous token", 2, "a0.h0, a0.h1"), ("induction", 2, "a1.h0, a1.h1"))
    text, _ = check_shown(folder)
    assert run(capsys, "show", folder)[1].split() == text.split()


@pytest.mark.slow
def test_the_same_settings_give_the_same_tensors(tmp_path, atlas):
    made, folder = perform(heads.STUDY, heads.Heads(model="known-induction", n=3), out=tmp_path / "again")
    first, second = ((path / "tensors.safetensors").read_bytes() for path in (atlas[1], folder))
    assert first == second and made.manifest["key"] == atlas[0].manifest["key"]


def test_every_score_has_a_map_on_the_page_and_its_strongest_heads_everywhere(atlas):
    made, folder = atlas
    results = made.manifest["results"]
    maps = blocks_of(folder, "heat map")
    assert len(maps) == len(results["scores"]) == 13
    for score in results["scores"].values():
        block = maps[f"{score['name']}: {score['what']}"]
        assert block.values == tuple(map(tuple, score["mean"])) and block.chance == pytest.approx(score["chance"])
        negative = any(value < 0 for row in score["mean"] for value in row)
        assert block.scale == ("signed" if negative else "positive") and block.labels[1][2] == "a1.h2"
    strongest = blocks_of(folder)["Strongest 5 heads of every score, with 95 % intervals"]
    text, page = check_shown(folder)
    for row in strongest.rows:
        top = results["top"][row[0]][0]
        assert row[3].startswith(top["label"]) and row[0] in text and row[3].split(",")[0] in page


def test_a_model_of_many_layers_prints_no_rows_of_nothing(tmp_path):
    """Of thirty layers only those with an induction head are in the terminal's map."""
    from io import StringIO

    from rich.console import Console

    from circuitome.present.terminal import print_block

    mean = [[0.0] * 9 for _ in range(30)]
    mean[17][3] = 0.9
    score = {"name": "induction", "what": "attention", "unit": "share", "chance": 0.02}
    score |= {"mean": mean, "low": mean, "high": mean}
    text = StringIO()
    print_block(heads.score_map(score), Console(file=text, width=80))
    assert "a17" in text.getvalue() and "a16" not in text.getvalue() and len(text.getvalue().splitlines()) < 10


@pytest.mark.parametrize(
    ("mean", "low", "kind"),
    [
        ({"previous": 0.4, "sink4": 0.5}, {"previous": 0.35, "sink4": 0.31}, "previous"),  # resting comes last
        ({"previous": 0.2, "sink4": 0.2}, {"previous": 0.1, "sink4": 0.1}, ""),
        ({"previous": 0.9, "induction": 0.3}, {"previous": 0.2, "induction": None}, "induction"),  # no interval
        ({"sink4": 0.5, "self": 0.4}, {"sink4": 0.31, "self": 0.2}, "sink4"),
    ],
)
def test_a_head_is_called_what_it_does_most_besides_resting(mean, low, kind):
    scores = {name: {"mean": [[value]], "low": [[low[name]]]} for name, value in mean.items()}
    assert heads.kinds(scores) == ({kind: ["a0.h0"]} if kind else {}, 1)


def test_kinds_in_a_sentence():
    assert heads.kinds_sentence({}, 4) == "None of 4 heads follows a simple rule."
    found = {"self": ["a0.h1"], "sink4": ["a0.h0", "a1.h1"]}
    said = "Of 4 heads, 1 attend to the token itself, 2 only to the first four positions; 1 follow no such rule."
    assert heads.kinds_sentence(found, 4) == said
    (table,) = heads.kinds_table(found)
    assert table.top == 1 and table.rows[1] == ("resting", 2, "a0.h0, a1.h1")  # a terminal leaves resting heads out
    assert heads.kinds_table({"sink4": ["a0.h0"]}) == []


@pytest.fixture(scope="module")
def switched_off(tmp_path_factory):
    settings = induction.Induction(model="known-induction", n=3, k=1, draws=2)
    return perform(induction.STUDY, settings, out=tmp_path_factory.mktemp("induction") / "run")


@pytest.mark.slow
def test_induction_says_what_its_heads_are_worth(switched_off):
    made, folder = switched_off
    results = made.manifest["results"]
    assert lede_of(folder).startswith("Without a1.h0 the loss on repeated tokens rises by 2.832")
    assert made.manifest["command"] == "circuitome induction --model known-induction --n 3 --k 1 --draws 2"
    assert made.tensors["without.repeated"].shape == (3, 32)
    blocks = blocks_of(folder)
    effects, learning = blocks["Rise without heads"], blocks["Learning in context"]
    assert [row[0] for row in effects.rows] == ["the 1 strongest", "1 random ones, mean of 2 draws", "the difference"]
    assert [row[1][0] for row in effects.rows] == [results["effects"][part]["value"] for part in results["effects"]]
    assert [item.value for item in learning.items] == [
        results[name]["value"] for name in ("first_half", "second_half", "advantage")
    ]
    losses = blocks["Loss by position"]
    assert [line.name for line in losses.series] == ["whole model", "without the strongest", "without random ones"]
    assert losses.series[0].x == tuple(range(2, 34)) and losses.series[0].y == pytest.approx(
        made.tensors["whole.repeated"].mean(0).tolist()
    )
    assert len(blocks_of(folder, "heat map")) == 2
    check_shown(folder)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.18, 1.47, "and may be 0: 8 sequences do not tell the strongest induction heads from random heads."),
        (0.2, 1.2, "the model clearly loses more without the strongest induction heads than without random ones."),
        (-1.2, -0.2, "the model clearly loses less without the strongest induction heads than without random ones."),
        (None, None, "gives it no interval, so that this does not tell them apart."),
        (float("nan"), float("nan"), "gives it no interval, so that this does not tell them apart."),
    ],
)
def test_what_follows_from_the_difference_to_random_heads(low, high, said):
    difference = {"value": 0.7, "low": low, "high": high}
    assert induction.comparison({"effects": {"difference": difference}, "sequences": 8}).endswith(said)


@pytest.mark.slow
def test_json(tmp_path, capsys):
    words = ("induction", "--k", 2, "--model", "known-induction", "--n", 3, "--out", tmp_path / "run", "--json")
    found = json.loads(run(capsys, *words)[1])
    assert found["results"]["heads"] == ["a1.h0", "a1.h1"] and found["folder"]
    assert load_run(tmp_path / "run").manifest["results"] == found["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("heads", "--n", "0"), "n must be at least 1"),
        (("heads", "--period", "17"), "Use a period of at most 16"),
        (("induction", "--k", "4"), "from 1 to 3"),
        (("induction", "--text", "nowhere.txt"), "The text nowhere.txt cannot be read: No such file or directory"),
    ],
)
def test_bad_input_exits_with_1_and_writes_nothing(tmp_path, capsys, words, message):
    code, _, error = run(capsys, *words, "--model", "known-induction", "--out", tmp_path / "run")
    assert code == 1 and message in error.replace("\n", " ")
    assert not (tmp_path / "run").exists()
