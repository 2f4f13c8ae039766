"""Which way the information for a prediction took: one prompt, one forward pass, no corrupted prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.present.blocks import Block, Column, Lede, RouteEdge, RouteNode, Routes, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import batch_of_routes
from circuitome.studies.settings import Argument, Flag, ModelSettings, Names
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.discovery.routes.tracing import RouteSettings

LOWEST = 0.02
"""Threshold down to which a plain route is kept, so that the page's slider can go below the one it is shown at."""
SHOWN, READ, NEURON_NODES = 12, 60, 2
"""Heads, and MLPs, in a table and to click in the drawing; MLPs whose neurons are shown by default."""
SAID = 4
"""Tokens of a part that the drawing names."""


def _place(kind: Any, tokens: Any) -> int:
    """A position: last is -1. Raises `InputError` for anything but a number."""
    text = tokens[0].value
    if text == "last":
        return -1
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--position {text!r} is no position; write last or a number such as 5 or -2.") from None


@dataclass(frozen=True, kw_only=True)
class Trace(ModelSettings):
    """Trace which way the information for a prediction took: one prompt, one forward pass, no corrupted prompt."""

    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[str, Argument] = ""
    """The text."""
    position: Annotated[int, Parameter(converter=_place, n_tokens=1)] = -1
    """The token after which the prediction is made: last, or a number (from 0; negative from the end)."""
    threshold: float = 0.04
    """Least importance of an edge, a share of the node it goes into; between 0 and 1."""
    norm: str = "l1"
    """How far apart vectors are: l1 or l2."""
    renormalize: Flag = False
    """Set parts below the threshold to 0 and bring the rest to a sum of 1."""
    contrast: tuple[str, str] | None = None
    """Two tokens: measure parts of the last token by what they add to the logit difference, e.g. " Mary" " John"."""
    generate: int = 0
    """Generate so many tokens, the likeliest each time, and trace each."""
    neurons: Names = ()
    """MLP nodes whose neurons to show, e.g. m29@13, with commas between; the strongest by default."""

    @override
    def check(self) -> None:
        self.route_settings()
        if self.generate < 0:
            raise InputError(f"--generate is a number of tokens and must be 0 or more, got {self.generate}.")
        if self.generate and self.position != -1:
            raise InputError("--generate goes on from the end of the prompt; leave out --position.")

    def route_settings(self) -> "RouteSettings":
        """How parts are measured. A plain route is kept down to a lower threshold than it is shown at."""
        from circuitome.discovery.routes.tracing import RouteSettings

        lowest = self.threshold if self.renormalize else min(self.threshold, LOWEST)
        RouteSettings(self.threshold, self.norm)
        return RouteSettings(lowest, self.norm, self.renormalize, self.contrast)


def work(settings: Trace, context: Context) -> Work:
    """About two passes, and one for each generated token."""
    from circuitome.discovery.routes.tracing import prompt_ids

    tokens = len(prompt_ids(context.model, settings.prompt))
    taken = batch_of_routes(context.model, settings.max_memory, 1, tokens + settings.generate)
    return Work(texts=1, tokens=tokens + settings.generate, forward=2.1 + settings.generate, bytes=taken)


def run(settings: Trace, context: Context) -> Findings:
    """The route into a prediction, or into each generated token, with the tokens that its parts promote."""
    import torch

    from circuitome.discovery.routes.tracing import place_of, plain_task, prompt_ids, trace

    model = context.model
    ids = prompt_ids(model, settings.prompt)
    places = [place_of(settings.position, len(ids))]
    if settings.generate:
        ids, places = generated(context, ids, settings.generate)
    graphs = trace(context.setting, [ids], [places], settings.route_settings())[0]
    context.progress("tracing", 1, 1)
    tokens = [ids[graph.position + 1] if settings.generate else None for graph in graphs]
    routes = [traced_route(model, ids, graph, settings, token) for graph, token in zip(graphs, tokens, strict=True)]
    sign = (
        f"An importance is the share of a node that a part makes up (proximity, {settings.norm.upper()}): all parts "
        "of a node sum to 1."
    )
    if settings.contrast:
        sign += " Parts of the last token's stream are measured by what they add to the logit difference."
    return Findings(
        title=f"Routes of {formats.quoted(settings.prompt)}",
        sign=sign,
        results={"routes": routes},
        blocks=[block for route in routes for block in blocks(route)],
        tensors={"ids": torch.tensor(ids)},
        more={"prompt": settings.prompt, "data_hash": plain_task([ids]).data_hash()},
    )


