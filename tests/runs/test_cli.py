"""The command line end to end on a small saved model, and the message of every bad input."""

import json
from contextlib import contextmanager

import pytest
import torch
from command import run
from families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitome.errors import RunError
from circuitome.runs.store import load_run
from circuitome.studies.methods import METHODS

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of 190 edges with a word-level tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny("llama").hf.save_pretrained(path)
    raw = Tokenizer(models.WordLevel({word: i + 3 for i, word in enumerate(WORDS)} | {"?": 0}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, folder):
    """Pairs that the random model happens to do: the answers are what it prefers."""
    from circuitome.models.loading import load

    model = load(folder)
    rows = []
    for i in range(6):
        clean = " ".join(WORDS[(i + k) % 16] for k in range(5))
        corrupted = " ".join(WORDS[(i + k + 7 * (k == 2)) % 16] for k in range(5))
        with torch.no_grad():
            a, b = (model.hf(torch.tensor([model.encode(text)])).logits[0, -1, 3:19] for text in (clean, corrupted))
        order = (a - b).argsort()
        rows.append({"clean": clean, "corrupted": corrupted, "answer": WORDS[order[-1]], "wrong": WORDS[order[0]]})
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def find(folder, data, out, *more):
    return ("find", "--model", folder, "--data", data, "--edges", 20, "--out", out, *more)


LEARNING = ("--steps", 4)
OPTIONS = {"edge-pruning": LEARNING, "subnetwork-probing": LEARNING, "eap-ig": ("--loss", "kl")}


QUICK = ("eap", "eap-ig", "exact", "atp")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "acdc"],
)
def test_find_writes_a_run_and_show_shows_it(capsys, tmp_path, folder, data, method):
    out = tmp_path / "run"
    code, printed, _ = run(capsys, *find(folder, data, out, "--method", method, *OPTIONS.get(method, ())))
    assert code == 0
    assert "20 of 190 edges carry" in printed
    assert str(out / "report.html") in printed.replace("\n", "")
    assert {p.name for p in out.iterdir()} == {"manifest.json", "tensors.safetensors", "report.html"}
    assert list(tmp_path.iterdir()) == [out]  # no staging folder is left
    found = load_run(out)
    assert int(found.tensors["circuit"].sum()) == 20
    assert found.tensors["scores"].shape == (16, 28)
    assert found.manifest["task"]["name"] == "letters"
    assert run(capsys, "show", out)[1] == printed


