"""`explain` as a study, on a model whose heads are known, and its messages."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run
from circuitome.studies import explain, find
from circuitome.studies.frame import perform

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")
ROLES = {"a0.h0": "duplicate token", "a1.h0": "inhibition", "a2.h0": "mover", "a2.h1": "negative mover"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run of `find` on the toy of indirect object identification, its prompts from a file."""
    rows = []
    for i in range(8):
        a, b, *others = (NAMES[(i + k) % 8] for k in range(5))
        first, second = (a, b) if i % 2 else (b, a)
        clean = f"{first} and {second} met then {b} gave to"
        corrupted = f"{others[0]} and {others[1]} met then {others[2]} gave to"
        rows.append({"clean": clean, "corrupted": corrupted, "answer": a, "wrong": b})
    folder = tmp_path_factory.mktemp("explain")
    data = folder / "names.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    perform(find.STUDY, find.Find(model="known-ioi", data=str(data), edges=12, method="eap-ig"), out=folder / "run")
    return folder


@pytest.fixture(scope="module")
def named(found):
    """The heads of that run, named."""
    made, folder = perform(explain.STUDY, explain.Explain(run=str(found / "run")))
    assert folder == found / "run-explain"
    return made, folder


def test_heads_get_their_roles_from_their_effects(named, found):
    made, folder = named
    heads = {head["head"]: head for head in made.manifest["results"]["heads"]}
    assert {name: heads[name]["role"] for name in ROLES} == ROLES
    assert made.manifest["command"] == f"circuitome explain {found / 'run'}"
    assert made.tensors["direct"].shape == (8, len(heads)) and made.tensors["heads"].shape == (len(heads), 2)
    order = [f"a{layer}.h{head}" for layer, head in made.tensors["heads"].tolist()]
    for name in ("direct", "last_position", "all_positions"):
        means = [heads[head]["effects"][name]["value"] for head in order]
        torch.testing.assert_close(made.tensors[name].mean(0), torch.tensor(means))
    assert heads["a2.h0"]["effects"]["direct"]["value"] < 0 < heads["a2.h1"]["effects"]["direct"]["value"]
    assert load_run(folder).manifest["blocks"] == json.loads(json.dumps(made.manifest["blocks"]))


def test_the_runs_circuit_is_drawn_by_role(named, found):
    drawn, before = blocks_of(named[1])["The circuit by role"], blocks_of(found / "run")["The circuit"]
    classes = blocks_of(named[1])["Roles"].classes
    assert drawn.edges == before.edges and drawn.groups == tuple((role.name, role.members) for role in classes)


def test_the_circuit_is_told_first_in_short_and_by_class(named):
    made, folder = named
    assert lede_of(folder).startswith(
        "Of 4 heads explained in the circuit of 12 edges for ioi, 4 have an active role: "
    )
    assert "1 duplicate token, 1 inhibition, 1 mover, 1 negative mover" in lede_of(folder)
    roles, results = blocks_of(folder)["Roles"], made.manifest["results"]
    assert [role.name for role in roles.classes] == list(ROLES.values())  # the order of their layers
    assert [role.position for role in roles.classes] == ["", "end", "end", "end"]  # a file names no earlier copy
    for role in roles.classes:
        assert list(role.members) == results["roles"][role.name]
        heading = f"{role.name[0].upper()}{role.name[1:]} ({', '.join(role.members)}): {role.about}."
        assert heading in made.manifest["summary"]
    arrows = {(start, end, through): edges for start, end, through, edges in roles.arrows}
    assert arrows["duplicate token", "inhibition", "v"] == arrows["inhibition", "mover", "q"] == 1
    assert arrows["mover", "logits", "logits"] == 1 and roles.positions == tuple(results["token_roles"])


