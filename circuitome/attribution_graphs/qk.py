"""Why a head attends where it does: its attention logit as a sum over pairs of sources of one graph.

With norm divisors held, those of norms on queries and keys too, and rotations R, the logit of a head from query token t
to key token k is bilinear in the parts c of the two streams:

    S_ij(t, k) = scaling * (q(c_i) at t, rotated) . (k(c_j) at k, rotated),

and sums over all pairs of parts to the logit, before any soft cap and mask. A softmax does not see what is the same at
all keys, so S_ij(t, k) less its mean over keys, weighed by the attention, says what draws the head to k.
Source: Kamath et al. 2025, "Tracing attention computation through feature interactions".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.contributions import Parts, streams_by_part
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of, scaled
from circuitome.attribution_graphs.result import AttributionGraph
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.attention import (
    AttentionCall,
    Table,
    attending,
    by_group,
    plain_attention,
    rotary_tables,
    rotation,
)
from circuitome.models.model import Model
from circuitome.models.norms import Norm


@dataclass(frozen=True, eq=False, repr=False)
class QKAttribution:
    """One attention logit by pairs of sources."""

    head: str
    """The head."""
    query: int
    """The token that attends."""
    key: int
    """The token attended to."""
    attention: float
    """The attention probability."""
    logit: float
    """The attention logit, before any soft cap."""
    parts: tuple[str, ...]
    """Names of the sources: tokens and neurons of the graph, its other neurons together, biases."""
    raw: Float[Tensor, "query_part key_part"]
    """S by part at the query and part at the key; sums to the logit."""
    pairs: Float[Tensor, "query_part key_part"]
    """The same less its mean over keys, weighed by attention; sums to the logit less that of all logits."""

    def __repr__(self) -> str:
        return f"QKAttribution({self.head} from {self.query} to {self.key}: {self.attention:.3f})"

    def top(self, n: int = 5) -> list[tuple[str, str, float]]:
        """The pairs that draw the head to this key most, or away from it: query part, key part, share of the logit."""
        order = self.pairs.abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(i, len(self.parts)) for i in order]
        return [(self.parts[i], self.parts[j], float(self.pairs[i, j])) for i, j in places]

    def by_query(self, n: int = 5) -> list[tuple[str, float]]:
        """Sums over the parts at the key, largest first."""
        return self._largest(self.pairs.sum(1), n)

    def by_key(self, n: int = 5) -> list[tuple[str, float]]:
        """Sums over the parts at the query, largest first."""
        return self._largest(self.pairs.sum(0), n)

    def _largest(self, values: Tensor, n: int) -> list[tuple[str, float]]:
        order = values.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.parts[i], float(values[i])) for i in order]


@method
def attention_of(
    setting: Setting, graph: AttributionGraph, places: list[tuple[str, int, int]]
) -> tuple[QKAttribution, ...]:
    """Attention logits of heads by pairs of a graph's sources; `places` are (head, query token, key token).

    >>> model = cm.load("smollm2-135m")
    >>> graph = cm.attribution_graph(model, "The cat sat", expand=8)
    >>> (found,) = cm.attribution_graphs.attention_of(model, graph, [("a3.h1", 2, 1)])
    >>> abs(float(found.raw.sum()) - found.logit) < 1e-2
    True

    Raises `InputError` for what is no head, and for a key behind its query; `UnsupportedModelError` for a model whose
    attention does not go through transformers' attention interface.
    """
    nodes = [_checked(setting.model, graph, *place) for place in places]
    parts, found = Parts.of(graph), dict[int, QKAttribution]()
    with torch.no_grad():
        frozen = FrozenModel.of(setting.model, graph.ids, graph.transcoders)
        calls = attention_logits(frozen)
        tables = rotary_tables(setting.model, torch.arange(frozen.tokens))
        for layer, stream in streams_by_part(frozen, parts):
            for i, (node, (head, query, key)) in enumerate(zip(nodes, places, strict=True)):
                if node.layer == layer:
                    q, k = _queries_keys(frozen, stream, node, tables[layer])
                    scaling, logits = calls[layer]
                    raw = scaling * torch.einsum("id,jtd->ijt", q[:, query], k)
                    shares = frozen.attention[layer].pattern[node.index, query]
                    pairs = raw[..., key] - raw @ shares
                    value = float(logits[node.index, query, key])
                    names = tuple(parts.names)
                    found[i] = QKAttribution(head, query, key, float(shares[key]), value, names, raw[..., key], pairs)
    return tuple(found[i] for i in range(len(places)))


def _checked(model: Model, graph: AttributionGraph, head: str, query: int, key: int) -> Node:
    node = Node.parse(head)
    if node.kind != "head" or head not in model.graph.writers:
        raise InputError(f"{head} is no head of {model.name}. Write a head as a9.h6: block 9, head 6.")
    if not 0 <= key <= query < len(graph.ids):
        raise InputError(f"Token {query} does not attend to token {key}: the prompt has {len(graph.ids)} tokens.")
    return node


def attention_logits(frozen: FrozenModel) -> list[tuple[float, Float[Tensor, "head query key"]]]:
    """By block, the scaling of its attention, and the model's own logits before any soft cap and mask."""
    found = list[tuple[float, Tensor]]()

    def attend(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = by_group(query.float(), key.shape[1], key.float().transpose(-1, -2))[0] * call.scaling
        # OPT scales its queries before it calls attention, with a scaling of 1
        scaling = (
            call.scaling if call.scaling != 1 else getattr(frozen.attention[call.layer].block.attention, "scaling", 1)
        )
        found.append((scaling, logits))
        return plain_attention(call, query, key, value)[0]

    with attending(frozen.model, attend):
        frozen.model.logits(inputs_of(frozen))
    return found


def _queries_keys(
    frozen: FrozenModel, stream: Float[Tensor, "part pos d_model"], head: Node, table: Table | None
) -> tuple[Float[Tensor, "part pos d_head"], Float[Tensor, "part pos d_head"]]:
    """What each part of a stream puts into a head's queries and keys at every token, normed and rotated."""
    attention, heads = frozen.attention[head.layer], frozen.model.heads
    block, norm = attention.block, attention.block.attention_norm
    normed = scaled(norm, stream, attention.scale)
    if norm is not None and norm.bias is not None:
        normed[-1] += norm.bias
    groups = (range(heads.q), head.index), (range(heads.q, heads.q + heads.kv), frozen.model.graph.kv_head(head.index))
    norms: tuple[Norm | None, ...] = block.qk_norms or (None, None)
    made = []
    for (readers, index), own in zip(groups, norms, strict=True):
        weights, biases = block.reader_weights(readers).float(), block.reader_biases()[list(readers)].float()
        parts = normed @ weights[index].T
        parts[-1] += biases[index]
        if own is not None:
            whole = torch.einsum("pd,hed->phe", normed.sum(0), weights) + biases
            parts = parts * _norm_factor(own, whole, index)
        made.append(parts)
    if table is None:
        return made[0], made[1]
    query, key = rotation(frozen.model)(made[0][:, None], made[1][:, None], *(t.float() for t in table))
    return query[:, 0], key[:, 0]


def _norm_factor(norm: Norm, whole: Float[Tensor, "pos head d_head"], index: int) -> Float[Tensor, "pos d_head"]:
    """What a norm on queries or keys multiplies those of one head by; it norms each head, or all of them as one."""
    if norm.gain.shape[-1] == whole.shape[-1]:
        return norm.gain / norm.sigma(whole[:, index])
    return norm.gain.view(whole.shape[1:])[index] / norm.sigma(whole.flatten(1))
