"""The attribution graph of a prompt: explained logits, expansion, pruning."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from circuitome.attribution_graphs.effects import total_effects
from circuitome.attribution_graphs.expansion import BATCH, expanded
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.feature_units import check_transcoder
from circuitome.attribution_graphs.frozen_model import FrozenModel
from circuitome.attribution_graphs.pruning import pruned
from circuitome.attribution_graphs.result import AttributionGraph
from circuitome.discovery.routes.tracing import Prompt, prompt_ids
from circuitome.engine.batches import memory_budget
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.described import Encoder

BYTES = 12
"""What an edge from any source takes while a batch of rows is made: itself and copies of it."""
EXPANDED, NODE_SHARE, EDGE_SHARE = 512, 0.6, 0.9
"""Neurons that are expanded; shares of influence that kept neurons and kept edges have."""


@method
def attribution_graph(
    setting: Setting,
    prompt: Prompt,
    *,
    contrast: tuple[str, str] | None = None,
    expand: int = EXPANDED,
    node_share: float = NODE_SHARE,
    edge_share: float = EDGE_SHARE,
    first_token: bool = False,
    transcoders: Sequence[Encoder] = (),
) -> AttributionGraph:
    """The attribution graph of `prompt`: which neurons, at which tokens, make the logits behind its last token.

    Held as the prompt made them: attention patterns, scales of norms, and for each neuron the secant of its activation
    function, shared half and half by the two factors of a gated one. Then every neuron's activation, and every logit
    less the mean of all, is exactly the sum of its incoming edges: from embeddings, from earlier neurons, and from the
    biases together. Edges from neurons without a node of their own are summed by MLP and token in `others`.

    Explained are the likeliest tokens until they have probability .95, at most ten, or with `contrast` the difference
    of two tokens' logits. The inputs of `expand` neurons are computed, greedily those with the largest influence (see
    `expansion.py`); kept are the fewest of them with a share `node_share` of their influence, and the fewest edges with
    `edge_share` of that of all edges in the graph that these make alone. Neurons at the first token, which most heads
    attend to for want of anything else, stay in `others` unless `first_token`; circuit-tracer leaves them out, too.
    In blocks that one of `transcoders` (`cm.features.load`, on the model's device) describes, its features stand in
    place of the neurons; its error at each token, with its linear part, is a source that nothing makes, and counts with
    the features that have no node among the `others`. Costs about 0.3 forward passes of the prompt a neuron. Nothing is
    explained of where heads attend: see
    `cm.attribution_graphs.attention_of`.
    Source: Ameisen et al. 2025, "Circuit tracing"; rules for neurons: Arora et al. 2025; Jafari et al. 2025,
    arXiv:2508.21258.

    >>> model = cm.load("known-ioi")
    >>> graph = cm.attribution_graph(model, "Ann and Bob met then Bob gave to", first_token=True)
    >>> node = graph.logits()[0]
    >>> abs(float(graph.sums()[graph.place[node.name]]) - node.value) < 1e-4
    True

    Raises `InputError` for an empty prompt, a contrast token that is several tokens, shares outside (0, 1] and
    expand < 1; `NumericsError` at NaN; `UnsupportedModelError` for a model that gives no attention probabilities.
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0 < share <= 1:
            raise InputError(f"{name} is a share of influence and must lie between 0 and 1, got {share:g}.")
    if expand < 1:
        raise InputError(f"At least one neuron has to be expanded, got {expand}.")
    model, ids = setting.model, prompt_ids(setting.model, prompt)
    for dictionary in transcoders:
        check_transcoder(dictionary, len(model.blocks))
    own = {dictionary.place.layer: dictionary for dictionary in transcoders}
    with torch.no_grad():
        frozen = FrozenModel.of(model, ids, own)
        explained = Explained.of(frozen, contrast)
        numbers = sum(units.values.numel() for units in frozen.units)
        batch = max(1, min(BATCH, memory_budget(setting.model, setting.max_memory) // (BYTES * numbers)))
        first = 0 if first_token or len(ids) == 1 else 1
        tell = setting.tell("finding edges")
        reads = explained.reads(frozen)
        expansion = expanded(frozen, reads, explained.weights, expand, batch=batch, first=first, tell=tell)
        effects = total_effects(frozen, explained.mean(reads.vectors.T))
        return replace(pruned(expansion, explained, effects, node_share, edge_share), transcoders=own)
