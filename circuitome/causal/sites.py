"""Where the value of a variable may be: the stream in front of or inside a block, a head's or an MLP's output."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import recorded_heads
from circuitome.errors import InputError, unknown_name
from circuitome.graph.model_graph import Graph
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model

KINDS = ("resid", "mid", "heads", "mlps")
"""The stream in front of each block and behind the last one; between attention and MLP; heads; MLPs."""
LETTERS = {"x": "resid", "mid": "mid", "a": "heads", "m": "mlps"}


@dataclass(frozen=True)
class Site:
    """A place in the model, at any token."""

    kind: str
    """A name in `KINDS`."""
    layer: int
    """The block; of the stream behind the last block, the number of blocks."""
    head: int = 0
    """The head, of heads."""

    def __str__(self) -> str:
        letter = next(letter for letter, kind in LETTERS.items() if kind == self.kind)
        return f"{letter}{self.layer}" + (f".h{self.head}" if self.kind == "heads" else "")


@dataclass(frozen=True)
class Place:
    """A site at a named position: x14@end."""

    site: Site
    """Where in the model."""
    role: str
    """Where in the prompt."""

    def __str__(self) -> str:
        return f"{self.site}@{self.role}"

    @classmethod
    def parse(cls, text: str, graph: Graph) -> "Place":
        """The place written as x5@end, mid5@S2, a5.h1@end or m5@S2. Raises `InputError`."""
        match = re.fullmatch(r"(x|mid|a|m)(\d+)(?:\.h(\d+))?@(.+)", text)
        if match is None or (match[1] == "a") != (match[3] is not None):
            raise InputError(f"{text!r} is no place. Write it as x5@end, mid5@end, a5.h1@end or m5@end.")
        site = Site(LETTERS[match[1]], int(match[2]), int(match[3] or 0))
        if site not in sites(graph, site.kind):
            raise InputError(
                f"There is no {site} in a model of {graph.n_layers} blocks and {graph.n_heads} heads, counted from 0."
            )
        return cls(site, match[4])


def sites(graph: Graph, kind: str) -> list[Site]:
    """All sites of a kind, from the first block on.

    Raises `UnknownNameError` for another kind, `InputError` for the middle of blocks that have none.
    """
    if kind not in KINDS:
        raise unknown_name("kind of sites", kind, KINDS)
    if kind == "mid" and graph.parallel:
        raise InputError(
            "Attention and MLP of this model's blocks read the same stream, so there is none between them. Take resid."
        )
    layers, heads = range(graph.n_layers + (kind == "resid")), range(graph.n_heads if kind == "heads" else 1)
    return [Site(kind, layer, head) for layer in layers for head in heads]


def values_at(
    model: Model, activations: ActivationCache, kind: str, layer: int
) -> Float[Tensor, "batch pos head width"]:
    """What a recorded pass shows at the sites of a kind in a block.

    Of the stream and of MLPs, d_model numbers as if of one head; of each head, its z over the post-norm's divisor.
    """
    if kind == "heads":
        return recorded_heads(model, activations, layer)
    if kind == "resid":
        value = activations.resid_post(layer - 1) if layer else activations.resid_pre[0]
    else:
        value = (activations.resid_mid if kind == "mid" else activations.mlp_out)[layer]
    return value.detach()[:, :, None]


def added(
    model: Model, kind: str, layer: int, change: Float[Tensor, "*any head width"]
) -> Float[Tensor, "*any head d_model"]:
    """What a change of each value at the sites of a kind in a block adds to the stream; float32."""
    if kind == "heads":
        return torch.einsum("...he,hed->...hd", change.float(), model.blocks[layer].head_weights())
    return change.float()
