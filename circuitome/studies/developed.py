"""Views of a development: curves of all measures over training steps with their onsets, and every head over steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import Block, HeatMap, Lede, Lines, Note, Series, Table, table
from circuitome.studies import watched_steps
from circuitome.studies.pieces import head_names

SIGN = (
    "A curve is the mean over held-out rows, sequences or pairs, with 95 % intervals; of scores of heads it is that of "
    "the head with the largest score at the end. An onset is where a curve begins to bend; sudden: its change is not "
    "what noise around a smooth curve shows (p < 0.01), at least half of its range, and no broad shape fits as well."
)
CHARTS = {
    "Loss": ("held_out_loss", "repeat_loss", "in_context"),
    "Strongest heads": ("previous", "induction", "copying_ratio"),
    "Composition of heads": ("q_composition", "k_composition", "v_composition"),
    "Syntax": ("uas", "uas_offsets", "subjects", "pairs"),
    "Norm of all weights": ("weight_norm",),
    "Intrinsic dimension": ("dimension",),
}
"""By title: the measures of a chart."""
TASK_CHARTS = {
    "How well {} is done": ("task_metric",),
    "Size of the circuit of {}": ("circuit_size",),
    "Circuit of {} beside that of the last step": ("circuit_jaccard", "strongest_jaccard"),
}
"""The same for each task whose circuits were looked for."""
STRONGEST = 12
"""Edges of a circuit that are listed."""
SHOWN = 16
"""Steps of a map of heads."""


def tensors(watched: "cm.dynamics.Development") -> dict[str, Any]:
    """Samples of every measure at the steps that have it, and those steps."""
    import torch

    found: dict[str, Any] = {}
    for name, values in watched.values.items():
        kept = [(step, value) for step, value in zip(watched.steps, values, strict=True) if value is not None]
        found[name] = torch.stack([value for _, value in kept])
        found[f"{name}.steps"] = torch.tensor([step for step, _ in kept])
    if kept_patterns := [each for each in watched.attention if each is not None]:
        found["attention"] = torch.stack(kept_patterns)
    return found


def head_results(watched: "cm.dynamics.Development", tokens: Sequence[str]) -> dict[str, Any]:
    """Means of all heads over steps, and attention in the example of these tokens, as plain JSON values."""
    found = {}
    for name in watched.values:
        if (about := watched.about(name)).heads:
            steps, means = watched.curve(name)[0], watched.heads(name)
            found[name] = {"about": about.about, "steps": steps, "mean": means.tolist()}
    return {"heads": found, "example": watched_steps.example(watched, tokens)}


def blocks(results: Mapping[str, Any], words: str = "") -> list[Block]:
    """What changed suddenly and in which order, the curves, and all heads over steps."""
    return [
        Lede(text=f"{words}{sentence(results)}"),
        onsets_table(results, where="page"),
        onsets_table(results, where="terminal"),
        *watched_steps.checkpoints(results),
        *charts(results),
        *(block for task, found in results.get("circuits", {}).items() for block in circuit_blocks(task, found)),
        *([strongest_heads(results)] if "previous" in results.get("heads", {}) else []),
        *(head_steps(score) for score in results.get("heads", {}).values()),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """What changed suddenly, in order."""
    curves, onsets = results["curves"], results["onsets"]
    sudden = sorted((at["step"], name) for name, at in onsets.items() if at["sudden"])
    if not sudden:
        return f"None of {len(curves)} curves changes suddenly."
    parts = [f"{curves[name]['title']} from step {step:,}" for step, name in sudden]
    return f"{len(sudden)} of {len(curves)} curves change suddenly: {', '.join(parts)}."


def frozen_sentence(frozen: Mapping[str, Any] | None) -> str:
    """Which heads were frozen, and when; nothing where none was."""
    return "" if frozen is None else f"From step {frozen['step']:,} on {', '.join(frozen['heads'])} learned nothing. "


def strongest_heads(results: Mapping[str, Any]) -> Table:
    """The head with the largest score of each kind, step by step: one that takes over from another is seen here."""
    scores = {name: score for name, score in results["heads"].items() if name in ("previous", "induction")}
    steps = next(iter(scores.values()))["steps"]
    columns = [
        "step",
        *(part for score in scores.values() for part in ((score["about"], "node"), ("score", "number", 2))),
    ]
    rows = [
        (f"{steps[i]:,}", *(cell for score in scores.values() for cell in best(score["mean"][i])))
        for i in some_rows(range(len(steps)))
    ]
    return table("Strongest heads over steps", columns, rows, where="page")


def best(means: Sequence[Sequence[float]]) -> tuple[str, float]:
    """The head with the largest of the means [layer][head], and its mean."""
    value, layer, head = max((value, layer, head) for layer, row in enumerate(means) for head, value in enumerate(row))
    return head_names([(layer, head)])[0], value


def onsets_table(results: Mapping[str, Any], where: str) -> Table:
    """The onset of each curve with its interval, how sudden it is, and the curve's ends; on a page, what it is, too."""
    curves, onsets = results["curves"], results["onsets"]
    rows = []
    for name, curve in curves.items():
        at = onsets.get(name)
        onset = (None, None, None) if at is None else (at["step"], at["low"], at["high"])
        verdict = "" if at is None else "yes" if at["sudden"] else "no"
        p = "" if at is None else "< 0.001" if at["p"] < 0.001 else f"{at['p']:.3f}"
        rows.append((curve["title"], onset, verdict, p, curve["value"][0], curve["value"][-1], curve["about"]))
    ends = (("first", "number", 2), ("last", "number", 2))
    columns = ("curve", ("onset, step", "estimate", 0), "sudden", "p", *ends, "what it is")
    shown = slice(None if where == "page" else -1)
    return table("Onsets", columns[shown], (row[shown] for row in rows), where=where)


