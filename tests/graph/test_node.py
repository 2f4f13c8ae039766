"""Text forms of nodes and edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import KINDS, Edge, Node

INPUTS = {"head": "qkv", "kv": "kv", "mlp": ["in"], "neuron": ["in"], "feature": ["in"]}
INDEXED = ("head", "kv", "neuron", "feature", "logit")
WITHOUT_LAYER = ("embed", "token", "position", "logits", "logit", "bias")


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(KINDS))
    number = st.integers(0, 10**6)
    return Node(
        kind,
        0 if kind in WITHOUT_LAYER else draw(number),
        draw(number) if kind in INDEXED else 0,
        draw(st.sampled_from(["", *INPUTS.get(kind, "")])),
        draw(st.none() | number),
    )


@given(nodes())
def test_a_node_comes_back_from_its_text(node: Node) -> None:
    assert Node.parse(str(node)) == node


@given(nodes(), nodes())
def test_an_edge_comes_back_from_its_text(writer: Node, reader: Node) -> None:
    assert Edge.parse(str(Edge(writer, reader))) == Edge(writer, reader)


NAMES = {
    "embed": Node("embed"),
    "a5.h1": Node.head(5, 1),
    "a5": Node("attention", 5),
    "m7": Node.mlp(7),
    "m7.n123": Node("neuron", 7, 123),
    "m7.f12": Node("feature", 7, 12),
    "a9.h6.q": Node.head(9, 6).reads("q"),
    "a9.kv2.k": Node("kv", 9, 2, "k"),
    "m7.in": Node.mlp(7).reads("in"),
    "m7.n123.in": Node("neuron", 7, 123, "in"),
    "logits": Node("logits"),
    "x5@3": Node("resid_pre", 5, position=3),
    "mid5@3": Node("resid_mid", 5).at(3),
    "a5.bias@3": Node("attention_bias", 5).at(3),
}


@pytest.mark.parametrize(("text", "node"), NAMES.items())
def test_names(text: str, node: Node) -> None:
    assert (str(node), Node.parse(text)) == (text, node)


@pytest.mark.parametrize("text", ["", "a", "a5.h", "a05.h1", "m7.q", "a9.kv2.q", "a9.h6.in", "logit", "m1@", "a1.h1 "])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names no node"):
        Node.parse(text)


def test_a_node_without_its_input() -> None:
    assert Node.parse("a9.kv2.k").whole == Node("kv", 9, 2)
    assert Edge.parse(" a5.h1 -> a9.h6.q ") == Edge(Node.head(5, 1), Node.head(9, 6).reads("q"))


def test_nodes_of_a_graph_are_what_its_names_say() -> None:
    graph = Graph(2, 4, 2)
    assert graph.writer_nodes == tuple(map(Node.parse, graph.writers))
    assert graph.reader_nodes == tuple(map(Node.parse, graph.readers))
    assert [graph.row(node) for node in graph.writer_nodes] == list(range(len(graph.writers)))
    assert graph.head("a1.h2") == (1, 2)
    with pytest.raises(InputError, match="m1 is no attention head"):
        graph.head("m1")
