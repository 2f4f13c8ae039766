"""Where the value of a variable may be: the stream, heads and their q, k and v, MLPs, neurons; at named tokens.

x5@end  mid5@S2                the stream in front of block 5, and between its attention and its MLP
a5.h1@S2  m5@end               what a head or an MLP writes
a5.h1.q@end  a5.kv0.k@S2       what a projection gives, before norms of q and k and before rotations; also a5.kv0.v
m5.n3,n17@end  m5.n*@end       some neurons of an MLP together, or all of them
a5.h1@S2+a6.h0@S2  a5.h*@S2    several of these at once; all heads of a block
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import recorded_heads
from circuitome.errors import InputError, unknown_name
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model

KINDS = ("resid", "mid", "heads", "mlps", "q", "k", "v")
"""The stream in front of each block and behind the last one; between attention and MLP; heads; MLPs; q, k and v."""
NEURONS = "neurons"
"""Kind of sites that are some neurons of an MLP: there are too many of them for a map."""
LETTERS = {"x": "resid", "mid": "mid", "m": "mlps"}
_NAME = re.compile(r"(x|mid|m)(\d+)|a(\d+)\.(?:h(\d+)(\.q)?|kv(\d+)\.(k|v)|h(\*))|m(\d+)\.(n\*|n\d+(?:,n?\d+)*)")
FORMS = "x5@end, mid5@end, a5.h1@end, m5@end, a5.h1.q@end, a5.kv1.k@end or m5.n3,n17@end, several joined by +"


@dataclass(frozen=True)
class Site:
    """A place in the model, at any token."""

    kind: str
    """A name in `KINDS`, or neurons."""
    layer: int
    """The block; of the stream behind the last block, the number of blocks."""
    head: int = 0
    """The head, of heads and of q; the key/value head, of k and v."""
    neurons: tuple[int, ...] = ()
    """The neurons, of neurons."""
    every: bool = field(default=False, compare=False)
    """Whether these are all neurons of the MLP."""

    def __str__(self) -> str:
        if self.kind == NEURONS:
            return f"m{self.layer}." + ("n*" if self.every else ",".join(f"n{i}" for i in self.neurons))
        if self.kind in ("heads", "q", "k", "v"):
            head = Node("kv" if self.kind in "kv" else "head", self.layer, self.head)
            return str(head if self.kind == "heads" else head.reads(self.kind))
        return f"{next(letter for letter, kind in LETTERS.items() if kind == self.kind)}{self.layer}"

    @property
    def height(self) -> float:
        """How many blocks up the site is, inside a block with the share of it: heads in front of the MLP."""
        inside = {"resid": 0.0, "q": 0.15, "k": 0.15, "v": 0.15, "heads": 0.3, "mid": 0.5, NEURONS: 0.65, "mlps": 0.8}
        return self.layer + inside[self.kind]

    @property
    def unit(self) -> str:
        """The node that the site belongs to, a5.h1 for its q as well, a5.kv0 for its k; the stream is its own."""
        return str(self) if self.kind == NEURONS else str(Node.parse(str(self)).whole)


@dataclass(frozen=True)
class Part:
    """A site at a named position: x14@end."""

    site: Site
    """Where in the model."""
    role: str
    """Where in the prompt."""

    def __str__(self) -> str:
        return f"{self.site}@{self.role}"


@dataclass(frozen=True)
class Place:
    """One or several sites at named positions, whose values are interchanged together."""

    parts: tuple[Part, ...]
    """The sites with their positions."""

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))

    @classmethod
    def parse(cls, text: str, model: Model) -> "Place":
        """The place that `text` names; see above. Raises `InputError`."""
        parts = tuple(part for piece in text.split("+") for part in _parts(piece.strip(), text, model))
        if len(set(parts)) < len(parts):
            raise InputError(f"{text!r} names a site twice.")
        split = {part.site.layer for part in parts if part.site.kind == NEURONS}
        if any(part.site.kind == "mlps" and part.site.layer in split for part in parts):
            raise InputError(f"{text!r} names an MLP and neurons of it. Take the one or the others.")
        return cls(parts)

    @property
    def first(self) -> int:
        """The first block in which something is changed."""
        return min(part.site.layer for part in self.parts)

    @property
    def roles(self) -> tuple[str, ...]:
        """The named positions, each once."""
        return tuple(dict.fromkeys(part.role for part in self.parts))

    def view(self, model: Model) -> Model:
        """The model with the place's neurons as nodes, so that a pass shows what they write with."""
        nodes = {Node("neuron", part.site.layer, i) for part in self.parts for i in part.site.neurons}
        return model.with_neurons(nodes) if nodes else model


