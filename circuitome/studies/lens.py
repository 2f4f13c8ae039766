"""Logit lens: what the model would predict after each of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Column, HeatMap, Lede, Table, table
from circuitome.studies.context import Context
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work

MAPS = (
    ("Probability of the target", "target_probability", "probability", "After each part, at each position."),
    ("Distance to the end", "kl", "nats", "KL divergence of the last prediction from that after each part."),
)
"""Title, result, unit and note of each map over parts and positions."""


@dataclass(frozen=True, kw_only=True)
class Lens(ModelSettings):
    """Logit lens: what the model would predict after each of its parts."""

    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[str, Argument] = ""
    """The prompt."""
    target: str | None = None
    """A token to follow, with its leading space, e.g. " Mary"; by default the model's own prediction."""
    last: int = 1
    """Positions whose tables are shown, counted from the end; the run holds all."""

    @override
    def check(self) -> None:
        if self.last < 1:
            raise InputError(f"--last is a number of positions and must be at least 1, got {self.last}.")


def work(settings: Lens, context: "Context") -> Work:
    """One pass, and the unembedding after every part."""
    return Work(texts=1, tokens=max(1, len(context.model.encode(settings.prompt))), forward=3.0)


def run(settings: Lens, context: "Context") -> Findings:
    """Prediction, probability and rank of the target, distance to the end, part by part at every position."""
    import torch

    results = cm.logit_lens(context.model, settings.prompt, target=settings.target).to_dict()
    keys = ("probability", "target_probability", "rank", "kl", "entropy")
    return Findings(
        title=f"Logit lens of {settings.prompt!r} in {settings.model}",
        sign="Probabilities after the final norm and the unembedding of the stream behind each part; KL is to the end.",
        results=results,
        blocks=blocks(results, settings.last),
        tensors={key: torch.tensor(results[key], dtype=torch.float32) for key in keys},
        more={"prompt": settings.prompt, "data_hash": settings.prompt},
    )


def blocks(results: Mapping[str, Any], last: int) -> list[Block]:
    """Where the prediction appears, maps over parts and positions, and tables of the last positions."""
    stages, tokens = results["stages"], results["tokens"]
    first = next(
        i for i in range(len(stages)) if all(rank[-1] == 1 for rank in results["rank"][i:]) or i == len(stages) - 1
    )
    target = results["target_names"][-1]
    text = (
        f"After {tokens[-1]!r}, {target!r} is the likeliest next token from {stages[first]} on; in the end its "
        f"probability is {results['target_probability'][-1][-1]:.3f}."
    )
    columns = tuple(f"{i} {token.strip() or repr(token)}" for i, token in enumerate(tokens))
    maps = (
        HeatMap(
            title=title,
            note=note,
            rows=tuple(stages),
            columns=columns,
            labels=tuple(tuple(f"{stage}, {c}" for c in columns) for stage in stages),
            values=tuple(map(tuple, results[key])),
            unit=unit,
            scale="positive",
            upwards=True,
            where="page",
        )
        for title, key, unit, note in MAPS
    )
    return [Lede(text=text), *(at_position(results, at) for at in range(len(tokens))[-last:]), *maps]


def at_position(results: Mapping[str, Any], at: int) -> Table:
    """Stage by stage: prediction, probability and rank of the target, distance to the end."""
    target = f"p({results['target_names'][at]!r})"
    columns: list[Any] = [("after", "node"), "top token", ("p", "number", 3), (target, "number", 3), ("rank", "count")]
    columns += [("KL to the end", "number", 2, "nats"), Column("entropy", "number", 2, narrow=False)]
    names, best = ([row[at] for row in results[key]] for key in ("names", "probability"))
    others = ([row[at] for row in results[key]] for key in ("target_probability", "rank", "kl", "entropy"))
    rows = zip(results["stages"], map(repr, names), [p[0] for p in best], *others, strict=True)
    return table(f"After {results['tokens'][at]!r} (position {at})", columns, rows)


STUDY = Study("lens", Lens, run, work)