def test_every_head_has_a_row_and_its_evidence_on_the_page(named, capsys):
    made, folder = named
    results, blocks = made.manifest["results"], blocks_of(folder)
    table = blocks["Heads by role"]
    assert [row[0] for row in table.rows[:4]] == [head["head"] for head in results["heads"] if head["head"] in ROLES]
    assert len(table.rows) == len(results["heads"])
    effects = {head["head"]: head["effects"] for head in results["heads"]}
    for row in table.rows:
        shares = [100 * effects[row[0]][name]["value"] / results["scale"] for name in effects[row[0]]]
        assert row[5:8] == pytest.approx(shares)
    for head in results["heads"]:
        evidence = next(block for title, block in blocks.items() if title.startswith(f"{head['head']}: "))
        tests = dict(evidence.rows)
        assert evidence.folded and tests["total effect: last position, logits"] and tests["roles by score"]
    text, page = check_shown(folder)
    assert "Evidence, head by head" in page and "roles by score" in page and "roles by score" not in text
    assert run(capsys, "show", folder)[1].split() == text.split()


@pytest.mark.slow
def test_explain_of_some_heads_as_json(capsys, found):
    arguments = ("explain", found / "run", "--heads", "a2.h0,a1.h0", "--out", found / "two", "--json")
    code, printed, _ = run(capsys, *arguments)
    results = json.loads(printed)["results"]
    assert code == 0 and {head["head"] for head in results["heads"]} == {"a1.h0", "a2.h0"}
    by_name = {head["head"]: head for head in results["heads"]}
    assert by_name["a1.h0"]["role"] == "inhibition" and by_name["a1.h0"]["score"] == pytest.approx(1, abs=1e-3)
    change = by_name["a1.h0"]["attention_changes"][0]
    assert change["head"] == "a2.h0" and change["change"] < -0.5
    assert by_name["a2.h0"]["attends_to"] == "answer" and by_name["a2.h0"]["attention"] == pytest.approx(1, abs=1e-3)


def test_classes_are_joined_where_heads_share_keys_and_values():
    """The reader of a shared key belongs to a key/value head, so its edges lead to every query head of the group."""
    from circuitome.graph.circuits import Circuit
    from circuitome.graph.model_graph import Graph
    from circuitome.heads.roles.narrative import edges_between
    from circuitome.heads.roles.result import Explanation

    graph = Graph(2, 4, 2)
    circuit = Circuit.of(graph, ["a0.h0->a1.kv1.k", "a0.h0->logits", "a0.h0->m0.in"])
    named = object.__new__(Explanation)
    vars(named).update(circuit=circuit, by_role={"mover": ("a1.h3",), "duplicate token": ("a0.h0",)})
    assert edges_between(named) == {("duplicate token", "k", "mover"): 1, ("duplicate token", "logits", "logits"): 1}


@pytest.mark.slow
def test_bad_input(capsys, found):
    code, _, error = run(capsys, "explain", found / "run", "--heads", "a2.h7", "--out", found / "none")
    assert code == 1 and "no head of the circuit 'a2.h7'. Did you mean" in error and not (found / "none").exists()
    code, _, error = run(capsys, "explain", found / "nowhere")
    assert code == 1 and "There is no run folder" in error
    run(capsys, "patch", "--model", "known-ioi", "--data", found / "names.jsonl", "--out", found / "patch")
    code, _, error = run(capsys, "explain", found / "patch")
    assert code == 1 and "holds no circuit" in error


@pytest.mark.slow
def test_the_roles_of_an_explain_run_are_knocked_out_together(capsys, found, named):
    _, roles = named
    code, _, error = run(
        capsys, "validate", found / "run", "--quick", "--roles", roles, "--out", found / "by-role", "--json"
    )
    assert code == 0, error
    kinds = [one["kind"] for one in load_run(found / "by-role").manifest["results"]["completeness"]]
    assert "duplicate token" in kinds and "heads of the first third" not in kinds
    assert "--roles" in load_run(found / "by-role").manifest["command"]
    code, _, error = run(capsys, "validate", found / "run", "--quick", "--roles", found / "run", "--out", found / "no")
    assert code == 1 and "names no roles" in error
