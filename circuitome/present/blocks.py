"""Blocks: what a study says, as plain data that a terminal, a page and a notebook show alike.

A block holds numbers and sentences that were computed before; nothing computes in a view. All fields are plain JSON
values, tuples of them or blocks' own small classes, so that a run's blocks lie in its manifest and can be shown again
without a model. Missing numbers are None; a study may leave them NaN, which is saved as None.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from circuitome.present.watched import Watched

Number = float | None
Size = Annotated[int, Interval(ge=0, le=512)]
"""Blocks, or heads of a block: more than any model has would be a drawing without end."""
Cell = str | float | int | None | tuple[Number, Number, Number]
"""Text, a number, nothing, or an estimate as (value, low, high)."""
Style = Literal["text", "node", "number", "signed", "percent", "count", "estimate"]
"""How a value is written: `node` in a fixed-width font, `percent` of a share, `estimate` with its interval."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What all blocks have; abstract."""

    title: str = ""
    """Heading; blocks without one belong to the section before them."""
    note: str = ""
    """A sentence below the heading: what is shown, unit, sign."""
    folded: bool = False
    """Whether a page shows it only when it is opened, and a terminal not at all."""
    where: Literal["everywhere", "page", "terminal"] = "everywhere"
    """Which views show it."""

    def plot(self) -> Any:
        """An Altair chart where the block is one, else a drawing that notebooks show and that can be saved."""
        from circuitome.present.notebook import plot

        return plot(self)

    def _repr_html_(self) -> str:
        from circuitome.present.notebook import html

        return html(self)


@dataclass(frozen=True, kw_only=True)
class Lede(Block):
    """The answer in words, first on the page."""

    text: str
    """Whole sentences; a line break separates paragraphs."""
    block: Literal["lede"] = "lede"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that stands out."""

    name: str
    """What it is."""
    value: Number
    """The value, in `unit`."""
    low: Number = None
    """Lower end of its interval."""
    high: Number = None
    """Upper end of its interval."""
    unit: str = ""
    """Unit, where it is not said by the style."""
    style: Style = "number"
    """How it is written."""
    about: str = ""
    """A short phrase: what it means, over what its interval is."""


@dataclass(frozen=True, kw_only=True)
class Numbers(Block):
    """Headline numbers, as cards."""

    items: tuple[Figure, ...]
    """The numbers."""
    block: Literal["numbers"] = "numbers"


@dataclass(frozen=True)
class Column:
    """A column of a table: `Column("effect", "estimate", 3, "logits")`."""

    name: str
    """Heading."""
    style: Style = "text"
    """How its cells are written."""
    decimals: int | None = None
    """Digits after the point; None for what suits the column's numbers."""
    unit: str = ""
    """Unit of its numbers."""
    about: str = ""
    """What it says, in a sentence; shown in the page's legend."""
    narrow: bool = True
    """Whether a narrow terminal shows it too."""


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """Rows under columns."""

    columns: tuple[Column, ...]
    """The columns."""
    rows: tuple[tuple[Cell, ...], ...]
    """Cells by row, in the order of the columns."""
    top: int | None = None
    """Rows that a terminal shows; None for all. The page shows as many first, and all when asked."""
    marks: tuple[str, ...] = ()
    """A mark for each row (good, bad, unclear or nothing), or none at all."""
    block: Literal["table"] = "table"


def table(title: str, columns: Iterable[Any], rows: Iterable[Iterable[Cell]], **options: Any) -> Table:
    """A table under a heading; each column is a `Column`, its first fields in their order, or the name of a text."""
    heads = ((column,) if isinstance(column, str) else column for column in columns)
    made = (column if isinstance(column, Column) else Column(*column) for column in heads)
    return Table(title=title, columns=tuple(made), rows=tuple(map(tuple, rows)), **options)


