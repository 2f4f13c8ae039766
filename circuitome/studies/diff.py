"""Two finished runs side by side: what was set otherwise, what their circuits share, how their scores differ."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeGuard

from typing_extensions import override

import circuitome as cm
from circuitome.errors import RunError
from circuitome.present.blocks import Block, CircuitMap, Edge, EdgeSet, Lede, Scatter, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import by_strength, circuit_map
from circuitome.studies.settings import Argument, Settings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.studies.opened import OpenedRun

SHOWN = 30
"""Edges in the table of differences."""
DRAWN = 2000
"""Edges in the picture, those with the largest scores."""
MAPPED = 3000
"""Edges of each set on the grid, those with the largest scores."""
SIDES = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}
ALWAYS_OTHER = (
    "edges",
    "key",
    "created",
    "command",
    "folder",
    "seconds",
    "peak_memory_bytes",
    "results",
    "blocks",
    "title",
    "sign",
)
"""Entries of a manifest that say nothing about how a run was set."""


@dataclass(frozen=True, kw_only=True)
class Diff(Settings):
    """Compare two finished runs: what was set otherwise, what their circuits share, how their numbers differ."""

    arguments: ClassVar[tuple[str, ...]] = ("first", "second")

    first: Annotated[str, Argument] = ""
    """Folder of a run."""
    second: Annotated[str, Argument] = ""
    """Folder of the run that it is compared with."""

    @override
    def subject(self) -> str:
        return f"{Path(self.first).name}-{Path(self.second).name}"


def work(settings: Diff, context: Context) -> Work:
    """Nothing is run."""
    return Work(texts=2, tokens=0)


def run(settings: Diff, context: Context) -> Findings:
    """Differences of settings, circuits, scores and numbers; second minus first."""
    runs = cm.open(settings.first), cm.open(settings.second)
    otherwise = set_otherwise(*runs)
    edges = edges_of(*runs)
    numbers = list(numbers_of(*runs))
    results: dict[str, Any] = {"set_otherwise": otherwise, "numbers": numbers, "edges": edges}
    return Findings(
        title=f"{settings.first} and {settings.second}",
        sign="Differences are the second run minus the first.",
        results=results,
        blocks=blocks(results, None if edges is None else side_by_side(*runs)),
        tensors={} if edges is None else {"difference": difference(*runs)},
        more={"data_hash": "".join(run.manifest["key"] for run in runs)},
    )


def flat(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings, with the names on the way to them."""
    for key, value in values.items():
        inner = f"{name} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from flat(value, inner)
        else:
            yield inner, value


def set_otherwise(first: "OpenedRun", second: "OpenedRun") -> list[tuple[str, str, str]]:
    """What the two runs were asked or made on that is not the same; what follows from it is not said again."""
    asked = [
        dict(flat({name: value for name, value in run.manifest.items() if name not in (*ALWAYS_OTHER, "prompts")}))
        for run in (first, second)
    ]
    names = sorted(dict.fromkeys((*asked[0], *asked[1])), key=lambda name: not name.startswith("settings "))
    found: dict[tuple[str, str], str] = {}
    for name in names:
        ours, theirs = (shown(name, values.get(name)) for values in asked)
        if ours != theirs:
            found.setdefault((ours, theirs), name.removeprefix("settings "))
    return [(name, *values) for values, name in found.items()]


def shown(name: str, value: Any) -> str:
    """A setting or fact as a reader compares it: hashes by their beginning."""
    if value is None:
        return "default"
    return f"{value[:12]}..." if name.endswith("hash") else str(value)


def numbers_of(first: "OpenedRun", second: "OpenedRun") -> Iterator[tuple[str, float, float]]:
    """Numbers that both runs have and that differ."""
    ours, theirs = dict(flat(first.results)), dict(flat(second.results))
    for name, value in ours.items():
        other = theirs.get(name)
        if is_number(value) and is_number(other) and value != other:
            yield name, float(value), float(other)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def edges_of(first: "OpenedRun", second: "OpenedRun") -> dict[str, Any] | None:
    """What two circuits of one graph share, and how their scores go together; None where a run has no circuit.

    Raises `RunError` for circuits of two graphs.
    """
    import torch

    if not all("circuit" in run.tensors for run in (first, second)):
        return None
    ours, theirs = first.circuit, second.circuit
    if ours.graph != theirs.graph:
        raise RunError(f"The runs are of different graphs, which share no edges: {ours.graph} and {theirs.graph}.")
    found: dict[str, Any] = {
        "first": len(ours),
        "second": len(theirs),
        "both": len(ours & theirs),
        "jaccard": len(ours & theirs) / max(1, len(ours | theirs)),
        "correlation": None,
        "strongest": [],
    }
    if first.scores is None or second.scores is None:
        return found
    mask, scores = ours.graph.mask, (first.scores.values, second.scores.values)
    pair = torch.stack([values[mask] for values in scores])
    found["correlation"] = float(torch.corrcoef(pair)[0, 1])
    rows, columns = mask.nonzero().T.tolist()
    order = pair.abs().amax(0).argsort(descending=True)[:DRAWN].tolist()
    found["strongest"] = [
        {
            "edge": ours.graph.edge_name(rows[i], columns[i]),
            "first": float(pair[0, i]),
            "second": float(pair[1, i]),
            "in": SIDES[bool(ours.mask[rows[i], columns[i]]), bool(theirs.mask[rows[i], columns[i]])],
        }
        for i in order
    ]
    return found


