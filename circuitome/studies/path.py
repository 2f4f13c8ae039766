"""Path patching: what reaches receivers from each sender, through no other head; or the trace back from the logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.present.blocks import Block, Edge, Figure, Note, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, circuit_map, effect_blocks, effect_results, effect_tensors, strongest
from circuitome.studies.settings import Flag, Names, PromptSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.discovery.patching.tracing_back import Trace

SIGN = (
    "An effect is the metric when the target gets what the upstream node writes on the corrupted prompt, minus that of "
    "the clean run, mean over prompts: negative where the path helps."
)


SCREENED = 3.0
"""Forward passes for a target whose senders are screened; measured on SmolLM2."""


@dataclass(frozen=True, kw_only=True)
class Path(PromptSettings):
    """Path patching: what reaches receivers from each sender, through no other head; or the trace from the logits."""

    to: Names = ("logits",)
    """Receivers, with commas between: logits, or inputs such as a9.h6.q, a9.kv2.v, m7.in."""
    senders: Annotated[Names, Parameter(name="--from")] = ()
    """Senders, with commas between, e.g. a5.h1,m3,embed; all by default."""
    positions: Names = ("all",)
    """Where senders are patched: all, end, roles of the task such as S2, or numbers; with commas between."""
    to_positions: Names = ()
    """Where receivers are; by default the end for queries and logits, all for others."""
    freeze_mlps: Flag = False
    """Keep MLPs between sender and receiver clean."""
    depth: int = 0
    """Trace back: keep the senders that matter to the logits, ask who writes into their inputs, and so on, so often."""
    width: int = 5
    """Senders that the trace keeps for a receiver at most."""
    threshold: float = 0.02
    """Effect that a kept sender has at least, as a share of the gap between clean and corrupted metric."""
    exact: Flag = False
    """Patch every sender of every target on the way back; by default estimates leave out those that cannot matter."""

    @override
    def check(self) -> None:
        if self.depth < 0:
            raise InputError(f"--depth counts steps back from the logits and must be 0 or more, got {self.depth}.")
        if self.depth and (self.to != ("logits",) or self.senders not in ((), ("all",))):
            raise InputError("A trace back (--depth) starts at the logits with all senders; leave out --to and --from.")
        super().check()


def work(settings: Path, context: Context) -> Work:
    """About eight passes for all senders of a target; a trace tests more targets the deeper it goes."""
    receivers = 1 if not settings.depth else sum((3 * settings.width) ** level for level in range(settings.depth))
    later = receivers - 1  # all senders of the logits are patched, and of later targets those that can matter
    forward = 10.0 + (8.0 if settings.exact else SCREENED) * later
    return Work.over(context.task, forward=forward, notes={"receivers": receivers})


def run(settings: Path, context: Context) -> Findings:
    """One map of effects, or those of all receivers on the way back."""
    setting, tensors = context.setting, dict[str, Any]()
    if settings.depth:
        options = {name: getattr(settings, name) for name in ("depth", "width", "threshold", "freeze_mlps", "exact")}
        trace = cm.trace_back(setting, **options)
        maps, receivers, count = [m for level in trace.levels for m in level], tree(trace), len(trace.circuit)
        kept = Figure(name="Edges kept", value=count, style="count", about=f"{len(receivers):,} targets tested")
        lede, cards, *rest = effect_blocks(setting, maps, more=(kept,), on_terminal=1)
        blocks = [lede, cards, *traced(setting.model.graph, receivers, trace, setting.task.unit), *rest]
        more, tensors = {"tree": receivers, "edges": count}, {"circuit": trace.circuit.mask}
        more["circuit"] = list(trace.circuit)
    else:
        effects = cm.path_patch(
            setting,
            settings.to,
            senders=None if settings.senders in ((), ("all",)) else settings.senders,
            sender_positions=positions_of(settings.positions),
            receiver_positions=positions_of(settings.to_positions) if settings.to_positions else None,
            freeze_mlps=settings.freeze_mlps,
        )
        maps, blocks, more = [effects], effect_blocks(setting, [effects]), {"to": list(settings.to)}
    return Findings(
        title=f"Path patching: {context.task.name} in {settings.model}",
        sign=SIGN,
        results=effect_results(maps),
        blocks=blocks,
        tensors=effect_tensors(maps) | tensors,
        more=more,
    )


def positions_of(names: Sequence[str]) -> str | list[str | int]:
    """Positions as `path_patch` wants them: digits are indices."""
    positions: list[str | int] = [int(name) if name.lstrip("-").isdigit() else name for name in names]
    return positions[0] if len(positions) == 1 and isinstance(positions[0], str) else positions


def tree(trace: "Trace") -> list[dict[str, Any]]:
    """Every receiver with its strongest senders and which of them were kept."""
    graph, rows = trace.circuit.graph, []
    for depth, (receivers, maps) in enumerate(zip(trace.receivers, trace.levels, strict=True)):
        for receiver, effects in zip(receivers, maps, strict=True):
            kept = trace.circuit.mask[:, graph.column(receiver)]
            senders = strongest(effects.top(max(5, int(kept.sum()))))
            senders = [{**sender, "kept": bool(kept[graph.row(sender["label"])])} for sender in senders]
            rows.append({"receiver": receiver, "depth": depth, "senders": senders})
    return rows


def traced(graph: "cm.Graph", receivers: Sequence[dict[str, Any]], trace: "Trace", unit: str) -> list[Block]:
    """The kept edges on the model's grid, then every target with its upstream nodes, depth by depth."""
    kept = [(r["depth"], r["receiver"], s) for r in receivers for s in r["senders"] if s["kept"]]
    edges = (Edge(source=s["label"], reader=to, score=s["mean"], low=s["low"], high=s["high"]) for _, to, s in kept)
    rows = [(depth, to, s["label"], cell(s)) for depth, to, s in kept]
    left = [
        (
            r["depth"],
            r["receiver"],
            ", ".join(f"{s['label']} {formats.fixed(s['mean'], 3)}" for s in r["senders"] if not s["kept"]),
        )
        for r in receivers
    ]
    nothing = sum(not any(s["kept"] for s in r["senders"]) for r in receivers)
    note = (
        "Of each target the strongest upstream nodes whose effect is large enough and whose interval leaves out zero "
        f"are kept; for {nothing:,} of {len(receivers):,} targets nothing was kept."
    )
    ends = (("depth", "count"), ("target", "node"))
    columns = (*ends, ("upstream node kept", "node"), ("effect", "estimate", 3, unit))
    screened = [part for level in trace.screened for part in level]
    if screened:
        patched, rest = (sum(getattr(part, name) for part in screened) for name in ("patched", "left"))
        note += (
            f" Behind the logits {patched:,} upstream nodes were patched. {rest:,} were not: to first order none of "
            f"them changes the metric by more than {max(part.bound for part in screened):.3g} {unit}; --exact patches "
            "them too."
        )
    unsure = Note(
        level="warning",
        text="With one prompt there is no interval over prompts: nodes were kept for the size of their effect alone, "
        "and none of them is certain.",
    )
    return [
        *(() if trace.certain else (unsure,)),
        circuit_map(graph, edges, title="Edges kept", unit=unit, top=0),
        table("Trace back from the logits", columns, rows, note=note),
        table("What was not kept", (*ends, "strongest upstream nodes not kept"), left, folded=True),
    ]


STUDY = Study("path", Path, run, work)
