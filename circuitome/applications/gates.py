"""What every head and neuron does to a number of each text or prompt, to first order, from one backward pass.

Held at a constant c in place of what it writes, a part changes the number m of a row by about

    s = sum over tokens of < c - a_t, dm/da_t >,

a_t what it writes with: z of a head, in front of the output projection; a neuron's activation. So s is the slope of a
gate between the part and its constant (Michel et al. 2019, arXiv:1905.10650, for c = 0). The slope is linear in c, so
one pass gives it for zero and for means alike.

Where m is the log-likelihood of tokens that the model draws itself, E[s] = 0 and E[s^2] / 2 is the divergence from the
model to the one with the part held, to second order: the Fisher information of the gate.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.batches import memory_budget
from circuitome.engine.setting import Setting
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.neurons.text_loss import COPIES
from circuitome.neurons.text_windows import Windows
from circuitome.tasks.task import Task
from circuitome.weights.folding import unembedding_rows


@dataclass(frozen=True, eq=False)
class Parts:
    """A number for every head and every neuron, or a vector z for every head; float32, on the CPU."""

    heads: Float[Tensor, "..."]
    """Of heads, [*rows, layer, head], or [*rows, layer, head, d_head]."""
    neurons: Float[Tensor, "..."]
    """Of neurons, [*rows, layer, neuron]."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parts":
        """The same function of both."""
        return Parts(function(self.heads), function(self.neurons))


@dataclass(frozen=True, eq=False)
class Gates:
    """Slopes of the gates of all parts, by row."""

    slope: Parts
    """Sum over tokens of dm/da: [row, layer, head, d_head] and [row, layer, neuron]."""
    written: Parts
    """Sum over tokens of < a, dm/da >: [row, layer, head] and [row, layer, neuron]."""

    def changes(self, constants: Parts | None = None) -> Parts:
        """S of every part by row, with parts held at `constants`, or at zero."""
        if constants is None:
            return self.written.map(lambda values: -values)
        heads = (self.slope.heads * constants.heads).sum(-1) - self.written.heads
        return Parts(heads, self.slope.neurons * constants.neurons - self.written.neurons)


def text_gates(setting: Setting, texts: Windows) -> tuple[Gates, Parts]:
    """Slopes of the log-likelihood of a window whose next tokens the model draws, and the parts' means over tokens."""
    model, found, total, count = setting.model, list[Gates](), None, 0.0
    generator = torch.Generator(model.device).manual_seed(setting.seed)
    each = texts.length * (len(unembedding_rows(model)) * 8 * COPIES + model.bytes_per_token(gradients=True))
    size = max(1, memory_budget(setting.model, setting.max_memory) // each)
    for start in range(0, len(texts), size):
        inputs = texts.inputs(model, range(start, min(start + size, len(texts))))
        real = inputs.real()

        def likelihood(inputs: Inputs = inputs, real: Tensor = real) -> Tensor:
            logs = model.every_logits(inputs)[:, :-1].float().log_softmax(-1)
            with torch.no_grad():
                drawn = torch.multinomial(logs.exp().flatten(0, 1), 1, generator=generator).view(*logs.shape[:2], 1)
            return (logs.gather(-1, drawn)[..., 0] * real[:, 1:]).sum()

        batch = _gates(model, inputs, likelihood)
        found.append(batch.gates)
        sums = batch.sums
        total = sums if total is None else Parts(total.heads + sums.heads, total.neurons + sums.neurons)
        count += float(real.sum())
        setting.progress("what parts do to texts", min(start + size, len(texts)), len(texts))
    assert total is not None
    return _joined(found), total.map(lambda sums: sums / count)


def task_gates(setting: Setting, what: str = "what parts do to the task") -> Gates:
    """Slopes of the metric of every clean prompt minus that of its corrupted twin."""
    sides = []
    for task in (setting.task, swapped(setting.task)):
        found, order = list[Gates](), list[int]()
        # Batches for the memory that gradients take.
        for batch in setting.but(prompts=task, ablation="zero").batches(what, gradients=True):
            number = _metric(setting.model, task, batch.clean, batch.rows)
            found.append(_gates(setting.model, batch.clean, number).gates)
            order += batch.rows
        back, joined = torch.tensor(order).argsort(), _joined(found)
        sides.append(Gates(_rows(joined.slope, back), _rows(joined.written, back)))
    clean, corrupted = sides
    return Gates(_minus(clean.slope, corrupted.slope), _minus(clean.written, corrupted.written))


def _rows(parts: Parts, which: Tensor) -> Parts:
    return Parts(parts.heads[which], parts.neurons[which])


def _minus(one: Parts, other: Parts) -> Parts:
    return Parts(one.heads - other.heads, one.neurons - other.neurons)


def swapped(task: Task) -> Task:
    """The corrupted prompts as clean ones, with the answers of their clean twins."""
    return replace(
        task,
        pairs=tuple(
            replace(p, clean=p.corrupted, corrupted=p.clean, roles={}, answer_position=p.answer_position - len(p.clean))
            for p in task.pairs
        ),
    )


def _metric(model: Model, task: Task, inputs: Inputs, rows: Sequence[int]) -> Callable[[], Tensor]:
    return lambda: task.score(model.logits(inputs), rows).sum()


def _joined(found: Sequence[Gates]) -> Gates:
    slope, written = (
        Parts(torch.cat([p.heads for p in parts]), torch.cat([p.neurons for p in parts]))
        for parts in ([gates.slope for gates in found], [gates.written for gates in found])
    )
    return Gates(slope, written)


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one batch showed."""

    gates: Gates
    sums: Parts
    """Over real tokens, of what parts write with."""


def _gates(model: Model, inputs: Inputs, number: Callable[[], Tensor]) -> _Pass:
    """Slopes of the sum of rows' numbers in one batch."""
    seen: dict[nn.Module, Tensor] = {}
    widths = {block.output: model.heads.width for block in model.blocks}
    widths |= {block.mlp_writer: 1 for block in model.blocks}
    leaf = model.embeddings(inputs).detach().requires_grad_(True)
    with model.frozen_parameters(), torch.enable_grad(), ExitStack() as stack:
        for module in widths:
            stack.enter_context(hooked(module.register_forward_pre_hook, lambda m, args: seen.update({m: args[0]})))
        with model.starting_from(leaf):
            total = number()
        gradients = torch.autograd.grad(total, [seen[module] for module in widths])
    by_site = list[tuple[Tensor, Tensor, Tensor]]()
    for (module, width), gradient in zip(widths.items(), gradients, strict=True):
        a, g = (t.detach().float().reshape(*inputs.ids.shape, -1, width) for t in (seen[module], gradient))
        sums = torch.einsum("bp,bpnw->nw", inputs.real().float(), a)
        by_site.append((g.sum(1).cpu(), (a * g).sum((1, 3)).cpu(), sums.cpu()))
    heads, neurons = by_site[: len(model.blocks)], by_site[len(model.blocks) :]
    slope, written, whole = ((_stacked(heads, k), _stacked(neurons, k)) for k in range(3))
    gates = Gates(Parts(slope[0], slope[1][..., 0]), Parts(*written))
    return _Pass(gates, Parts(whole[0], whole[1][..., 0]))


def _stacked(layers: Sequence[tuple[Tensor, ...]], k: int) -> Tensor:
    """The k-th numbers of all layers; the layer's axis stands before that of the parts."""
    return torch.stack([layer[k] for layer in layers], 0 if k == 2 else 1)
