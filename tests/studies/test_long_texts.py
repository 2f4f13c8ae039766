"""The studies `stream` and `retrieval` on a small saved model, and the message of every bad input."""

import json
import re

import pytest
from command import run
from heads.test_retrieval import TEXT, spoken
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama with a tokenizer of words."""
    path, model = tmp_path_factory.mktemp("model"), spoken()
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    (path / "text.txt").write_text(TEXT)
    rows = [("u v w x .", "u v", "w x"), ("s t r .", "s t", "r")]
    lines = [json.dumps(dict(zip(("needle", "question", "answer"), row, strict=True))) for row in rows]
    (path / "needles.jsonl").write_text("\n".join(lines))
    (path / "empty.txt").write_text(" \n")
    return path


def stream(capsys, model, files, *more):
    words = ("stream", "--model", model, "--text", files / "text.txt", "--window", 12, "--sinks", 2)
    return run(capsys, *words, *more)


@pytest.fixture(scope="module")
def streamed(model, files, tmp_path_factory):
    """A finished run of `stream`, and its folder."""
    from circuitome.studies.frame import perform
    from circuitome.studies.stream import STUDY, Stream

    settings = Stream(model=str(model), text=str(files / "text.txt"), window=12, sinks=2)
    return perform(STUDY, settings, out=tmp_path_factory.mktemp("stream") / "run")


def retrieval(capsys, model, files, *more):
    words = ("--lengths", "30,40", "--depths", "0,1", "--top-k", 3, "--draws", 2, "--steps", 3)
    data = ("--text", files / "text.txt", "--needles", files / "needles.jsonl", "--model", model)
    return run(capsys, "retrieval", *data, *words, *more)


@pytest.mark.slow
def test_stream(streamed):
    found, folder = streamed
    blocks = blocks_of(folder)
    results, losses = found.manifest["results"], found.tensors["dense"]
    assert lede_of(folder).startswith("From token 14 on, the loss is ")
    assert len(losses) == found.manifest["text"]["tokens"] - 1 == len(found.tensors["ids"]) - 1
    after = results["policies"]["dense"]["after"]
    assert after["value"] == pytest.approx(float(losses[14:].mean())) and after["n"] == len(losses) - 14
    assert [row["start"] for row in results["stretches"]][4] == 14
    assert sum(row["end"] - row["start"] for row in results["stretches"]) == len(losses)
    for name in ("window", "sinks_and_window"):
        assert float((found.tensors[name][:14] - losses[:14]).abs().max()) < 2e-5
        assert float((found.tensors[name][14:] - losses[14:]).abs().max()) > 1e-3
    caches = {row[0]: row for row in blocks["Loss by cache"].rows}
    assert list(caches) == ["dense", "window", "sinks and window"] and caches["dense"][3] is None
    assert caches["window"][3][0] == results["against_dense"]["window"]["value"]
    assert caches["dense"][2][0] == after["value"] and len(caches["dense"]) == 6
    text, _ = check_shown(folder)
    assert "Loss by position" in text and "the first 4 tokens" in text


@pytest.mark.slow
def test_the_same_stream_gives_the_same_json(capsys, model, files, streamed, tmp_path):
    code, again, _ = stream(capsys, model, files, "--out", tmp_path / "run", "--json")
    assert code == 0 and json.loads(again)["results"] == json.loads(json.dumps(streamed[0].manifest["results"]))


@pytest.mark.slow
def test_a_chart_of_losses_and_its_numbers_hold_every_stretch(streamed):
    from circuitome.present.stored import document

    found, _ = streamed
    stretches = found.manifest["results"]["stretches"]
    blocks = document(found).blocks
    chart = next(block for block in blocks if block.block == "lines" and block.title == "Loss by position")
    for line in chart.series:
        assert line.y == tuple(stretch[line.name]["value"] for stretch in stretches)
    assert chart.marks == (("first eviction", 14.0),)
    numbers = next(block for block in blocks if block.title == "The numbers as a table")
    assert numbers.folded and len(numbers.rows) == len(stretches)
    short = next(block for block in blocks if block.title == "Loss by position" and block.where == "terminal")
    assert len(short.rows) <= 14 and short.rows[0][1] == numbers.rows[0][1][0]
    first = found.manifest["results"]["sink_mass"]
    sinks = [block for block in blocks if block.block == "heat map"]
    for block, heads, layers, even in zip(sinks, first["heads"], first["layers"], first["uniform"], strict=True):
        assert [list(row) for row in block.values] == [
            [*row, layer["value"]] for row, layer in zip(heads, layers, strict=True)
        ]
        assert block.columns[-1] == "mean" and block.low[0][0] is None and block.low[0][-1] == layers[0]["low"]
        assert block.scale == "positive" and block.chance == pytest.approx(even)


@pytest.mark.slow
def test_retrieval(capsys, model, files, tmp_path):
    code, _, err = retrieval(capsys, model, files, "--out", tmp_path / "run")
    assert code == 0, err
    found, blocks = load_run(tmp_path / "run"), blocks_of(tmp_path / "run")
    results, said = found.manifest["results"], lede_of(tmp_path / "run")
    assert "heads score 0.1 or more" in said and "Masking the top 3" in said
    assert len(results["runs"]) == 8 and found.tensors["scores"].shape == (8, 3, 4)
    assert results["successes"] == sum(run["recall"] > 0.5 for run in results["runs"])
    if not results["conditional"]:
        assert "answered none" in said and "ALL runs" in found.manifest["sign"]
    drawn = {head for draw in results["masking"]["draws"] for head in draw}
    assert not drawn & {*results["masking"]["heads"], *results["retrieval_heads"]}
    (scores,) = blocks_of(tmp_path / "run", "heat map").values()
    assert scores.values == tuple(map(tuple, results["map"]["mean"])) and scores.scale == "positive"
    needed = {row[0]: row[1:] for row in blocks["Are they needed?"].rows}
    assert list(needed) == ["no head masked", "top 3 masked", "3 random others masked", "top 3 minus random others"]
    difference = results["masking"]["estimates"]["log_prob"]["masked_minus_random"]
    assert needed["top 3 minus random others"][0][0] == difference["value"]
    answered = blocks["Prompts answered, by length and depth"]
    assert [row[0] for row in answered.rows] == [30, 40] and len(answered.columns) == 3
    assert all(cell.endswith(" of 2") for row in answered.rows for cell in row[1:])
    assert blocks["All 8 answers"].folded and len(blocks["All 8 answers"].rows) == 8
    assert [row[0] for row in blocks["Strongest heads"].rows] == [head["label"] for head in results["top"]]
    check_shown(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--window", 300), r"has 256 tokens; 2 sinks and a window of 300 hold the first 302, .* at most 252"),
        (("--sinks", -1), "0 or more, got -1"),
        (("--window", 0), "1 or more, got 0"),
        (("--max-memory", "1KB"), "One token takes about .* Raise --max-memory"),
        (("--tokens", 15), "--tokens 15 ends before anything is evicted.* at least 16 tokens"),
        (("--text", "no.txt"), "The text no.txt cannot be read: No such file"),
    ],
)
def test_streams_that_cannot_be(capsys, model, files, tmp_path, words, message):
    given = {"--window": 12, "--sinks": 2, "--text": files / "text.txt", **dict([words])}
    flat = [part for pair in given.items() for part in pair]
    code, _, err = run(capsys, "stream", "--model", model, "--out", tmp_path / "run", *flat)
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-memory", "1KB"), "Keys and values of .* prompts take .* MB beside the weights"),
        (("--lengths", "9"), "A prompt of 9 tokens has no room"),
        (("--lengths", "500"), "The text has .* need"),
        (("--mode", "zeros"), "Did you mean 'zero'"),
        (("--where", "decoded"), "Did you mean 'decode'"),
        (("--top-k", 0), "--top-k must be at least 1, got 0"),
        (("--top-k", 7), "7 heads to mask"),
        (("--needles", "no.jsonl"), "no.jsonl cannot be read"),
        (("--text", "EMPTY"), "is empty"),
        (("--model", "smollm2-135n"), "Did you mean 'smollm2-135m'"),
    ],
)
def test_searches_that_cannot_be(capsys, model, files, tmp_path, words, message):
    name, value = words
    data = {"--text": files / "text.txt", "--needles": files / "needles.jsonl", "--model": model, "--lengths": "30"}
    given = {**data, "--steps": 2, name: files / "empty.txt" if value == "EMPTY" else value}
    flat = [part for pair in given.items() for part in pair]
    code, _, err = run(capsys, "retrieval", "--out", tmp_path / "run", *flat)
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "run").exists()


def test_lengths_that_are_no_whole_numbers(capsys, tmp_path):
    code, _, err = run(capsys, "retrieval", "--lengths", "30,x", "--out", tmp_path / "run")
    assert code == 2 and "--lengths" in err and "whole numbers" in err


@pytest.mark.slow
def test_a_dense_cache_needs_positions(capsys, files, tmp_path):
    model = spoken("gpt2")
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    code, _, err = stream(capsys, tmp_path / "model", files, "--out", tmp_path / "run")
    assert code == 1 and "learned positions for 64 tokens" in err and "--tokens 65" in err
    code, _, err = stream(capsys, tmp_path / "model", files, "--out", tmp_path / "run", "--tokens", 65)
    assert code == 0, err
