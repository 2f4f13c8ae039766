"""Which rows and columns of a block's projections belong to some heads, key/value heads and neurons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitome.models.block import Block, Heads, weight_of


@dataclass(frozen=True)
class Slice:
    """Part of a projection."""

    module: nn.Module
    """The projection."""
    index: Int[Tensor, " some"]
    """Its rows or columns."""
    rows: bool
    """Whether they are rows, outputs with their biases; else columns, inputs."""


def slices(block: Block, heads: Sequence[int], groups: Sequence[int], neurons: Sequence[int]) -> list[Slice]:
    """Rows and columns of query heads, key/value heads and neurons, in the order in which a block of these has them.

    A head owns its rows of q and its columns of the output projection, a key/value head its rows of k and v, a neuron
    its rows of the MLP's readers and its column of the writer. Fused projections of every layout included.
    """
    q, kv, width = block.heads.q, block.heads.kv, block.heads.width
    sizes = [len(weight_of(module)) for module in block.projections]
    places = block.split([part[None, None] for part in torch.arange(sum(sizes)).split(sizes)])[0, 0]
    wanted = [*heads, *(q + group for group in groups), *(q + kv + group for group in groups)]
    fewer = replace(block, heads=Heads(len(heads), len(groups), width))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    own = fewer.merge(places[wanted][None, None])
    found = [
        Slice(module, index[0, 0] - start, True)
        for module, index, start in zip(block.projections, own, starts, strict=True)
    ]
    columns = torch.arange(q * width).view(q, width)[list(heads)].flatten()
    found.append(Slice(block.output, columns, False))
    which = torch.tensor(list(neurons), dtype=torch.long)
    for module in block.mlp_readers:
        parts = torch.arange(len(weight_of(module))).split(block.n_neurons)
        found.append(Slice(module, torch.cat([part[which] for part in parts]), True))
    found.append(Slice(block.mlp_writer, which, False))
    return found
