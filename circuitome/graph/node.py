"""Nodes and edges of a model, and their text form: the one place where names of them are written and read.

embed  token  position      embeddings
a5.h1  a9.kv2  a5  m7       a query head, a key/value head, all heads of a block, an MLP
m7.n123  m7.f12             a neuron and a feature of an MLP
a9.h6.q  a9.kv2.k  m7.in    what a node reads; also a9.kv2.v, m7.n123.in, m7.f12.in
logits                      what the unembedding reads
logits.t42                  the logit of the token with id 42
x5  mid5                    the residual stream in front of block 5, and in front of its MLP
x5.f12  x5.f12.in           a feature of the stream in front of block 5, and what it reads; also x5.in
a5.bias  m5.bias  bias      biases of a block's attention and MLP; all biases of a model
a5.h1@3                     any of these at one position, here the fourth token
a5.h1->a9.h6.q              an edge
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from circuitome.errors import InputError, unknown_name

EMBEDDINGS = ("embed", "token", "position")
"""Kinds of nodes that write in front of block 0: the whole embedding, or its two parts."""
IN_MLP = ("mlp", "neuron", "feature")
"""Kinds of nodes that read where an MLP does."""
IN_STREAM = ("resid_pre", "stream_feature")
"""Kinds of nodes that stand for the stream in front of a block."""

_FORMS = {
    **{name: name for name in EMBEDDINGS},
    "head": "a{layer}.h{index}",
    "kv": "a{layer}.kv{index}",
    "attention": "a{layer}",
    "mlp": "m{layer}",
    "neuron": "m{layer}.n{index}",
    "feature": "m{layer}.f{index}",
    "logits": "logits",
    "logit": "logits.t{index}",
    "resid_pre": "x{layer}",
    "stream_feature": "x{layer}.f{index}",
    "resid_mid": "mid{layer}",
    "attention_bias": "a{layer}.bias",
    "mlp_bias": "m{layer}.bias",
    "bias": "bias",
}
"""By kind of node: its text, without what it reads and where."""

_INPUTS = {"head": "q|k|v", "kv": "k|v", "mlp": "in", "neuron": "in", "feature": "in"}
_INPUTS |= {"resid_pre": "in", "stream_feature": "in"}
"""By kind: names of the inputs through which a node reads the residual stream."""

_NUMBER = "(?:0|[1-9][0-9]*)"


def _pattern(kind: str, form: str) -> re.Pattern[str]:
    text = re.escape(form).replace(r"\{layer\}", f"(?P<layer>{_NUMBER})").replace(r"\{index\}", f"(?P<index>{_NUMBER})")
    reads = rf"(?:\.(?P<input>{_INPUTS[kind]}))?" if kind in _INPUTS else ""
    return re.compile(rf"{text}{reads}(?:@(?P<position>{_NUMBER}))?")


_PATTERNS = {kind: _pattern(kind, form) for kind, form in _FORMS.items()}
KINDS = tuple(_FORMS)
"""Every kind of node."""


@dataclass(frozen=True)
class Node:
    """A part of a model: what writes to the residual stream or, with an `input`, what reads it. `str` is its name.

    >>> cm.Node.parse("a5.h1"), str(cm.Node("mlp", 7, input="in"))
    (Node(kind='head', layer=5, index=1, input='', position=None), 'm7.in')
    """

    kind: str
    """One of `KINDS`."""
    layer: int = 0
    """The block; 0 where a kind has none."""
    index: int = 0
    """Number of the head, key/value head, neuron or feature in its block; 0 where a kind has none."""
    input: str = ""
    """What of the node reads: q, k, v or in; empty for what it writes, and for logits, which only read."""
    position: int | None = None
    """The token, counted from 0; None for all of them."""

    @classmethod
    def head(cls, layer: int, index: int) -> "Node":
        """The query head a5.h1 for (5, 1)."""
        return cls("head", layer, index)

    @classmethod
    def mlp(cls, layer: int) -> "Node":
        """The MLP m7 for 7."""
        return cls("mlp", layer)

    @classmethod
    def neuron(cls, name: "str | Node") -> "Node":
        """The neuron called `name`. Raises `InputError` for what is none, whatever the model."""
        node = name if isinstance(name, Node) else cls.parse(name)
        if node.kind != "neuron" or node.input or node.position is not None:
            raise InputError(f"'{node}' is no neuron. Write a neuron as m5.n123: the MLP of block 5, its neuron 123.")
        return node

    @classmethod
    def parse(cls, text: str) -> "Node":
        """The node that `text` names. Raises `InputError` for text that is no name, whatever the model."""
        return _parse(text)

    def __post_init__(self) -> None:
        if self.kind not in _FORMS:
            raise unknown_name("kind of node", self.kind, KINDS)

    def __str__(self) -> str:
        text = _FORMS[self.kind].format(layer=self.layer, index=self.index)
        place = "" if self.position is None else f"@{self.position}"
        return f"{text}.{self.input}{place}" if self.input else f"{text}{place}"

    @property
    def whole(self) -> "Node":
        """The node itself, without what it reads and where: a9.h6 for a9.h6.q@3."""
        return replace(self, input="", position=None)

    def at(self, position: int) -> "Node":
        """This node at one token."""
        return replace(self, position=position)

    def reads(self, name: str) -> "Node":
        """This node's input called `name`: a9.h6.q for q of a9.h6."""
        return replace(self, input=name)


@lru_cache(maxsize=1 << 16)  # a route asks for the same few thousand names again and again
def _parse(text: str) -> Node:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(text):
            part = match.groupdict("")
            position = int(part["position"]) if part["position"] else None
            layer, index = (int(part.get(name) or 0) for name in ("layer", "index"))
            return Node(kind, layer, index, part.get("input", ""), position)
    raise InputError(
        f"{text!r} names no node. Writers look like embed, a5.h1, m7; readers like a9.h6.q, a9.kv2.k, m7.in and logits."
    )


@dataclass(frozen=True)
class Edge:
    """From a writer to a reader. `str` is its text form, a5.h1->a9.h6.q.

    >>> edge = cm.Edge.parse("a5.h1->a9.h6.q")
    >>> edge.writer.kind, edge.reader.input, str(edge)
    ('head', 'q', 'a5.h1->a9.h6.q')
    """

    writer: Node
    """What is written."""
    reader: Node
    """What reads it."""

    @classmethod
    def parse(cls, text: str) -> "Edge":
        """The edge that `text` names; spaces around its ends do not count. Raises `InputError` for other text."""
        writer, reader = split_edge(text)
        return cls(Node.parse(writer), Node.parse(reader))

    def __str__(self) -> str:
        return f"{self.writer}->{self.reader}"


def split_edge(text: str) -> tuple[str, str]:
    """Names of an edge's writer and reader, whether or not they are nodes. Raises `InputError` for text without ->."""
    writer, arrow, reader = text.partition("->")
    if not arrow:
        raise InputError(f"{text!r} is not an edge; write it as writer->reader, for example a5.h1->a9.h6.q.")
    return writer.strip(), reader.strip()