def difference(first: "OpenedRun", second: "OpenedRun") -> "Tensor":
    """Scores of all edges, second minus first; of membership where a run kept no scores."""
    if first.scores is None or second.scores is None:
        return second.circuit.mask.float() - first.circuit.mask.float()
    return second.scores.values - first.scores.values


def blocks(results: Mapping[str, Any], grid: CircuitMap | None = None) -> list[Block]:
    """What they share in a sentence; both circuits on one grid; settings, edges and numbers that differ."""
    edges, otherwise = results["edges"], results["set_otherwise"]
    parts: list[Block] = [] if grid is None else [grid]
    parts += [table("Set otherwise", ("", "first", "second"), otherwise)] if otherwise else []
    if edges and edges["strongest"]:
        parts += [most_changed(edges["strongest"]), picture(edges["strongest"])]
    if results["numbers"]:
        rows = [(name, a, b, b - a) for name, a, b in results["numbers"]]
        columns = ("", *((name, "number", 3) for name in ("first", "second", "difference")))
        parts.append(table("Numbers", columns, rows))
    return [Lede(text=sentence(edges, otherwise)), *parts]


def sentence(edges: Mapping[str, Any] | None, otherwise: list[Any]) -> str:
    """What the two have in common."""
    text = f"{len(otherwise)} settings and facts differ." if otherwise else "Both runs were set alike."
    if edges is None:
        return f"{text} At least one of the runs holds no circuit."
    text = (
        f"The circuits of {edges['first']:,} and {edges['second']:,} edges share {edges['both']:,} (Jaccard index "
        f"{edges['jaccard']:.2f}).\n{text}"
    )
    if edges["correlation"] is None:
        return text
    return f"{text} Scores of all edges correlate by {edges['correlation']:.3f} (Pearson)."


def most_changed(edges: list[Mapping[str, Any]]) -> Table:
    """Edges whose scores differ most, with the circuits that hold them."""
    ranked = sorted(edges, key=lambda edge: -abs(edge["second"] - edge["first"]))[:SHOWN]
    numbers = [(name, "number", 4) for name in ("first", "second", "difference")]
    rows = [(e["edge"], e["in"], e["first"], e["second"], e["second"] - e["first"]) for e in ranked]
    return table("Edges that differ most", (("edge", "node"), "in", *numbers), rows)


def side_by_side(first: "OpenedRun", second: "OpenedRun") -> CircuitMap:
    """Both circuits on one grid: where scores differ, what both hold, what one of them holds."""
    ours, theirs = first.circuit, second.circuit
    scores = [run.circuit.mask.float() if run.scores is None else run.scores.values for run in (first, second)]
    units = ["in the circuit" if run.scores is None else run.scores.unit for run in (first, second)]
    changed = scores[1] - scores[0], units[0], "Edges of either: score in the second run minus score in the first."
    if units[0] != units[1]:
        why = f"Scores in {units[0]} and {units[1]} do not compare: 1 is in the second circuit only, -1 in the first."
        changed = theirs.mask.float() - ours.mask.float(), "in the circuit", why
    mean = (scores[0] + scores[1]) / 2 if units[0] == units[1] else scores[0]
    sets = [
        _edge_set("difference", ours | theirs, scores, *changed),
        _edge_set("both", ours & theirs, scores, mean, units[0], "Edges of both circuits."),
        _edge_set("only the first", ours - theirs, scores, scores[0], units[0], "Edges of the first circuit alone."),
        _edge_set("only the second", theirs - ours, scores, scores[1], units[1], "Edges of the second circuit alone."),
    ]
    return circuit_map(
        ours.graph,
        sets[0].edges,
        title="The circuits on one grid",
        name=sets[0].name,
        note=sets[0].about,
        unit=sets[0].unit,
        others=sets[1:],
        also=("first", "second"),
        signs=("below 0", "above 0"),
    )


def _edge_set(
    name: str, circuit: "cm.Circuit", scores: "Sequence[Tensor]", values: "Tensor", unit: str, about: str
) -> EdgeSet:
    """The edges of a circuit with one number that is drawn, and their scores in both runs."""
    graph = circuit.graph
    edges = by_strength(
        Edge(
            source=graph.writers[row],
            reader=graph.readers[column],
            score=float(values[row, column]),
            also=tuple(float(run[row, column]) for run in scores),
        )
        for row, column in circuit.mask.nonzero().tolist()
    )
    if len(edges) > MAPPED:
        about += f" The {MAPPED:,} with the largest scores of {len(edges):,}."
    return EdgeSet(name=name, edges=edges[:MAPPED], unit=unit, about=about)


def picture(edges: list[Mapping[str, Any]]) -> Scatter:
    """Scores of the strongest edges in both runs."""
    return Scatter(
        title="Scores of edges",
        note=f"The {len(edges):,} edges with the largest scores in either run.",
        x="score in the first run",
        y="score in the second run",
        points=tuple((edge["first"], edge["second"], edge["edge"]) for edge in edges),
        groups=tuple(edge["in"] for edge in edges),
        diagonal=True,
    )


STUDY = Study("diff", Diff, run, work)