@dataclass(frozen=True, kw_only=True)
class HeatMap(Block):
    """A matrix of numbers by labels, such as heads across and layers down."""

    rows: tuple[str, ...]
    """Row labels, first row first."""
    columns: tuple[str, ...]
    """Column labels."""
    values: tuple[tuple[Number, ...], ...]
    """Values by row; None where there is no such cell."""
    low: tuple[tuple[Number, ...], ...] = ()
    """Lower ends of intervals, or nothing."""
    high: tuple[tuple[Number, ...], ...] = ()
    """Upper ends of intervals, or nothing."""
    unit: str = ""
    """Unit of the values."""
    scale: Literal["signed", "positive"] = "signed"
    """Whether colours run from negative over 0 to positive, or from 0 up."""
    chance: float = 0.0
    """What a value is by chance; cells whose interval lies above it, or leaves it out where it is 0, are marked."""
    whole: Number = None
    """What 100 % means, such as the gap between clean and corrupted run; with it, values are also given as shares."""
    labels: tuple[tuple[str, ...], ...] = ()
    """Name of each cell for hovering and for lists, or nothing: then row and column."""
    upwards: bool = False
    """Whether the first row is drawn lowest, as layers are."""
    top: int = 10
    """Strongest cells that a terminal lists."""
    block: Literal["heat map"] = "heat map"


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart."""

    name: str
    """Name in the legend."""
    x: tuple[Number, ...]
    """Where its points are."""
    y: tuple[Number, ...]
    """Their values."""
    low: tuple[Number, ...] = ()
    """Lower ends of a band, or nothing."""
    high: tuple[Number, ...] = ()
    """Upper ends of a band, or nothing."""
    faint: bool = False
    """Whether it is drawn in the background, such as random circuits."""

    @property
    def points(self) -> list[tuple[Number, Number, Number, Number]]:
        """Place, value and ends of the band of each point."""
        nothing = (None,) * len(self.y)
        return list(zip(self.x, self.y, self.low or nothing, self.high or nothing, strict=True))


@dataclass(frozen=True, kw_only=True)
class Lines(Block):
    """Lines over a common axis, with bands."""

    x: str
    """Name of the horizontal axis."""
    y: str
    """Name of the vertical axis, with its unit."""
    series: tuple[Series, ...]
    """The lines."""
    log_x: bool = False
    """Whether the horizontal axis is logarithmic."""
    levels: tuple[tuple[str, float], ...] = ()
    """Named horizontal lines, such as the whole model at 1."""
    marks: tuple[tuple[str, float], ...] = ()
    """Named vertical lines, such as the circuit's size."""
    block: Literal["lines"] = "lines"


@dataclass(frozen=True, kw_only=True)
class Bars(Block):
    """Bars with intervals, one for each label."""

    labels: tuple[str, ...]
    """Names of the bars."""
    values: tuple[Number, ...]
    """Their lengths."""
    low: tuple[Number, ...] = ()
    """Lower ends of intervals, or nothing."""
    high: tuple[Number, ...] = ()
    """Upper ends of intervals, or nothing."""
    groups: tuple[str, ...] = ()
    """A group for each bar, which decides its colour, or nothing."""
    x: str = ""
    """Name of the axis, with its unit."""
    block: Literal["bars"] = "bars"

    @property
    def bars(self) -> list[tuple[str, Number, Number, Number, str | None]]:
        """Label, length, ends of the interval, and group of each bar."""
        nothing = (None,) * len(self.labels)
        ends = (self.low or nothing, self.high or nothing)
        return list(zip(self.labels, self.values, *ends, self.groups or nothing, strict=True))


