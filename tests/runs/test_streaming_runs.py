"""Commands about long texts end to end on a small saved model, their pages, and the message of every bad input."""

import json
import re

import pytest
from circuitome.report.lines import Point, lines_svg
from circuitome.report.pages import page
from circuitome.report.retrieval_page import success_grid
from command import run
from heads.test_retrieval import TEXT, spoken

from circuitome.runs.store import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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


def stream(capsys, folder, files, *more):
    words = ("stream", "--model", folder, "--text", files / "text.txt", "--window", 12, "--sinks", 2)
    return run(capsys, *words, *more)


def retrieval(capsys, folder, files, *more):
    words = ("--lengths", "30,40", "--depths", "0,1", "--top-k", 3, "--draws", 2, "--steps", 3)
    data = ("--text", files / "text.txt", "--needles", files / "needles.jsonl", "--model", folder)
    return run(capsys, "retrieval", *data, *words, *more)


@pytest.mark.slow
def test_stream(capsys, folder, files, tmp_path):
    code, out, err = stream(capsys, folder, files, "--out", tmp_path / "run")
    assert code == 0, err
    for words in ("From token 14 on", "sinks and window", "Loss by position", "first token", "Report:"):
        assert words in out
    found = load_run(tmp_path / "run")
    results, losses = found.manifest["results"], found.tensors["dense"]
    assert len(losses) == found.manifest["text"]["tokens"] - 1 == len(found.tensors["ids"]) - 1
    after = results["policies"]["dense"]["after"]
    assert after["value"] == pytest.approx(float(losses[14:].mean())) and after["n"] == len(losses) - 14
    assert [row["start"] for row in results["stretches"]][4] == 14
    assert sum(row["end"] - row["start"] for row in results["stretches"]) == len(losses)
    for name in ("window", "sinks_and_window"):
        assert float((found.tensors[name][:14] - losses[:14]).abs().max()) < 2e-5
        assert float((found.tensors[name][14:] - losses[14:]).abs().max()) > 1e-3
    html = (tmp_path / "run" / "report.html").read_text()
    assert html == page(found)
    assert "<script" not in html and "first eviction" in html and html.count("<circle") == 3 * len(results["stretches"])
    code, again, _ = stream(capsys, folder, files, "--out", tmp_path / "run", "--json")
    assert code == 0 and json.loads(again)["results"] == results


@pytest.mark.slow
def test_retrieval(capsys, folder, files, tmp_path):
    code, out, err = retrieval(capsys, folder, files, "--out", tmp_path / "run")
    assert code == 0, err
    for words in ("heads score 0.1 or more", "Masking the top 3", "random others masked", "Report:"):
        assert words in out
    found = load_run(tmp_path / "run")
    results = found.manifest["results"]
    assert len(results["runs"]) == 8 and found.tensors["scores"].shape == (8, 3, 4)
    assert results["successes"] == sum(run["recall"] > 0.5 for run in results["runs"])
    if not results["conditional"]:
        assert "answered none" in out and "ALL runs" in out
    drawn = {head for draw in results["masking"]["draws"] for head in draw}
    assert not drawn & {*results["masking"]["heads"], *results["retrieval_heads"]}
    depths, grid = success_grid(results)
    assert depths == [0.0, 1.0] and [total for cells in grid.values() for _, total in cells] == [2] * 4
    html = (tmp_path / "run" / "report.html").read_text()
    assert html == page(found)
    assert "<script" not in html and 'id="retrieval-map"' in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--window", 300), r"has 256 tokens; 2 sinks and a window of 300 hold the first 302, .* at most 252"),
        (("--sinks", -1), "0 or more, got -1"),
        (("--window", 0), "1 or more, got 0"),
        (("--max-memory", "1KB"), "One token takes about .* Raise --max-memory"),
        (("--tokens", 15), "--tokens 15 ends before anything is evicted.* at least 16 tokens"),
        (("--text", "no.txt"), "The text no.txt cannot be read"),
    ],
)
def test_streams_that_cannot_be(capsys, folder, files, tmp_path, words, message):
    given = {"--window": 12, "--sinks": 2, "--text": files / "text.txt", **dict([words])}
    flat = [part for pair in given.items() for part in pair]
    code, _, err = run(capsys, "stream", "--model", folder, "--out", tmp_path / "run", *flat)
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lengths", "30,x"), "--lengths takes whole numbers with commas between, got '30,x'"),
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
def test_searches_that_cannot_be(capsys, folder, files, tmp_path, words, message):
    name, value = words
    data = {"--text": files / "text.txt", "--needles": files / "needles.jsonl", "--model": folder, "--lengths": "30"}
    given = {**data, "--steps": 2, name: files / "empty.txt" if value == "EMPTY" else value}
    flat = [part for pair in given.items() for part in pair]
    code, _, err = run(capsys, "retrieval", "--out", tmp_path / "run", *flat)
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dense_cache_needs_positions(capsys, files, tmp_path):
    model = spoken("gpt2")
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    code, _, err = stream(capsys, tmp_path / "model", files, "--out", tmp_path / "run")
    assert code == 1 and "learned positions for 64 tokens" in err and "--tokens 65" in err
    code, _, err = stream(capsys, tmp_path / "model", files, "--out", tmp_path / "run", "--tokens", 65)
    assert code == 0, err


def test_lines_stay_in_the_figure():
    points = [Point(0, 10, 2.0, None, None), Point(10, 20, 3.0, -50.0, 90.0), Point(20, 30, 2.5, 2.4, 2.6)]
    drawing = lines_svg({"one": points, "other": points}, x_label="x", y_label="y", mark=(10, "here"))
    numbers = [float(y) for y in re.findall(r'cy="([\d.-]+)"', drawing)]
    assert len(numbers) == 6 and all(18 <= y <= 334 for y in numbers)
    names = re.findall(r'y="([\d.]+)" text-anchor="start" fill="var\(--(?:helps|hurts)\)"', drawing)
    assert len(names) == 2 and abs(float(names[0]) - float(names[1])) >= 14
    assert "nan" not in drawing and "Nothing was measured" in lines_svg({}, x_label="x", y_label="y")
    flat = lines_svg({"one": [Point(0, 1, 2.0, 2.0, 2.0)]}, x_label="x", y_label="y")
    assert "nan" not in flat
