"""What results of the library show of themselves: the blocks that a page would have of them."""

from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from circuitome.attribution_graphs.result import AttributionGraph
from circuitome.engine.interventions.recorded import AttentionPatterns
from circuitome.errors import InputError
from circuitome.features.dictionary_quality import Quality
from circuitome.features.feature_scores import FeatureScores
from circuitome.features.training import Trained
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.node_scores import NodeScores
from circuitome.heads.roles.mlps import MlpExplanation
from circuitome.heads.roles.result import Explanation
from circuitome.present import blocks, notebook
from circuitome.present.rows import rows_of
from circuitome.results import EffectMap, Estimate, Samples
from circuitome.studies import (
    dictionary_check,
    dictionary_train,
    explain,
    explained_mlps,
    explained_roles,
    graph,
    pieces,
    validate,
)
from circuitome.validation.faithfulness.share import Curve, Faithfulness
from circuitome.validation.robustness.consensus import StableCircuit
from circuitome.validation.verdict import Verdict

if TYPE_CHECKING:
    import pandas

STRONGEST = 200
"""Edges and nodes that are shown of scores."""

BARS = 40
"""Bars that are shown of a list; of a longer one those with the largest values, in the order of the list."""


@singledispatch
def views(result: Any) -> list[blocks.AnyBlock]:
    """The blocks of a result, what matters most first. Raises `InputError` for what has none."""
    raise InputError(f"There is no view of a {type(result).__name__}.")


@views.register
def _estimate(result: Estimate) -> list[blocks.AnyBlock]:
    return [blocks.Numbers(items=(pieces.figure("Estimate", result, f"95 % interval over {result.over}"),))]


@views.register
def _samples(result: Samples) -> list[blocks.AnyBlock]:
    if len(result.axes) == 1:
        return [_bars(result)]
    if len(result.axes) == 2:
        return [_heat_map(result)]
    strongest = [(name, pieces.cell(estimate)) for name, estimate in result.top(STRONGEST)]
    return [blocks.table("Strongest", ("part", ("value", "estimate", 3, result.unit)), strongest)]


@views.register
def _attribution_graph(result: AttributionGraph) -> list[blocks.AnyBlock]:
    return [graph.drawn(result)]


def _bars(result: Samples) -> blocks.Bars:
    """A list, or of a long one the cells with the largest values, in their order."""
    cells, note = list(range(len(result.axes[0]))), ""
    if len(cells) > BARS:
        note = f"The {BARS} largest of {len(cells)}."
        cells = sorted(result.mean.abs().nan_to_num(-1).topk(BARS).indices.tolist())
    values, low, high = (tuple(end[cells].tolist()) for end in (result.mean, *result.interval))
    labels = tuple(result.axes[0][cell] for cell in cells)
    return blocks.Bars(labels=labels, values=values, low=low, high=high, x=result.unit, note=note)


def _heat_map(result: Samples) -> blocks.HeatMap:
    """A table of two axes; colours start at 0 where nothing is negative."""
    rows, columns = result.axes
    labels = tuple(tuple(result.label(i, j) for j in range(len(columns))) for i in range(len(rows)))
    values, low, high = (_rows(end.tolist()) for end in (result.mean, *result.interval))
    return blocks.HeatMap(
        rows=rows,
        columns=columns,
        values=values,
        low=low,
        high=high,
        labels=labels,
        unit=result.unit,
        upwards=True,
        scale="signed" if bool((result.mean < 0).any()) else "positive",
    )


@views.register
def _effects(result: EffectMap) -> list[blocks.AnyBlock]:
    return [pieces.effect_map(result)]


@views.register
def _edge_scores(result: EdgeScores) -> list[blocks.AnyBlock]:
    circuit = result.top(min(STRONGEST, result.graph.n_edges))
    edges = pieces.scored_edges(result, circuit, None)
    note = f"The {len(circuit)} strongest of {result.graph.n_edges:,} edges. Method: {result.method}."
    return [pieces.circuit_map(result.graph, edges, title="Scores of edges", note=note, unit=result.unit)]


@views.register
def _circuit(result: Circuit) -> list[blocks.AnyBlock]:
    graph = result.graph
    places = result.mask.nonzero().tolist()
    edges = [blocks.Edge(source=graph.writers[row], reader=graph.readers[column], score=None) for row, column in places]
    return [pieces.circuit_map(result.graph, edges, title="Circuit", note=repr(result), unit="")]


