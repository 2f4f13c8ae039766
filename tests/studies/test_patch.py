"""Activation patching as a study: maps, their strongest parts, and what cannot be asked."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--what", "heads"),
        pytest.param(("--what", "mlps", "--by-position"), marks=pytest.mark.slow),
        pytest.param(("--what", "resid"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_both_directions_are_mapped_written_and_shown_again(capsys, tmp_path, folder, data, options):
    out = tmp_path / "run"
    arguments = ("patch", *options, "--model", folder, "--data", data, "--out", out)
    code, printed, error = run(capsys, *arguments)
    assert code == 0, error
    found, maps = load_run(out), blocks_of(out, "heat map")
    assert found.manifest["kind"] == "patch" and found.manifest["what"] == options[1]
    assert [title.rpartition(", ")[2] for title in maps] == ["noise", "denoise"]
    for i, block in enumerate(maps.values()):
        effects = found.tensors[f"samples{i}"].mean(0)
        torch.testing.assert_close(torch.tensor(block.values), effects)
        torch.testing.assert_close(torch.tensor(found.manifest["results"]["maps"][i]["mean"]), effects)
    assert found.tensors["clean"].shape == found.tensors["corrupted"].shape == (6,)
    strongest = float(found.tensors["samples0"].mean(0).abs().max())
    assert f"{strongest:.3f} logits [" in lede_of(out)
    sizes = [abs(row[2][0]) for row in blocks_of(out)["Strongest effects"].rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] >= strongest
    text, page = check_shown(out)
    assert text.splitlines() == printed.splitlines() and run(capsys, "show", out)[1] == printed
    assert "intervals leave out zero" in page and "% of the gap" in page
    assert json.loads(run(capsys, *arguments, "--json")[1])["results"]["top"]


def test_what_cannot_be_patched_is_refused(capsys, tmp_path, folder, data):
    at = ("patch", "--model", folder, "--out", tmp_path / "run")
    code, _, error = run(capsys, *at, "--data", data, "--what", "head")
    assert code == 1 and "no part 'head'. Did you mean 'heads'" in error
    uneven = tmp_path / "uneven.jsonl"
    rows = [{"clean": f"a b {x}", "corrupted": f"a b c {x}", "answer": "e", "wrong": "f"} for x in "ghij"]
    uneven.write_text("\n".join(json.dumps(row) for row in rows))
    code, _, error = run(capsys, *at, "--data", uneven)
    assert code == 1 and "same number of tokens, got 3 and 4" in error
    assert [path.name for path in tmp_path.iterdir()] == ["uneven.jsonl"]


def test_a_dry_run_counts_the_places(capsys, tmp_path, folder, data):
    at = ("patch", "--model", folder, "--data", data, "--out", tmp_path / "run", "--dry-run", "--json")
    heads, places = (json.loads(run(capsys, *at, *more)[1])["passes"]["forward"] for more in ((), ("--by-position",)))
    assert places > 3 * heads and not list(tmp_path.iterdir())
