"""Weights that are not finite, and weights that are narrow: an error in every method, or nearly the same effects."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError, NumericsError
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))
METHODS = {
    "eap": lambda model: cm.eap(model, TASK),
    "eap_ig": lambda model: cm.eap_ig(model, TASK, steps=2, loss="kl"),
    "atp": lambda model: cm.atp(model, TASK),
    "exact": lambda model: cm.exact(model, TASK, edges=Circuit.of(model.graph, ["m1->logits"])),
    "patch": lambda model: cm.patch(model, TASK, "mlps"),
    "path_patch": lambda model: cm.path_patch(model, TASK, senders=["m1"]),
    "trace_back": lambda model: cm.trace_back(model, TASK, depth=1),
    "acdc": lambda model: cm.acdc(model, TASK, threshold=0.1),
    "edge_pruning": lambda model: cm.edge_pruning(model, TASK, edges=5, steps=1),
    "subnetwork_probing": lambda model: cm.subnetwork_probing(model, TASK, nodes=5, steps=1),
    "routes": lambda model: cm.routes(model, [3, 4, 5]),
    "route_scores": lambda model: cm.route_scores(model, TASK),
    "route_importance": lambda model: cm.route_importance(model, [[3, 4, 5]]),
    "magnitude": lambda model: cm.magnitude(model, TASK),
    "run_circuit": lambda model: cm.run_circuit(model, TASK, Circuit.full(model.graph)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_weight_is_an_error(name):
    model = tiny("gpt2")
    with torch.no_grad():
        model.blocks[1].output.weight[2, 3] = torch.nan
    with pytest.raises(NumericsError, match="finite"):
        METHODS[name](model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_paths_of_a_model_in_half_precision_have_the_effects_of_its_weights_in_float32(name, dtype):
    half, whole = tiny(name, dtype=dtype), tiny(name, dtype=dtype)
    whole.hf.float()
    for options in ({"senders": ["embed", "m0", "a1.h2"]}, {"receivers": ["a2.h1.q", "m2.in"], "freeze_mlps": True}):
        effects, expected = (cm.path_patch(model, TASK, **options).samples for model in (half, whole))
        scale = float(expected.nan_to_num().abs().max())
        torch.testing.assert_close(effects, expected, atol=0.05 * scale, rtol=0, equal_nan=True)
    assert len(cm.trace_back(half, TASK, depth=2, width=2, threshold=0.0).levels) >= 1


def test_no_gradient_is_taken_at_an_embedding_of_zeros():
    with pytest.raises(InputError, match="clean-corrupted takes a gradient at the ablated embeddings"):
        cm.eap_ig(tiny("llama"), TASK, variant="clean-corrupted", ablation="zero")
    assert cm.eap_ig(tiny("llama"), TASK, variant="clean-corrupted").values.isfinite().any()


def test_the_first_prompt_without_a_number_is_named():
    first = TASK.pairs[0]
    task = TASK.measured_by(lambda logits, pairs: torch.tensor([1.0 if pair is first else torch.nan for pair in pairs]))
    with pytest.raises(NumericsError, match="first on prompt 2"):
        cm.patch(tiny("llama"), task, "mlps")
