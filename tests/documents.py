"""Small documents that hold every kind of block, for the tests of all views."""

from dataclasses import replace
from typing import Any

from circuitome.present.blocks import (
    Attention,
    Bars,
    CausalMap,
    CausalVariable,
    CircuitMap,
    Column,
    Document,
    Edge,
    Figure,
    GraphDot,
    HeatMap,
    Lede,
    Lines,
    NeuronCard,
    NeuronExample,
    NeuronIndex,
    NeuronValues,
    Note,
    Numbers,
    Pair,
    Pairs,
    PromptGraph,
    RoleClass,
    Roles,
    RouteEdge,
    RouteNode,
    Routes,
    Scatter,
    Series,
    Shape,
    Table,
    Tokens,
)

HOSTILE = """</script><script>alert(1)</script><!-- "quoted" & 'single' <img src=x onerror=alert(1)> {{ 77 * 77 }}"""
CONTROL = "a\x00b\ud800c\x1b[31m"
SENTENCE = ("When", " Mary", " and", " John", " left", ",", " John", " gave", " milk", " to")


def circuit_map(**changes: Any) -> CircuitMap:
    """Two layers of four heads that share two key/value heads; every kind of reader occurs."""
    rows = [
        ("a1.h3", "logits", -1.0),
        ("embed", "a0.h1.q", -0.5),
        ("a0.h1", "a1.kv1.v", -0.4),
        ("embed", "a1.kv1.k", 0.25),
        ("a0.h1", "m0.in", -0.125),
        ("m0", "a1.h3.q", 0.05),
        ("m0", "m1.in", -0.03),
    ]
    edges = tuple(Edge(source=s, reader=r, score=v, low=v - 0.01, high=v + 0.01) for s, r, v in rows)
    shape = Shape(layers=2, heads=4, kv_heads=2)
    return replace(CircuitMap(title="The circuit", shape=shape, edges=edges, unit="logits"), **changes)


def heat_map(rows: int = 3, columns: int = 5, **changes: Any) -> HeatMap:
    """Cell (0, 0) does not exist, a1.h1 is surely negative, a1.h2 positive but not surely so."""
    special = {(0, 0): None, (1, 1): -2.0, (1, 2): 0.5}
    values = tuple(tuple(special.get((i, j), 0.001 * (i + j)) for j in range(columns)) for i in range(rows))
    low, high = (tuple(tuple(None if v is None else v + w for v in row) for row in values) for w in (-0.6, 0.6))
    names = (*(f"h{j}" for j in range(columns - 1)), "mlp")
    block = HeatMap(
        title="Patching heads",
        rows=tuple(f"a{i}" for i in range(rows)),
        columns=names,
        values=values,
        low=low,
        high=high,
        unit="logits",
        labels=tuple(tuple(f"a{i}.{name}" for name in names) for i in range(rows)),
        upwards=True,
        whole=4.0,
    )
    return replace(block, **changes)


def lines(count: int = 2, sizes: tuple[float, ...] = (1, 10, 100), **changes: Any) -> Lines:
    """Lines that rise, with bands."""
    series = tuple(
        Series(
            name=f"line {i}",
            x=sizes,
            y=tuple(0.1 * i + 0.2 * k for k in range(len(sizes))),
            low=tuple(0.1 * i + 0.2 * k - 0.05 for k in range(len(sizes))),
            high=tuple(0.1 * i + 0.2 * k + 0.05 for k in range(len(sizes))),
            faint=i == 1,
        )
        for i in range(count)
    )
    block = Lines(title="Faithfulness by size", x="edges", y="faithfulness", series=series, log_x=True)
    return replace(block, **{"levels": (("whole model", 1.0),), "marks": (("this circuit", 7.0),), **changes})


def table(rows: int = 3, **changes: Any) -> Table:
    """A table with a column of every style, too wide for 80 columns."""
    columns = (
        Column(name="head", style="node"),
        Column(name="role"),
        Column(name="share", style="percent", about="share of attention"),
        Column(name="count", style="count"),
        Column(name="effect", style="estimate", unit="logits"),
        Column(name="change", style="signed", narrow=False),
        Column(name="what it does", narrow=False),
        Column(name="heads that it feeds, strongest first"),
    )
    texts = ("attends to the token before the one that it reads", "a5.h1.q, a7.h3.k, a9.h8.v, a11.h0.q, logits")
    cells = tuple(
        (f"a{i}.h1", "previous token", (0.61, 0.5, 0.7), 1234 + i, (-0.25 * i, -0.5, 0.1), 0.5 - i, *texts)
        for i in range(rows)
    )
    marks = tuple(("good", "bad", "unclear", "")[i % 4] for i in range(rows))
    return replace(Table(title="Heads", columns=columns, rows=cells, marks=marks), **changes)


