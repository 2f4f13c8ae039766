"""The block of trainings that a reader goes through step by step, made of what a run measured."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Checkpoints
from circuitome.present.watched import StepAttention, StepCircuit, StepHeads, StepNumbers, Watched
from circuitome.studies.pieces import head_names

if TYPE_CHECKING:
    import circuitome as cm

NUMBERS = {"size_for_.9": "edges for .9 of the gap", "jaccard": "Jaccard index with the last step", "metric": "metric"}
"""What is told of the circuit of a step, by its name among the results."""
ALL_HEADS = 8
"""Heads of a model whose attention is kept for all of them; of larger models for the best of each score."""
NOTE = (
    "Move the slider to a step of the training: scores of all heads, where a head attends in one example, and the "
    "circuits of this step. Without the page's script the last step is shown."
)


def checkpoints(results: Mapping[str, Any], title: str = "Step by step") -> list[Checkpoints]:
    """The block, where heads were measured."""
    if not results.get("heads"):
        return []
    return [Checkpoints(title=title, note=NOTE, runs=(watched(results),), where="page")]


def watched(results: Mapping[str, Any]) -> Watched:
    """A training at each of its watched steps."""
    steps = sorted({step for curve in results["curves"].values() for step in curve["steps"]})
    scores = [_heads(score, steps) for score in results["heads"].values()]
    first = next(iter(results["heads"].values()))["mean"][-1]
    example = results.get("example") or {"tokens": [], "heads": []}
    return Watched(
        name=results["name"],
        steps=tuple(steps),
        layers=len(first),
        heads=len(first[0]),
        numbers=tuple(
            StepNumbers(name=curve["title"], values=_at(steps, curve["steps"], map(_short, curve["value"])))
            for curve in results["curves"].values()
        ),
        scores=tuple(scores),
        tokens=tuple(example["tokens"]),
        attention=tuple(
            StepAttention(head=head["head"], values=_at(steps, example["steps"], map(_matrix, head["attention"])))
            for head in example["heads"]
        ),
        circuits=tuple(
            StepCircuit(task=task, values=_at(steps, found["steps"], _circuits(found)))
            for task, found in results.get("circuits", {}).items()
        ),
    )


def example(watched: "cm.dynamics.Development", tokens: Sequence[str]) -> dict[str, Any]:
    """Attention in the example at each step, of the best heads, as plain JSON values; nothing where it was not kept."""
    kept = [(step, each) for step, each in zip(watched.steps, watched.attention, strict=False) if each is not None]
    if not kept:
        return {}
    layers, heads = kept[0][1].shape[:2]
    best = [watched.best_head(name) for name in watched.values if watched.about(name).heads]
    others = [(layer, head) for layer in range(layers) for head in range(heads)] if layers * heads <= ALL_HEADS else []
    chosen = list(dict.fromkeys([*best, *others]))
    return {
        "tokens": list(tokens),
        "steps": [step for step, _ in kept],
        "heads": [
            {"head": name, "attention": [each[layer, head].tolist() for _, each in kept]}
            for name, (layer, head) in zip(head_names(chosen), chosen, strict=True)
        ],
    }


def _heads(score: Mapping[str, Any], steps: Sequence[int]) -> StepHeads:
    means = [tuple(tuple(map(_short, layer)) for layer in mean) for mean in score["mean"]]
    last = [(value or 0.0, layer, head) for layer, row in enumerate(means[-1]) for head, value in enumerate(row)]
    _, layer, head = max(last, key=lambda place: place[0])
    (best,) = head_names([(layer, head)])
    return StepHeads(name=score["about"], values=_at(steps, score["steps"], means), best=best)


def _circuits(found: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """By step, the strongest edges and the numbers that there are; None at steps without edges."""
    numbers = {words: found[name] for name, words in NUMBERS.items() if name in found}
    return [
        {"edges": edges, "numbers": {words: _short(values[i]) for words, values in numbers.items()}} if edges else None
        for i, edges in enumerate(found["edges"])
    ]


def _matrix(pattern: Sequence[Sequence[float]]) -> tuple[tuple[float | None, ...], ...]:
    """Rows of attention up to the last key that has any, with two decimals, which the eye tells apart."""
    rows = [[round(value, 2) for value in row] for row in pattern]
    return tuple(tuple(row[: max((i + 1 for i, value in enumerate(row) if value), default=0)]) for row in rows)


def _at(steps: Sequence[int], known: Sequence[int], values: Any) -> tuple[Any, ...]:
    """A value for each step, None where there is none."""
    by_step = dict(zip(known, values, strict=True))
    return tuple(by_step.get(step) for step in steps)


def _short(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.4g}")
