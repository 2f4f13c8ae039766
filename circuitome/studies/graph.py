"""The attribution graph of one prompt: which neurons, at which tokens, make a prediction where attention stays."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, UnsupportedModelError
from circuitome.graph.node import Node
from circuitome.present import formats
from circuitome.present.blocks import (
    Block,
    Cell,
    Column,
    Figure,
    GraphDot,
    Lede,
    Note,
    Numbers,
    PromptGraph,
    Scatter,
    table,
)
from circuitome.studies import graph_file
from circuitome.studies.context import Context
from circuitome.studies.pieces import figure
from circuitome.studies.settings import Argument, Flag, ModelSettings, Names
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.attribution_graphs import AttributionGraph, GraphChecks, GraphNode, HeadLoadings, QKAttribution

SHOWN, TOKENS, PAIRS = 15, 4, 3
"""Rows of tables; tokens of a label; pairs of sources of an attention logit that are shown."""
EXAMPLES, BEFORE, AFTER, DETAILED = 4, 12, 4, 40
"""Texts for a neuron in the folder of details, tokens around the one it fires at, and neurons that get some."""
ROW, SWITCHED, LOADED = 0.3, 4.0, 12.0
"""What a neuron's incoming edges, switching one off, and taking edges apart by heads cost in forward passes."""