@dataclass(frozen=True, kw_only=True)
class Scatter(Block):
    """Points with names."""

    x: str
    """Name of the horizontal axis."""
    y: str
    """Name of the vertical axis."""
    points: tuple[tuple[float, float, str], ...]
    """Horizontal and vertical value and name of each point."""
    groups: tuple[str, ...] = ()
    """A group for each point, which decides its colour, or nothing."""
    diagonal: bool = False
    """Whether the line on which both values are the same is drawn."""
    block: Literal["scatter"] = "scatter"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model's grid on which a circuit is drawn."""

    layers: Size
    """Blocks."""
    heads: Size
    """Query heads of a block."""
    kv_heads: Size
    """Key/value heads of a block."""
    mlps: bool = True
    """Whether blocks have MLPs."""
    parallel: bool = False
    """Whether attention and MLP of a block read the same stream."""
    neurons: tuple[tuple[str, ...], ...] = ()
    """By block, the neurons and features that are drawn beside its MLP, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An edge of a drawn circuit."""

    source: str
    """The writer: a5.h1, m3, embed."""
    reader: str
    """The reader: a9.h6.q, a9.kv2.v, m7.in, logits."""
    score: Number
    """Effect on the metric, in its unit; negative helps."""
    low: Number = None
    """Lower end of its interval."""
    high: Number = None
    """Upper end of its interval."""
    also: tuple[Number, ...] = ()
    """Other numbers of it, under the map's names for them."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSize:
    """How much the strongest edges of a set keep of what the whole model does."""

    edges: int
    """How many of them."""
    share: tuple[Number, Number, Number]
    """Faithfulness, with its interval."""
    random: tuple[Number, Number, Number] | None = None
    """That of random circuits of the same size: mean, smallest and largest of them."""


@dataclass(frozen=True, kw_only=True)
class EdgeSet:
    """Other edges on the grid of a circuit, which a page shows in its place."""

    name: str
    """What a reader switches to."""
    edges: tuple[Edge, ...]
    """Its edges."""
    unit: str
    """Unit of their scores."""
    about: str = ""
    """What it holds and what its scores are, in a sentence."""
    measured: tuple[MeasuredSize, ...] = ()
    """What was measured of its strongest edges, by size."""


@dataclass(frozen=True, kw_only=True)
class CircuitMap(Block):
    """A circuit on the model's own grid: heads across, layers up."""

    shape: Shape
    """The grid."""
    edges: tuple[Edge, ...]
    """The circuit's edges, strongest first."""
    unit: str
    """Unit of the scores."""
    name: str = "this circuit"
    """What its edges are called beside those of other sets."""
    measured: tuple[MeasuredSize, ...] = ()
    """What was measured of its strongest edges, by size; usually of all of them."""
    others: tuple[EdgeSet, ...] = ()
    """Other edges that a page can show, such as the ranking that the circuit was taken from."""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Roles by name with the nodes that have them, which a page can draw as one."""
    also: tuple[str, ...] = ()
    """Names of the other numbers that edges have."""
    signs: tuple[str, str] = (
        "helps: corrupting the edge lowers the metric",
        "hurts: corrupting the edge raises it",
    )
    """What a score below 0 and one above 0 means."""
    top: int = 12
    """Edges that a terminal lists."""
    block: Literal["circuit"] = "circuit"


@dataclass(frozen=True, kw_only=True)
class RoleClass:
    """A class of parts with the same role."""

    name: str
    """The role, e.g. "name mover"."""
    members: tuple[str, ...]
    """Heads or MLPs, strongest first."""
    about: str = ""
    """What they do, in one phrase."""
    position: str = ""
    """The token position at which they act, by role name, e.g. "end"."""


@dataclass(frozen=True, kw_only=True)
class Roles(Block):
    """Classes of parts as boxes with arrows between them, token positions below."""

    classes: tuple[RoleClass, ...]
    """The boxes, in the order of layers."""
    arrows: tuple[tuple[str, str, str, Number], ...]
    """From class, to class, through which inputs (q, k, v, in or logits; several with commas), and how strongly."""
    edges: tuple[tuple[str, ...], ...] = ()
    """By arrow, the edges that it stands for, or nothing."""
    positions: tuple[str, ...] = ()
    """Named token positions from left to right."""
    block: Literal["roles"] = "roles"


@dataclass(frozen=True, kw_only=True)
class CausalVariable:
    """An input, a variable or the answer of a causal model, and where in a network it was looked for."""

    name: str
    """Its name."""
    parents: tuple[str, ...] = ()
    """What it is computed from; nothing of an input."""
    place: str = ""
    """Where in the network it was judged, e.g. x14@end; nothing where it was not looked for."""
    sites: tuple[tuple[float, int], ...] = ()
    """The sites of that place: how many blocks up, with the share of the block, and the number of the position."""
    accuracy: tuple[Number, Number, Number] | None = None
    """Its interchange accuracy there, with its interval."""
    holds: bool = False
    """Whether it stands out from all controls there."""


@dataclass(frozen=True, kw_only=True)
class CausalMap(Block):
    """A causal model as a graph, beside the network's blocks and positions; each variable leads to its place."""

    variables: tuple[CausalVariable, ...]
    """Inputs first, then variables, each behind all that it is computed from."""
    layers: Size
    """Number of blocks of the network."""
    positions: tuple[str, ...]
    """Named token positions from left to right."""
    block: Literal["causal model"] = "causal model"


