"""Information flow routes: which way the information for one prediction took, from one prompt and one forward pass.

Every node of the residual stream is a sum of parts; a part's importance is the share of its proximity (see
`proximity.py`). From the final residual stream of a token the route goes back over every edge whose importance is at
least the threshold, so that only nodes on the route are taken apart.
Source: Ferrando and Voita 2024, arXiv:2403.00824. Departures: biases are parts of their own; a value bias counts once.

Under a contrast of two tokens the last token's stream is measured by the logit difference it adds up to: with c the
direction in the stream along which the difference grows (final norm's divisor held fixed), the importance of a part z
of x or mid at the last position is max(0, c . z) over the sum of that. All c . z sum to c . x. Other positions, where
the stream does not feed the logits itself, are measured by proximity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.graph import Incoming, RouteGraph, check_threshold, split_node
from circuitome.discovery.routes.proximity import (
    attention_projection,
    attention_proximity,
    check_norm,
    importances,
    proximity,
    renormalized,
)
from circuitome.engine.batches import group_rows, make_batch
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, NumericsError
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.models.placement import parameter
from circuitome.tasks.task import Pair, Task, continuation
from circuitome.weights.folding import unembedding_rows

THRESHOLD = 0.04
"""The threshold of the paper's figures."""
PREDICTIONS = 5
"""Likeliest next tokens that a route keeps."""

Prompt = str | Sequence[int]
"""A text, or token ids."""


@dataclass(frozen=True)
class RouteSettings:
    """How parts are measured and which edges are kept."""

    threshold: float = THRESHOLD
    """Least importance of an edge."""
    norm: str = "l1"
    """l1 or l2."""
    renormalize: bool = False
    """Whether parts below the threshold are set to 0 and the rest brought to a sum of 1."""
    contrast: tuple[str, str] | None = None
    """Two tokens whose logit difference the last token's parts are measured by."""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_norm(self.norm)


@method
def routes(
    setting: Setting,
    prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    position: int = -1,
    threshold: float = THRESHOLD,
    norm: str = "l1",
    renormalize: bool = False,
    contrast: tuple[str, str] | None = None,
) -> Any:
    """The route into the prediction after the token at `position`: a `RouteGraph` for one prompt, a list for several.

    A prompt is a text or token ids; several run in batches, whose size does not change the routes. Tokens after
    `position` (negative: from the end) do not count. `threshold` is the least importance of an edge, a share of the
    node it goes into. `renormalize` sets each part (one head at one key, residual, MLP) below the threshold to 0,
    brings the rest to a sum of 1, and then keeps all that is left. `contrast` is described in the module's docstring.

    >>> model = cm.load("known-ioi")
    >>> route = cm.routes(model, "Ann and Bob met then Bob gave to", threshold=0.1)
    >>> route.predictions[0][0], route.heads()[0][0]
    ('Ann', 'a2.h0')

    Raises `InputError` for an empty prompt, a position outside it, a threshold outside (0, 1) and a contrast token that
    is several tokens, `UnknownNameError` for another norm, `NumericsError` at NaN, `UnsupportedModelError` for a model
    that gives no attention probabilities.
    """
    model, settings = setting.model, RouteSettings(threshold, norm, renormalize, contrast)
    one = isinstance(prompts, str) or len(prompts) == 0 or isinstance(prompts[0], int)
    several: Any = [prompts] if one else prompts
    encoded = [prompt_ids(model, prompt) for prompt in several]
    targets = [[place_of(position, len(ids))] for ids in encoded]
    found = [graphs[0] for graphs in trace(setting, encoded, targets, settings)]
    return found[0] if one else found


@method
def trace(
    setting: Setting, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], settings: RouteSettings
) -> list[list[RouteGraph]]:
    """Routes into every target position of every prompt, from one forward pass a prompt."""
    model = setting.model
    tokens = None if settings.contrast is None else contrast_tokens(model, settings.contrast)
    task = plain_task(prompts)
    found: list[list[RouteGraph]] = [[] for _ in prompts]
    for rows in group_rows(model, task, shared_prefix=False, max_memory=setting.max_memory):
        seen = RoutePass.of(model, make_batch(model, task, rows, shared_prefix=False, corrupted=False).clean)
        goals = [Goal(index, target) for index, row in enumerate(rows) for target in targets[row]]
        ends = torch.stack([seen.pre(len(model.blocks))[goal.prompt, goal.position] for goal in goals])
        logits = _logits(model, ends)
        if tokens is not None:
            for goal, end in zip(goals, ends, strict=True):
                goal.direction, goal.logit_diff = _direction(model, end, tokens)
        with model.eager_attention():
            walk_back(seen, goals, settings)
        for goal, own in zip(goals, logits, strict=True):
            row = rows[goal.prompt]
            found[row].append(_graph(model, prompts[row], goal, settings, own))
        del seen  # before the next one is recorded
    return found


