"""circuitome weights, lens and conv: what they print, their JSON, and what they refuse."""

import json

import pytest
import torch
from command import run
from shown import check_shown
from torch import nn

from circuitome.runs.store import load_run


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.pt"
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).state_dict(), path)
    return path


@pytest.mark.slow
def test_weights_of_a_head(capsys, tmp_path):
    out = tmp_path / "head"
    code, printed, _ = run(capsys, "weights", "a1.h0", "--model", "known-induction", "--out", out, "--top", 3)
    assert code == 0
    words = " ".join(printed.split())
    assert "Copying score +1.000" in words and "a0.h0 0.250*" in words
    found = load_run(out).manifest["results"]
    assert found["copying"]["rank"] == 1 and found["composition"]["kinds"]["k"]["earlier"][0]["head"] == "a0.h0"
    pairs = found["pairs"]["ov_promoted"]["pairs"]
    assert len(pairs) == 3 and all(pair["from"] == pair["to"] for pair in pairs)
    check_shown(out)


@pytest.mark.slow
def test_weights_of_chosen_tokens_as_json(capsys, tmp_path):
    given = ("weights", "a1.h0", "--model", "known-induction", "--tokens", "c", "--out", tmp_path / "run", "--json")
    code, printed, _ = run(capsys, *given)
    found = json.loads(printed)["results"]
    assert code == 0 and found["pairs"]["ov_promoted"]["pairs"][0]["to"] == "c"
    assert found["pairs"]["qk"]["rows"] == 1


@pytest.mark.slow
def test_a_model_whose_outputs_are_numbers_has_no_copying_score(capsys, tmp_path):
    code, printed, _ = run(capsys, "weights", "a0.h0", "--model", "tracr-frac-prevs", "--out", tmp_path / "run")
    assert code == 0 and "tracr-frac-prevs gives 1 outputs" in " ".join(printed.split())


@pytest.mark.slow
def test_lens(capsys, tmp_path):
    out = tmp_path / "lens"
    code, printed, _ = run(capsys, "lens", "a b c a", "--model", "known-induction", "--out", out)
    assert code == 0 and "After 'a' (position 4)" in printed and "p('b')" in printed
    found = load_run(out).manifest["results"]
    assert found["names"][-1][-1] == "b" and found["stages"][-1] == "m1"
    check_shown(out)


def test_conv_layers_and_map(capsys, net, tmp_path):
    code, printed, _ = run(capsys, "conv", net, "--out", tmp_path / "layers")
    assert code == 0 and "3 x 3" in printed and "strides taken as 1" in " ".join(printed.split())
    code, printed, _ = run(capsys, "conv", net, "--from", "input:0", "--to", "2:4", "--out", tmp_path / "map")
    assert code == 0 and "through 0" in printed and "5 x 5 weights" in printed
    check_shown(tmp_path / "map")
    code, printed, _ = run(capsys, "conv", net, "--from", "0:1", "--to", "2:4", "--json", "--out", tmp_path / "one")
    weight = torch.load(net, weights_only=True)["2.weight"][4, 1]
    torch.testing.assert_close(torch.tensor(json.loads(printed)["results"]["kernel"]), weight)


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
    ],
)
def test_bad_input_ends_with_1_and_says_why(capsys, net, tmp_path, arguments, message):
    given = (net if argument == "NET" else argument for argument in arguments)
    code, _, error = run(capsys, *given, "--out", tmp_path / "run")
    assert code == 1 and message in error


@pytest.mark.slow
def test_a_copying_head_of_smollm2(capsys, tmp_path):
    code, printed, _ = run(capsys, "weights", "a27.h1", "--json", "--out", tmp_path / "run")
    found = json.loads(printed)["results"]
    assert code == 0 and found["copying"]["score"] > 0.95 and found["copying"]["rank"] <= 20
    assert any(pair["from"] == pair["to"] for pair in found["pairs"]["ov_promoted"]["pairs"])
