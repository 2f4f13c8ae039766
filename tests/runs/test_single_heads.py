"""The commands `heads` and `induction`: run folder, page, terminal, JSON, and what they refuse."""

import json

import pytest
from circuitome.report.heads_page import kinds, losses_svg
from circuitome.report.pages import page
from circuitome.runs.heads import HeadsSpec, InductionSpec
from safetensors.torch import load_file

from circuitome.cli.main import main
from circuitome.runs.store import load_run


def folder_with(tmp_path, *words):
    folder = tmp_path / "run"
    main([*words, "--model", "known-induction", "--n", "3", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def atlas_run(tmp_path_factory):
    return folder_with(tmp_path_factory.mktemp("atlas"), "heads")


def test_heads_write_a_run_that_shows_itself_again(atlas_run, capsys):
    folder = atlas_run
    main(["show", str(folder)])
    out = capsys.readouterr().out
    assert "2 look at the token before" in out and "a1 I  I" in out and "a0 P  P" in out
    assert f"Report: {folder}" in out.replace("\n", "")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "heads" and manifest["sequences"]["in_front"] == "BOS"
    assert manifest["command"] == "circuitome heads --model known-induction --seed 0 --n 3"
    assert manifest["results"]["top"]["induction"][0]["label"] in ("a1.h0", "a1.h1")
    tensors = load_file(folder / "tensors.safetensors")
    assert tensors["induction"].shape == (3, 2, 3) and tensors["copy_top5"].shape[1:] == (2, 3)


def test_the_same_command_gives_the_same_tensors(tmp_path, atlas_run, capsys):
    again = folder_with(tmp_path, "heads")
    out = capsys.readouterr().out
    assert "a1 I  I" in out and f"Report: {again}" in out.replace("\n", "")
    first, second = ((folder / "tensors.safetensors").read_bytes() for folder in (atlas_run, again))
    assert first == second


def test_the_page_has_a_map_a_score_and_nothing_that_runs(atlas_run):
    run = load_run(atlas_run)
    text = page(run)
    assert text.count('class="fig heatmap') == len(run.manifest["results"]["scores"]) == 13
    assert "a1.h0: 1.000 [1.000, 1.000]" in text and "interval lies above chance (0.041)" in text
    assert "<script" not in text and "http-equiv" in text


def test_induction_writes_a_run_and_prints_what_it_is_worth(tmp_path, capsys):
    folder = folder_with(tmp_path, "induction", "--k", "1", "--draws", "2")
    out = capsys.readouterr().out
    assert "Without a1.h0 the loss on repeated tokens rises by 2.832" in out
    run = load_run(folder)
    assert run.manifest["command"].endswith("--n 3 --k 1 --draws 2")
    assert run.tensors["without.repeated"].shape == (3, 32)
    text = page(run)
    assert "the 1 strongest" in text and text.count('class="fig heatmap') == 2 and "token 33" in text


def test_json(tmp_path, capsys):
    folder_with(tmp_path, "induction", "--k", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["heads"] == ["a1.h0", "a1.h1"] and found["folder"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("heads", "--n", "0"), "n must be at least 1"),
        (("heads", "--period", "17"), "Use a period of at most 16"),
        (("induction", "--k", "4"), "from 1 to 3"),
        (("induction", "--text", "nowhere.txt"), "--text nowhere.txt cannot be read"),
    ],
)
def test_bad_input_exits_with_1_and_writes_nothing(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="1"):
        main([*words, "--model", "known-induction", "--out", str(tmp_path / "run")])
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_commands_repeat_every_option():
    heads = HeadsSpec(model="m", n=2, period=7, retrieval=True, seed=3, max_memory=5)
    assert heads.command() == "circuitome heads --model m --seed 3 --max-memory 5 --n 2 --period 7 --retrieval"
    induction = InductionSpec(model="m", k=2, text="a b.txt")
    assert induction.command() == "circuitome induction --model m --seed 0 --n 8 --k 2 --draws 3 --text 'a b.txt'"
    assert heads.folder_name("heads").startswith("m-heads-")


def test_a_head_is_called_what_it_does_most_beside_resting():
    def score(mean, low):
        return {"mean": [mean], "low": [low]}

    found = kinds(
        {
            "previous": score([0.4, 0.2, 0.9], [0.35, 0.1, 0.2]),
            "sink4": score([0.5, 0.2, 0.1], [0.31, 0.1, 0.0]),
            "induction": score([0.1, 0.1, 0.3], [0.0, 0.0, None]),
        }
    )
    assert found == [["P", "", "I"]]
    assert kinds({"sink4": score([0.5, 0.2], [0.31, 0.1]), "self": score([0.4, 0.1], [0.2, 0.0])}) == [["s", ""]]


def test_lines_of_losses_start_at_the_left_and_reach_the_largest():
    text = losses_svg({"whole": [4.0, 2.0], "without": [1.0, float("nan")], "random": [0.0, 0.0]})
    assert "M44.0 12.0L608.0 104.0" in text and "nan " not in text and 'd="M44.0 150.0"' in text
