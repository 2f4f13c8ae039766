"""Features of dictionaries as nodes of a graph: circuits with them against the slow exact form, on every family."""

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
from circuitome.errors import InputError, UnknownNameError
from circuitome.features.feature_nodes import errors_of
from circuitome.validation.faithfulness.evaluator import Evaluator

TASK = random_task(3)
SITES = ("resid", "mlp", "transcoder", "stream-transcoder")
QUICK = (("llama", "resid"), ("gemma2", "transcoder"), ("neox-parallel", "mlp"), ("opt", "stream-transcoder"))
CASES = [(family, site) for family in CONFIGS for site in SITES]
FEATURES = (2, 3, 17, 40, 59)


def dictionary(site, layer=1, seed=0):
    """A random dictionary of each kind of sparseness, biases everywhere."""
    found = cm.features.random_dictionary(cm.features.Place(site, layer), 24, 60, k=8, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    found = replace(found, b_enc=noise(60), b_dec=noise(24), W_dec=found.W_dec + noise(60, 24))
    if site == "transcoder":
        return replace(found, k=None, threshold=noise(60).abs(), W_skip=noise(24, 24))
    return replace(found, b_in=noise(24)) if site != "mlp" else replace(found, k=20)


@pytest.fixture(
    scope="module", params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def model(request):
    family, site = request.param
    plain = tiny(family).with_neurons(["m0.n3", "m2.n5"])
    return cm.features.as_nodes(plain, dictionary(site), TASK, features=FEATURES)


def some_circuit(model, density, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return cm.Circuit(
        model.graph, (torch.rand(model.graph.mask.shape, generator=generator) < density) & model.graph.mask
    )


def plain_logits(model):
    with torch.no_grad():
        return torch.cat([model.hf(torch.tensor([pair.clean])).logits[:, -1] for pair in TASK.pairs])


def zeros(model, outputs):
    """What is left of a stream when nothing is written are its biases."""
    found = [torch.zeros_like(out) for out in outputs]
    if model.graph.streams:
        for bias in (
            block.output.bias for block in model.blocks[:2] if getattr(block.output, "bias", None) is not None
        ):
            found[model.graph.row("x2")] += bias
    return found


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_the_full_circuit_is_the_model_and_any_circuit_the_written_out_run(model, ablation):
    full = cm.run_circuit(model, TASK, cm.Circuit.full(model.graph), ablation=ablation)
    torch.testing.assert_close(full, plain_logits(model), atol=2e-5, rtol=1e-5)
    for density in (0.1, 0.5):
        circuit = some_circuit(model, density)
        logits = cm.run_circuit(model, TASK, circuit, ablation=ablation)
        for i, pair in enumerate(TASK.pairs):
            with torch.no_grad():
                ablated = writer_outputs(model, pair.corrupted)
                ablated = zeros(model, ablated) if ablation == "zero" else ablated
                expected = masked_logits(model, pair, ablated, circuit.mask.float())
            torch.testing.assert_close(logits[i : i + 1], expected, atol=3e-5, rtol=1e-5)


def test_circuits_without_some_edges_equal_runs_of_what_is_left(model):
    circuit = some_circuit(model, 0.4)
    gone = torch.stack([some_circuit(model, share, seed).mask for seed, share in enumerate((0.02, 0.05, 0.3), 2)])
    parts = Evaluator(Setting(model, TASK)).parts(circuit, gone)
    left = [cm.Circuit(model.graph, circuit.mask & ~mask) for mask in gone]
    torch.testing.assert_close(parts, Evaluator(Setting(model, TASK)).circuits(left), atol=3e-5, rtol=1e-5)


def test_knocked_out_writers_are_those_all_of_whose_edges_are_cut(model):
    graph = model.graph
    sets = torch.rand(6, len(graph.writers), generator=torch.Generator().manual_seed(5)) < 0.1
    sets[0], sets[1] = False, False
    rest, first = errors_of(cm.Circuit.full(graph))[0], graph.part_nodes(1) or graph.part_nodes(1, stream=True)
    sets[0, rest], sets[1, graph.row(first[2])] = True, True
    for base in Setting(model, TASK).baselines():
        knocked = KnockOut(model, base).final(sets)
        for i, gone in enumerate(sets):
            expected = CircuitRun(model, base, (graph.mask & ~gone[:, None]).float()).final()
            torch.testing.assert_close(knocked[i], expected, atol=5e-5, rtol=1e-4)


def test_gradients_of_masks_and_scores_are_those_of_the_written_out_run(model):
    mask = some_circuit(model, 0.6).mask
    z = (torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) * mask).requires_grad_(True)
    objective = MaskObjective(Setting(model, TASK), "metric")
    (found,) = torch.autograd.grad(objective(z, 0), z)
    rows = objective.groups[objective.order[0]]
    w, total = z.detach().clone().requires_grad_(True), torch.zeros(())
    for row in rows:
        pair = TASK.pairs[row]
        with torch.no_grad():
            ablated = writer_outputs(model, pair.corrupted)
            clean = TASK.score(model.hf(torch.tensor([pair.clean])).logits[:, -1], [row])
        metric = TASK.score(masked_logits(model, pair, ablated, w), [row])
        total = total + 5.0 * ((metric - clean) / objective.gap).square().sum() / len(rows)
    (expected,) = torch.autograd.grad(total, w)
    torch.testing.assert_close(found, torch.where(z != 0, expected, 0.0), atol=2e-4, rtol=2e-3)
    if model.blocks[0].mlp_post is not None:  # gradients through divisors of outputs are not those of shares
        return
    values = torch.zeros(model.graph.mask.shape)
    for row, pair in enumerate(TASK.pairs):
        keep = torch.ones(model.graph.mask.shape, requires_grad=True)
        ablated = [out.detach() for out in writer_outputs(model, pair.corrupted)]
        metric = TASK.score(masked_logits(model, pair, ablated, keep), [row]).sum()
        values -= torch.autograd.grad(metric, keep)[0] * model.graph.mask / len(TASK)
    scores = cm.neurons.graph_scores(model, TASK, steps=1).values
    torch.testing.assert_close(scores / values.abs().max(), values / values.abs().max(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rules", ["plain", "relp"])
def test_scores_of_the_nodes_of_an_mlp_sum_to_its_own(model, rules):
    if model.graph.streams:
        return
    plain = model.with_neurons([])
    whole = cm.eap_ig(plain, TASK, steps=2, rules=rules).values
    scores, summed = cm.neurons.graph_scores(model, TASK, steps=2, rules=rules).values, torch.zeros(whole.shape)
    assert not scores.requires_grad, "the passes are held by what they gave"
    rows, columns = (torch.tensor(places) for places in model.graph.places_in(plain.graph))
    summed.index_put_((rows[:, None], columns[None]), scores, accumulate=True)
    torch.testing.assert_close(summed / whole.abs().max(), whole / whole.abs().max(), atol=1e-4, rtol=1e-3)


def test_single_features_are_encoded_as_all_of_them_are():
    x = torch.randn(len(FEATURES), 50, 24, generator=torch.Generator().manual_seed(0))
    for site in SITES:
        found = dictionary(site)
        expected = torch.stack([found.encode(x[i])[:, feature] for i, feature in enumerate(FEATURES)])
        torch.testing.assert_close(found.encode_each(FEATURES, x), expected)
        assert 0 < int((expected > 0).sum()) < expected.numel()


def test_names_edges_and_files(tmp_path):
    graph = cm.features.as_nodes(tiny("llama"), dictionary("resid"), TASK, features=[5, 2]).graph
    assert [name for name in graph.writers if name.startswith("x")] == ["x2", "x2.f2", "x2.f5"]
    for edge in ("m1->x2.f5.in", "embed->x2.in", "x2.f2->a2.h0.q", "x2->logits", "x2.f5->m2.in"):
        assert graph.edge(edge)
    for edge in ("m1->m2.in", "embed->logits", "x2.f2->x2.f5.in", "x2->x2.f2.in", "m2->x2.in"):
        with pytest.raises(InputError, match="come before"):
            graph.edge(edge)
    graph = cm.features.as_nodes(tiny("llama"), dictionary("mlp"), TASK, features=[5, 2]).graph
    assert graph.edge("a1.h3->m1.f5.in") and graph.edge("m1.f2->logits") and graph.edge("m1->m2.in")
    circuit = cm.Circuit.of(graph, ["a1.h3->m1.f5.in", "m1.f5->logits"])
    circuit.save(tmp_path / "circuit.safetensors")
    assert cm.Circuit.load(tmp_path / "circuit.safetensors") == circuit
    assert set(circuit.with_whole_mlps()) == {"a1.h3->m1.in", "m1->logits"}
    other = cm.features.as_nodes(tiny("llama"), dictionary("mlp", seed=9), TASK, features=[5, 2]).graph
    assert other != graph and other.writers == graph.writers


def test_several_dictionaries_and_errors_kept_or_left():
    model = tiny("llama")
    view = cm.features.as_nodes(model, dictionary("resid", 0), TASK, features=[1, 2])
    view = cm.features.as_nodes(view, dictionary("transcoder", 1), TASK, features=[3])
    torch.testing.assert_close(
        cm.run_circuit(view, TASK, cm.Circuit.full(view.graph)), plain_logits(model), atol=2e-5, rtol=1e-5
    )
    circuit = cm.Circuit.of(view.graph, ["embed->x1.f1.in", "x1.f1->m1.f3.in", "x1.f1->logits", "m1.f3->logits"])
    both = cm.features.with_errors(circuit)
    assert set(both - circuit) == {
        *("embed->x1.in", "x1->m1.in", "x1->m1.f3.in", "x1->logits", "x1.f1->m1.in", "m1->logits"),
    }
    assert cm.features.without_errors(both) == circuit


def test_in_half_precision_the_full_circuit_is_the_model_to_rounding():
    model = tiny("llama", dtype=torch.bfloat16)
    for site in SITES:
        view = cm.features.as_nodes(model, dictionary(site), TASK, features=FEATURES)
        full = cm.run_circuit(view, TASK, cm.Circuit.full(view.graph)).float()
        torch.testing.assert_close(full, plain_logits(model).float(), atol=0.15, rtol=0.05)


@pytest.mark.parametrize(
    ("site", "changes", "features", "message"),
    [
        ("attn", {}, [1], "cannot be nodes"),
        ("resid", {"scaling": "layer_norm"}, [1], "no one direction"),
        ("resid", {}, 0, "At least one"),
        ("mlp", {}, [], "At least one"),
    ],
)
def test_what_cannot_be_a_node_is_refused(site, changes, features, message):
    with pytest.raises(InputError, match=message):
        cm.features.as_nodes(tiny("llama"), replace(dictionary(site), **changes), TASK, features=features)


def test_unknown_features_other_layers_and_neurons_in_the_way_are_refused():
    model = tiny("llama")
    with pytest.raises(UnknownNameError, match="no feature 60"):
        cm.features.as_nodes(model, dictionary("mlp"), TASK, features=[60])
    with pytest.raises(InputError, match="layers 0 to 2"):
        cm.features.as_nodes(model, dictionary("mlp", layer=3), TASK, features=[1])
    with pytest.raises(InputError, match="nodes already"):
        cm.features.as_nodes(model.with_neurons(["m1.n2"]), dictionary("mlp"), TASK, features=[1])
    with pytest.raises(InputError, match="neurons or features"):
        cm.eap(cm.features.as_nodes(model, dictionary("resid"), TASK, features=[1]), TASK)
