"""Run a model whose edges are partly open, with the gradient of every open edge.

Differences of writers are rows of one buffer, gradients with respect to them rows of another. Each block keeps only its
own small graph, from its readers' inputs to its writers' differences; between blocks both directions are matrix
products of the mask with a buffer. Closed edges cost nothing where whole readers or writers fall away with them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.circuit_run import Baseline, CircuitRun
from circuitome.models.model import Model


def masked_final(model: Model, base: Baseline, z: Float[Tensor, "writers readers"]) -> Float[Tensor, "batch d_model"]:
    """Residual in front of the final norm at the position read, float32, every edge open as far as `z` says.

    With z of 0 and 1 this is `run_circuit`. Differentiable in `z`; an edge at exactly 0 is not in the run, so its
    gradient is 0 (as behind the clamp of a hard concrete mask). Entries of `z` where the graph has no edge must be 0.
    Parameters must take no gradients (`Model.frozen_parameters`): they would fill memory.
    """
    return _Masked.apply(z, CircuitRun(model, base, z))


class _Masked(torch.autograd.Function):
    """`CircuitRun` as one operation of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, run: CircuitRun) -> Tensor:
        ctx.run, ctx.device = run, z.device
        return run.final(keep=ctx.needs_input_grad[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _mask_gradient(ctx.run, grads[0]).to(ctx.device), None


def _mask_gradient(run: CircuitRun, grad: Float[Tensor, "batch d_model"]) -> Float[Tensor, "writers readers"]:
    """Gradient with respect to the mask, given the one with respect to the final residual."""
    delta_grad, z_grad = torch.zeros_like(run.delta), torch.zeros_like(run.weights)

    def spread(columns: list[int], upto: int, grad: Tensor, *, last: bool) -> None:
        """Carry the gradient at what readers see to the mask and to the differences of the writers before them."""
        flat, weights = grad.flatten(1), run.weights[:upto, columns]
        z_grad[:upto, columns] = run.at(run.delta[:upto], last=last).flatten(1) @ flat.T
        if last:
            delta_grad[:upto, run.at_read] += (weights @ flat).view(upto, *grad.shape[1:])
        else:
            delta_grad[:upto].flatten(1).addmm_(weights, flat)

    spread([len(run.graph.readers) - 1], len(run.used), grad[None], last=True)
    while run.parts:
        part = run.parts.pop()  # its graph is free as soon as it has been used
        wanted = run.at(delta_grad[part.slots], last=part.last)
        (seen,) = torch.autograd.grad(part.out, part.seen, wanted)
        spread(part.columns, part.upto, seen.float(), last=part.last)
    full = run.weights.new_zeros(run.graph.mask.shape)
    full[run.used.to(full.device)] = z_grad * (run.weights != 0)
    return full
