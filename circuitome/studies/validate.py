"""A finished run's circuit put to the test, on the very prompts, weights and ablation that it was found with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import RunError
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Note, Scatter, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, rounded, size_lines, written
from circuitome.studies.settings import Flag, RunSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting

MARKS = {"pass": "good", "fail": "bad", "unclear": "unclear"}
WORDS = {"pass": "pass", "fail": "fail", "unclear": "inconclusive"}
SHOWN = 40
"""Parts and edges in the tables of minimality."""
ENOUGH = 0.9
"""Faithfulness for which a size is named where a circuit is too small."""
PASSES = {True: 33.0, False: 280.0}
"""Circuit passes of the quick and of the whole suite; measured on SmolLM2."""


@dataclass(frozen=True, kw_only=True)
class Validate(RunSettings):
    """Test a finished run's circuit: is it faithful, complete, minimal, better than chance, and stable?"""

    quick: Flag = False
    """Fewer subsets and no robustness: about a tenth of the work, some verdicts stay unclear."""
    shrink: Flag = False
    """Leave out what the circuit can do without, and keep the smaller circuit."""
    strict: Flag = False
    """Exit with status 3 unless the circuit is established: for audits and scripts."""
    roles: str | None = None
    """Folder of an `explain` run whose roles are knocked out together for completeness; thirds of the layers else."""

    @override
    def folder_name(self, study: str) -> str:
        return super().folder_name(study) + ("-quick" if self.quick else "")


def work(settings: Validate, context: Context) -> Work:
    """Bare passes of the whole suite, measured."""
    return Work.over(context.task, forward=PASSES[settings.quick])


def run(settings: Validate, context: Context) -> Findings:
    """The verdict on a run's circuit. Measurements are kept, so that a stopped run goes on."""
    from circuitome.models.known import KNOWN
    from circuitome.validation.faithfulness.evaluator import Evaluator
    from circuitome.validation.tests.minimality import shrink

    reopened, ablation, setting = context.reopened, context.ablation, judged(context)
    whole = not context.model.graph.has_parts
    knows = whole and context.model.name in KNOWN and ablation in ("corrupted", "zero")
    verdict = cm.validate(
        setting.but(checkpoint=context.folder),
        reopened.circuit,
        scores=scores_of(context),
        others=other_corruptions(context),
        groups=None if settings.roles is None else roles_of(settings.roles, reopened.circuit),
        truth=cm.ground_truth.true_circuit(setting) if knows else None,
        quick=settings.quick,
    )
    smaller, left_out = reopened.circuit, tuple[str, ...]()
    if settings.shrink:
        kept = setting.but(checkpoint=context.file("measured.safetensors"))
        smaller, left_out = shrink(Evaluator(kept), reopened.circuit, verdict.minimality)
    results = verdict.to_dict()
    text = (
        f"Without {len(left_out)} parts that the circuit can do without together, {len(smaller):,} edges are left: "
        f"{', '.join(left_out)}."
    )
    shrunk = [Note(text=text)] if left_out else []
    return Findings(
        title=f"Is it real? {context.task.name} in {reopened.origin.model}",
        sign="A circuit is established where every criterion passes; unclear means that these prompts do not decide. "
        f"Brackets are 95 % intervals over {setting.over}.",
        results=results,
        blocks=blocks(results, context, shrunk),
        tensors={"circuit": smaller.mask},
        more={
            "holds": verdict.holds,
            "answer": verdict.answer,
            "edges": len(reopened.circuit),
            "edges_after_shrinking": len(smaller),
            "left_out": list(left_out),
        },
    )


def judged(context: Context) -> "Setting":
    """The setting on the run's held-out prompts, or, where it held none out, on those that chose the circuit."""
    return context.setting.but(prompts=context.prompts.held_out or context.task)


def scores_of(context: Context) -> "cm.EdgeScores | None":
    """The run's scores; without those of single prompts where the circuit is tested on others."""
    scores = context.reopened.scores
    return scores if scores is None or context.prompts.held_out is None else replace(scores, samples=None)


def roles_of(folder: str, circuit: "cm.Circuit") -> dict[str, list[str]]:
    """The circuit's heads of each role that an `explain` run named. Raises `RunError` for another run."""
    from circuitome.runs.store import load_run

    manifest = load_run(Path(folder)).manifest
    if manifest["kind"] != "explain":
        raise RunError(f"{folder} is a {manifest['kind']} run and names no roles. Give a run of `circuitome explain`.")
    nodes = set(circuit.nodes)
    groups: dict[str, list[str]] = {}
    for head in manifest["results"]["heads"]:
        if head["head"] in nodes and head["role"] != "unclear":
            groups.setdefault(head["role"], []).append(head["head"])
    return groups


