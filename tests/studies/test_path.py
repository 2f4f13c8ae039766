"""Path patching and the trace back as a study."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The trace back through the IOI toy, whose circuit is known."""
    from circuitome.studies.frame import perform
    from circuitome.studies.path import STUDY, Path

    out = tmp_path_factory.mktemp("trace") / "run"
    return perform(STUDY, Path(task="known-ioi", model="known-ioi", n=8, depth=2), out=out)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--to", "a2.h1.q,a2.kv0.v", "--positions", "end,-2", "--freeze-mlps"), marks=pytest.mark.slow),
        ("--from", "a0.h1,m1"),
        pytest.param(("--from", "all"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_paths_into_targets_are_mapped(capsys, tmp_path, folder, data, options):
    out = tmp_path / "run"
    code, printed, error = run(capsys, "path", *options, "--model", folder, "--data", data, "--out", out)
    assert code == 0, error
    found = load_run(out)
    (block,) = blocks_of(out, "heat map").values()
    effects = found.tensors["samples0"].mean(0)
    values = [[float("nan") if value is None else value for value in row] for row in block.values]
    torch.testing.assert_close(torch.tensor(values), effects, equal_nan=True)
    rows = blocks_of(out)["Strongest effects"].rows
    assert len(rows) == min(20, int((~effects.isnan()).sum()))  # senders that were not asked for have no row
    assert rows[0][0] in lede_of(out) and all(row[1][0] is not None for row in rows)
    assert len(found.manifest["results"]["top"]) == len(rows)
    assert run(capsys, "show", out)[1] == printed
    check_shown(out)


@pytest.mark.slow
def test_the_trace_back_names_the_circuit_with_its_numbers(capsys, traced):
    found, out = traced
    tree, blocks = found.manifest["tree"], blocks_of(out)
    assert [row["receiver"] for row in tree if row["depth"] == 0] == ["logits"]
    kept = [(row["depth"], row["receiver"], s) for row in tree for s in row["senders"] if s["kept"]]
    assert {f"{sender['label']}->{target}" for _, target, sender in kept} == set(found.manifest["circuit"])
    assert int(found.tensors["circuit"].sum()) == found.manifest["edges"] == len(kept) == 8
    rows = tuple((depth, target, s["label"], (s["mean"], s["low"], s["high"])) for depth, target, s in kept)
    assert blocks["Trace back from the logits"].rows == rows
    edges = {(edge.source, edge.reader, edge.score) for edge in blocks["Edges kept"].edges}
    assert edges == {(sender["label"], target, sender["mean"]) for _, target, sender in kept}
    assert {row[1] for row in blocks["What was not kept"].rows} == {row["receiver"] for row in tree}
    assert lede_of(out).startswith("a2.h0 has the strongest effect (path patching into logits): −10.000 logits")
    text, page = check_shown(out)
    assert "6 more maps are in the report" in text and "into a2.h0.q" in page
    assert run(capsys, "show", out)[1].split() == text.split()


@pytest.mark.slow
def test_the_circuit_of_a_trace_can_be_validated(capsys, traced):
    code, printed, error = run(capsys, "validate", traced[1], "--quick")
    assert code == 0, error
    assert "circuit of 8 edges" in printed


def test_with_one_prompt_nothing_is_certain(capsys, tmp_path, folder, data):
    one = tmp_path / "one.jsonl"
    one.write_text(data.read_text().splitlines()[0])
    out = tmp_path / "run"
    code, printed, error = run(capsys, "path", "--model", folder, "--data", one, "--depth", 1, "--out", out)
    assert code == 0, error
    assert "none of them is certain" in " ".join(printed.split())
    assert "nan" not in json.dumps(load_run(out).manifest["blocks"]).lower()


BAD = [
    (("--depth", "-1"), "must be 0 or more, got -1"),
    (("--depth", "2", "--to", "m1.in"), "leave out --to and --from"),
    (("--depth", "2", "--from", "m1"), "leave out --to and --from"),
    (("--depth", "1", "--width", "0"), "width must be at least 1"),
    (("--to", "a9.h0.q"), "a9.h0.q"),
    (("--to", "logits,m1.in"), "either the logits or inputs"),
    (("--positions", "S2"), "No position is called 'S2'"),
    (("--positions", "99"), "outside a prompt of 5 tokens"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_says_what_to_do_and_writes_nothing(capsys, tmp_path, folder, data, options, message):
    given = ("path", "--model", folder, "--data", data, "--out", tmp_path / "run", *options)
    code, printed, error = run(capsys, *given)
    assert (code, printed) == (1, "") and message in error
    assert list(tmp_path.iterdir()) == []