@pytest.mark.slow
def test_acdc_takes_the_threshold_whose_circuit_is_nearest_in_size(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    options = ("--method", "acdc", "--threshold", 0.002, "--threshold", 0.05, "--order", "normal", "--absolute")
    assert run(capsys, *find(folder, data, out, *options))[0] == 0
    found = load_run(out)
    method, size = found.manifest["method"], found.manifest["edges"]
    assert method["threshold"] == min(method["sweep"], key=lambda one: abs(one["edges"] - 20))["threshold"]
    assert (
        size
        == int(found.tensors["circuit"].sum())
        == next(one["edges"] for one in method["sweep"] if one["threshold"] == method["threshold"])
    )
    assert {one["edges"] for one in method["sweep"]} <= set(found.manifest["results"]["curve"]["sizes"])
    assert "--threshold 0.002 --threshold 0.05" in found.manifest["command"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [pytest.param("acdc", marks=pytest.mark.slow), "exact", pytest.param("edge-pruning", marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_with_the_same_result(capsys, tmp_path, folder, data, method, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = ("--method", method, *(("--steps", 25) if method == "edge-pruning" else ()))
    run(capsys, *find(folder, data, whole, *options))

    @contextmanager
    def stopping():
        def tell(what, done, total):
            if what == "scoring edges" and done > 0.6 * total:
                raise KeyboardInterrupt

        yield tell

    with monkeypatch.context() as patched:
        patched.setattr("circuitome.cli.show.progress", stopping)
        code, _, error = run(capsys, *find(folder, data, out, *options))
    partial = tmp_path / "run.partial"
    assert code == 130 and "--resume" in error and partial.is_dir() and not out.exists()
    code, _, error = run(capsys, *find(folder, data, out, *options))
    assert code == 1 and "Add --resume" in error
    code, _, error = run(capsys, *find(folder, data, out, *options, "--seed", 7, "--resume"))
    assert code == 1 and "another command" in error
    assert run(capsys, *find(folder, data, out, *options, "--resume"))[0] == 0
    assert not partial.exists()
    same = load_run(out).tensors
    for name, tensor in load_run(whole).tensors.items():
        torch.testing.assert_close(same[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_pairs_of_unequal_length_need_an_ablation_that_swaps_nothing(capsys, tmp_path, folder):
    data = tmp_path / "uneven.jsonl"
    rows = [{"clean": f"a b {x}", "corrupted": f"a b c {x}", "answer": "e", "wrong": "f"} for x in "ghij"]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    code, _, error = run(capsys, *find(folder, data, tmp_path / "run"))
    assert code == 1 and "same number of tokens, got 3 and 4" in error and "zero or mean" in error
    code, _, error = run(capsys, *find(folder, data, tmp_path / "run", "--ablation", "mean"))
    assert code == 0 or "does not do the task" in error


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_and_replaces_its_own_run(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    first = (out / "tensors.safetensors").read_bytes()
    assert run(capsys, *find(folder, data, out))[0] == 0
    assert (out / "tensors.safetensors").read_bytes() == first


@pytest.mark.slow
def test_another_run_in_the_folder_is_not_overwritten(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    before = (out / "manifest.json").read_bytes()
    code, _, error = run(capsys, *find(folder, data, out, "--seed", 3))
    assert code == 1
    assert "already holds another run: circuitome find" in error
    assert (out / "manifest.json").read_bytes() == before
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    code, _, error = run(capsys, *find(folder, data, other))
    assert code == 1
    assert "is not empty and holds no run" in error
    assert [p.name for p in other.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_json_and_dry_run(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    code, printed, _ = run(capsys, *find(folder, data, out, "--dry-run", "--json"))
    cost = json.loads(printed)
    assert code == 0
    assert cost["edges"] == 20
    assert cost["seconds"] > 0
    assert cost["passes"]["forward-backward"] == 5
    assert not out.exists()
    found = json.loads(run(capsys, *find(folder, data, out, "--json"))[1])
    assert len(found["circuit"]) == 20
    assert found["results"]["faithfulness"]["n"] == 6
    again = json.loads(run(capsys, "show", out, "--json")[1])
    assert again == found
    for command in ("tasks", "models"):
        assert json.loads(run(capsys, command, "--json")[1])


def test_report_holds_the_run(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    page = (out / "report.html").read_text()
    assert "letters in" in page
    assert load_run(out).manifest["model"]["weights_hash"] in page


BAD = [
    (("--method", "eapig"), "no method 'eapig'. Did you mean 'eap-ig'"),
    (("--ablation", "zeros"), "no ablation 'zeros'. Did you mean 'zero'"),
    (("--edges", "191"), "outside 1..190"),
    (("--edges", "0"), "outside 1..190"),
    (("--n", "0"), "must be at least 1"),
    (("--steps", "0"), "steps must be at least 1"),
    (("--threshold", "0.1"), "--threshold means nothing to eap-ig; it belongs to acdc"),
    (("--method", "eap", "--loss", "kl"), "gradient is taken at the clean model"),
    (("--method", "atp", "--loss", "kl"), "Use eap-ig"),
    (("--method", "acdc", "--threshold", "1e9"), "keeps no edge at 1e+09"),
    (("--method", "acdc", "--threshold", "-1"), "must be above 0"),
    (("--loss", "k1"), "eap-ig cannot score by the loss k1"),
    (("--data", "missing.jsonl"), "no data file missing.jsonl"),
    (("--model", "smollm2-135n"), "no model 'smollm2-135n'. Did you mean 'smollm2-135m'"),
    (("--model", "missing.gguf"), "There is no file missing.gguf"),
    (("--max-memory", "lots"), "is not a size"),
    (("--max-memory", "1KB"), "One prompt of 5 tokens needs about"),
    (("--ablation", "mean-position", "--n", "1"), None),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_says_what_to_do_and_writes_nothing(capsys, tmp_path, folder, data, options, message):
    given = {"--model": folder, "--data": data, "--edges": "20", "--out": tmp_path / "run"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    code, printed, error = run(capsys, "find", *(part for item in given.items() for part in item))
    if message is None:
        assert code == 0
        return
    assert code == 1
    assert message in error
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_unknown_tasks_commands_and_options(capsys, tmp_path):
    code, _, error = run(capsys, "find", "oii", "--out", tmp_path / "run")
    assert (code, "no task 'oii'. Did you mean 'ioi'" in error) == (1, True)
    assert run(capsys, "fnd")[0] == 2
    assert run(capsys, "find", "--edgs", "3")[0] == 2
    error = json.loads(run(capsys, "find", "oii", "--json")[1])
    assert error["error"] == "UnknownNameError"


def test_unsupported_architecture_lists_the_supported_ones(capsys, tmp_path, data):
    import transformers as tf

    tf.BloomForCausalLM(tf.BloomConfig(vocab_size=61, hidden_size=24, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "m"
    )
    code, _, error = run(capsys, *find(tmp_path / "m", data, tmp_path / "run"))
    assert code == 1
    assert "no supported architecture 'bloom'" in error
    assert "gpt_neox" in error
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no config.json" in run(capsys, *find(empty, data, tmp_path / "run"))[2]


@pytest.mark.slow
def test_damaged_runs_are_refused(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    tensors = (out / "tensors.safetensors").read_bytes()
    (out / "tensors.safetensors").write_bytes(tensors[:100])
    code, _, error = run(capsys, "show", out)
    assert (code, "is damaged: tensors.safetensors cannot be read" in error) == (1, True)
    (out / "tensors.safetensors").unlink()
    assert "tensors.safetensors is missing" in run(capsys, "show", out)[2]
    (out / "manifest.json").write_text("{")
    assert "manifest.json is not valid JSON" in run(capsys, "show", out)[2]
    assert "no run folder" in run(capsys, "show", tmp_path / "nowhere")[2]
    with pytest.raises(RunError):
        load_run(out)