@views.register
def _node_scores(result: NodeScores) -> list[blocks.AnyBlock]:
    columns = (("node", "node"), ("score", "number", 4, result.unit))
    return [blocks.table("Scores of nodes", columns, result.ranked(), note=f"Method: {result.method}.")]


@views.register
def _faithfulness(result: Faithfulness) -> list[blocks.AnyBlock]:
    named = {"Faithfulness": result.share, "Circuit": result.circuit, "Model": result.model, "Ablated": result.empty}
    return [blocks.Numbers(items=tuple(pieces.figure(name, estimate) for name, estimate in named.items()))]


@views.register
def _curve(result: Curve) -> list[blocks.AnyBlock]:
    series = [
        pieces.series_of("circuit", result.sizes, [circuit.share for circuit in result.circuits]),
        pieces.series_of("random circuits", result.sizes, result.random, faint=True),
    ]
    return [pieces.size_lines(series)]


@views.register
def _stable(result: StableCircuit) -> list[blocks.AnyBlock]:
    rows = [(f"at least {100 * share:g} % of draws", len(circuit)) for share, circuit in result.by_share().items()]
    edges = pieces.scored_edges(result.scores, result.circuit, None)
    return [
        pieces.circuit_map(result.scores.graph, edges, title="Circuit", note=repr(result), unit=result.scores.unit),
        blocks.table("Edges that come back", ("edges in", ("edges", "count")), rows),
    ]


@views.register
def _verdict(result: Verdict) -> list[blocks.AnyBlock]:
    text = f"{result.answer}: {result.reason}"
    return [blocks.Lede(text=text), validate.criteria(result.to_dict()["criteria"])]


@views.register
def _attention(result: AttentionPatterns) -> list[blocks.AnyBlock]:
    shown = []
    for number, tokens in enumerate(result.tokens[:3]):
        size = len(tokens)
        heads = tuple((head, _rows(result[head][number, :size, :size].tolist())) for head in result.heads)
        shown.append(blocks.Attention(title=result.prompts[number], tokens=tokens, heads=heads))
    return list(shown)


@views.register
def _explanation(result: Explanation) -> list[blocks.AnyBlock]:
    return [*explain.pictured(result)]


@views.register
def _mlps(result: MlpExplanation) -> list[blocks.AnyBlock]:
    results = {"mlps": result.to_dict(), "scale": result.scale, "unit": result.unit, "token_roles": result.roles}
    return [*explained_roles.diagram(None, result, results), *explained_mlps.blocks(results)]


def _rows(matrix: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, matrix))


@views.register
def _trained(result: Trained) -> list[blocks.AnyBlock]:
    return list(dictionary_train.blocks(dictionary_train.measured(result)))  # type: ignore[arg-type]


@views.register
def _quality(result: Quality) -> list[blocks.AnyBlock]:
    return list(dictionary_check.blocks(dictionary_check.measured(result)))  # type: ignore[arg-type]


@views.register
def _feature_scores(result: FeatureScores) -> list[blocks.AnyBlock]:
    rows = [*((str(feature), score) for feature, score in result.top(min(STRONGEST, len(result.values))))]
    rows.append(("error", result.error))
    columns = (("feature", "node"), ("score", "signed", 3, result.unit))
    return [blocks.table("Strongest features", columns, rows, top=BARS)]


def html(result: Any) -> str:
    """A result as HTML for a notebook."""
    return notebook.html(*views(result))


def plot(result: Any) -> Any:
    """A result's first picture. Raises `InputError` where it is none."""
    for block in views(result):
        if (picture := notebook.plot(block)) is not block:
            return picture
    raise InputError(f"A {type(result).__name__} has no picture; .to_pandas() gives its numbers.")


def frame(block: blocks.AnyBlock) -> "pandas.DataFrame":
    """What a block holds as a DataFrame. Raises `InputError` for a block that is no table, and without pandas."""
    try:
        import pandas
    except ImportError:
        raise InputError("to_pandas needs pandas: pip install pandas.") from None
    columns, *rows = rows_of(block)
    return pandas.DataFrame([list(row) for row in rows], columns=list(columns))


def to_pandas(result: Any) -> "pandas.DataFrame":
    """The numbers of a result's last block, which of several is the table."""
    return frame(views(result)[-1])