@dataclass
class Goal:
    """One prediction whose route is walked back."""

    prompt: int
    """Index into the batch."""
    position: int
    """Position after which the prediction is made."""
    direction: Float[Tensor, " d_model"] | None = None
    """Direction that the last token's parts are measured by; None for proximity."""
    logit_diff: float | None = None
    """What the final stream makes of it."""
    incoming: dict[str, Incoming] = field(default_factory=dict)
    """What each node on the route is made of."""


@torch.no_grad()
def walk_back(seen: RoutePass, goals: Sequence[Goal], settings: RouteSettings) -> None:
    """Fill `incoming` of every goal, block by block from the top; nodes that goals share are taken apart once."""
    walks = [_Walk(seen, goal, settings) for goal in goals]
    for layer in reversed(range(len(seen.model.blocks))):
        for stage in ("post",) if seen.parallel else ("post", "mid"):
            node = Node("resid_pre", layer + 1) if stage == "post" else Node("resid_mid", layer)
            active = [walk for walk in walks if walk.reached.get(node)]
            if not active:
                continue
            places = sorted({place for walk in active for place in walk.reached[node]})
            pattern = seen.pattern(layer, places) if seen.parallel or stage == "mid" else None
            parts = _Parts(seen, layer, stage, pattern, places, settings)
            for prompt in sorted({walk.goal.prompt for walk in active}):
                _step(parts, node, [walk for walk in active if walk.goal.prompt == prompt])


def _step(parts: "_Parts", node: Node, walks: "Sequence[_Walk]") -> None:
    """Take apart what the routes of one prompt have reached at one stage."""
    near = sorted({place for walk in walks for place in walk.reached[node] - walk.by_contrast})
    shared = dict(zip(near, parts.incoming(walks[0].goal.prompt, near, None), strict=True)) if near else {}
    for walk in walks:
        for place in sorted(walk.reached[node]):
            if place in walk.by_contrast:
                made_of = parts.incoming(walk.goal.prompt, [place], walk.goal.direction)[0]
            else:
                made_of = shared[place]
            walk.add(str(node.at(place)), made_of)


class _Walk:
    """The nodes that one route has reached so far."""

    def __init__(self, seen: RoutePass, goal: Goal, settings: RouteSettings) -> None:
        self.goal = goal
        self.route = _graph(seen.model, (), goal, settings, None)
        self.by_contrast = set() if goal.direction is None else {goal.position}
        self.reached = {Node("resid_pre", len(seen.model.blocks)): {goal.position}}

    def add(self, node: str, parts: Incoming) -> None:
        """Note what a node is made of, and what is reached from it; what an MLP reads is reached at once."""
        self.goal.incoming[node] = parts
        for edge in self.route.edges_into(node):
            self._reach(edge.source)
            if edge.kind == "mlp":
                for read in self.route.edges_into(edge.source):
                    self._reach(read.source)

    def _reach(self, node: str) -> None:
        stage, position = split_node(node)
        self.reached.setdefault(stage, set()).add(position)


@dataclass(frozen=True)
class _Parts:
    """The sums of one block that are taken apart at one stage."""

    seen: RoutePass
    layer: int
    stage: str
    pattern: Tensor | None
    """Attention probabilities of the queries at `places` [batch, place, head, key], where attention is among them."""
    places: list[int]
    """All positions that routes have reached here."""
    settings: RouteSettings

    def incoming(self, prompt: int, places: list[int], direction: Tensor | None) -> list[Incoming]:
        """What the nodes at some positions of one prompt are made of."""
        shares = importances(*self._measured(prompt, places, direction))
        if self.settings.renormalize:
            shares = renormalized(self.settings.threshold, *shares)
        single, attention = (share.cpu() for share in shares)
        return [
            Incoming(residual, self._own(heads, place), mlp, attention_bias, mlp_bias)
            for place, (residual, mlp, attention_bias, mlp_bias), heads in zip(
                places, single.tolist(), attention, strict=True
            )
        ]

    def _own(self, heads: Tensor, place: int) -> Tensor:
        """The keys that the node itself may see."""
        return heads[:, : place + 1].clone() if self.seen.model.causal else heads

    def _measured(
        self, prompt: int, places: list[int], direction: Tensor | None
    ) -> tuple[Float[Tensor, "node 4"], Float[Tensor, "node head key"]]:
        """Proximities, or under a direction what points along it: of residual, MLP and both biases; of attention."""
        seen, layer = self.seen, self.layer
        after = seen.mid(layer) if self.stage == "mid" else seen.pre(layer + 1)
        total = after[prompt, places]
        parts = torch.zeros(len(places), 4, total.shape[-1], device=total.device)
        parts[:, 0] = (seen.mid(layer) if self.pattern is None else seen.pre(layer))[prompt, places]
        if self.stage == "post":
            parts[:, 1], parts[:, 3] = seen.mlp(layer)[prompt, places], seen.mlp_bias(layer)
        if self.pattern is not None:
            parts[:, 2] = seen.attention_bias(layer)
        if direction is None:
            near = proximity(parts, total[:, None], self.settings.norm)
            return near, self._attention(prompt, places, total, self.settings.norm)
        along = self._attention(prompt, places, direction.expand_as(total), None)
        return (parts @ direction).clamp(min=0), along.clamp(min=0)

    def _attention(self, prompt: int, places: list[int], to: Tensor, norm: str | None) -> Tensor:
        """Proximity to `to` of all attention parts; without a norm, their products with it."""
        if self.pattern is None:
            return to.new_zeros(len(places), self.seen.model.heads.q, 0)
        width = max(places) + 1 if self.seen.model.causal else int(self.seen.inputs.mask[prompt].sum())
        weights = self.seen.model.blocks[self.layer].head_weights()
        pattern = self.pattern[prompt, [self.places.index(place) for place in places]][..., :width]
        values = self.seen.values(self.layer)[prompt, :, :width]
        if norm is None:
            return attention_projection(pattern, values, weights, to)
        return attention_proximity(pattern, values, weights, to, norm)


