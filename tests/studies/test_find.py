"""Finding circuits by every method: what a run holds and says, after a stop, and the message of every bad input."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.runs.store import load_run
from circuitome.studies.methods import METHODS


def find(folder, data, out, *more):
    return ("find", "--model", folder, "--data", data, "--edges", 20, "--out", out, *more)


LEARNING = ("--steps", 4)
OPTIONS = {"edge-pruning": LEARNING, "subnetwork-probing": LEARNING, "eap-ig": ("--loss", "kl")}
QUICK = ("eap-ig",)


@pytest.mark.parametrize(
    "method",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "acdc"],
)
def test_find_writes_a_run_and_show_shows_it(capsys, tmp_path, folder, data, method):
    out = tmp_path / "run"
    code, printed, _ = run(capsys, *find(folder, data, out, "--method", method, *OPTIONS.get(method, ())))
    assert code == 0
    assert lede_of(out).startswith("20 of 190 edges recover ") and "circuitome validate tests it" in lede_of(out)
    assert str(out / "report.html") in printed.replace("\n", "")
    assert {p.name for p in out.iterdir()} == {"manifest.json", "tensors.safetensors", "report.html"}
    assert list(tmp_path.iterdir()) == [out]  # no staging folder is left
    found = load_run(out)
    assert int(found.tensors["circuit"].sum()) == 20
    assert found.tensors["scores"].shape == (16, 28)
    assert ("samples" in found.tensors) == METHODS[method].samples
    assert found.manifest["task"]["n"] == 6
    assert run(capsys, "show", out)[1] == printed
    drawn = blocks_of(out)["The circuit"]
    edges, (ranking,), curve = drawn.edges, drawn.others, found.manifest["results"]["curve"]
    assert [point.edges for point in ranking.measured] == curve["sizes"] and drawn.measured[0].edges == 20
    assert [point.share[0] for point in ranking.measured] == [share["value"] for share in curve["circuit"]]
    assert {(edge.source, edge.reader) for edge in ranking.edges[:20]} == {(edge.source, edge.reader) for edge in edges}
    sizes = [abs(edge.score) for edge in edges]
    assert len(edges) == 20 and sizes == sorted(sizes, reverse=True)
    _, page = check_shown(out)
    assert found.manifest["model"]["weights_hash"] in page and "Example prompts" in page


RULED = (
    (("eap-ig", "--rules", "gim", "--path", "conductance"), "eap-ig, 5 steps, conductance, rules gim"),
    (("eap", "--rules", "relp"), "eap, rules relp"),
    (("clean-corrupted", "--rules", "norm"), "clean-corrupted, rules norm"),
    (("atp", "--rules", "relp"), "atp with QK fix, rules relp"),
    (("atp-star", "--rules", "gim"), "atp with GradDrop, rules gim"),
)


@pytest.mark.parametrize(
    ("options", "name"), [RULED[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in RULED[1:])]
)
def test_gradient_methods_take_rules(capsys, tmp_path, folder, data, options, name):
    out = tmp_path / "run"
    assert run(capsys, *find(folder, data, out, "--method", *options))[0] == 0
    method = load_run(out).manifest["method"]
    assert method["description"].startswith(name)
    assert method["settings"] == dict(zip((o[2:] for o in options[1::2]), options[2::2], strict=True))


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
    assert "--threshold=0.002,0.05" in found.manifest["command"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "phase"),
    [("acdc", "deciding on edges"), ("exact", "patching edges"), ("edge-pruning", "learning masks")],
)
def test_a_stopped_run_goes_on_with_the_same_result(capsys, tmp_path, folder, data, method, phase, stop):
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = ("--method", method, *(("--steps", 25) if method == "edge-pruning" else ()))
    run(capsys, *find(folder, data, whole, *options))

    stop(lambda what, done, total: what == phase and done > 0.6 * total)
    code, _, error = run(capsys, *find(folder, data, out, *options))
    stop(lambda *at: False)
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
def test_a_file_is_read_whole_whatever_n_says(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    code, _, error = run(capsys, *find(folder, data, out, "--ablation", "mean-position", "--n", 1))
    assert code == 0, error
    assert load_run(out).manifest["task"]["n"] == 6


@pytest.mark.slow
def test_pairs_of_unequal_length_need_an_ablation_that_swaps_nothing(capsys, tmp_path, folder):
    data = tmp_path / "uneven.jsonl"
    rows = [{"clean": f"a b {x}", "corrupted": f"a b c {x}", "answer": "e", "wrong": "f"} for x in "ghij"]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    code, _, error = run(capsys, *find(folder, data, tmp_path / "run"))
    assert code == 1 and "same number of tokens, got 3 and 4" in error and "zero, mean, or by-role" in error
    code, _, error = run(capsys, *find(folder, data, tmp_path / "run", "--ablation", "mean"))
    assert code == 1 and "does not do the task" in error  # the prompts are taken


BAD = [
    (("--method", "eapig"), "no method 'eapig'. Did you mean 'eap-ig'"),
    (("--ablation", "zeros"), "no ablation 'zeros'. Did you mean 'zero'"),
    (("--edges", "191"), "outside 1..190"),
    (("--edges", "0"), "outside 1..190"),
    (("--n", "0"), "must be at least 1"),
    (("--steps", "0"), "steps and prompts must be at least 1, got 0"),
    (("--threshold", "0.1"), "--threshold means nothing to mattr; it belongs to acdc"),
    (("--method", "eap", "--loss", "kl"), "gradient is taken at the clean model"),
    (("--method", "atp", "--loss", "kl"), "Use eap-ig"),
    (("--method", "acdc", "--threshold", "1e9"), "keeps no edge at 1e+09"),
    (("--method", "acdc", "--threshold", "-1"), "must be above 0"),
    (("--method", "eap", "--rules", "relq"), "no set of rules 'relq'. Did you mean 'relp'"),
    (("--method", "eap", "--path", "conductance"), "--path means nothing to eap; it belongs to eap-ig"),
    (("--rules", "relp"), "--rules means nothing to mattr; it belongs to eap, eap-ig"),
    (("--method", "eap-ig", "--path", "way"), "no path of EAP-IG 'way'"),
    (("--loss", "k1"), "mattr cannot score by the loss k1. It takes both, kl or metric"),
    (("--method", "eap-ig", "--loss", "k1"), "eap-ig cannot score by the loss k1. It takes metric, kl or l2"),
    (("--stable", "1.5"), "share of draws that an edge comes back in, above 0 up to 1; got 1.5"),
    (("--stable", "0"), "above 0 up to 1; got 0"),
    (("--draws", "9"), "give --stable 0.9 as well"),
    (("--stable", "0.9", "--draws", "1"), "--draws must be at least 2, got 1"),
    (("--method", "magnitude", "--stable", "0.9"), "magnitude looks at none of them"),
    (("--faithful", "1"), "--faithful is the share of the gap to keep"),
    (("--held-out", "greater-then"), "Did you mean 'greater-than'"),
    (("--data", "missing.jsonl"), "no data file missing.jsonl"),
    (("--model", "smollm2-135n"), "no model 'smollm2-135n'. Did you mean 'smollm2-135m'"),
    (("--model", "missing.gguf"), "There is no file missing.gguf"),
    (("--max-memory", "lots"), "is not a size"),
    (("--max-memory", "1KB"), "One prompt of 5 tokens needs about"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_says_what_to_do_and_writes_nothing(capsys, tmp_path, folder, data, options, message):
    given = {"--model": folder, "--data": data, "--edges": "20", "--out": tmp_path / "run"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    code, printed, error = run(capsys, "find", *(part for item in given.items() for part in item))
    assert code == 1
    assert message in error
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A run for the smallest circuit of a model whose circuit is known."""
    from circuitome.cli.main import main

    out = tmp_path_factory.mktemp("smallest") / "run"
    main(["find", "known-ioi", "--model", "known-ioi", "--faithful", "0.99", "--steps", "60", "--out", str(out)])
    return out


