"""Neurons as nodes of a graph: circuits with them against the slow exact form, on every family."""

import json
from dataclasses import replace

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import masked_logits, writer_outputs

import circuitome as cm
from circuitome.discovery.search.mask_objective import MaskObjective
from circuitome.engine.circuit_run import CircuitRun
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.models.block import weight_of
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.tests.completeness import layer_groups

TASK = random_task(3)
QUICK = ("gemma2", "neox-parallel")
NEURONS = ("m0.n3", "m0.n17", "m2.n5", "m2.n6", "m2.n39")


@pytest.fixture(scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def model(request):
    return tiny(request.param).with_neurons(NEURONS)


def some_circuit(model, density, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return cm.Circuit(
        model.graph, (torch.rand(model.graph.mask.shape, generator=generator) < density) & model.graph.mask
    )


def ablated_outputs(model, pair, ablation):
    if ablation == "mean":
        every = [writer_outputs(model, pair.corrupted) for pair in TASK.pairs]
        return [torch.cat([outs[row] for outs in every]).mean(0) for row in range(len(model.graph.writers))]
    outputs = writer_outputs(model, pair.corrupted)
    return [torch.zeros_like(out) for out in outputs] if ablation == "zero" else outputs


def test_names_and_edges():
    graph = tiny("llama").with_neurons(["m1.n7", "m1.n2"]).graph
    assert graph.writers[6:11] == ("a1.h0", "a1.h1", "a1.h2", "a1.h3", "m1") and graph.writers[11:13] == (
        "m1.n2",
        "m1.n7",
    )
    assert graph.edge("a1.h0->m1.n2.in") and graph.edge("m1.n2->a2.h0.q") and graph.edge("m1.n7->logits")
    for edge in ("m1.n2->m1.n7.in", "m1.n2->m1.in", "m1->m1.n2.in", "m2->m1.n2.in", "m1.n2->a1.h0.q"):
        with pytest.raises(InputError, match="come before"):
            graph.edge(edge)
    plain = tiny("llama").graph
    before, behind = plain.edge("embed->m1.in")[1], plain.row("m1")
    assert graph.n_edges - plain.n_edges == 2 * int(plain.mask[:, before].sum() + plain.mask[behind].sum())


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_the_full_circuit_is_the_model_and_any_circuit_the_written_out_run(model, ablation):
    full = cm.run_circuit(model, TASK, cm.Circuit.full(model.graph), ablation=ablation)
    with torch.no_grad():
        plain = torch.cat([model.hf(torch.tensor([pair.clean])).logits[:, -1] for pair in TASK.pairs])
    torch.testing.assert_close(full, plain, atol=2e-5, rtol=1e-5)
    for density in (0.1, 0.5):
        circuit = some_circuit(model, density)
        logits = cm.run_circuit(model, TASK, circuit, ablation=ablation)
        for i, pair in enumerate(TASK.pairs):
            with torch.no_grad():
                ablated = ablated_outputs(model, pair, ablation)
                expected = masked_logits(model, pair, ablated, circuit.mask.float())
            torch.testing.assert_close(logits[i : i + 1], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_circuits_without_some_edges_equal_runs_of_what_is_left(model, ablation):
    circuit = some_circuit(model, 0.4)
    gone = torch.stack([some_circuit(model, share, seed).mask for seed, share in enumerate((0.02, 0.05, 0.3), 2)])
    evaluator = Evaluator(Setting(model, TASK, ablation=ablation))
    parts = evaluator.parts(circuit, gone)
    whole = evaluator.circuits([cm.Circuit(model.graph, circuit.mask & ~mask) for mask in gone])
    fresh = Evaluator(Setting(model, TASK, ablation=ablation))
    assert torch.equal(whole, parts)  # remembered: the same question
    expected = fresh.circuits([cm.Circuit(model.graph, circuit.mask & ~mask) for mask in gone])
    torch.testing.assert_close(parts, expected, atol=3e-5, rtol=1e-5)


def test_knocked_out_writers_are_those_all_of_whose_edges_are_cut(model):
    graph = model.graph
    names = [("m0.n3",), ("m0",), ("m0", "m0.n17", "a1.h2"), ("m2.n5", "m2.n39"), ("m2", "m1")]
    sets = torch.zeros(len(names), len(graph.writers), dtype=torch.bool)
    for i, some in enumerate(names):
        sets[i, [graph.row(name) for name in some]] = True
    for base in Setting(model, TASK).baselines():
        knocked = KnockOut(model, base).final(sets)
        for i, gone in enumerate(sets):
            circuit = cm.Circuit(graph, graph.mask & ~gone[:, None])
            expected = CircuitRun(model, base, circuit.mask.float()).final()
            torch.testing.assert_close(knocked[i], expected, atol=5e-5, rtol=1e-4)


def test_gradients_of_masks_are_those_of_the_written_out_run(model):
    mask = some_circuit(model, 0.6).mask
    z = (torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) * mask).requires_grad_(True)
    objective = MaskObjective(Setting(model, TASK), "metric")
    (found,) = torch.autograd.grad(objective(z, 0), z)
    rows = objective.groups[objective.order[0]]
    w = z.detach().clone().requires_grad_(True)
    total = torch.zeros(())
    for row in rows:
        pair = TASK.pairs[row]
        with torch.no_grad():
            ablated = writer_outputs(model, pair.corrupted)
            clean = TASK.score(model.hf(torch.tensor([pair.clean])).logits[:, -1], [row])
        metric = TASK.score(masked_logits(model, pair, ablated, w), [row])
        total = total + 5.0 * ((metric - clean) / objective.gap).square().sum() / len(rows)
    (expected,) = torch.autograd.grad(total, w)
    torch.testing.assert_close(found, torch.where(z != 0, expected, 0.0), atol=2e-4, rtol=2e-3)


def test_a_neuron_alone_reads_and_writes_what_the_model_has(model):
    block, pair = model.blocks[2], TASK.pairs[0]
    outs = writer_outputs(model, pair.clean)
    vector = outs[model.graph.row("m2.n5")]
    weight = weight_of(block.mlp_writer).detach()[:, 5] * (block.mlp_post.gain if block.mlp_post else 1.0)
    along = vector @ weight / weight.square().sum()
    torch.testing.assert_close(vector, along[:, None] * weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a0.h1", "is no neuron"),
        ("m3.n0", "layers 0 to 2"),
        ("m0.n40", "neurons 0 to 39"),
        ("m0.n1.in", "is no neuron"),
    ],
)
def test_what_is_no_neuron_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        tiny("llama").with_neurons([name])


@pytest.mark.parametrize(("steps", "rules"), [(1, "plain"), (3, "plain"), (1, "relp")])
def test_scores_of_the_nodes_of_an_mlp_sum_to_its_own(model, steps, rules):
    plain = model.with_neurons([])
    options = {"rules": rules}
    whole = cm.eap(plain, TASK, **options) if steps == 1 else cm.eap_ig(plain, TASK, steps=steps, **options)
    scores = cm.neurons.graph_scores(model, TASK, steps=steps, **options)
    summed = torch.zeros(plain.graph.mask.shape)
    for row, writer in enumerate(model.graph.writers):
        for column, reader in enumerate(model.graph.readers):
            at = (
                plain.graph.row(writer.split(".n")[0]),
                plain.graph.column(reader.split(".n")[0] + ".in" * (".n" in reader)),
            )
            summed[at] += scores.values[row, column]
    scale = whole.values.abs().max()
    torch.testing.assert_close(summed / scale, whole.values / scale, atol=1e-4, rtol=1e-3)
    if steps == 1 and rules == "plain":
        check_gradients(model, scores)


def check_gradients(model, scores):
    """Against the gradient of the written-out run with every edge open, by its mask."""
    total = torch.zeros(model.graph.mask.shape)
    for row, pair in enumerate(TASK.pairs):
        keep = torch.ones(model.graph.mask.shape, requires_grad=True)
        ablated = writer_outputs(model, pair.corrupted)
        metric = TASK.score(masked_logits(model, pair, [out.detach() for out in ablated], keep), [row]).sum()
        total -= torch.autograd.grad(metric, keep)[0] / len(TASK)
    total *= model.graph.mask
    scale = total.abs().max()
    if model.blocks[0].mlp_post is None:  # else the written-out run has gradients through divisors of outputs
        torch.testing.assert_close(scores.values / scale, total / scale, atol=1e-4, rtol=1e-3)


def test_blocks_taken_apart_have_no_node_but_their_neurons(model):
    view = model.with_neurons(NEURONS, apart=[0, 1])
    assert not view.graph.mask[view.graph.row("m0")].any() and not view.graph.mask[:, view.graph.column("m1.in")].any()
    assert view.graph.mask[view.graph.row("m2")].any() and view.graph.mask[view.graph.row("m0.n3")].any()
    expected = cm.Circuit(model.graph, view.graph.mask)
    found = cm.run_circuit(view, TASK, cm.Circuit.full(view.graph))
    torch.testing.assert_close(found, cm.run_circuit(model, TASK, expected))


def test_methods_that_know_whole_mlps_refuse(model):
    with pytest.raises(InputError, match="with_neurons"):
        cm.eap(model, TASK)
    with pytest.raises(InputError, match="with_neurons"):
        cm.mattr(model, TASK, steps=1)


def test_files_keep_neuron_nodes(model, tmp_path):
    circuit = some_circuit(model.with_neurons(NEURONS, apart=[1]), 0.3)
    circuit.save(tmp_path / "circuit.safetensors")
    assert cm.Circuit.load(tmp_path / "circuit.safetensors") == circuit


def test_neurons_become_their_mlps_again():
    model = tiny("llama").with_neurons(NEURONS, apart=[0])
    names = ["embed->m0.n3.in", "embed->m0.n17.in", "m0.n3->m2.n5.in", "m2.n5->logits", "a1.h2->a2.kv1.k", "m1->m2.in"]
    whole = cm.Circuit.of(model.graph, names).with_whole_mlps()
    assert whole.graph == tiny("llama").graph
    assert set(whole) == {"embed->m0.in", "m0->m2.in", "m2->logits", "a1.h2->a2.kv1.k", "m1->m2.in"}


def test_ones_own_hand_knows_whole_mlps_whatever_the_nodes(model):
    plain = model.with_neurons([])
    ids = torch.tensor([TASK.pairs[0].clean])
    for value in ("zero", "mean"):
        logits = []
        for view in (plain, model):
            with torch.no_grad(), cm.ablate(view, ["m0", "a1.h2"], value=value, task=TASK):
                logits.append(view.hf(ids).logits)
        assert torch.equal(*logits)
    with torch.no_grad(), cm.patch_in(model, ["m2"], source=[TASK.pairs[0].corrupted]):
        patched = model.hf(ids).logits
    with torch.no_grad(), cm.patch_in(plain, ["m2"], source=[TASK.pairs[0].corrupted]):
        assert torch.equal(patched, plain.hf(ids).logits)
    off = []
    for view in (plain, model):
        with torch.no_grad(), cm.ablate(view, ["m0.n3"]):
            off.append(view.hf(ids).logits)
    assert torch.equal(*off)


def test_neurons_keep_their_kind_in_files_and_groups(tmp_path):
    circuit = cm.Circuit.of(
        tiny("llama").with_neurons(NEURONS).graph, ["embed->m0.n3.in", "m0.n3->m2.in", "m2->logits"]
    )
    circuit.to_json(tmp_path / "graph.json")
    kinds = {
        node["node_id"]: node["feature_type"] for node in json.loads((tmp_path / "graph.json").read_text())["nodes"]
    }
    assert kinds == {"embed": "embedding", "m0.n3": "neuron", "m2": "mlp", "logits": "logit"}
    assert layer_groups(circuit) == {"neurons of the first third": ["m0.n3"], "MLPs of the last third": ["m2"]}


def test_a_neuron_is_described_where_ablation_changes_it_most():
    model = tiny("llama").with_neurons(["m1.n5"])
    weight, row = model.blocks[1].neuron_weights([5])[0], model.graph.row("m1.n5")
    places, clean = [], []
    for pair in TASK.pairs:
        acts = [
            writer_outputs(model, ids)[row] @ weight / weight.square().sum() for ids in (pair.clean, pair.corrupted)
        ]
        places.append(int((acts[0] - acts[1]).abs().argmax()))
        clean.append(float(acts[0][places[-1]]))
    pairs = tuple(replace(pair, roles={"here": place}) for pair, place in zip(TASK.pairs, places, strict=True))
    (found,) = cm.neurons.describe(model, replace(TASK, pairs=pairs), ["m1.n5"], top=3)
    assert found.place == "here" and found.clean == pytest.approx(sum(clean) / len(clean), abs=1e-5)
    with torch.no_grad():
        logits = model.unembedding.weight @ (weight * model.final_norm.gain) * (1 if found.clean >= 0 else -1)
    assert found.raises == tuple(f"#{i}" for i in logits.topk(3).indices.tolist())
    # Of the last block only what is written where the answer is read matters.
    (last,) = cm.neurons.describe(model, TASK, ["m2.n5"])
    view, weight = model.with_neurons(["m2.n5"]), model.blocks[2].neuron_weights([5])[0]
    outputs = [writer_outputs(view, pair.clean)[view.graph.row("m2.n5")][-1] for pair in TASK.pairs]
    expected = sum(float(output @ weight / weight.square().sum()) for output in outputs) / len(outputs)
    assert last.clean == pytest.approx(expected, abs=1e-5)


def test_neurons_that_matter_at_one_position_stand_beside_others_that_matter_everywhere(model):
    graph = model.graph
    kv = graph.kv_head(1)
    names = [
        *("embed->m0.n3.in", "embed->m0.n17.in", "embed->a1.h1.q", "a0.h0->m0.n3.in" * (not graph.parallel)),
        *(f"m0.n3->a1.kv{kv}.k", f"embed->a1.kv{kv}.v", f"embed->a0.kv{graph.kv_head(0)}.v", "embed->a0.h0.q"),
        *("m0.n17->logits", "a1.h1->logits", "a0.h0->logits"),
    ]
    circuit = cm.Circuit.of(graph, [name for name in names if name])
    gone = torch.stack([cm.Circuit.of(graph, [edge]).mask for edge in circuit])
    parts = Evaluator(Setting(model, TASK)).parts(circuit, gone)
    whole = Evaluator(Setting(model, TASK)).circuits([cm.Circuit(graph, circuit.mask & ~mask) for mask in gone])
    torch.testing.assert_close(parts, whole, atol=3e-5, rtol=1e-5)