@dataclass(frozen=True, kw_only=True)
class RouteNode:
    """A place of a route."""

    id: str
    """x3@5: the stream in front of block 3 at token 5; mid3@5; m3@5; also biases."""
    flow: float
    """Importance that passes through it."""


@dataclass(frozen=True, kw_only=True)
class RouteEdge:
    """A step of a route."""

    source: str
    """Where it comes from."""
    target: str
    """Where it goes."""
    kind: str
    """attention, stay, mlp or reads."""
    importance: float
    """Share of the target that it brings."""
    heads: tuple[float, ...] = ()
    """Share of each head, where it is attention."""
    residual: float = 0.0
    """Share that comes along the residual stream, where attention and stream are one edge."""


@dataclass(frozen=True, kw_only=True)
class Routes(Block):
    """Information flow routes: tokens across, blocks up, with a threshold to slide."""

    tokens: tuple[str, ...]
    """The prompt's tokens."""
    layers: Size
    """Blocks of the model."""
    target: str
    """Id of the node that the route leads to."""
    label: str
    """What stands above it: the prediction."""
    nodes: tuple[RouteNode, ...]
    """All nodes at the lowest threshold."""
    edges: tuple[RouteEdge, ...]
    """All edges at the lowest threshold."""
    threshold: float
    """Threshold at which it is drawn first."""
    lowest: float
    """Lowest threshold, down to which nodes and edges are here."""
    slides: bool = True
    """Whether the threshold can be moved."""
    parts: tuple[tuple[str, float, tuple[tuple[str, float], ...]], ...] = ()
    """Heads and MLPs at a token, such as a9.h6@5: importance that passes each, and what it adds to tokens' logits."""
    block: Literal["routes"] = "routes"


@dataclass(frozen=True, kw_only=True)
class GraphDot:
    """A node of an attribution graph."""

    id: str
    """embed@3, m5.n123@7, logits.t42@9, bias."""
    kind: str
    """embed, neuron, feature, mlp, bias or logit."""
    layer: int
    """Its block; -1 for embeddings and biases, the number of blocks for logits."""
    position: int
    """Its token."""
    label: str = ""
    """What a reader calls it, such as the tokens that it promotes."""
    value: Number = None
    """What it wrote with."""
    influence: float = 0.0
    """Share of the influence on what is explained that passes it."""
    effect: Number = None
    """What it adds to what is explained by all paths."""
    others: Number = None
    """What of its value comes from sources that are not drawn."""
    group: str = ""
    """The group of similar nodes that it is in, or nothing."""
    heads: str = ""
    """Heads that carry most of its strongest edges in, in words."""
    key: str = ""
    """Its id in the JSON of Neuronpedia."""


@dataclass(frozen=True, kw_only=True)
class PromptGraph(Block):
    """The attribution graph of one prompt: tokens across, blocks up, nodes as dots."""

    tokens: tuple[str, ...]
    """The prompt's tokens."""
    layers: Size
    """Blocks of the model."""
    nodes: tuple[GraphDot, ...]
    """Its nodes."""
    edges: tuple[tuple[int, int, float, float], ...]
    """Places of source and target among the nodes, what the edge brings, and its influence; most influence first."""
    explains: str
    """What is explained, in words."""
    pinned: tuple[int, ...] = ()
    """Places of the nodes that are pinned at first."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What stands in the JSON of Neuronpedia beside nodes and links."""
    top: int = 12
    """Nodes that a terminal lists."""
    block: Literal["attribution graph"] = "attribution graph"


@dataclass(frozen=True, kw_only=True)
class Tokens(Block):
    """Lines of text whose tokens are coloured by a value."""

    lines: tuple[tuple[tuple[str, Number], ...], ...]
    """By line: tokens with their values."""
    labels: tuple[str, ...] = ()
    """A name for each line, or none."""
    unit: str = ""
    """Unit of the values."""
    block: Literal["tokens"] = "tokens"


@dataclass(frozen=True, kw_only=True)
class NeuronExample:
    """A context in which a neuron's activation is large."""

    tokens: tuple[int, ...]
    """Its tokens, by number in the index."""
    values: tuple[Number, ...]
    """Activation at each."""
    at: int
    """Which of them it is about."""
    causes: tuple[Number, ...] = ()
    """By how much each raises the neuron's input there, or nothing."""