@pytest.mark.slow
def test_by_default_the_smallest_circuit_is_found_and_measured_on_prompts_it_never_saw(smallest):
    found = cm.open(smallest)
    truth = cm.ground_truth.true_circuit(found.model, found.task)
    assert found.circuit == truth and found.results["reached"] and found.results["asked"] == 0.99
    clean = [{pair.clean for pair in task.pairs} for task in (found.task, found.prompts.sizing, found.held_out)]
    assert not clean[0] & clean[1] and not clean[0] & clean[2] and not clean[1] & clean[2]
    assert found.results["faithfulness"]["n"] == len(found.held_out) == found.manifest["held_out"]["n"]
    share = cm.faithfulness(found.model, found.circuit, found.held_out).share.value
    assert found.results["faithfulness"]["value"] == pytest.approx(share, abs=1e-5)
    text = lede_of(smallest)
    assert text.startswith(f"{len(truth)} of {found.results['all_edges']} edges recover")
    assert "held-out prompts, which the search did not see" in text
    assert f"Quick verdict on them: {found.results['verdict']['answer']}." in text
    shown = blocks_of(smallest)
    assert {"The circuit", "The verdict", "The walk along sizes", "Faithfulness by size"} <= set(shown)
    assert tuple(point["edges"] for point in found.results["front"]) == shown["The walk along sizes"].series[0].x
    effects = found.tensors["edge_effects"].mean(0)
    assert [edge.score for edge in shown["The circuit"].edges] == sorted(effects.tolist(), key=lambda x: -abs(x))
    check_shown(smallest)