def charts(results: Mapping[str, Any]) -> list[Lines]:
    """The curves on one logarithmic axis of steps."""
    curves, onsets, drawn = results["curves"], results["onsets"], []
    tasks = {
        title.format(task): tuple(f"{kind}:{task}" for kind in kinds)
        for task in results.get("circuits", {})
        for title, kinds in TASK_CHARTS.items()
    }
    for title, names in {**CHARTS, **tasks}.items():
        here = [name for name in names if name in curves]
        sudden = sorted({onsets[name]["step"] for name in here if _sudden(onsets, name)})
        marks = tuple((f"{step:,}", step) for step in sudden)
        units = {curves[name]["unit"] for name in here}
        if here:
            lines = tuple(line(curves[name]) for name in here)
            drawn.append(Lines(title=title, x="training step", y=_axis(units), series=lines, log_x=True, marks=marks))
    return drawn


def _sudden(onsets: Mapping[str, Any], name: str) -> bool:
    return name in onsets and bool(onsets[name]["sudden"])


def _axis(units: set[str]) -> str:
    return ", ".join(sorted(units - {""})) or "norm"


def line(curve: Mapping[str, Any], name: str = "") -> Series:
    """A curve from its first step above 0, which a logarithmic axis has; its name is its title unless given."""
    kept = [i for i, step in enumerate(curve["steps"]) if step > 0]
    parts = {end: tuple(curve[end][i] for i in kept) for end in ("value", "low", "high")}
    banded = any(value is not None for value in parts["low"])
    low, high = (parts["low"], parts["high"]) if banded else ((), ())
    steps = tuple(curve["steps"][i] for i in kept)
    return Series(name=name or curve["title"], x=steps, y=parts["value"], low=low, high=high)


def circuit_blocks(task: str, found: Mapping[str, Any]) -> list[Block]:
    """Faithfulness by size over steps, and the strongest edges of the last step with when they came to stay."""
    if not any(found["faithfulness"]):
        text = f"{task} is done at no step: the whole model is hardly better at it than with everything ablated."
        return [Note(text=f"{text} So faithfulness is undefined, and there are no circuits.")]
    done = [i for i, shares in enumerate(found["faithfulness"]) if shares]
    rows = some_rows(done)
    last = zip(found["edges"][-1], found["since"], strict=True)
    edges = [(edge, score, "" if step is None else f"{step:,}") for (edge, score), step in last][:STRONGEST]
    return [
        HeatMap(
            title=f"Faithfulness of the strongest edges for {task}, by size",
            note="Share of the gap between ablated and whole model on held-out prompts, at steps where there is a gap.",
            rows=tuple(f"{found['steps'][i]:,}" for i in rows),
            columns=tuple(f"{size:,}" for size in found["sizes"]),
            values=tuple(tuple(found["faithfulness"][i]) for i in rows),
            upwards=False,
            top=0,
            where="page",
        ),
        table(
            f"Strongest edges for {task} at the last step",
            (
                ("edge", "node"),
                ("score", "signed", 3, found["score_unit"]),
                ("in the circuit since step", "text", None, "", "the circuit that keeps .9; nothing: it is not in it"),
            ),
            edges,
        ),
    ]


def some_rows(numbers: Sequence[int]) -> list[int]:
    """Some of the numbers, evenly, the first and the last among them: as many as a map shows."""
    count = len(numbers)
    shown = min(SHOWN, count)
    return [numbers[i] for i in sorted({round(k * (count - 1) / max(1, shown - 1)) for k in range(shown)})]


def head_steps(score: Mapping[str, Any]) -> HeatMap:
    """A score of every head, step by step."""
    steps, means = score["steps"], score["mean"]
    rows = some_rows(range(len(steps)))
    layers, heads = len(means[0]), len(means[0][0])
    values = tuple(tuple(formats.finite(v) for layer in means[row] for v in layer) for row in rows)
    return HeatMap(
        title=f"All heads over steps: {score['about']}",
        rows=tuple(f"{steps[row]:,}" for row in rows),
        columns=tuple(head_names((layer, head) for layer in range(layers) for head in range(heads))),
        values=values,
        scale="signed" if any((value or 0.0) < 0 for row in values for value in row) else "positive",
        upwards=False,
        top=0,
        where="page",
    )
