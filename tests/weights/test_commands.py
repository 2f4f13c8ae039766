"""circuitome weights, lens and conv: what they print, their JSON, and what they refuse."""

import json

import pytest
import torch
from circuitome.report.kernel import kernel_payload
from command import run
from torch import nn


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.pt"
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).state_dict(), path)
    return path


def test_weights_of_a_head(capsys, tmp_path):
    out = tmp_path / "head.json"
    code, printed, _ = run(capsys, "weights", "a1.h0", "--model", "known-induction", "--out", out, "--top", 3)
    assert code == 0
    assert "Copying score +1.000" in printed and "a0.h0 0.250*" in printed
    found = json.loads(out.read_text())
    assert found["copying"]["rank"] == 1 and found["composition"]["kinds"]["k"]["earlier"][0]["head"] == "a0.h0"
    pairs = found["pairs"]["ov_promoted"]["pairs"]
    assert len(pairs) == 3 and all(pair["from"] == pair["to"] for pair in pairs)


@pytest.mark.slow
def test_weights_of_chosen_tokens_as_json(capsys):
    code, printed, _ = run(capsys, "weights", "a1.h0", "--model", "known-induction", "--tokens", "c", "--json")
    found = json.loads(printed)
    assert code == 0 and found["pairs"]["ov_promoted"]["pairs"][0]["to"] == "c"
    assert found["pairs"]["qk"]["rows"] == 1


@pytest.mark.slow
def test_a_model_whose_outputs_are_numbers_has_no_copying_score(capsys):
    code, printed, _ = run(capsys, "weights", "a0.h0", "--model", "tracr-frac-prevs")
    assert code == 0 and "No copying score: tracr-frac-prevs gives 1 outputs" in printed


def test_lens(capsys, tmp_path):
    out = tmp_path / "lens.json"
    code, printed, _ = run(capsys, "lens", "a b c a", "--model", "known-induction", "--out", out)
    assert code == 0 and "After 'a' (position 4)" in printed and "p('b')" in printed
    found = json.loads(out.read_text())
    assert found["names"][-1][-1] == "b" and found["stages"][-1] == "m1"


def test_conv_layers_and_map(capsys, net, tmp_path):
    code, printed, _ = run(capsys, "conv", net)
    assert code == 0 and "3 x 3" in printed and "strides taken as 1" in printed
    picture = tmp_path / "map.svg"
    code, printed, _ = run(capsys, "conv", net, "--from", "input:0", "--to", "2:4", "--out", picture)
    assert code == 0 and "through 0; activations left out" in printed and "5 x 5 weights" in printed
    text = picture.read_text()
    assert text.startswith("<svg") and "interval" not in text and "var(" not in text
    assert text.count("<title>") == 25
    code, printed, _ = run(capsys, "conv", net, "--from", "0:1", "--to", "2:4", "--json")
    weight = torch.load(net, weights_only=True)["2.weight"][4, 1]
    torch.testing.assert_close(torch.tensor(json.loads(printed)["kernel"]), weight)


def test_a_kernel_is_drawn_with_its_first_row_on_top():
    payload = kernel_payload([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "k")
    assert payload["rows"] == ["y+1", "y+0", "y-1"] and payload["columns"] == ["x-0.5", "x+0.5"]
    assert payload["mean"][-1] == [1.0, 2.0]  # the last row is drawn uppermost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights", "a1.h9", "--model", "known-induction"), "Did you mean"),
        (("weights", "m0", "--model", "known-induction"), "m0 is no attention head"),
        (("weights", "a0.h0", "--model", "known-induction", "--offset", "1"), "no rotary embedding"),
        (("lens", "a b", "--model", "known-induction", "--last", "0"), "--last is a number of positions"),
        (("conv", "NET", "--from", "0:1"), "--from and --to belong together"),
        (("conv", "NET", "--from", "0:1", "--to", "conv2:1"), "There is no convolution 'conv2'"),
        (("conv", "NET", "--from", "0", "--to", "2:1"), "has 4 channels; choose one, e.g. 0:0"),
        (("conv", "NET", "--from", "0:1", "--to", "2:1", "--out", "map.png"), "takes the picture of a map as .svg"),
        (("conv", "NET", "--from", "0:1", "--to", "2:1", "--out", "no/map.svg"), "cannot be written"),
    ],
)
def test_bad_input_ends_with_1_and_says_why(capsys, net, arguments, message):
    code, _, error = run(capsys, *(net if argument == "NET" else argument for argument in arguments))
    assert code == 1 and message in error


@pytest.mark.slow
def test_a_copying_head_of_smollm2(capsys, smollm2, monkeypatch):
    monkeypatch.setattr("circuitome.models.loading", lambda name: smollm2)
    code, printed, _ = run(capsys, "weights", "a27.h1", "--json")
    found = json.loads(printed)
    assert code == 0 and found["copying"]["score"] > 0.95 and found["copying"]["rank"] <= 20
    assert any(pair["from"] == pair["to"] for pair in found["pairs"]["ov_promoted"]["pairs"])