def other_corruptions(context: Context) -> dict[str, "cm.Task"]:
    """The same clean prompts with the ABC distribution, for a run on IOI's generator."""
    origin = context.reopened.origin
    if origin.data is not None or origin.task != "ioi":
        return {}
    held_out = context.prompts.held_out
    if held_out is None:
        return {"ABC": cm.tasks.ioi(context.model, n=origin.n, seed=origin.seed, corruption="abc")}
    other = cm.tasks.ioi(context.model, n=origin.n, seed=origin.seed + 1, corruption="abc")
    pairs = {pair.clean: pair for pair in other.pairs}
    if any(pair.clean not in pairs for pair in held_out.pairs):  # held out of a file
        return {}
    return {"ABC": replace(held_out, pairs=tuple(pairs[pair.clean] for pair in held_out.pairs))}


def blocks(results: Mapping[str, Any], context: Context, shrunk: Sequence[Block]) -> list[Block]:
    """The answer, the criteria, then what each line rests on."""
    unit = context.task.unit
    parts: list[Block] = [Lede(text=sentence(results, context)), criteria(results["criteria"]), *shrunk]
    parts += faithfulness(results)
    parts += [*completeness(results["completeness"], unit), minimality(results["minimality"])]
    if results["single_edges"]:
        parts.append(single_edges(results["single_edges"], unit))
    if results["auc"]:
        parts += sizes(results)
    parts += robustness(results["robustness"]) if results["robustness"] else []
    if results["known"]:
        parts.append(table("Against the true circuit", _columns("measure", "value"), results["known"].items()))
    return parts


def sentence(results: Mapping[str, Any], context: Context) -> str:
    """The answer, why, how many criteria say what, and where the circuit is too small, which size would do."""
    counts = {kind: sum(line["verdict"] == kind for line in results["criteria"]) for kind in MARKS}
    edges = len(context.reopened.circuit)
    text = (
        f"{results['answer']}: {results['reason']}\nOf {len(results['criteria'])} criteria the circuit of {edges:,} "
        f"edges passes {counts['pass']} and fails {counts['fail']}; {counts['unclear']} inconclusive. "
    )
    held_out = context.prompts.held_out
    text += (
        f"All of it is measured on {len(held_out)} held-out prompts."
        if held_out is not None
        else "All of it is measured on the prompts that chose the circuit."
    )
    share = next(line["value"] for line in results["criteria"] if line["name"] == "faithfulness")
    curve = context.reopened.run.manifest["results"].get("curve", {"sizes": (), "circuit": ()})
    points = zip(curve["sizes"], curve["circuit"], strict=True)
    larger = [size for size, point in points if size > edges and (point["value"] or 0.0) >= ENOUGH]
    if share < ENOUGH and larger:
        text += f" The circuit of {larger[0]:,} edges by the same scores reaches a faithfulness of {ENOUGH:g}."
    return text


def criteria(lines: Sequence[Mapping[str, Any]]) -> Table:
    """One row a criterion: its verdict, value with interval, what passes, and what it is compared with."""
    rows = (
        (
            WORDS[line["verdict"]],
            line["name"],
            line["said"] or rounded(line),
            line["threshold"],
            "; ".join(part for part in (line["null"], line["note"]) if part),
        )
        for line in lines
    )
    columns = ("verdict", "criterion", "value", "passes at", "compared with")
    return table("The verdict", columns, rows, marks=tuple(MARKS[line["verdict"]] for line in lines))


def _columns(text: str, *numbers: str, style: str = "number", decimals: int = 3) -> list[tuple[Any, ...]]:
    """A column of texts, and columns of numbers."""
    return [(text,), *((name, style, decimals) for name in numbers)]


