"""A circuit by itself: the model's logits with every other edge ablated."""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.circuit_run import check_graph, circuit_logits
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.graph.circuits import Circuit


@method
@on_neurons
def run_circuit(setting: Setting, circuit: Circuit) -> Float[Tensor, "prompts vocab"]:
    """Logits [prompts, vocab] after the last token of each clean prompt, with every edge outside `circuit` ablated.

    The full circuit gives the plain model's logits, the empty one (corrupted ablation) those of the corrupted prompts.
    Raises `InputError` if the circuit belongs to a model of another shape, `NumericsError` at NaN or infinity.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> logits = cm.run_circuit(model, task, cm.ground_truth.true_circuit(model, task))
    >>> logits.shape, round(float(task.score(logits, range(len(task))).mean()), 1)
    (torch.Size([16, 14]), 6.0)
    """
    check_graph(setting.model, circuit)
    rows: list[int] = []
    parts: list[Tensor] = []
    with torch.inference_mode():
        for base in setting.baselines():
            parts.append(circuit_logits(setting.model, base, circuit))
            rows += base.batch.rows
    logits = torch.cat(parts)[torch.tensor(rows).argsort()]
    check_numbers(logits, "logits")
    return logits