def generated(context: Context, ids: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The prompt with `count` likeliest tokens behind it, and the positions after which each was predicted."""
    import torch

    from circuitome.discovery.routes.tracing import plain_task
    from circuitome.engine.batches import make_batch

    ids, first = list(ids), len(ids) - 1
    for done in range(count):
        batch = make_batch(context.model, plain_task([ids]), [0], shared_prefix=False, corrupted=False)
        with torch.no_grad():
            ids.append(int(context.model.logits(batch.clean)[0].argmax()))
        context.progress("generating", done + 1, count)
    return ids, list(range(first, first + count))


def traced_route(
    model: "cm.Model", ids: Sequence[int], graph: "cm.RouteGraph", settings: Trace, token: int | None
) -> dict[str, Any]:
    """One route as plain JSON, with tokens of its parts."""
    from circuitome.discovery.routes.parts import route_neurons, route_parts, route_pass

    shown = graph if settings.renormalize else graph.at(settings.threshold)
    nodes = settings.neurons or tuple(node for node, _ in shown.mlps()[:NEURON_NODES])
    seen = route_pass(model, ids, shown)
    return {
        **graph.to_dict(),
        "shown_threshold": settings.threshold,
        "generated": None if token is None else model.decode([token]),
        "parts": [vars(part) for part in route_parts(model, seen, shown, n=READ)],
        "neurons": {node: [vars(part) for part in route_neurons(model, seen, shown, node)] for node in nodes},
    }


def heading(route: Mapping[str, Any]) -> tuple[str, str]:
    """What the route leads to, and after what."""
    after = f"after {formats.quoted(route['tokens'][route['position']])}"
    if route["contrast"]:
        first, second = map(formats.quoted, route["contrast"])
        return f"{first} against {second}", after
    best = route["generated"] or (route["predictions"][0][0] if route["predictions"] else "")
    return formats.quoted(best), after


def drawn_route(route: Mapping[str, Any]) -> Routes:
    """The route over tokens and blocks."""
    target, after = heading(route)
    lowest, shown = route["threshold"], route["shown_threshold"]
    return Routes(
        title=f"{target} {after}",
        note="Columns are tokens, rows blocks; a circle is the residual stream, a square an MLP, blue lines are "
        f"attention. Lines are as wide as they are important. Drawn at threshold {shown:g}.",
        tokens=tuple(route["tokens"]),
        layers=route["layers"],
        target=route["target"],
        label=target,
        nodes=tuple(RouteNode(**node) for node in route["nodes"]),
        edges=tuple(RouteEdge(**{**edge, "heads": tuple(edge["heads"])}) for edge in route["edges"]),
        threshold=0.0 if route["renormalize"] else shown,
        lowest=lowest,
        slides=not route["renormalize"] and lowest < shown,
        parts=tuple(
            (part["name"], part["importance"], tuple(map(tuple, part["promotes"][:SAID]))) for part in route["parts"]
        ),
    )


def blocks(route: Mapping[str, Any]) -> list[Block]:
    """The route over tokens and blocks, and what its heads, MLPs and neurons say about the next token."""
    parts = route["parts"]
    guesses = ", ".join(f"{formats.quoted(token)} {100 * p:.0f} %" for token, p in route["predictions"])
    strongest = [part for kind in "am" for part in [part for part in parts if part["name"][0] == kind][:SHOWN]]
    title = "What heads and MLPs on the route say about the next token"
    return [
        Lede(text=f"Next token: {guesses}"),
        drawn_route(route),
        parts_table(title, strongest, "flow"),
        *(parts_table(f"Neurons of {node}", parts, "importance") for node, parts in route["neurons"].items()),
    ]


def parts_table(title: str, parts: Sequence[Mapping[str, Any]], what: str) -> Table:
    """Parts with their importance and the tokens that they promote and suppress; neurons with their activation."""
    active = bool(parts) and parts[0]["activation"] is not None
    rows = []
    for part in parts:
        words = (words_of(part[key]) for key in ("promotes", "suppresses"))
        rows.append((part["name"], part["importance"], *([part["activation"]] if active else []), *words))
    activation = [("activation", "number", 2)] if active else []
    lowered = Column("lowers the logits of", narrow=False)
    columns = (("part", "node"), (what, "number", 4), *activation, "raises the logits of", lowered)
    return table(title, columns, rows)


def words_of(tokens: Sequence[Sequence[Any]]) -> str:
    """Tokens with how much a part adds to their logits."""
    return ", ".join(f"{formats.quoted(token)} {value:+.2f}" for token, value in tokens)


STUDY = Study("trace", Trace, run, work)