def roles() -> Roles:
    """Three classes at two positions, one after the other, and the logits."""
    return Roles(
        title="The algorithm",
        classes=(
            RoleClass(name="duplicate token", members=tuple(f"a{i}.h1" for i in range(8)), position="S2"),
            RoleClass(name="S-inhibition", members=("a7.h3",), position="end", about="moves attention away"),
            RoleClass(name="name mover", members=("a9.h6", "a9.h9"), position="end", about="copies the name"),
        ),
        arrows=(
            ("duplicate token", "S-inhibition", "v", 0.5),
            ("S-inhibition", "name mover", "q", 0.9),
            ("name mover", "logits", "logits", 1.5),
        ),
        edges=(("a0.h1->a7.h3.v",), ("a7.h3->a9.h6.q", "a7.h3->a9.h9.q"), ("a9.h6->logits",)),
        positions=("IO", "S1", "S2", "end"),
    )


def causal_map() -> CausalMap:
    """The causal model of IOI, one of whose two variables stands out."""
    return CausalMap(
        title="The causal model and its places",
        layers=30,
        positions=("S2", "end"),
        variables=(
            *(CausalVariable(name=name) for name in ("first", "second", "S2")),
            CausalVariable(
                name="position",
                parents=("first", "S2"),
                place="x18@S2",
                sites=((18.0, 0),),
                accuracy=(0.95, 0.9, 1.0),
                holds=True,
            ),
            CausalVariable(
                name="name",
                parents=("position", "first", "second"),
                place="a24.h1@end",
                sites=((24.3, 1),),
                accuracy=(0.6, 0.5, 0.7),
            ),
            CausalVariable(name="answer", parents=("name",)),
        ),
    )


def routes(**changes: Any) -> Routes:
    """A strong and a weak way from two tokens to the prediction after the second."""
    nodes = ("x2@1", "mid1@1", "m1@1", "x1@1", "x1@0", "x0@0", "x0@1")
    ends = [
        ("mid1@1", "x2@1", "stay", 0.6),
        ("m1@1", "x2@1", "mlp", 0.4),
        ("mid1@1", "m1@1", "reads", 0.0),
        ("x1@0", "mid1@1", "attention", 0.3),
        ("x1@1", "mid1@1", "stay", 0.03),
        ("x0@0", "x1@0", "stay", 0.9),
        ("x0@1", "x1@1", "stay", 0.9),
    ]
    edges = tuple(
        RouteEdge(source=s, target=t, kind=k, importance=v, heads=(v / 2, v / 2) if k == "attention" else ())
        for s, t, k, v in ends
    )
    flows = tuple(RouteNode(id=name, flow=1 / (i + 1)) for i, name in enumerate(nodes))
    block = Routes(
        title="Routes",
        tokens=("Mary", " John"),
        layers=2,
        target="x2@1",
        label='" Mary"',
        nodes=flows,
        edges=edges,
        threshold=0.04,
        lowest=0.02,
        parts=(("m1@1", 0.4, ((" Mary", 1.5), (" <b>", -0.25))), ("a1.h0@1", 0.1, ((" John", 0.75),))),
    )
    return replace(block, **changes)


def prompt_graph(**changes: Any) -> PromptGraph:
    """Two tokens, three neurons of two blocks, biases and two logits; one neuron lowers what is explained."""
    places = [
        ("embed@0", "embed", -1, 0, None),
        ("embed@1", "embed", -1, 1, 0.5),
        ("bias", "bias", -1, 0, None),
        ("m0.n3@0", "neuron", 0, 0, 1.5),
        ("m0.n7@1", "neuron", 0, 1, -0.5),
        ("m1.n2@1", "neuron", 1, 1, 0.25),
        ("logits.t5@1", "logit", 2, 1, None),
        ("logits.t6@1", "logit", 2, 1, None),
    ]
    nodes = tuple(
        GraphDot(
            id=name,
            kind=kind,
            layer=layer,
            position=at,
            label=f'" {name}"',
            value=1.0,
            influence=0.1 * i,
            effect=effect,
        )
        for i, (name, kind, layer, at, effect) in enumerate(places)
    )
    edges = ((3, 5, 0.75, 0.5), (5, 6, -0.5, 0.25), (4, 6, 0.25, 0.125), (0, 3, 1.0, 0.0625), (2, 5, 0.125, 0.03))
    block = PromptGraph(
        title="Attribution graph",
        tokens=("Mary", " John"),
        layers=2,
        nodes=nodes,
        edges=edges,
        explains='" Mary"',
    )
    return replace(block, **changes)


def pairs(count: int = 1) -> Pairs:
    """Pairs that differ in one name."""
    pair = Pair(
        clean="When Mary and John left, John gave milk to",
        corrupted="When Mary and John left, Mary gave milk to",
        answers=(" Mary",),
        wrongs=(" John",),
        metrics=(("clean", 4.123), ("circuit", None)),
    )
    return Pairs(title="Example prompts", pairs=(pair,) * count, unit="logits")


