"""Routes as edge scores: shares that are handed on whole, and against sums written out."""

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import writer_outputs

from circuitome.discovery.routes.scores import route_scores
from circuitome.errors import UnsupportedModelError
from circuitome.models.loading import load
from circuitome.studies.methods import METHODS
from circuitome.validation.ground_truth.prompts import task as known_task

FAST = ("llama", "neox-parallel")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_scores_into_the_logits_are_importances_at_the_read_position(name):
    model, task = tiny(name), random_task(3)
    scores = route_scores(model, task)
    assert scores.samples is not None
    for row, pair in enumerate(task.pairs):
        outs = torch.stack([out[-1] for out in writer_outputs(model, pair.clean)]).double()
        biases = []
        for layer, block in enumerate(model.blocks):
            if block.mlp_bias() is not None:
                outs[model.graph.mlp_row(layer)] -= block.mlp_bias()
            biases += [b for b in (block.mlp_bias(), block.output_bias()) if b is not None]
        parts = torch.cat([outs, *(b[None].double() for b in biases)])
        total = parts.sum(0)
        near = (total.abs().sum() - (total - parts).abs().sum(-1)).clamp(min=0)
        expected = (near / near.sum())[: len(outs)]
        values = torch.zeros(model.graph.mask.shape)
        values[model.graph.mask] = scores.samples[row]
        torch.testing.assert_close(values[:, -1].double(), expected, atol=2e-5, rtol=1e-4)


def test_flow_is_handed_on_whole():
    """Llama has no biases: all that flows into the logits leaves the embeddings, and every node passes its flow on."""
    model = tiny("llama")
    graph, scores = model.graph, route_scores(model, random_task(4)).values
    assert float(scores.min()) == 0 and not bool(scores[~graph.mask].any())
    assert float(scores[:, -1].sum()) == pytest.approx(1, abs=1e-5)
    assert float(scores[0].sum()) == pytest.approx(1, abs=1e-4)
    for layer in range(graph.n_layers):
        row = graph.mlp_row(layer)
        assert float(scores[row].sum()) == pytest.approx(float(scores[:, graph.mlp_column(layer)].sum()), abs=1e-5)
        heads, columns = scores[graph.head_rows(layer)].sum(), scores[:, graph.attention_columns(layer)].sum()
        assert float(heads) == pytest.approx(float(columns), abs=1e-5)
        queries, keys, values = scores[:, graph.attention_columns(layer)].sum(0).split([4, 2, 2])
        torch.testing.assert_close(queries.sum(), values.sum(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(keys, values, atol=1e-6, rtol=1e-5)


def test_padding_does_not_matter():
    model, task = tiny("gemma2"), random_task(5)
    whole = route_scores(model, task)
    alone = route_scores(model, task, max_memory=11 * model.bytes_per_token(gradients=False))
    torch.testing.assert_close(whole.samples, alone.samples, atol=1e-5, rtol=1e-4)


def test_it_is_a_method_and_says_what_it_sees():
    assert "no corrupted prompt" in METHODS["routes"].what and "generic parts" in METHODS["routes"].note


def test_models_that_are_not_causal_are_told():
    with pytest.raises(UnsupportedModelError, match="not causal"):
        route_scores(load("tracr-reverse"), known_task("tracr-reverse", 4))
