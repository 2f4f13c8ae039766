"""The commands for dictionaries: train, check, look into; stopped, killed and gone on with; bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command import run
from safetensors.torch import load_file

from circuitome.features import training

LETTERS = "abcdefghijklmnop"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Words of the small model, in an order that is no pattern."""
    path = tmp_path_factory.mktemp("texts") / "letters.txt"
    path.write_text(" ".join(LETTERS[(i * i + i // 7) % 16] for i in range(2000)))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder, texts):
    out = tmp_path_factory.mktemp("dictionaries") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        from circuitome.cli.main import main

        main(["dictionary", "train", *options(folder, texts), "--out", str(out)])
    return out


def options(folder, texts, layer="1", kind="topk"):
    given = {"--model": folder, "--texts": texts, "--layer": layer, "--kind": kind, "--width": "2x", "--k": "4"}
    return [*(str(part) for pair in given.items() for part in pair), "--length", "20"]


def test_train_writes_a_dictionary(trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["kind"] == "dictionary train" and manifest["command"].startswith("circuitome dictionary train --")
    assert manifest["dictionary"]["k"] == 4 and manifest["results"]["features"] == 48
    assert load_file(trained / "tensors.safetensors")["W_enc"].shape == (24, 48)


def test_check(capsys, folder, texts, trained, tmp_path):
    words = ["--model", str(folder), "--texts", str(texts), "--length", "20", "--tokens", "400", "--losses", "3"]
    code, printed, _ = run(capsys, "dictionary", "check", str(trained), *words, "--out", str(tmp_path / "c"), "--json")
    found = json.loads(printed)["results"]
    assert code == 0 and found["fits"]["dictionary"]["active"]["value"] == 4.0
    assert set(found["losses"]) == {"model", "zero", "mean"} and sum(n for _, n in found["density"]) == 48
    code, printed, _ = run(capsys, "show", str(tmp_path / "c"))
    assert "Beside simpler things" in printed and "random dictionary" in printed


@pytest.mark.slow
def test_features(capsys, folder, texts, trained, tmp_path, monkeypatch):
    import circuitome as cm
    from circuitome.features.formats import read

    monkeypatch.setattr(cm.features, "load", lambda path, **_: read(path))  # the small model cannot read English
    words = ["--model", str(folder), "--texts", str(texts), "--length", "20", "--tokens", "400", "--prompt", "a b c d"]
    code, printed, _ = run(capsys, "features", str(trained), *words, "--out", str(tmp_path / "f"), "--json")
    found = json.loads(printed)["results"]
    assert code == 0 and len(found["features"]) == 48 and len(found["detailed"]) == 5
    firing = found["prompt"]["features"]
    assert all(row["activations"][0] is None and max(row["activations"][1:]) == row["value"] > 0 for row in firing)
    page = (tmp_path / "f" / "report.html").read_text()
    assert "Every feature" in page and 'type="search"' not in page.split("Every feature")[0]
    code, printed, error = run(capsys, "features", str(trained), *words[:-2], "--feature", "99", "--out", "x")
    assert code == 1 and "no feature 99; the dictionary has 0 to 47" in error
    often = max(found["features"], key=lambda row: row["density"])["feature"]
    never = [row["feature"] for row in found["features"] if not row["density"]][:1]
    asked = ",".join(map(str, [often, *never]))
    code, printed, _ = run(
        capsys, "features", str(trained), *words, "--feature", asked, "--out", str(tmp_path / "g"), "--json"
    )
    results = json.loads(printed)["results"]
    own = results["detailed"][0]
    assert code == 0 and own["quantiles"][0]["value"] == pytest.approx(own["largest"])
    assert [q["value"] for q in own["quantiles"]] == sorted((q["value"] for q in own["quantiles"]), reverse=True)
    assert sum(count for _, count in own["histogram"]) == round(own["density"] * results["tokens"])
    assert all("quantiles" not in feature for feature in results["detailed"][1:])
    code, printed, _ = run(capsys, "show", str(tmp_path / "g"))
    assert f"Activations of feature {often}" in (tmp_path / "g" / "report.html").read_text()


@pytest.mark.slow
def test_features_on_a_task(capsys, tmp_path):
    """On a model whose circuit is known."""
    texts = tmp_path / "texts.txt"
    texts.write_text("Ann and Bob met then Bob gave to Eve and Hal met then Eve gave to " * 40)
    words = ["--model", "known-ioi", "--texts", str(texts), "--length", "9"]
    out, more = tmp_path / "out", ["--layer", "0", "--width", "40", "--k", "6"]
    assert run(capsys, "dictionary", "train", *words, *more, "--out", str(out))[0] == 0
    words += ["--task", "known-ioi", "--n", "16", "--prompt", "Ann and Bob met then Bob gave to"]
    code, printed, error = run(capsys, "features", str(out), *words, "--out", str(tmp_path / "f"), "--json")
    assert code == 0, error
    found = json.loads(printed)["results"]["task"]
    assert (
        found["whole"]["value"] < -5 and found["sum"] + found["error"] < -3
    )  # attention is sharp: five steps are coarse
    code, printed, _ = run(capsys, "show", str(tmp_path / "f"))
    assert "On the task" in printed and "to first order" in printed


def test_a_stopped_training_goes_on(capsys, folder, texts, trained, tmp_path, stop, monkeypatch):
    monkeypatch.setattr(training, "SECONDS", 0.0)
    monkeypatch.setattr(training, "STRETCH", 400)
    whole, half = tmp_path / "whole", tmp_path / "half"
    words = ["dictionary", "train", *options(folder, texts)]
    assert run(capsys, *words, "--out", str(whole))[0] == 0
    with monkeypatch.context() as patch:
        stop(lambda what, done, total: what.startswith("training") and done > total / 2)
        code, _, error = run(capsys, *words, "--out", str(half))
        patch.undo()
    assert code == 130 and "--resume" in error
    monkeypatch.undo()
    monkeypatch.setattr(training, "STRETCH", 400)
    assert run(capsys, *words, "--out", str(half), "--resume")[0] == 0
    assert (half / "tensors.safetensors").read_bytes() == (whole / "tensors.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_training_goes_on(folder, texts, tmp_path):
    """Killed so that nothing can be cleaned up, while it learns."""
    code = (
        "import sys; from circuitome.features import training; training.SECONDS = 0.0; training.STRETCH = 200\n"
        "from circuitome.cli.main import main; main(sys.argv[1:])"
    )
    words = ["dictionary", "train", *options(folder, texts)]
    command = [sys.executable, "-c", code, *words]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kept = tmp_path / "half.partial" / "dictionary.safetensors"
    process = subprocess.Popen([*command, "--out", str(tmp_path / "half")], stderr=subprocess.DEVNULL)
    while not kept.is_file() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert kept.is_file()
    subprocess.run([*command, "--out", str(tmp_path / "half"), "--resume"], check=True, capture_output=True)
    own, other = ((tmp_path / name / "tensors.safetensors").read_bytes() for name in ("half", "whole"))
    assert own == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--width", "none"), "--width is a number of features, or 8x"),
        (("train", "--layer", "99", "--model", "{folder}"), "There is no layer 99"),
        (("train", "--k", "0", "--model", "{folder}"), "k=0 of"),
        (("train", "--skip", "--model", "{folder}"), "skip is a transcoder's linear part"),
        (("train", "--tokens", "1"), "--tokens must be at least 2"),
        (("check", "nowhere"), "There is no nowhere"),
        (("check", "{folder}", "--model", "{folder}"), "no dictionary of a known format"),
    ],
)
def test_bad_input(capsys, folder, texts, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    given = [word.format(folder=folder) for word in words]
    more = ["--texts", str(texts), "--length", "20"] if "--model" in words else []
    code, _, error = run(capsys, "dictionary", *given, *more)
    assert code == 1 and message in error and not list(tmp_path.glob("runs/*"))
