"""`trace` and `routes` end to end on a small saved model: what is printed, written, drawn, and every bad input."""

import json
import re

import pytest
import torch
from command import run
from families import tiny
from shown import blocks_of, check_shown
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitome.discovery.routes.tracing import routes
from circuitome.models.loading import load
from circuitome.runs.store import load_run

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama with a word-level tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny("llama").hf.save_pretrained(path)
    vocabulary = {word: i + 3 for i, word in enumerate(WORDS)} | {f"w{i}": i for i in range(19, 61)}
    raw = Tokenizer(models.WordLevel(vocabulary | {"?": 0}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?").save_pretrained(path)
    return path


@pytest.mark.slow
def test_trace_prints_and_writes_the_route(capsys, folder, tmp_path):
    code, out, err = run(capsys, "trace", "a b c a", "--model", folder, "--threshold", 0.1, "--out", tmp_path / "t")
    assert (code, err) == (0, "")
    route = routes(load(folder), "a b c a", threshold=0.1)
    assert "What heads and MLPs on the route say" in out and "Neurons of" in out
    saved = load_run(tmp_path / "t").manifest
    (kept,) = saved["results"]["routes"]
    assert kept["threshold"] == 0.02 and kept["shown_threshold"] == 0.1
    (block,) = blocks_of(tmp_path / "t", "routes").values()
    assert block.slides and (block.threshold, block.lowest, len(block.edges)) == (0.1, 0.02, len(kept["edges"]))
    ends = {(edge.source, edge.target) for edge in block.edges if edge.importance >= 0.1}
    assert ends >= {(edge.source, edge.target) for edge in route.edges}
    check_shown(tmp_path / "t")
    code, again, _ = run(capsys, "show", tmp_path / "t")
    assert code == 0 and again == out
    code, out, _ = run(capsys, "show", tmp_path / "t", "--json")
    assert json.loads(out)["results"]["routes"][0]["target"] == "x3@3"


@pytest.mark.slow
def test_trace_of_generated_tokens(capsys, folder, tmp_path):
    arguments = ("trace", "a b", "--model", folder, "--generate", 3, "--json", "--out", tmp_path / "g")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    found = json.loads(out)["results"]["routes"]
    model, ids = load(folder), [3, 4]
    assert [route["target"] for route in found] == ["x3@1", "x3@2", "x3@3"]
    for route in found:
        with torch.no_grad():
            token = int(model.hf(torch.tensor([ids])).logits[0, -1].argmax())
        assert route["generated"] == model.decode([token]) == route["predictions"][0][0]
        assert len(route["tokens"]) == len(ids)
        ids.append(token)


@pytest.mark.slow
def test_trace_takes_a_contrast_and_neurons(capsys, folder, tmp_path):
    model = load(folder)
    with torch.no_grad():
        order = model.hf(torch.tensor([model.encode("a b c")])).logits[0, -1, 3:19].argsort()
    best, worst = WORDS[order[-1]], WORDS[order[0]]
    arguments = ("trace", "a b c", "--model", folder, "--contrast", best, worst, "--neurons", "m1@2,m0@0", "--json")
    code, out, _ = run(capsys, *arguments, "--out", tmp_path / "c")
    route = json.loads(out)["results"]["routes"][0]
    assert code == 0 and route["logit_diff"] > 0 and route["contrast"] == [best, worst]
    assert set(route["neurons"]) == {"m1@2", "m0@0"}
    assert route["neurons"]["m1@2"][0]["name"].startswith("m1.n")


@pytest.mark.slow
def test_renormalised_trace_has_no_slider(capsys, folder, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "trace", "a b c", "--model", folder, "--renormalize", "--out", out)[0] == 0
    (block,) = blocks_of(out, "routes").values()
    assert not block.slides and load_run(out).manifest["results"]["routes"][0]["threshold"] == 0.04
    assert 'type="range"' not in (out / "report.html").read_text()


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [("a b c", "x"), ("d e f g", "y"), ("h i", "x"), ("j k l", "y")]
    path.write_text("\n".join(json.dumps({"text": text, "domain": label}) for text, label in rows))
    return path


@pytest.mark.slow
def test_routes_over_a_file_by_label(capsys, folder, texts, tmp_path):
    arguments = ("routes", "--file", texts, "--by", "domain", "--model", folder, "--out", tmp_path / "r")
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "Heads that matter in every group" in out and "x (5 tokens)" in out and "y (7 tokens)" in out
    _, report = check_shown(tmp_path / "r")
    assert "Lead over every other group" in report
    found = load_run(tmp_path / "r")
    assert [group["tokens"] for group in found.manifest["results"]["groups"]] == [5, 7]
    code, out, _ = run(
        capsys, "routes", "--file", texts, "--by", "position", "--model", folder, "--json", "--out", tmp_path / "p"
    )
    assert code == 0 and [group["name"] for group in json.loads(out)["results"]["groups"]] == ["first", "1-3"]


@pytest.mark.slow
def test_plain_texts_and_csv(capsys, folder, tmp_path):
    plain, table = tmp_path / "t.txt", tmp_path / "t.csv"
    plain.write_text("a b c\n\nd e\n")
    table.write_text('text,lang\n"a, b",one\nc d,two\n')
    code, out, _ = run(capsys, "routes", "--file", plain, "--model", folder, "--json", "--out", tmp_path / "1")
    assert code == 0 and json.loads(out)["texts"] == 2
    code, out, _ = run(
        capsys, "routes", "--file", table, "--by", "lang", "--model", folder, "--json", "--out", tmp_path / "2"
    )
    assert code == 0 and [g["name"] for g in json.loads(out)["results"]["groups"]] == ["one", "two"]


BAD_TRACE = [
    (("",), r"has no tokens"),
    (("a b", "--position", "2"), r"Position 2 is outside the prompt, which has 2 tokens: 0 to 1"),
    (("a b", "--position", "first"), r"--position 'first' is no position"),
    (("a b", "--threshold", "1.5"), r"must lie between 0 and 1, got 1\.5"),
    (("a b", "--norm", "l3"), r"no norm 'l3'"),
    (("a b", "--contrast", "a b c", "d"), r"'a b c' must be one token, got 3: a\|b\|c"),
    (("a b", "--generate", "-1"), r"must be 0 or more"),
    (("a b", "--generate", "2", "--position", "0"), r"leave out --position"),
    (("a b", "--neurons", "m9@0"), r"'m9@0' is no MLP of this route"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_TRACE)
def test_bad_input_of_trace_leaves_no_run(arguments, message, capsys, folder, tmp_path):
    code, _, err = run(capsys, "trace", *arguments, "--model", folder, "--out", tmp_path / "bad")
    assert code == 1 and re.search(message, err), err
    assert not (tmp_path / "bad").exists()


BAD_FILES = [
    ("t.jsonl", '{"text": "a"}\n{"txt": "b"}', r"line 2: there is no 'text'"),
    ("t.jsonl", '{"text": "a", "by": 3}', r"line 1: there is no 'by' \(or it is no text\); found 'text', 'by'"),
    ("t.jsonl", "{", r"line 1: not valid JSON"),
    ("t.jsonl", "[1]", r"line 1: expected an object"),
    ("t.jsonl", "", r"the file is empty"),
    ("t.md", "a", r"ends in \.txt, \.jsonl, \.jsonl\.zst, \.csv or \.parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_told(name, content, message, capsys, folder, tmp_path):
    (tmp_path / name).write_text(content)
    by = ("--by", "by") if '"by"' in content else ()
    code, _, err = run(capsys, "routes", "--file", tmp_path / name, *by, "--model", folder, "--out", tmp_path / "bad")
    assert code == 1 and re.search(message, err), err
    code, _, err = run(capsys, "routes", "--file", tmp_path / "none.txt", "--model", folder)
    assert code == 1 and "cannot be read" in err
