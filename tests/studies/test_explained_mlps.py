"""MLPs on the page of `explain`: circuits of MLPs alone, the diagram with their boxes, and what the work costs."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.heads.roles.mlps import MlpExplanation
from circuitome.present.drawings.roles import Diagram
from circuitome.runs.store import load_run, save_run
from circuitome.studies import explain, explained_mlps, measure
from circuitome.studies.explain_cost import passes, rest, suffix
from circuitome.studies.explained_roles import Class, arrows, diagram
from circuitome.studies.frame import cost, perform

EDGES = ["embed->m0.in", "embed->m1.in", "m0->m1.in", "m0->m2.in", "m1->m2.in", "m1->logits", "m2->logits"]


@pytest.fixture(scope="module")
def no_heads(tmp_path_factory, folder, data):
    """A run with a circuit of MLPs alone."""
    out = tmp_path_factory.mktemp("no-heads")
    made, _ = perform(
        measure.STUDY, measure.Measure(task="letters", model=str(folder), data=str(data)), out=out / "all"
    )
    circuit = Circuit.of(tiny("llama").graph, EDGES)
    save_run(replace(made, tensors={**made.tensors, "circuit": circuit.mask}), out / "run", {})
    return out / "run"


def test_a_circuit_without_heads_is_explained_by_its_mlps(no_heads):
    made, folder = perform(explain.STUDY, explain.Explain(run=str(no_heads)))
    results, blocks = made.manifest["results"], blocks_of(folder)
    assert [mlp["mlp"] for mlp in results["mlps"]] == [row[0] for row in blocks["MLPs"].rows]
    assert results["heads"] == [] and results["roles"] == {} and "Heads by role" not in blocks
    assert lede_of(folder).startswith("The circuit of 7 edges for letters holds 3 MLPs and no heads.")
    assert made.manifest["summary"].startswith("The circuit of 7 edges for letters holds 3 MLPs and no heads.")
    assert explained_mlps.sentence(results) in made.manifest["summary"]
    means = {name: float(made.tensors[name].mean()) for name in ("metric", "ablated_metric")}
    assert means == pytest.approx({"metric": results["clean"]["value"], "ablated_metric": results["ablated"]["value"]})
    text, page = check_shown(folder)
    assert "m2" in text and "Heads by role" not in page
    for mlp in results["mlps"]:
        row = next(row for row in blocks["MLPs"].rows if row[0] == mlp["mlp"])
        named = [f'"{token["token"]}"' for token in mlp["raised"][:3]]
        assert [words.split("\N{NO-BREAK SPACE}")[0] for words in row[5].split(", ") if words] == named


def test_a_circuit_without_either_is_refused(no_heads, tmp_path):
    made = load_run(no_heads)
    circuit = Circuit.of(tiny("llama").graph, ["embed->logits"])
    save_run(replace(made, tensors={**made.tensors, "circuit": circuit.mask}), tmp_path / "run", {})
    with pytest.raises(cm.errors.InputError, match="holds no heads"):
        perform(explain.STUDY, explain.Explain(run=str(tmp_path / "run")))


def acting(*strong):
    """An explanation of every MLP of a model, first layer first: by mean effect and by where each acts.

    "" is nowhere by itself, None what prompts disagree on.
    """
    graph, roles = Graph(len(strong), 4, 2), ("first", "changed", "end")
    spread, unsure = torch.linspace(0.99, 1.01, 5), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5])
    whole = torch.stack([effect * (unsure if role is None else spread) for effect, role in strong], 1)
    by_role = torch.zeros(5, len(strong), len(roles))
    for place, (_, role) in enumerate(strong):
        if role:
            by_role[:, place, roles.index(role)] = whole[:, place]
    return MlpExplanation(
        circuit=Circuit.full(graph),
        names=tuple(f"m{layer}" for layer in range(len(strong))),
        all_positions=whole,
        last_position=whole,
        direct=whole,
        by_role=by_role,
        roles=roles,
        raised=((),) * len(strong),
        lowered=((),) * len(strong),
        scale=1.0,
        unit="logits",
    )


def test_mlps_are_grouped_by_third_and_by_where_they_surely_act():
    mlps = acting((-0.5, "first"), (-0.9, "first"), (0.3, "end"), (-0.9, None), (0.1, ""), (0.001, ""))
    assert mlps.classes == {("early", "first"): ("m1", "m0"), ("middle", "end"): ("m2",), ("late", ""): ("m4",)}


def test_the_diagram_of_twenty_mlps_has_few_boxes_and_they_never_lie_on_each_other():
    roles = ("first", "end", "", "changed")
    mlps = acting(*((0.5, roles[layer % 4]) for layer in range(20)))
    (block,) = diagram(None, mlps, {"scale": 1.0, "token_roles": mlps.roles})
    names = [role.name for role in block.classes]
    assert sum(len(role.members) for role in block.classes) == 20 and len(names) == len(set(names)) == 12
    assert "early MLPs at end" in names and "late MLP at first" in names and "20 of 20 MLPs" in block.note
    assert len(block.arrows) <= 2 * len(names)
    boxes = list(Diagram(block).boxes.values())
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert abs(a.x - b.x) >= 168 or a.y + a.height <= b.y or b.y + b.height <= a.y


def box(name, *members, layer, mlps):
    """A class of the diagram."""
    from circuitome.present.blocks import RoleClass

    return Class(RoleClass(name=name, members=members), layer, mlps)


def test_of_mlps_the_strongest_ways_are_drawn_with_their_inputs_together():
    edges = ["a0.h0->m1.in", "a0.h1->m1.in", "a1.h0->m1.in", "m1->a2.h0.q", "m1->a2.kv0.v", "m1->logits", "m0->a1.h0.q"]
    circuit = Circuit.of(tiny("llama").graph, [*edges, "a0.h0->a2.h0.q", "a0.h0->a2.kv0.k", "a2.h0->logits"])
    classes = [
        box("first", "a0.h0", "a0.h1", layer=0, mlps=False),
        box("second", "a1.h0", layer=1, mlps=False),
        box("middle MLP", "m1", layer=1, mlps=True),
        box("third", "a2.h0", layer=2, mlps=False),
    ]
    assert sorted(arrows(circuit, classes)) == [
        ("first", "middle MLP", "in", 2.0),
        ("first", "third", "k", 1.0),
        ("first", "third", "q", 1.0),
        ("middle MLP", "third", "q, v", 2.0),
        ("third", "logits", "logits", 1.0),
    ]


def test_ways_of_mlps_lead_upwards_and_their_inputs_are_named_in_order():
    """By edges the MLP feeds "wide" most, whose mean layer is below it, so that an arrow would lead down."""
    edges = ["m1->a2.h3.q", "m1->a2.kv1.k", "m1->a2.kv1.v", "m1->logits", "m0->a1.kv0.v", "m0->a2.h0.q"]
    circuit = Circuit.of(tiny("llama").graph, edges)
    classes = [
        box("early MLP", "m0", layer=0, mlps=True),
        box("wide", "a0.h0", "a0.h1", "a2.h3", layer=2 / 3, mlps=False),
        box("middle MLP", "m1", layer=1, mlps=True),
        box("late", "a1.h0", "a2.h0", layer=1.5, mlps=False),
    ]
    assert sorted(arrows(circuit, classes)) == [
        ("early MLP", "late", "q, v", 2.0),
        ("middle MLP", "logits", "logits", 1.0),
    ]


def test_the_cost_counts_what_is_left_to_run_and_the_tokens_that_run():
    graph, task = tiny("llama").graph, random_task(64)
    assert rest(("m0", "m1", "m2"), 3) == pytest.approx(1 + 2 / 3 + 1 / 3) and rest((), 3) == 0
    one = replace(task, pairs=task.pairs[:1])  # tokens 1 and 5 of 7 differ
    assert suffix(one, aligned=True) == (6 / 7, 1) and suffix(one, aligned=False) == (1.0, 2)
    whole, some = Circuit.full(graph), Circuit.of(graph, EDGES)
    few = replace(task, pairs=task.pairs[:16])
    by_size = [passes(circuit, (), few, aligned=False) for circuit in (Circuit.empty(graph), some, whole)]
    assert by_size[0] < by_size[1] == by_size[2]
    once, heads = by_size[0], ("a0.h0", "a1.h2")
    assert passes(some, (), task, aligned=False) - once == pytest.approx((by_size[1] - once) / 4)
    assert passes(some, (), few, aligned=True) < by_size[1] < passes(some, heads, few, aligned=False)


def test_a_dry_run_asks_for_what_the_circuit_holds(no_heads):
    expected = cost(explain.STUDY, explain.Explain(run=str(no_heads)))
    assert expected.passes["forward"] > 5 and expected.texts == 6


def test_an_explanation_of_mlps_shows_its_boxes_and_every_mlp():
    mlps = acting((-0.5, "first"), (0.3, "end"), (0.1, ""))
    assert "early MLP" in mlps._repr_html_() and mlps.plot().svg.count("MLP") >= 3
    assert list(mlps.to_pandas()["MLP"]) == ["m0", "m1", "m2"]
