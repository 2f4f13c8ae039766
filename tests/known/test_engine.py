"""Known models under the engine, against their forward pass written out edge by edge."""

from dataclasses import replace

import pytest
import torch
from families import random_task

import circuitome as cm
from circuitome.engine.run_circuit import run_circuit
from circuitome.models.check import check_model
from circuitome.models.inputs import Inputs
from circuitome.models.known import KnownConfig, KnownForCausalLM
from circuitome.models.model import Model

NAMES = ("random-causal", "random", "tracr-detect-pattern", "known-induction")
"""Random weights too: the patterns of the others are so sharp that they would hide a wrong mask."""


def random_model(causal):
    torch.manual_seed(0)
    hf = KnownForCausalLM(
        KnownConfig(
            vocab_size=11,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            head_dim=5,
            intermediate_size=7,
            max_position_embeddings=8,
            attention_scale=0.5,
            is_causal=causal,
            output_size=11,
        )
    )
    for parameter in hf.parameters():
        parameter.detach().copy_(0.5 * torch.randn_like(parameter))
    model = Model(hf.eval(), None, "random")
    check_model(model)
    return model


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return random_model(name == "random-causal") if name.startswith("random") else cm.load(name)


@pytest.fixture(scope="module")
def task(name):
    if not name.startswith("random"):
        return cm.ground_truth.task(name, 3, seed=2)
    plain = random_task(4, lengths=(5, 7), vocab=11)
    pairs = [replace(pair, answer_position=read) for pair, read in zip(plain.pairs, (2, 6, 4, 3), strict=True)]
    return replace(plain, pairs=tuple(pairs))


def written_out(model, ids, ablated, mask):
    """Logits [pos, output] where readers see kept writers as they run and others as `ablated`, and what each writes."""
    hf, graph = model.hf, model.graph
    scale, width = hf.config.attention_scale, hf.config.head_dim
    hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1) & hf.config.is_causal
    wrote = [hf.embed_tokens(torch.tensor(ids)) + hf.embed_positions.weight[: len(ids)]]
    biases = torch.zeros_like(wrote[0])

    def seen(reader):
        kept = mask[:, graph.column(reader)]
        return biases + sum(online if kept[row] else ablated[row] for row, online in enumerate(wrote))

    for i, layer in enumerate(hf.layers):
        attention, heads = layer.self_attn, []
        for head in range(graph.n_heads):
            part = slice(head * width, (head + 1) * width)
            q, k, v = (
                seen(f"a{i}.h{head}.{letter}") @ projection.weight[part].T + projection.bias[part]
                for letter, projection in zip(
                    "qkv", (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
                )
            )
            pattern = (q @ k.T * scale).masked_fill(hidden, -torch.inf).softmax(-1)
            heads.append(pattern @ v @ attention.out_proj.weight[:, part].T)
        wrote += heads
        biases = biases + attention.out_proj.bias
        wrote.append(layer.fc2(torch.relu(layer.fc1(seen(f"m{i}.in")))))
    return seen("logits") @ hf.lm_head.weight.T, wrote


def expected(model, task, circuit, ablation):
    """Logits [pair, output] that `written_out` gives, one run for each prompt."""
    rows, prompts = {}, dict.fromkeys((pair.clean, pair.corrupted) for pair in task.pairs)
    with torch.no_grad():
        for clean, corrupted in prompts:
            _, ablated = written_out(model, corrupted, [], model.graph.mask)
            if ablation == "zero":
                ablated = [torch.zeros_like(one) for one in ablated]
            rows[clean], _ = written_out(model, clean, ablated, circuit.mask)
    return torch.stack([rows[pair.clean][pair.answer_position] for pair in task.pairs])


def plain(model, task, side):
    with torch.no_grad():
        return torch.stack(
            [model.hf(torch.tensor([getattr(p, side)])).logits[0, p.answer_position] for p in task.pairs]
        )


@pytest.mark.slow
def test_logits_with_hooks_are_bit_equal(model, task):
    for pair in task.pairs:
        ids = torch.tensor([pair.clean])
        inputs = Inputs(
            ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], torch.tensor([pair.answer_position])
        )
        with torch.no_grad():
            # asked for this one position: a product of another shape may differ in the last bit
            logits = model.hf(ids, logits_to_keep=torch.tensor([pair.answer_position])).logits[:, 0]
            assert torch.equal(model.record(inputs).logits, logits)


@pytest.mark.slow
def test_full_and_empty_circuit_are_the_plain_model(model, task):
    for ablation in ("zero", "corrupted"):
        full = run_circuit(model, task, cm.Circuit.full(model.graph), ablation=ablation)
        torch.testing.assert_close(full, plain(model, task, "clean"), atol=1e-5, rtol=1e-5)
    empty = run_circuit(model, task, cm.Circuit.empty(model.graph))
    torch.testing.assert_close(empty, plain(model, task, "corrupted"), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
@pytest.mark.parametrize("density", [0.5, 0.9])
def test_any_circuit_equals_the_written_out_run(model, task, ablation, density):
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        mask = (torch.rand(model.graph.mask.shape, generator=generator) < density) & model.graph.mask
        circuit = cm.Circuit(model.graph, mask)
        logits = run_circuit(model, task, circuit, ablation=ablation)
        torch.testing.assert_close(logits, expected(model, task, circuit, ablation), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
def test_effects_of_edges_equal_the_written_out_ones(model, task, ablation):
    clean, effects = plain(model, task, "clean"), torch.zeros(model.graph.mask.shape)
    for row, column in model.graph.mask.nonzero().tolist():
        kept = model.graph.mask.clone()
        kept[row, column] = False
        without = expected(model, task, cm.Circuit(model.graph, kept), ablation)
        effects[row, column] = (without - clean).abs().max()
    torch.testing.assert_close(
        cm.ground_truth.edge_effects(model, task, ablation=ablation), effects, atol=1e-4, rtol=1e-4
    )
