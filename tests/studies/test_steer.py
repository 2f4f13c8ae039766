"""The command `steer`: a direction between texts or parts, from the command line to the page."""

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run

PROMPT = "Ann and Bob met then Bob gave to"
GIVEN = ("steer", PROMPT, "--model", "known-ioi", "--wanted", "ann", "--new", 1, "--samples", 4)
NEUTRAL = "Ann and Bob met then Bob gave to Ann and Ann met Bob then Ann gave to Bob"


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "neutral.txt").write_text(NEUTRAL)
    (tmp_path / "toward.txt").write_text("Ann and Bob met then Bob gave to\nAnn and Cid met then Cid gave to\n")
    return tmp_path


def test_parts_and_directions_are_turned(capsys, texts):
    given = (*GIVEN, "--texts", texts / "neutral.txt", "--draws", 1)
    code, _, error = run(capsys, *given, "--parts", "a1.h0", "--strength", "0,1", "--out", texts / "parts")
    assert code == 0, error
    found = load_run(texts / "parts").manifest
    own = [row for row in found["results"]["rows"] if not row["random"]]
    assert [row["wanted"]["value"] for row in own] == [0.0, 1.0] and own[1]["texts"] == ["Ann"] * 4
    assert "No strength makes texts more often as wanted" in lede_of(texts / "parts")
    check_shown(texts / "parts")
    away = "Bob and Ann met then Ann gave to"
    direction = ("--toward", texts / "toward.txt", "--away", away, "--layer", 1, "--strength=-1,0,1")
    code, _, error = run(capsys, *given, *direction, "--out", texts / "direction")
    assert code == 0, error
    saved = load_run(texts / "direction")
    assert saved.tensors["direction"].shape == (64,) and saved.manifest["results"]["separation"] > 0
    assert len(blocks_of(texts / "direction")["By strength"].rows) == 3
    check_shown(texts / "direction")


BAD = [
    ((), "Give --toward and --away, texts for a direction, or --parts"),
    (("--toward", "Ann"), "needs both --toward and --away"),
    (("--parts", "a2.h0", "--at", "S2"), "--at is all, prompt, generated, end, got 'S2'"),
    (("--parts", "a2.h0", "--draws=-1"), "--draws must be at least 0"),
    (("--parts", "a9.h0"), "a9.h0"),
    (("--parts", "a2.h0", "--texts", "nowhere.txt"), "cannot be read"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input(capsys, tmp_path, options, message):
    code, printed, error = run(capsys, *GIVEN, *options, "--out", tmp_path / "run")
    assert (code, printed) == (1, "") and message in " ".join(error.split())
    assert list(tmp_path.iterdir()) == []


def test_what_is_wanted_has_to_be_said(capsys, tmp_path):
    code, _, error = run(capsys, "steer", PROMPT, "--model", "known-ioi", "--parts", "a2.h0", "--out", tmp_path / "r")
    assert code == 1 and "Give --wanted" in error