@dataclass(frozen=True, kw_only=True)
class Graph(ModelSettings):
    """Graph which neurons, at which tokens, make the next token of one prompt, and check the graph."""

    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[str, Argument] = ""
    """The prompt; or the .json file of a graph, of circuit-tracer or Neuronpedia, which is then shown."""
    contrast: tuple[str, str] | None = None
    """Explain the difference of two tokens' logits, e.g. " Mary" " John"; by default the likeliest tokens."""
    expand: int = 512
    """Neurons whose inputs are computed, those with most influence first."""
    node_share: float = 0.6
    """Share of these neurons' influence that the kept ones have."""
    edge_share: float = 0.9
    """Share of the edges' influence that kept edges have."""
    first_token: Flag = False
    """Expand neurons at the first token too, which most heads attend to for want of anything else."""
    off: int = 20
    """Strongest neurons that are switched off in the model itself, to check what the graph predicts."""
    heads: int = 8
    """Heads whose attention is explained, those that carry most influence."""
    transcoders: Names = ()
    """Folders or files of transcoders, with commas between, whose features stand in place of their blocks' neurons."""
    census: str | None = None
    """Folder of a run of `circuitome neurons`, whose texts then stand in the folder of details."""

    @override
    def check(self) -> None:
        graph_file.is_file(self.prompt)
        for name, least in (("expand", 1), ("off", 0), ("heads", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is a number and must be at least {least}, got {getattr(self, name)}.")
        for name in ("node_share", "edge_share"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise InputError(f"--{name.replace('_', '-')} is a share and must lie between 0 and 1, got {share:g}.")


def work(settings: Graph, context: Context) -> Work:
    """A part of a pass for every expanded neuron, some passes for every neuron that is switched off, and for heads."""
    if graph_file.is_file(settings.prompt):
        return Work(texts=1, tokens=0)
    tokens = max(1, len(context.model.encode(settings.prompt)))
    passes = 3.0 + ROW * settings.expand + SWITCHED * settings.off + LOADED * (1 + (settings.heads > 0))
    return Work(texts=1, tokens=tokens, forward=passes)


def run(settings: Graph, context: Context) -> Findings:
    """The graph with the tokens that its neurons promote, its groups, checks, heads, and its JSON beside the page."""
    from circuitome.runs.store import load_run

    if graph_file.is_file(settings.prompt):
        return graph_file.opened(Path(settings.prompt))
    graphs, setting = cm.attribution_graphs, context.setting
    if settings.census is not None:
        load_run(Path(settings.census))  # refused before the work where it is none
    options = {
        name: getattr(settings, name) for name in ("contrast", "expand", "node_share", "edge_share", "first_token")
    }
    options["transcoders"] = [
        cm.features.load(path, model=context.model).to(context.model.device) for path in settings.transcoders
    ]
    plain = cm.attribution_graph(setting, settings.prompt, **options)
    promoted = tokens_of(context.model, plain)
    graph = graphs.grouped(plain.labelled([promoted.get(n.name, (n.label,))[0] for n in plain.nodes]))
    checks = graphs.check_graph(setting, graph, nodes=settings.off)
    loadings = graphs.head_loadings(setting, graph)
    attention = attention_of(settings, context, graph, loadings)
    name = settings.folder_name("graph")
    written = graphs.graph_json(graph, name, attention=attention, details="features")
    return Findings(
        title=f"Attribution graph of {formats.quoted(settings.prompt)}",
        sign=(
            "An edge is what its source brings to its target's value; with the sources that are not drawn, edges into "
            "a node sum to it. An effect is what a node adds to what is explained by all paths. Attention patterns and "
            "norm scales are held: the edges say what is moved between tokens, not why heads attend there."
        ),
        results=results(graph, checks, attention),
        blocks=blocks(graph, checks, loadings, attention, written["metadata"]),
        tensors=tensors(graph, loadings),
        files=files(settings, context, graph, written, promoted),
        more={
            "prompt": settings.prompt,
            "data_hash": settings.prompt,
            **({"dictionaries": list(settings.transcoders)} if settings.transcoders else {}),
        },
    )


def attention_of(
    settings: Graph, context: Context, graph: "AttributionGraph", loadings: "HeadLoadings"
) -> tuple["QKAttribution", ...]:
    """Why the heads that carry most influence attend where they do; nothing where the model's attention is its own."""
    graphs = cm.attribution_graphs
    if not settings.heads or not len(loadings.edges):
        return ()
    places = graphs.attention_places(context.setting, graph, loadings, n=settings.heads)
    try:
        return graphs.attention_of(context.setting, graph, [(p.head, p.query, p.key) for p in places])
    except UnsupportedModelError:
        return ()


def tokens_of(model: "cm.Model", graph: "AttributionGraph") -> dict[str, tuple[str, list[str], list[str]]]:
    """By neuron at a token: its label, and the tokens that it promotes and suppresses for a positive activation.

    The label names what it promotes as it acts there: of a negative activation what a positive one suppresses.
    """
    import torch

    from circuitome.neurons.projections import logits_of

    def written(node: "GraphNode") -> Any:
        if node.kind == "feature":
            return graph.transcoders[node.layer].W_dec[node.index]
        return model.blocks[node.layer].neuron_weights([node.index])[0]

    units = [node for node in graph.nodes if node.kind in ("neuron", "feature")]
    by_name = {str(Node.parse(node.name).whole): node for node in units}
    logits = {}
    if by_name:
        rows = logits_of(model, torch.stack([written(node) for node in by_name.values()]))
        logits = dict(zip(by_name, rows, strict=True))
    found = {}
    for node in units:
        row = logits[str(Node.parse(node.name).whole)]
        up, down = ([model.decode([i]) if model.tokenizer else f"#{i}" for i in top] for top in _ends(row))
        says = up if (node.value or 0.0) >= 0 else down
        found[node.name] = (" ".join(formats.quoted(token) for token in says[:TOKENS]), up, down)
    return found


def _ends(row: Any) -> tuple[list[int], list[int]]:
    count = min(10, len(row))
    return row.topk(count).indices.tolist(), (-row).topk(count).indices.tolist()


# What the run keeps


def results(graph: "AttributionGraph", checks: "GraphChecks", attention: Sequence["QKAttribution"]) -> dict[str, Any]:
    """Scores, nodes and checks as plain JSON values; edges stand in the graph's own file and in the tensors."""
    whole = graph.to_dict()
    del whole["edges"]
    heads = [
        {"head": a.head, "query": a.query, "key": a.key, "attention": a.attention, "logit": a.logit, "pairs": a.top(10)}
        for a in attention
    ]
    return {"graph": {**whole, "edges": len(graph.weights)}, "checks": checks.to_dict(), "attention": heads}


def tensors(graph: "AttributionGraph", loadings: "HeadLoadings") -> dict[str, Any]:
    """The edges, the sums of other sources, and what each head carries of each edge."""
    names = ("sources", "targets", "weights", "others", "sizes")
    heads = {"edges_by_head": loadings.heads, "edges_past_heads": loadings.bypass, "edges_taken_apart": loadings.edges}
    return {**{name: getattr(graph, name) for name in names}, **heads}


def files(
    settings: Graph,
    context: Context,
    graph: "AttributionGraph",
    written: dict[str, Any],
    promoted: dict[str, tuple[str, list[str], list[str]]],
) -> dict[str, str]:
    """The graph as JSON for other programs, and a file for each neuron in the folder `features` beside it."""
    graphs = cm.attribution_graphs
    made = {"graph.json": json.dumps(written, ensure_ascii=False)}
    examples = _examples(settings, context, graph)
    for node in graph.units():
        number = graphs.feature_number(node.layer, node.index)
        _, up, down = promoted[node.name]
        details = graphs.feature_details(number, up, down, examples.get((node.layer, node.index), ()))
        made[f"features/{number}.json"] = json.dumps(details, ensure_ascii=False)
    return made


def _examples(settings: Graph, context: Context, graph: "AttributionGraph") -> dict[tuple[int, int], list[Any]]:
    """Texts on which the strongest neurons fire, with activations, where a census is given."""
    if settings.census is None:
        return {}
    from circuitome.studies.neuron import Neuron, opened

    found = dict[tuple[int, int], list[Any]]()
    for done, node in enumerate([node for node in graph.units() if node.kind == "neuron"][:DETAILED]):
        name = str(Node.parse(node.name).whole)
        model, census = opened(Neuron(neuron=name, run=settings.census, model=settings.model), context)
        row, column = census.at(name)
        for place in [p for p in census.places[row, :, column].tolist() if p >= 0][:EXAMPLES]:
            window, at = divmod(place, census.windows.length)
            texts = census.windows.chosen([window])
            values = cm.neurons.neuron_activations(model, name, texts)[0]
            part = slice(max(0, at - BEFORE), min(int(texts.lengths[0]), at + AFTER + 1))
            tokens = [model.decode([i]) for i in texts.ids[0, part].tolist()]
            found.setdefault((node.layer, node.index), []).append((tokens, values[part].tolist()))
        context.progress("reading examples", done + 1, DETAILED)
    return found


# What it says


def blocks(
    graph: "AttributionGraph",
    checks: "GraphChecks",
    loadings: "HeadLoadings",
    attention: Sequence["QKAttribution"],
    metadata: dict[str, Any],
) -> list[Block]:
    """The answer, scores, the graph, the checks, groups and heads."""
    return [
        Lede(text=sentence(graph)),
        Numbers(items=tuple(cards(graph, checks))),
        drawn(graph, metadata, loadings),
        *switched_off(checks),
        groups(graph),
        *heads_table(graph, attention),
    ]


def sentence(graph: "AttributionGraph") -> str:
    """What the strongest neurons are, and what is left out."""
    units, tokens = graph.units(), graph.tokens
    text = f"Explained: {graph.explains}."
    if units:
        named = (f"{n.name} ({n.label})" if n.label else n.name for n in units[:3])
        text += f" The {called(graph)} with most influence are {', '.join(named)}."
    if len(tokens) > 1 and not any(node.position == 0 for node in units):
        first = formats.quoted(tokens[0])
        text += f"\n{called(graph).capitalize()} at the first token {first} are not expanded; --first-token does so."
    return text


def called(graph: "AttributionGraph") -> str:
    """What its nodes are called together."""
    kinds = {node.kind for node in graph.units()} or {"neuron", *(["feature"] if graph.transcoders else [])}
    return "neurons and features" if len(kinds) > 1 else "features" if kinds == {"feature"} else "neurons"


def cards(graph: "AttributionGraph", checks: "GraphChecks") -> list[Figure]:
    """Scores and checks as headline numbers."""
    share = f"of {graph.expanded:,} expanded"
    return [
        Figure(name=called(graph).capitalize(), value=len(graph.units()), style="count", about=share),
        Figure(name="Replacement", value=graph.replacement, style="percent", about="of influence reaches the tokens"),
        Figure(name="Completeness", value=graph.completeness, style="percent", about="of inputs come from these nodes"),
        figure("Predicted", checks.correlation, "correlation with the model's own change, strongest nodes off"),
    ]


def drawn(
    graph: "AttributionGraph", metadata: dict[str, Any] | None = None, loadings: "HeadLoadings | None" = None
) -> PromptGraph:
    """The graph itself, with the heads that carry its edges where these are known."""
    scores = graph.edge_scores()
    order = scores.argsort(descending=True, stable=True)
    columns = [x[order].tolist() for x in (graph.sources, graph.targets, graph.weights, scores)]
    rest = graph.others.sum((1, 2)).tolist()
    return PromptGraph(
        title="Graph",
        tokens=graph.tokens,
        layers=graph.layers,
        explains=graph.explains,
        nodes=tuple(_dot(graph, node, rest[i], loadings) for i, node in enumerate(graph.nodes)),
        edges=tuple(zip(*columns, strict=True)),
        pinned=tuple(graph.place[name] for name in graph.pinned or [node.name for node in graph.logits()]),
        metadata=metadata or cm.attribution_graphs.graph_json(graph, graph.model)["metadata"],
    )


def _dot(graph: "AttributionGraph", node: "GraphNode", rest: float, loadings: "HeadLoadings | None") -> GraphDot:
    group = "" if node.group is None else cm.attribution_graphs.group_name(graph, node.group)
    others = None if node.value is None else rest
    heads = [] if loadings is None else loadings.into(graph, node.name)
    words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in heads)
    return GraphDot(
        id=node.name,
        kind=node.kind,
        layer=node.layer,
        position=node.position,
        label=node.label,
        value=node.value,
        influence=node.influence,
        effect=node.effect,
        others=others,
        group=group,
        heads=f"Heads that carry most of its edges in: {words}." if heads else "",
        key=cm.attribution_graphs.node_id(graph, node),
    )


def switched_off(checks: "GraphChecks") -> list[Block]:
    """What was predicted and measured when neurons were switched off."""
    if not checks.off:
        return []
    both = (("strongest", checks.off), ("random", checks.random))
    points = tuple((n.predicted, n.measured, n.name) for _, some in both for n in some)
    kinds = tuple(kind for kind, some in both for _ in some)
    rows = [(n.name, n.predicted, n.held, n.measured) for n in checks.off]
    columns = (("neuron", "node"), *((name, "signed", 3) for name in ("predicted", "patterns held", "measured")))
    note = (
        "Each neuron writes nothing at its token. Predicted: minus its effect by all paths. Measured: change of what "
        f"is explained in the model itself, and with its attention patterns held. Correlation {checks.correlation}, "
        f"with patterns held {checks.correlation_held}; intervals over neurons."
    )
    scatter = Scatter(
        title="Predicted and measured",
        x="predicted",
        y="measured",
        points=points,
        groups=kinds,
        diagonal=True,
        where="page",
    )
    return [table("Neurons switched off", columns, rows, note=note, top=8), scatter]


def groups(graph: "AttributionGraph") -> Block:
    """Groups of neurons that come from the same and do the same."""
    rows, kind = list[tuple[Cell, ...]](), called(graph)
    numbers = sorted({node.group for node in graph.nodes if node.group is not None})
    for group in numbers:
        members = sorted((n for n in graph.nodes if n.group == group), key=lambda node: -node.influence)
        named = ", ".join(f"{n.name} ({n.label})" if n.label else n.name for n in members[:3])
        rows.append((len(members), sum(n.influence for n in members), sum(n.effect or 0.0 for n in members), named))
    columns: list[Any] = [(kind, "count"), ("influence", "percent"), ("effects", "signed", 2), "strongest members"]
    summed = "Effects are summed over members, shared paths twice."
    if graph.group_names:
        names = (graph.group_names[number] for number in numbers)
        rows = [(name, *row) for name, row in zip(names, rows, strict=True)]
        return table("Groups", ["group", *columns], rows, note=f"As the file has them. {summed}", top=5)
    note = f"{kind.capitalize()} whose edges in and whose edges out are alike. {summed}"
    return table("Groups", columns, rows, note=note, top=5)


def heads_table(graph: "AttributionGraph", attention: Sequence["QKAttribution"]) -> list[Block]:
    """Why heads attend where they do."""
    if not attention:
        return [Note(text="Of this model no attention logits are explained.", where="page")]
    rows = list[tuple[Cell, ...]]()
    for found in attention:
        tokens = [f"{formats.quoted(graph.tokens[i])} {i}" for i in (found.query, found.key)]
        pairs = "; ".join(f"{a} × {b} {value:+.2f}" for a, b, value in found.top(PAIRS)).replace("-", formats.MINUS)
        rows.append((found.head, *tokens, found.attention, pairs))
    narrow = Column("drawn there by (query part × key part)", narrow=False)
    columns = (("head", "node"), "from", "to", ("attention", "percent"), narrow)
    note = (
        "Heads that carry most influence, and which pairs of sources at the two tokens raise their attention logit "
        "most, compared with other keys."
    )
    return [table("Where heads attend, and why", columns, rows, note=note)]


STUDY = Study("graph", Graph, run, work)