def attention() -> Attention:
    """Two heads that attend to the second token."""
    size = len(SENTENCE)
    pattern = tuple(tuple(None if j > i else 0.7 if j == 1 else 0.3 / size for j in range(size)) for i in range(size))
    return Attention(title="Where they attend", tokens=SENTENCE, heads=(("a9.h6", pattern), ("a9.h9", pattern)))


def neuron_index() -> NeuronIndex:
    """Two layers of three neurons, one of them with an example."""
    example = NeuronExample(tokens=(0, 1, 2), values=(None, 0.5, -2.0), at=2, causes=(0.1, 0.2, 0.3))
    return NeuronIndex(
        title="Every neuron",
        layers=(0, 4),
        width=3,
        tokens=(" the", "The", "\n"),
        numbers=(
            NeuronValues(name="active", style="percent", values="0.1 0.25 0.3 0 0.5 1"),
            NeuronValues(name="information", values="nan 0 0 0 0 0.25"),
        ),
        lists=(
            NeuronValues(name="fires on", values="0 -1 1 0 2 -1 1 2 -1 -1 2 0"),
            NeuronValues(name="promotes", values="1 2 1 2 1 2 0 1 1 2 1 2"),
        ),
        listed=2,
        bins=("-1", "-0", "0", "1"),
        cards=(NeuronCard(neuron="m4.n1", examples=(example,), histogram=(0, 3, 2, 1), curve=(0.0, 0.5)),),
    )


def every() -> Document:
    """A document with every kind of block."""
    figures = (
        Figure(
            name="Faithfulness", value=0.431, low=0.379, high=0.483, about="share of the gap that the circuit keeps"
        ),
        Figure(name="Answered", value=0.75, low=0.5, high=0.9, style="percent"),
        Figure(name="Edges", value=1234, style="count", about="of 70,651"),
    )
    bars = Bars(title="Variants", labels=("mean of ratios", "b"), values=(0.5, -0.2), low=(0.4, -0.3), high=(0.6, 0.1))
    points = tuple((0.1 * i, 0.2 * i, f"without {i} nodes") for i in range(4))
    strip = tuple((token, 0.3 * i - 1 if i % 2 else None) for i, token in enumerate(SENTENCE))
    blocks = (
        Lede(text="7 of 70,651 edges recover 43 % of the gap.\nThe circuit was chosen on these prompts."),
        Numbers(items=figures),
        Note(text="The model cannot do the task.", level="warning"),
        circuit_map(),
        lines(),
        table(12, top=5),
        heat_map(),
        heat_map(title="Patching MLPs", folded=True),
        replace(bars, groups=("x", "y")),
        Scatter(title="Completeness", x="model", y="circuit", points=points, diagonal=True, groups=("a", "b") * 2),
        roles(),
        causal_map(),
        routes(),
        prompt_graph(),
        Tokens(title="What it raises", lines=(strip,), labels=("a9.h6",), unit="logits"),
        neuron_index(),
        attention(),
        table(2, title="Evidence", folded=True),
        pairs(6),
    )
    facts = {
        "kind": "find",
        "seed": 1234567,
        "seconds": 38.25,
        "peak_memory_bytes": 1_893_000_000,
        "command": "circuitome find ioi",
        "model": {"name": "toy", "parameters": 134_515_008, "bos": False, "weights_hash": "abc123"},
        "task": {"name": "ioi", "source": None},
        "method": {"name": "eap-ig", "settings": {"steps": 5, "thresholds": [0.1, 0.2], "none": []}},
    }
    return Document(
        title="ioi in toy",
        command="circuitome find ioi --model toy",
        sign="A score is the change of the metric: negative helps.",
        blocks=blocks,
        facts=facts,
        folder="runs/ioi",
    )


def renamed(value: Any, text: str) -> Any:
    """A copy of a block in which every text that may be any text is `text`: titles, names, tokens, units, notes."""
    if isinstance(value, str):
        return text
    if isinstance(value, tuple):
        return tuple(renamed(item, text) for item in value)
    if not hasattr(value, "__dataclass_fields__"):
        return value
    kept = ("block", "where", "scale", "style", "level", "source", "reader", "target", "kind", "id", "marks")
    of_neurons = ("values", "bins", "neuron")  # numbers in a text, and names that must be known
    names = [name for name in value.__dataclass_fields__ if name not in kept + of_neurons]
    return replace(value, **{name: renamed(getattr(value, name), text) for name in names})


def hostile(text: str = HOSTILE) -> Document:
    """The same document with `text` wherever any text may stand; only classes of heads keep names to tell apart."""
    plain = every()
    blocks = tuple(block if isinstance(block, Roles) else renamed(block, text) for block in plain.blocks)
    named = replace(roles(), title=text, note=text, positions=(text,))
    classes = tuple(replace(role, about=text, members=(text,), position=text) for role in named.classes)
    facts = {**plain.facts, "note": {text: [text]}, "created": text, "folder_hash": text}
    return replace(
        plain, title=text, command=text, sign=text, facts=facts, blocks=(*blocks, replace(named, classes=classes))
    )