def _parts(piece: str, text: str, model: Model) -> list[Part]:
    """What one of the names joined by + stands for: all heads of a block are several."""
    name, _, role = piece.partition("@")
    match = _NAME.fullmatch(name)
    if match is None or not role:
        raise InputError(f"{text!r} is no place. Write it as {FORMS}.")
    if match[9]:
        return [Part(_neurons(int(match[9]), match[10], model), role)]
    if match[1]:
        some = [Site(LETTERS[match[1]], int(match[2]))]
    elif match[8]:
        some = [Site("heads", int(match[3]), head) for head in range(model.heads.q)]
    else:
        some = [Site(match[7] or ("q" if match[5] else "heads"), int(match[3]), int(match[4] or match[6]))]
    graph = model.graph
    if some[0] not in sites(graph, some[0].kind):
        raise InputError(
            f"There is no {some[0]} in a model of {graph.n_layers} blocks with {graph.n_heads} heads and "
            f"{graph.n_kv_heads} key/value heads, counted from 0."
        )
    return [Part(site, role) for site in some]


def _neurons(layer: int, names: str, model: Model) -> Site:
    """Neurons of an MLP by their names, or all of them."""
    every = names == "n*"
    which = [0] if every else [int(number) for number in re.findall(r"\d+", names)]
    for i in which:
        model.neuron(Node("neuron", layer, i))
    if every:
        which = list(range(model.blocks[layer].n_neurons))
    return Site(NEURONS, layer, neurons=tuple(sorted(set(which))), every=every)


def sites(graph: Graph, kind: str) -> list[Site]:
    """All sites of a kind, from the first block on.

    Raises `UnknownNameError` for another kind, `InputError` for the middle of blocks that have none.
    """
    if kind not in KINDS:
        raise unknown_name("kind of sites", kind, KINDS, "Neurons are given by name: place m5.n3,n17@end.")
    if kind == "mid" and graph.parallel:
        raise InputError(
            "Attention and MLP of this model's blocks read the same stream, so there is none between them. Take resid."
        )
    layers = range(graph.n_layers + (kind == "resid"))
    return [Site(kind, layer, head) for layer in layers for head in range(count(graph, kind))]


def units(graph: Graph, names: Iterable[str]) -> set[str]:
    """Names of nodes, with the key/value heads that the heads among them read."""
    names = set(names)
    heads = [node for node in map(Node.parse, names) if node.kind == "head"]
    return names | {str(Node("kv", node.layer, graph.kv_head(node.index))) for node in heads}


def count(graph: Graph, kind: str) -> int:
    """Number of sites of a kind in a block."""
    return {"heads": graph.n_heads, "q": graph.n_heads, "k": graph.n_kv_heads, "v": graph.n_kv_heads}.get(kind, 1)


def reader(graph: Graph, kind: str, head: int) -> int:
    """Place of a q, k or v site on a block's axis of readers."""
    return {"q": 0, "k": graph.n_heads, "v": graph.n_heads + graph.n_kv_heads}[kind] + head


def values_at(
    model: Model, activations: ActivationCache, kind: str, layer: int
) -> Float[Tensor, "batch pos head width"]:
    """What a recorded pass shows at the sites of a kind in a block.

    Of the stream and of MLPs, d_model numbers as if of one head; of each head, its z over the post-norm's divisor; of
    neurons, all that are nodes.
    """
    if kind == "heads":
        return recorded_heads(model, activations, layer)
    if kind in ("q", "k", "v"):
        start = reader(model.graph, kind, 0)
        values = model.blocks[layer].split(activations.projected[layer])
        return values[..., start : start + count(model.graph, kind), :].detach()
    if kind == "resid":
        value = activations.resid_post(layer - 1) if layer else activations.resid_pre[0]
    elif kind == NEURONS:
        value = activations.neurons[layer]
    else:
        value = (activations.resid_mid if kind == "mid" else activations.mlp_out)[layer]
    return value.detach()[:, :, None]


def chosen(model: Model, site: Site, values: Float[Tensor, "*any head width"]) -> Float[Tensor, "*any width"]:
    """Of the values at all sites of a kind in a block, those of one site."""
    if site.kind != NEURONS:
        return values[..., site.head, :]
    return values[..., 0, :][..., places_of(model, site)]


def places_of(model: Model, site: Site) -> list[int]:
    """Where a site's neurons stand among those of the block that are nodes."""
    nodes = {neuron: place for place, neuron in enumerate(model.graph.neurons_of(site.layer))}
    return [nodes[neuron] for neuron in site.neurons]


def added(
    model: Model, kind: str, layer: int, change: Float[Tensor, "*any head width"]
) -> Float[Tensor, "*any head d_model"]:
    """What a change of each value at the sites of a kind in a block adds to the stream; float32."""
    if kind == "heads":
        return torch.einsum("...he,hed->...hd", change.float(), model.blocks[layer].head_weights())
    return change.float()