def faithfulness(results: Mapping[str, Any]) -> list[Block]:
    """Every definition, circuits made by chance, templates, prompts, ablations."""
    variants = [(name, cell(value), value["unit"]) for name, value in results["variants"].items()]
    chance = [
        (name, len(values), sum(values) / len(values), min(values, key=lambda share: abs(1 - share)))
        for name, values in results["nulls"].items()
        if values
    ]
    templates = [(name, cell(value)) for name, value in results["templates"].items()]
    ablations = [(other["name"], cell(other["edges"]) or other["note"]) for other in results["ablations"]]
    definitions = [*_columns("definition", "value", style="estimate"), "unit"]
    share = _columns("", "faithfulness", style="estimate")
    tables: tuple[tuple[str, Any, Any], ...] = (
        ("Faithfulness, as papers define it", definitions, variants),
        ("Circuits made by chance", _columns("kind", "circuits", "mean", "nearest to 1"), chance),
        ("Faithfulness by template", share, templates),
        ("Faithfulness over prompts", _columns("", "faithfulness"), results["spread"].items()),
        ("Faithfulness under other ablations", share, ablations),
    )
    return [
        table(title, columns, rows, where="page" if i else "everywhere")
        for i, (title, columns, rows) in enumerate(tables)
        if rows
    ]


def completeness(sets: Sequence[Mapping[str, Any]], unit: str) -> list[Block]:
    """The metric of the circuit over that of the model, the same nodes knocked out of both; folded, every set."""
    note = (
        "Each point is a set of nodes knocked out of the circuit and of the model. On the diagonal both suffer alike; "
        "off it the model has parts that the circuit lacks. greedy: the worst sets that a search came upon."
    )
    kinds = {"random": "random sets", "greedy": "greedy"}
    known = [s for s in sets if formats.finite(s["model"]) is not None and formats.finite(s["circuit"]) is not None]
    scatter = Scatter(
        title="Completeness",
        note=note,
        x=f"model without them, {unit}",
        y=f"circuit without them, {unit}",
        points=tuple((s["model"], s["circuit"], f"{s['kind']}, {len(s['nodes'])} nodes") for s in known),
        groups=tuple(kinds.get(s["kind"], "groups") for s in known),
        diagonal=True,
        where="page",
    )
    rows = ((s["kind"], s["circuit"], s["model"], s["score"], ", ".join(s["nodes"])) for s in known)
    columns = [*_columns("set", "circuit", "model", "incompleteness"), "nodes"]
    return [scatter, table("Every set of nodes", columns, rows, folded=True)]


def minimality(scores: Mapping[str, float]) -> Table:
    """What the circuit loses without each part, least first."""
    ranked = sorted(scores.items(), key=lambda item: item[1])
    note = "What the circuit loses without each node, or without all edges into a reader, least first."
    columns = (("part", "node"), ("share of the gap", "number", 4))
    return table("Minimality", columns, ranked, note=note, top=SHOWN, where="page")


def single_edges(tested: Mapping[str, Any], unit: str) -> Table:
    """The edges that were tested one by one, least needed first."""
    useless = sorted(tested["useless"])
    note = (
        f"{len(tested['changes'])} edges of the circuit, left out one by one, against {len(useless)} edges of random "
        f"paths that were added (median change {useless[len(useless) // 2]:.3g}). {len(tested['unneeded'])} of them "
        "are no better."
    )
    ranked = sorted(tested["changes"].items(), key=lambda item: item[1])
    rows = ((e, v, "no better than a useless edge" if e in tested["unneeded"] else "") for e, v in ranked)
    columns = (("edge", "node"), ("change of the metric", "number", 4, unit), "")
    return table("Single edges", columns, rows, note=note, top=SHOWN, where="page")


def sizes(results: Mapping[str, Any]) -> list[Block]:
    """CPR and CMD, and the curve they are areas of."""
    areas = results["auc"]
    note = (
        "Areas of faithfulness f over the share p of edges. CPR is the integral of f (circuits by signed score), CMD "
        "that of |1 - f| (by size of the score); on the linear axis half the weight lies above p = .5."
    )
    rows = (("linear axis", areas["cpr"], areas["cmd"]), ("logarithmic axis", areas["cpr_log"], areas["cmd_log"]))
    points = [tuple(map(formats.finite, point)) for point in results["curve"]]
    share, signed, size = zip(*points, strict=True)
    curve = size_lines(
        [Series(name="by signed score", x=share, y=signed), Series(name="by size", x=share, y=size)],
        title="Faithfulness by share of the edges",
        x="share of the edges",
        y="faithfulness f",
        where="page",
    )
    columns = _columns("share of the edges", "f, by signed score", "f, by size")
    named = ((f"{p:g}", *shares) for p, *shares in points)
    return [
        table("Areas under the curve", _columns("axis", "CPR", "CMD"), rows, note=note),
        curve,
        table("Points of the curve", columns, named, folded=True),
    ]


