"""One definition of ablating a head, behind a post-norm too: its share goes, the divisor stays that of the run."""

import pytest
import torch
from families import random_task, tiny

from circuitome.discovery.patching.activation import patch
from circuitome.engine.ablate_outputs import AblatedOutputs, replace_outputs
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.run_circuit import run_circuit
from circuitome.engine.setting import Setting
from circuitome.graph.circuits import Circuit
from circuitome.heads.roles.head_ablation import HeadRun

TASK = random_task(3, lengths=(5, 6))
LAYER, HEAD = 1, 2


@pytest.mark.parametrize("name", ["gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("olmo2", "llama"))])
def test_every_way_of_ablating_a_head_gives_the_same(name):
    model = tiny(name)
    row = model.graph.row(f"a{LAYER}.h{HEAD}")
    mask = model.graph.mask.clone()
    mask[row] = False
    expected = run_circuit(model, TASK, Circuit(model.graph, mask))
    effects = TASK.score(expected, range(3)) - TASK.score(run_circuit(model, TASK, Circuit.full(model.graph)), range(3))
    with torch.no_grad():
        for base in Setting(model, TASK).baselines():
            inputs, rows = base.batch.clean, list(base.batch.rows)
            activations = model.record(inputs, logits=False)
            run = HeadRun(model, inputs, activations, base.ablated)
            with replace_outputs(model, AblatedOutputs.of(model, base.ablated, [row])):
                held = model.record(inputs, logits=False).final
            finals = {
                "knock-out": KnockOut(model, base).final(torch.arange(len(model.graph.writers))[None] == row)[0],
                "outputs replaced": inputs.at_read(held),
                "each of some heads": run.each_ablated(LAYER, [0, HEAD])[1],
                "heads together": run.all_ablated({LAYER: [HEAD]}).final,
            }
            for way, final in finals.items():
                torch.testing.assert_close(model.unembed(final), expected[rows], atol=2e-5, rtol=2e-5, msg=way)
    patched = patch(model, TASK, "heads").samples[:, LAYER, HEAD]
    torch.testing.assert_close(patched, effects, atol=2e-5, rtol=2e-5)