def _graph(
    model: Model, ids: Sequence[int], goal: Goal, settings: RouteSettings, logits: Float[Tensor, " vocab"] | None
) -> RouteGraph:
    """The graph of a goal; without logits, one that only knows its nodes."""
    seen = ids[: goal.position + 1] if model.causal else ids
    best: tuple[tuple[str, float], ...] = ()
    if logits is not None:
        top = logits.softmax(-1).topk(min(PREDICTIONS, len(logits)))
        best = tuple((spelled(model, i), p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return RouteGraph(
        tokens=tuple(spelled(model, i) for i in seen),
        position=goal.position,
        n_layers=model.graph.n_layers,
        n_heads=model.graph.n_heads,
        parallel=model.graph.parallel,
        threshold=settings.threshold,
        norm=settings.norm,
        renormalize=settings.renormalize,
        incoming=goal.incoming,
        predictions=best,
        contrast=settings.contrast,
        logit_diff=goal.logit_diff,
    )


def _logits(model: Model, ends: Float[Tensor, "goal d_model"]) -> Float[Tensor, "goal vocab"]:
    """Logits of final residual streams, float32. Raises `NumericsError` at NaN or infinity."""
    with torch.no_grad():
        logits = model.unembed(ends.to(model.dtype)).float()
    if not bool(logits.isfinite().all()):
        raise NumericsError(
            f"{model.name} gives NaN or infinite logits on these prompts ({model.dtype}). Load it in another dtype, "
            "for example float32."
        )
    return logits


@torch.no_grad()
def _direction(
    model: Model, end: Float[Tensor, " d_model"], tokens: tuple[int, int]
) -> tuple[Float[Tensor, " d_model"], float]:
    """The direction along which the logit difference of two tokens grows, and the difference itself.

    difference = direction . end + what the final norm's bias gives, before any soft cap.
    """
    norm, weight = model.final_norm, unembedding_rows(model).float()
    apart = weight[tokens[0]] - weight[tokens[1]]
    bias = parameter(model.unembedding, "bias")
    constant = 0.0 if bias is None else float(bias[tokens[0]] - bias[tokens[1]])
    constant += 0.0 if norm.bias is None else float(apart @ norm.bias)
    direction = norm.centre(apart * norm.gain) / norm.sigma(end)
    return direction, float(direction @ end) + constant


def plain_task(prompts: Sequence[Sequence[int]]) -> Task:
    """Prompts without answers, as a task that can be batched."""
    return Task("prompts", tuple(Pair(tuple(ids), (), (), ()) for ids in prompts))


def prompt_ids(model: Model, prompt: Prompt) -> list[int]:
    """Token ids of a prompt. Raises `InputError` where there are none."""
    ids = model.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise InputError(f"The prompt {prompt!r} has no tokens; a route needs at least one.")
    return ids


def place_of(position: int, length: int) -> int:
    """A position counted from the start. Raises `InputError` outside the prompt."""
    if not -length <= position < length:
        raise InputError(
            f"Position {position} is outside the prompt, which has {length} tokens: 0 to {length - 1}, or -{length} to "
            "-1 from the end."
        )
    return position % length


def contrast_tokens(model: Model, contrast: tuple[str, str]) -> tuple[int, int]:
    """Ids of the two tokens of a contrast. Raises `InputError` where one is several tokens, or both are the same."""
    found = []
    for text in contrast:
        ids = continuation(model, text)
        if len(ids) != 1:
            pieces = "|".join(model.decode([i]) for i in ids) or "nothing"
            hint = "" if text.startswith(" ") else f" Most tokenizers want the space before the word: {' ' + text!r}."
            raise InputError(f"The contrast token {text!r} must be one token, got {len(ids)}: {pieces}.{hint}")
        found.append(ids[0])
    if found[0] == found[1]:
        raise InputError(f"The contrast {contrast[0]!r} and {contrast[1]!r} is one and the same token.")
    return found[0], found[1]


def spelled(model: Model, token: int) -> str:
    """A token as text; its id where the model has no tokenizer."""
    return str(token) if model.tokenizer is None else model.decode([token])