@pytest.mark.slow
def test_a_circuit_is_validated_on_the_prompts_that_were_held_out(capsys, tmp_path, smallest):
    assert run(capsys, "validate", smallest, "--quick", "--out", tmp_path / "check")[0] == 0
    assert f"measured on {len(cm.open(smallest).held_out)} held-out prompts" in lede_of(tmp_path / "check")


@pytest.mark.slow
def test_a_size_is_taken_from_the_same_ranking(capsys, tmp_path, smallest):
    options = ("--model", "known-ioi", "--steps", 60, "--edges", 13, "--out", tmp_path / "sized")
    assert run(capsys, "find", "known-ioi", *options)[0] == 0
    sized = cm.open(tmp_path / "sized")
    assert sized.manifest["method"]["name"] == "mattr" and len(sized.circuit) == 13
    assert "held-out prompts, which the search did not see" in lede_of(tmp_path / "sized")


STABLE = (
    (("--method", "eap-ig", "--edges", 20), False),
    (("--edges", 20, "--steps", 2), True),
)


@pytest.mark.parametrize(
    ("options", "reruns"), [STABLE[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in STABLE[1:])]
)
def test_stable_keeps_the_edges_that_come_back(capsys, tmp_path, folder, data, options, reruns):
    out = tmp_path / "run"
    given = ("find", "--model", folder, "--data", data, "--stable", 0.6, "--draws", 4, *options, "--out", out)
    code, _, error = run(capsys, *given)
    assert code == 0, error
    found = load_run(out)
    told = found.manifest["results"]["stable"]
    rows = {row["share"]: row for row in told["edges"]}
    assert list(rows) == [0.5, 0.6, 0.7, 0.9, 1.0] and (told["draws"], told["reruns"]) == (4, reruns)
    for share, row in rows.items():
        assert row["edges"] == int((found.tensors["kept"] >= share).sum())
        assert (row["faithfulness"] is None) == (row["edges"] == 0)
    assert torch.equal(found.tensors["circuit"], found.tensors["kept"] >= 0.6)
    assert rows[0.6]["edges"] == found.manifest["edges"] and rows[0.6]["edges"] < rows[0.5]["edges"]
    assert rows[0.6]["faithfulness"] == pytest.approx(found.manifest["results"]["faithfulness"])
    assert "come back in at least 60 % of 4 draws" in lede_of(out)
    table = blocks_of(out)["Edges that come back"]
    assert [row[1] for row in table.rows] == [*(row["edges"] for row in rows.values()), told["edges_of_all_prompts"]]
    check_shown(out)


@pytest.mark.slow
def test_the_smallest_circuit_can_be_stable(capsys, tmp_path):
    given = ("find", "known-ioi", "--model", "known-ioi", "--faithful", 0.9, "--steps", 20, "--out", tmp_path / "run")
    code, _, error = run(capsys, *given, "--stable", 1, "--draws", 2)
    assert code == 0, error
    found = cm.open(tmp_path / "run")
    assert torch.equal(found.circuit.mask, found.tensors["kept"] == 1) and found.results["stable"]["reruns"]
    assert found.tensors["edge_effects"].shape == (len(found.held_out), len(found.circuit))


@pytest.mark.slow
def test_a_stopped_search_for_the_smallest_circuit_goes_on(capsys, tmp_path, smallest, stop):
    words = ("find", "known-ioi", "--model", "known-ioi", "--faithful", 0.99, "--steps", 60, "--out", tmp_path / "run")
    stop(lambda what, done, total: what == "leaving out what is useless")
    code, _, error = run(capsys, *words)
    stop(lambda *at: False)
    assert code == 130 and "--resume" in error
    assert run(capsys, *words, "--resume")[0] == 0
    for name, tensor in load_run(smallest).tensors.items():
        torch.testing.assert_close(load_run(tmp_path / "run").tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_too_few_rows_to_hold_any_out(capsys, tmp_path, folder, data):
    code, _, error = run(capsys, "find", "letters", "--model", folder, "--data", data, "--out", tmp_path / "run")
    assert code == 1 and "has 6 different prompts" in error and "--held-out FILE" in error
    assert list(tmp_path.iterdir()) == []