@dataclass(frozen=True, kw_only=True)
class NeuronCard:
    """What a page shows of one neuron beside its numbers."""

    neuron: str
    """Its name, such as m5.n123."""
    examples: tuple[NeuronExample, ...]
    """Its largest activations, largest first."""
    histogram: tuple[int, ...]
    """Tokens by size of the activation."""
    curve: tuple[Number, ...]
    """Share of windows in which it is active, over the window."""


@dataclass(frozen=True, kw_only=True)
class NeuronValues:
    """Numbers for every neuron."""

    name: str
    """What they are."""
    values: str
    """The numbers with spaces between: a text takes a fraction of the room of a list."""
    style: Style = "number"
    """How they are written."""


@dataclass(frozen=True, kw_only=True)
class NeuronIndex(Block):
    """All neurons of some layers, which a page finds by name or by token and shows one at a time."""

    layers: tuple[int, ...]
    """The layers; neurons are numbered layer by layer."""
    width: int
    """Neurons of a layer."""
    tokens: tuple[str, ...]
    """The tokens that are numbers elsewhere."""
    numbers: tuple[NeuronValues, ...]
    """What is told of every neuron: a number, nan for none."""
    lists: tuple[NeuronValues, ...]
    """Lists of tokens, such as promoted ones: `listed` tokens for every neuron, -1 for none."""
    listed: int
    """Tokens of a list."""
    bins: tuple[str, ...]
    """Names of the histograms' bins."""
    cards: tuple[NeuronCard, ...] = ()
    """The neurons of which more is shown; the first is shown first."""
    block: Literal["neurons"] = "neurons"


@dataclass(frozen=True, kw_only=True)
class Attention(Block):
    """Where heads attend over the tokens of one prompt."""

    tokens: tuple[str, ...]
    """The prompt's tokens."""
    heads: tuple[tuple[str, tuple[tuple[Number, ...], ...]], ...]
    """Name of each head and its attention by query and key."""
    block: Literal["attention"] = "attention"


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Block):
    """Trainings at the step that a reader chooses, side by side where there are several."""

    runs: tuple[Watched, ...]
    """The trainings."""
    block: Literal["checkpoints"] = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt pair as a reader sees it."""

    clean: str
    """The clean prompt."""
    corrupted: str
    """The corrupted prompt."""
    answers: tuple[str, ...] = ()
    """Right answers."""
    wrongs: tuple[str, ...] = ()
    """Wrong answers."""
    metrics: tuple[tuple[str, Number], ...] = ()
    """Metric of each named run on it."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Block):
    """Example prompt pairs; what differs is marked."""

    pairs: tuple[Pair, ...]
    """The pairs."""
    unit: str = ""
    """Unit of the metrics."""
    block: Literal["pairs"] = "pairs"


@dataclass(frozen=True, kw_only=True)
class Note(Block):
    """A remark, or a warning that should not be missed."""

    text: str
    """Whole sentences."""
    level: Literal["remark", "warning"] = "remark"
    """How loud it is."""
    block: Literal["note"] = "note"


Drawn = Attention | CausalMap | CircuitMap | PromptGraph | Roles | Routes
"""Blocks that we draw ourselves."""
Chart = HeatMap | Lines | Bars | Scatter
"""Blocks that are drawn as charts."""
AnyBlock = Annotated[
    Lede | Numbers | Table | Tokens | NeuronIndex | Checkpoints | Pairs | Note | Chart | Drawn,
    "one of the blocks; its field `block` says which",
]


@dataclass(frozen=True, kw_only=True)
class Document:
    """All that a finished run says: what a view is given."""

    title: str
    """What was asked, in a line."""
    command: str
    """The command line that repeats it."""
    sign: str
    """What signs and intervals mean, in a sentence or two."""
    blocks: Sequence[AnyBlock]
    """The answer."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The manifest without blocks, results and prompts: exactly what was done."""
    folder: str = ""
    """Where the run lies; empty where it is not saved."""

    def _repr_html_(self) -> str:
        from circuitome.present.notebook import html

        return html(*self.blocks)
