"""Neurons add up to their MLP, whatever its shape; tokens are those whose logits a part moves."""

import pytest
import torch
from families import CONFIGS, tiny
from referee import heads_out, inputs_of

from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.parts import neuron_vectors, route_neurons, route_parts
from circuitome.discovery.routes.tracing import routes
from circuitome.errors import InputError

IDS = [5, 17, 3, 44, 17, 9, 28]
FAST = ("gemma2", "phi3", "gpt2")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_neurons_add_up_to_the_mlp(name):
    model = tiny(name)
    seen = RoutePass.of(model, inputs_of(model, tuple(IDS)))
    for layer in range(len(model.blocks)):
        acts, vectors = neuron_vectors(seen, layer, 4)
        assert vectors.shape == (len(acts), model.d_model) and len(acts) > model.d_model
        torch.testing.assert_close(vectors.sum(0), seen.mlp(layer)[0, 4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_tokens_are_those_whose_logits_a_part_moves(name):
    """Against the unembedding of what each head and MLP writes at the last token, divided as the stream is there."""
    model = tiny(name)
    seen = RoutePass.of(model, inputs_of(model, tuple(IDS)))
    parts = route_parts(model, IDS, routes(model, IDS, threshold=0.02), n=6, top=61)
    assert {part.name[0] for part in parts} == {"a", "m"} and len(parts) > 6
    for part in parts:
        node, _, place = part.name.partition("@")
        layer = int(node.partition(".")[0][1:])
        if node[0] == "a":
            heads = heads_out(model.blocks[layer], seen.activations.z[layer][0], model.heads.q)
            vector = heads[int(node.partition(".h")[2])][int(place)]
        else:
            vector = seen.mlp(layer)[0, int(place)]
        divisor = model.final_norm.sigma(seen.activations.final[0, -1])
        expected = model.unembedding.weight @ (model.final_norm.gain * model.final_norm.centre(vector) / divisor)
        found = dict(part.promotes)
        torch.testing.assert_close(
            torch.tensor([found[str(i)] for i in range(61)]), expected.detach(), atol=1e-4, rtol=1e-4
        )
        assert part.promotes[0][1] >= part.promotes[1][1] and part.suppresses[0] == part.promotes[-1]


def test_neuron_importances_are_shares_of_the_stream():
    model = tiny("gpt2")
    route = routes(model, IDS)
    found = route_neurons(model, IDS, route, "m1@3", n=200)
    seen = RoutePass.of(model, inputs_of(model, tuple(IDS)))
    acts, vectors = neuron_vectors(seen, 1, 3)
    total = seen.pre(2)[0, 3].double()
    rest = (seen.mid(1)[0, 3]).double()
    parts = torch.cat([vectors.double(), rest[None], seen.mlp_bias(1)[None].double()])
    near = (total.abs().sum() - (total - parts).abs().sum(-1)).clamp(min=0)
    expected = near / near.sum()
    for part in found:
        i = int(part.name.partition(".n")[2].partition("@")[0])
        assert part.importance == pytest.approx(float(expected[i]), abs=1e-5)
        assert part.activation == pytest.approx(float(acts[i]))
    assert found == sorted(found, key=lambda part: -part.importance)


@pytest.mark.parametrize("node", ["a1.h0@3", "m7@1", "m1@7", "mid1@2"])
def test_no_mlp_is_told(node):
    model = tiny("gpt2")
    with pytest.raises(InputError, match=r"is no MLP of this route; MLPs look like m3@5, with blocks 0 to 2"):
        route_neurons(model, IDS, routes(model, IDS), node)
