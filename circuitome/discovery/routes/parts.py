"""A closer look at parts of a route: the neurons of an MLP node, and the tokens that heads, MLPs and neurons promote.

A part's vector v promotes token t by W_U[t] . (gain * centred v) / sigma, with sigma the final norm's divisor at the
token whose prediction the route explains: its direct effect on the logit, all that lies between held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.graph import RouteGraph, split_node
from circuitome.discovery.routes.proximity import check_norm, importances, proximity
from circuitome.discovery.routes.tracing import Prompt, plain_task, prompt_ids, spelled
from circuitome.engine.ablation import scaled_heads
from circuitome.engine.batches import make_batch
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.weights.folding import unembedding_rows


@dataclass(frozen=True)
class RoutePart:
    """A head, MLP or neuron at one token, and what it says about the next one."""

    name: str
    """a23.h0@13, m29@13, or m29.n115@13 for a neuron."""
    importance: float
    """Of a head or MLP its flow to the target; of a neuron its share of the stream after the MLP."""
    promotes: tuple[tuple[str, float], ...]
    """Tokens whose logits it raises most, in logits."""
    suppresses: tuple[tuple[str, float], ...]
    """Tokens whose logits it lowers most."""
    activation: float | None = None
    """Of a neuron."""


def route_parts(
    model: Model, prompt: Prompt | RoutePass, route: RouteGraph, *, n: int = 12, top: int = 5
) -> list[RoutePart]:
    """The `n` strongest heads (at one token each) and the `n` strongest MLPs of a route, with `top` tokens each way.

    `prompt` is the one that `route` was made from, or its `route_pass`.
    """
    seen = route_pass(model, prompt, route)
    flows: dict[tuple[int, int, int], float] = {}
    for edge in route.edges:
        layer, place = split_node(edge.source)[0].layer, split_node(edge.target)[1]
        for head, value in enumerate(edge.heads):
            key = (layer, head, place)
            flows[key] = flows.get(key, 0.0) + value * route.flow[edge.target]
    heads = sorted(((key, flow) for key, flow in flows.items() if flow > 0), key=lambda item: -item[1])[:n]
    names = [str(Node.head(layer, head).at(place)) for (layer, head, place), _ in heads]
    vectors = [_head(seen, *key) for key, _ in heads]
    mlps = [(node, flow) for node, flow in route.mlps() if flow > 0][:n]
    names += [node for node, _ in mlps]
    vectors += [seen.mlp(mlp.layer)[0, place] for mlp, place in (split_node(node) for node, _ in mlps)]
    return _read(seen, route, names, [flow for _, flow in (*heads, *mlps)], vectors, top)


def route_neurons(
    model: Model, prompt: Prompt | RoutePass, route: RouteGraph, node: str, *, n: int = 10, top: int = 5
) -> list[RoutePart]:
    """The `n` most important neurons of the MLP `node` (m29@13), with the tokens they promote and suppress.

    Parts of the stream after the MLP: every neuron's activation times its output weights, the MLP's bias, and the rest
    of the stream; importances under the route's norm. Raises `InputError` for a node that is no MLP of the model.
    """
    check_norm(route.norm)
    mlp_node, place = split_node(node)
    layer = mlp_node.layer
    if mlp_node.kind != "mlp" or layer >= len(model.blocks) or place >= len(route.tokens):
        raise InputError(
            f"{node!r} is no MLP of this route; MLPs look like m3@5, with blocks 0 to {len(model.blocks) - 1} and "
            f"positions 0 to {len(route.tokens) - 1}."
        )
    seen = route_pass(model, prompt, route)
    acts, vectors = neuron_vectors(seen, layer, place)
    total, mlp = seen.pre(layer + 1)[0, place], seen.mlp(layer)[0, place]
    rest = total - mlp - seen.mlp_bias(layer)
    parts = torch.stack([rest, seen.mlp_bias(layer)])
    shares, _ = importances(
        proximity(vectors, total[None], route.norm)[None], proximity(parts, total[None], route.norm)[None]
    )
    best = shares[0].topk(min(n, len(acts)))
    names = [str(Node("neuron", layer, i, position=place)) for i in best.indices.tolist()]
    rows = _read(seen, route, names, best.values.tolist(), list(vectors[best.indices]), top)
    return [
        RoutePart(row.name, row.importance, row.promotes, row.suppresses, float(acts[i]))
        for row, i in zip(rows, best.indices.tolist(), strict=True)
    ]


@torch.no_grad()
def neuron_vectors(
    seen: RoutePass, layer: int, place: int
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, "neuron d_model"]]:
    """Activations of an MLP's neurons at one position of the first prompt, and what each adds to the stream.

    With the MLP's bias they add up to its output. A gated neuron's activation is gate times up.
    """
    block = seen.model.blocks[layer]
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.extend((args[0], output))

    handle = block.mlp_writer.register_forward_hook(keep)
    try:
        block.run_mlp(seen.activations.resid_mid[layer][:1, place : place + 1])
    finally:
        handle.remove()
    acts, out = kept[0].float().flatten(), kept[1].float().flatten()
    scale = acts if block.mlp_post is None else acts / block.mlp_post.sigma(out)
    return acts, scale[:, None] * block.neuron_weights()


def route_pass(model: Model, prompt: Prompt | RoutePass, route: RouteGraph) -> RoutePass:
    """The pass over a route's tokens, so that several parts of it are looked at from one; a pass is given back."""
    if isinstance(prompt, RoutePass):
        return prompt
    ids = prompt_ids(model, prompt)[: len(route.tokens)]
    batch = make_batch(model, plain_task([ids]), [0], shared_prefix=False, corrupted=False)
    return RoutePass.of(model, batch.clean)


def _head(seen: RoutePass, layer: int, head: int, place: int) -> Float[Tensor, " d_model"]:
    """What a head adds to the stream at one position."""
    outs = seen.activations.attention_out
    z = scaled_heads(seen.model, layer, seen.activations.z[layer], outs[layer] if outs else None)[0, place, head]
    return z @ seen.model.blocks[layer].head_weights([head])[0]


@torch.no_grad()
def _read(
    seen: RoutePass,
    route: RouteGraph,
    names: Sequence[str],
    importance: Sequence[float],
    vectors: Sequence[Tensor],
    top: int,
) -> list[RoutePart]:
    """Parts with the tokens whose logits they move most."""
    if not names:
        return []
    model, norm = seen.model, seen.model.final_norm
    weight = unembedding_rows(model)
    end = seen.pre(len(model.blocks))[0, route.position]
    stacked = norm.centre(torch.stack(list(vectors))) * norm.gain / norm.sigma(end)
    logits = (stacked.to(weight.dtype) @ weight.T).float()
    found = []
    for name, share, row in zip(names, importance, logits, strict=True):
        up, down = ((sign * row).topk(min(top, len(row))) for sign in (1, -1))
        promotes = tuple((spelled(model, i), v) for i, v in zip(up.indices.tolist(), up.values.tolist(), strict=True))
        lowers = tuple(
            (spelled(model, i), -v) for i, v in zip(down.indices.tolist(), down.values.tolist(), strict=True)
        )
        found.append(RoutePart(name, share, promotes, lowers))
    return found
