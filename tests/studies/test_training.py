"""The commands that train: subclone, distil, data; stopped and gone on with; what is shown; bad input."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of
from transformers import AutoModelForCausalLM

from circuitome.runs.store import load_run
from circuitome.training import loop

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Text of the small model's words."""
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    generator = torch.Generator().manual_seed(0)
    path.write_text(" ".join(WORDS[int(i)] for i in torch.randint(16, (900,), generator=generator)))
    return path


def words(folder, text, length=20):
    return ("--model", folder, *trained(text, length))


def trained(text, length=20):
    return ("--texts", text, "--length", length, "--batch", 5, "--steps", 6)


SMALLER = ("--layers", 2, "--width", 12, "--neurons", 16, "--heads", 2)


@pytest.fixture(scope="module")
def student(tmp_path_factory, folder, text):
    from circuitome.cli.main import main

    path = tmp_path_factory.mktemp("students") / "small"
    given = ("subclone", *words(folder, text), *SMALLER, "--checkpoint", path, "--out", path.with_name("run"))
    main([str(word) for word in given])
    return path


def test_subclone_gives_a_checkpoint_and_curves(student):
    manifest = load_run(student.with_name("run")).manifest
    results = manifest["results"]
    assert results["shape"] == {"layers": 2, "width": 12, "neurons": 16, "heads": 2}
    assert list(results["beginnings"]) == ["magnitude", "untrained"]
    assert results["parameters"]["small"] < results["parameters"]["large"]
    curves = results["curves"]
    assert curves["steps"] == list(range(7)) and len(curves["values"]["magnitude"][0]) == 7
    saved = AutoModelForCausalLM.from_pretrained(student)
    assert (saved.config.hidden_size, saved.config.num_hidden_layers, saved.config.num_attention_heads) == (12, 2, 2)
    assert "2 blocks of width 12 with 2 heads and 16 neurons, chosen by magnitude" in lede_of(student.with_name("run"))
    assert len(blocks_of(student.with_name("run"))["Beginnings"].rows) == 2
    check_shown(student.with_name("run"))


@pytest.mark.slow
def test_subclone_by_circuit_with_seeds_goes_on_where_it_was(capsys, folder, text, data, tmp_path, stop, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARE", 0)
    given = ("subclone", *words(folder, text), *SMALLER, "--by", "circuit", "--task", "letters", "--data", data)
    given += ("--seeds", 2, "--beside", "untrained,uniform")
    assert run(capsys, *given, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        stop(lambda what, done, total: what.startswith("untrained, seed 1") and done == 3)
        del patch
        assert run(capsys, *given, "--out", tmp_path / "stopped")[0] != 0
    monkeypatch.undo()
    assert run(capsys, *given, "--out", tmp_path / "stopped", "--resume")[0] == 0
    files = [(tmp_path / name / "tensors.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert list(load_run(tmp_path / "whole").manifest["results"]["beginnings"]) == ["circuit", "untrained", "uniform"]


@pytest.mark.slow
def test_distil(capsys, folder, text, data, student, tmp_path):
    given = ("distil", folder, student, *trained(text), "--task", "letters", "--data", data, "--align", "circuit")
    code, _, error = run(capsys, *given, "--seeds", 2, "--checkpoint", tmp_path / "taught", "--out", tmp_path / "run")
    assert code == 0, error
    results = load_run(tmp_path / "run").manifest["results"]
    assert list(results["trained"]) == ["text", "predictions", "predictions and heads"]
    assert len(results["pairs"]) == 4 and all(abs(pair["similarity"]) <= 1 for pair in results["pairs"])  # all it has
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "taught").config.hidden_size == 12
    assert len(blocks_of(tmp_path / "run")["Side by side"].rows) == 5
    check_shown(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["instructions", "patterns", "selection"])
def test_data(capsys, folder, text, data, part, tmp_path):
    given = ("data", part, *words(folder, text), "--task", "letters", "--data", data, "--documents", 60)
    given += ("--windows", 12, "--edges", 40, "--share", 1, "--width", 32, "--vocabulary", 300)
    code, _, error = run(capsys, *given, "--out", tmp_path / "run")
    assert code == 0, error
    results = load_run(tmp_path / "run").manifest["results"]
    choices = {"instructions": 3, "patterns": 4, "selection": 3}[part]
    assert len(results["choices"]) == choices == len(blocks_of(tmp_path / "run")["At the end"].rows)
    first = next(iter(results["choices"].values()))
    assert all(row["difference"]["value"] == 0 for row in first.values())
    check_shown(tmp_path / "run")


def test_dry_runs(capsys, folder, text, student):
    for given in (
        ("subclone", *words(folder, text), *SMALLER),
        ("distil", folder, student, *trained(text)),
        ("data", "selection", *words(folder, text)),
        ("data", "patterns", *words(folder, text)),
    ):
        code, printed, error = run(capsys, *given, "--dry-run", "--json")
        assert code == 0 and json.loads(printed), error


def test_bad_input(capsys, folder, text, student, tmp_path):
    for given, said in (
        (("subclone", *words(folder, text)), "Nothing is to be smaller"),
        (("subclone", *words(folder, text), "--width", 99), "width must be from 1 to 24"),
        (("subclone", *words(folder, text), "--heads", 3), "multiple of 2"),
        (("subclone", *words(folder, text), "--width", 9, "--by", "luck"), "luck"),
        (("subclone", *words(folder, text), "--width", 9, "--checkpoint", tmp_path), "exists already"),
        (("distil", student, folder, *trained(text)), "at most as wide as its teacher"),
        (("data", "odd", *words(folder, text)), "odd"),
        (("data", "patterns", *words(folder, text, 2000)), "too few"),
    ):
        more = ("--task", "letters", "--data", _pairs(tmp_path)) if given[0] == "distil" else ()
        code, _, error = run(capsys, *given, *more, "--out", tmp_path / "bad")
        assert code == 1 and said in " ".join(error.split()), (said, error)
        assert not (tmp_path / "bad").exists()


def _pairs(folder):
    path = folder / "letters.jsonl"
    rows = [{"clean": "a b c", "corrupted": f"a {x} c", "answer": "d", "wrong": "e"} for x in "defgh"]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