def robustness(sections: Mapping[str, Any]) -> list[Block]:
    """Tables of every section, or why there is none."""
    drawn = {
        "backups": ("Heads ablated, and who took over", _backups),
        "transfer": ("On other prompts and tasks", _transfer),
        "stability": ("On resampled prompts", _stability),
        "rephrasing": ("In other words", _rephrasing),
        "methods": ("Overlap of methods (Jaccard of edges)", _methods),
    }
    parts: list[Block] = []
    for name, (title, draw) in drawn.items():
        section = sections.get(name, {"note": "not measured"})
        if "note" in section:
            parts.append(Note(title=title, text=section["note"], where="page"))
        else:
            parts.append(draw(title, section))
    return parts


def _backups(title: str, measured: Mapping[str, Any]) -> Table:
    estimates = ("intact", "left", "effect", "direct", "repaired")
    intact, left, effect, direct, repaired = (written(measured[name]) for name in estimates)
    risen = ", ".join(part["name"] for part in measured["rediscovery"]["rises"][:8])
    note = (
        f"Ablated ({measured['ablation']}): {', '.join(measured['ablated'])}. The metric is {intact} before and {left} "
        f"after, a change of {effect}. Without any reaction it would have changed by {direct}; the others gave "
        f"{repaired} back. Backups: {', '.join(measured['backups']) or 'none'}. Searched again without them, these "
        f"matter more than before: {risen}. Direct effects are negative where the part helps."
    )
    rows = []
    for part in measured["reactions"][:10]:
        effects = (cell(part[key]) for key in ("before", "after", "change"))
        rows.append((part["name"], *effects, "backup" if part["name"] in measured["backups"] else ""))
    columns = _columns("part", "direct effect before", "after", "change", style="estimate")
    return table(title, [*columns, ""], rows, note=note, where="page")


def _transfer(title: str, measured: Mapping[str, Any]) -> Table:
    note = "Faithfulness of the circuit of each row on the prompts of each column; the first row is this circuit."
    names, shares = measured["names"], measured["faithfulness"]
    rows = [(name, *(share["value"] for share in row)) for name, row in zip(names, shares, strict=True)]
    rows.append(("edges shared with the first search", *measured["overlap"]["edges"][0]))
    return table(title, _columns("circuit of", *names, decimals=2), rows, note=note, where="page")


def _stability(title: str, measured: Mapping[str, Any]) -> Table:
    kinds = {
        "edges": "edges",
        "nodes": "nodes",
        "ranks": "rank correlation of edges",
        "node_ranks": "rank correlation of nodes",
        "edges_halves": "edges, disjoint halves",
    }
    rows = ((words, cell(measured[name])) for name, words in kinds.items())
    chance = measured["chance_edges"]
    note = f"Jaccard with the circuit of all prompts; random circuits share {chance:.3f} of their edges."
    columns = _columns("of", "mean, and 95 % of draws", style="estimate")
    return table(title, columns, rows, note=note, where="page")


def _rephrasing(title: str, measured: Mapping[str, Any]) -> Table:
    note = (
        f"Jaccard of the {measured['size']:,} strongest edges by EAP-IG between halves of the templates, and what it "
        "is where prompts exchange their templates at random, with 95 % of draws. Below these, the wording changes the "
        f"circuit more than other prompts do. {measured['template_specific']}".strip()
    )
    rows = (
        (way["name"], way["groups"], way["between"], cell(way["exchanged"]), "template-specific" * way["specific"])
        for way in measured["ways"]
    )
    columns = (
        *("between", ("number of them", "count"), ("Jaccard", "number", 3)),
        *(("where exchanged", "estimate", 3), ""),
    )
    return table(title, columns, rows, note=note, where="page")


def _methods(title: str, measured: Mapping[str, Any]) -> Table:
    rows = ((name, *row) for name, row in zip(measured["names"], measured["edges"], strict=True))
    return table(title, _columns("", *measured["names"], decimals=2), rows, where="page")


def holds(settings: Validate, manifest: Mapping[str, Any]) -> bool:
    """Whether the circuit is established, where that is insisted on."""
    return not settings.strict or manifest["answer"] == "ESTABLISHED"


STUDY = Study("validate", Validate, run, work, holds)
