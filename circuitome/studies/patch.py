"""Activation patching: every head, MLP or place of the residual stream by itself, in both directions."""

from dataclasses import dataclass

from typing_extensions import override

import circuitome as cm
from circuitome.errors import unknown_name
from circuitome.studies.context import Context
from circuitome.studies.pieces import effect_blocks, effect_results, effect_tensors
from circuitome.studies.settings import Flag, PromptSettings
from circuitome.studies.study import Findings, Study, Work

SIGN = (
    "An effect is the metric of the patched run minus that of the unpatched one, mean over prompts. "
    "noise: corrupted activations in the clean run, negative where the part helps. "
    "denoise: clean activations in the corrupted run, positive where the part brings back some of the behaviour."
)


@dataclass(frozen=True, kw_only=True)
class Patch(PromptSettings):
    """Patch every head, MLP or place of the residual stream by itself, in both directions, and map the effects."""

    what: str = "heads"
    """heads, mlps or resid (the residual stream, position by position)."""
    by_position: Flag = False
    """Patch heads or MLPs position by position."""

    @override
    def check(self) -> None:
        from circuitome.discovery.patching.activation import WHAT

        if self.what not in WHAT:
            raise unknown_name("part", self.what, WHAT)
        super().check()


def work(settings: Patch, context: "Context") -> Work:
    """A part of a pass for every place, twice."""
    graph, longest = context.model.graph, max(len(pair.clean) for pair in context.task.pairs)
    places = graph.n_layers * (graph.n_heads if settings.what == "heads" else 1)
    positions = longest if settings.by_position or settings.what == "resid" else 1
    return Work.over(context.task, forward=2 * (1 + 0.17 * places * positions))


def run(settings: Patch, context: "Context") -> Findings:
    """Both directions of patching, a map each."""
    from circuitome.discovery.patching.activation import DIRECTIONS

    options = {"by_position": settings.by_position or None}
    maps = [cm.patch(context.setting, settings.what, direction=direction, **options) for direction in DIRECTIONS]
    return Findings(
        title=f"Activation patching: {context.task.name} in {settings.model}",
        sign=SIGN,
        results=effect_results(maps),
        blocks=effect_blocks(context.setting, maps),
        tensors=effect_tensors(maps),
        more={"what": settings.what},
    )


STUDY = Study("patch", Patch, run, work)
