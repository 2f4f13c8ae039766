"""What must not change a circuit's logits: which prompts run beside one, in which order, padded, how many at once."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from circuitome.engine.circuit_run import circuit_bytes
from circuitome.engine.run_circuit import run_circuit
from circuitome.graph.circuits import Circuit

MODEL = tiny("llama")
TASK = random_task(4, lengths=(4, 7))
SEEDS, SHARES = st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.9])
CLOSE = {"atol": 3e-5, "rtol": 3e-5}
# The phase that explains failures traces every line that runs, which takes most of the time.
briefly = settings(max_examples=6, deadline=None, phases=set(Phase) - {Phase.explain})


def drawn(seed: int, share: float) -> Circuit:
    chance = torch.rand(MODEL.graph.mask.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit(MODEL.graph, MODEL.graph.mask & (chance < share))


@pytest.mark.slow
@briefly
@given(SEEDS, SHARES, st.sampled_from(["corrupted", "zero"]), st.permutations(range(len(TASK))))
def test_a_prompt_runs_as_it_does_alone(seed, share, ablation, order):
    """Means are left out: they are over the prompts at hand."""
    circuit = drawn(seed, share)
    shuffled = replace(TASK, pairs=tuple(TASK.pairs[row] for row in order))
    together = run_circuit(MODEL, shuffled, circuit, ablation=ablation)
    for place, row in enumerate(order[:2]):
        alone = run_circuit(MODEL, replace(TASK, pairs=(TASK.pairs[row],)), circuit, ablation=ablation)
        torch.testing.assert_close(together[place : place + 1], alone, **CLOSE)


@briefly
@given(
    SEEDS,
    SHARES,
    st.sampled_from(["corrupted", "zero", "mean", "mean-position"]),
    st.booleans(),
    st.integers(14, 40),
)
def test_batches_and_the_shared_prefix_change_nothing(seed, share, ablation, shared_prefix, tokens):
    budget = tokens * (MODEL.bytes_per_token(gradients=False) + circuit_bytes(MODEL))
    circuit = drawn(seed, share)
    whole = run_circuit(MODEL, TASK, circuit, ablation=ablation)
    parts = run_circuit(MODEL, TASK, circuit, ablation=ablation, max_memory=budget, shared_prefix=shared_prefix)
    torch.testing.assert_close(parts, whole, **CLOSE)


@pytest.mark.slow
@briefly
@given(SEEDS, SHARES, st.integers(1, 5), st.integers(3, 60))
def test_what_stands_behind_the_answer_changes_nothing(seed, share, more, token):
    """Tokens behind the position that is read are as padding: causal attention never reads them."""
    circuit, tail = drawn(seed, share), [token] * more
    pairs = [replace(pair, clean=(*pair.clean, *tail), corrupted=(*pair.corrupted, *tail)) for pair in TASK.pairs]
    longer = run_circuit(MODEL, replace(TASK, pairs=tuple(pairs)), circuit)
    torch.testing.assert_close(longer, run_circuit(MODEL, TASK, circuit), **CLOSE)
