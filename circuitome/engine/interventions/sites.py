"""Names of sites, such as a9.h6.z, and where in the model's modules each lies.

a9.h6.q  a9.kv2.k  a9.kv2.v   what the projections give, before any norm of q and k and before rotations
a9.h6.pattern                 attention probabilities, to look at only
a9.h6.z  a9.z                 what the head mixes, or all heads side by side, as the output projection reads it
a9.h6.out  a9.out             what the head, or the whole attention, adds to the stream
m3.in  m3.hidden  m3.out      normed input of the MLP; its neurons; what it adds to the stream
a3.resid_pre  m3.resid_pre    the stream in front of block 3; resid_mid: behind its attention; resid_post: behind it
embed  final                  the stream in front of block 0, and in front of the final norm
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from circuitome.engine.interventions.transformer_lens import translated
from circuitome.errors import InputError, UnknownNameError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.model import Model

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Places of the residual stream in a block."""

_WHAT = {
    "head": ("q", "k", "v", "z", "out", "pattern"),
    "kv": ("k", "v"),
    "attention": ("z", "out", *STREAM),
    "mlp": ("in", "hidden", "out", *STREAM),
}


@dataclass(frozen=True)
class Site:
    """A place in a model where values can be seen and changed."""

    name: str
    """As it was given."""
    node: Node
    """The part."""
    what: str
    """Which of its values."""


@dataclass(frozen=True, eq=False)
class Tap:
    """Values that a module is given or gives: of its last axis, cut into chunks of one width, some."""

    module: nn.Module
    """The module."""
    gives: bool
    """True for its output, False for its input."""
    width: int
    """Width of a chunk."""
    chunks: tuple[int, ...] = (0,)
    """Which chunks."""


def site(model: Model, name: str) -> Site:
    """The site called `name`. Raises `UnknownNameError`, which translates names of TransformerLens."""
    if name in ("embed", "final"):
        return Site(name, Node("embed" if name == "embed" else "logits"), name)
    part, _, what = name.rpartition(".")
    try:
        node = Node.parse(part)
    except InputError:
        raise _no_site(model, name) from None
    if node.input or node.position is not None or what not in _WHAT.get(node.kind, ()) or not _exists(model, node):
        raise _no_site(model, name)
    if node.kind == "head" and what in "kv":
        node = _own_keys(model, name, node)
    if what == "resid_mid" and model.graph.parallel:
        raise UnknownNameError(
            f"There is no site {name!r}: attention and MLP of a block of {model.name} read the same stream. Use "
            f"{part}.resid_pre."
        )
    return Site(name, node, what)


def part(model: Model, name: str) -> Node:
    """The writer, neuron, or all heads of a block, called `name`.

    Raises `UnknownNameError`, and `InputError` for a neuron that does not exist.
    """
    try:
        node = Node.parse(name)
    except InputError:
        node = None
    if node is not None and node.kind == "attention" and node.position is None and _exists(model, node):
        return node
    if node is not None and node.kind == "neuron" and node.position is None and not node.input:
        return model.neuron(node)
    if name not in model.graph.writers and (ours := translated(name, model.heads.q, model.heads.kv)):
        raise UnknownNameError(f"There is no part {name!r}. {ours}")
    graph = model.graph.with_neurons([])
    return graph.writer_nodes[graph.row(name)]


def tap(model: Model, where: Site) -> Tap:
    """Where a site's values pass; for sites at which the model has them in one place."""
    node, d_model = where.node, model.d_model
    if where.what in ("embed", "final", *STREAM):
        return _stream(model, node.layer, where.what)
    block, width = model.blocks[node.layer], model.heads.width
    if where.what in "qkv":
        return _reader(model, node.reads(where.what))
    if where.what == "z":
        heads = (0,) if node.kind == "attention" else (node.index,)
        return Tap(block.output, False, width * (model.heads.q if node.kind == "attention" else 1), heads)
    if where.what == "in":
        return Tap(block.mlp[0], False, d_model)
    if where.what == "hidden":
        return Tap(block.mlp_writer, False, block.n_neurons)
    return Tap(block.attention_end if node.kind == "attention" else block.mlp_ends[1], True, d_model)


def _stream(model: Model, layer: int, what: str) -> Tap:
    """Places of the stream, all where a module reads them: the values behind a block are read by the next."""
    layer += what == "resid_post"
    if what == "resid_mid":
        return Tap(model.blocks[layer].mlp_ends[0], False, model.d_model)
    last = what == "final" or layer == len(model.blocks)
    return Tap(model.final_norm.module if last else model.blocks[layer].layer, False, model.d_model)


def _reader(model: Model, reader: Node) -> Tap:
    """Where the projection gives what a q, k or v reader makes of its input."""
    block, heads = model.blocks[reader.layer], model.heads
    index = model.graph.column(reader) - model.graph.attention_columns(reader.layer).start
    kind, number = divmod(index, heads.q) if index < heads.q else divmod(index - heads.q, heads.kv)
    kind += index >= heads.q
    if block.fused == "interleaved":
        return Tap(block.projections[0], True, heads.width, (3 * number + kind,))
    if block.fused:
        return Tap(block.projections[0], True, heads.width, (index,))
    return Tap(block.projections[kind], True, heads.width, (number,))


def _exists(model: Model, node: Node) -> bool:
    count = {"head": model.heads.q, "kv": model.heads.kv}.get(node.kind, 1)
    return node.layer < len(model.blocks) and node.index < count


def _own_keys(model: Model, name: str, node: Node) -> Node:
    """The key/value head of a head that shares it with none."""
    kv = Node("kv", node.layer, model.graph.kv_head(node.index))
    if model.heads.kv != model.heads.q:
        what = name.rpartition(".")[2]
        raise UnknownNameError(
            f"There is no site {name!r}: {node} shares its keys and values with other heads. Did you mean "
            f"'{kv}.{what}'?"
        )
    return kv


def _no_site(model: Model, name: str) -> UnknownNameError:
    if ours := translated(name, model.heads.q, model.heads.kv):
        return UnknownNameError(f"There is no site {name!r}. {ours}")
    hint = "Sites look like a9.h6.z, a9.kv2.k, m3.out, m3.resid_pre, embed, final."
    return unknown_name("site", name, tuple(_names(model)), hint)


def _names(model: Model) -> Iterator[str]:
    yield from ("embed", "final")
    for layer in range(len(model.blocks)):
        nodes = {"attention": 1, "head": model.heads.q, "kv": model.heads.kv, "mlp": 1}
        for kind, count in nodes.items():
            for index in range(count):
                node = replace(Node(kind, layer), index=index)
                yield from (f"{node}.{what}" for what in _WHAT[kind] if kind != "head" or what not in "kv")
