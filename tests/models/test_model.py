"""A model as it is used: in training, with other weights, in another dtype, from two threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import CONFIGS, ENCODERS, random_task, tiny
from torch import Tensor

from circuitome.discovery.attribution.edges import eap
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError
from circuitome.models import attention
from circuitome.models.inputs import Inputs
from circuitome.models.loading import load
from circuitome.models.model import Model

TASK = random_task(3)
QUICK = ("gpt2", "gemma2")
"""LayerNorm with biases and dropout; RMSNorm with an offset, post-norms, windows and eager attention."""


def test_a_model_in_training_loads_and_stays_in_training() -> None:
    hf = tiny("gpt2").hf.train()
    hf.transformer.h[1].eval()
    model = load(hf)
    assert hf.training and not hf.transformer.h[1].attn.training and hf.transformer.h[2].attn.training
    scores, again = eap(model, TASK).values, eap(model, TASK).values
    assert torch.equal(scores, again) and hf.training


def _double(model: Model) -> None:
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.mul_(1.2)


CHANGES: dict[str, Callable[[Model], object]] = {
    "in place": _double,
    "load_state_dict": lambda model: model.hf.load_state_dict(
        {name: 1.1 * value for name, value in tiny("gemma2", seed=1).hf.state_dict().items()}
        if model.name == "tiny-gemma2"
        else tiny("gpt2", seed=1).hf.state_dict()
    ),
    "to float64": lambda model: model.hf.to(torch.float64),
    "new unembedding": lambda model: model.hf.set_output_embeddings(tiny(model.name[5:], seed=2).unembedding),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_are_read_when_they_are_used(name: str, change: Callable[[Model], object]) -> None:
    model = tiny(name)
    circuit = eap(model, TASK).top(40)
    change(model)
    fresh = Model(model.hf, None, "fresh")
    assert torch.equal(eap(model, TASK).values, eap(fresh, TASK).values)
    assert torch.equal(run_circuit(model, TASK, circuit), run_circuit(fresh, TASK, circuit))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_float64_models_give_the_same_numbers(name: str) -> None:
    single, double = tiny(name), load(tiny(name).hf.to(torch.float64))
    scores = eap(single, TASK)
    torch.testing.assert_close(eap(double, TASK).values, scores.values, atol=1e-4, rtol=1e-4)
    logits = [run_circuit(model, TASK, scores.top(40)).double() for model in (single, double)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    assert not any(block.attention._forward_pre_hooks for block in double.blocks)


def test_two_threads_take_turns() -> None:
    model = tiny("llama")
    circuit = eap(model, TASK).top(40)
    work: list[Callable[[], Tensor]] = [
        lambda: eap(model, TASK).values,
        lambda: run_circuit(model, TASK, circuit),
        lambda: model.record(inputs).z[0],
    ]
    inputs = Inputs.whole(torch.tensor([TASK.pairs[0].clean]))
    expected = [job() for job in work]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda i: work[i % 3](), range(18)))
    for i, result in enumerate(results):
        torch.testing.assert_close(result, expected[i % 3])


@pytest.mark.parametrize("name", [*CONFIGS, *ENCODERS])
def test_a_text_longer_than_learned_positions_is_refused_before_the_pass(name: str) -> None:
    model = tiny(name)
    rotated = attention.rotary_tables(model, torch.arange(1))[0] is not None
    assert model.learned_positions == (None if rotated else model.positions)
    assert model.positions is not None
    longest, longer = (Inputs.whole(torch.ones(1, model.positions + more, dtype=torch.long)) for more in (0, 1))
    assert model.record(longest, logits=False).resid_pre
    if rotated:
        assert model.record(longer, logits=False).resid_pre
    else:
        with pytest.raises(InputError, match=f"The text has {model.positions + 1} tokens; .* Give a shorter one"):
            model.record(longer)
