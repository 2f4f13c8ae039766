"""The strongest of all edges between neurons, heads, embedding and logits, streamed: no matrix of them is ever held.

Block by block of layers, the scores are a product of weights times a product of thin factors over tokens (see
`factors`); of each block only what can still be among the strongest is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.backward_rules import PLAIN, Rules, rules_of, with_rules
from circuitome.engine.batches import memory_budget, shared_length
from circuitome.engine.setting import Setting, method
from circuitome.errors import USED, InputError, MemoryBudgetError, memory_option
from circuitome.graph.node import Node
from circuitome.models.block import Block, weight_of
from circuitome.models.model import Model
from circuitome.models.placement import parameter
from circuitome.neurons.factors import (
    Gradients,
    Pass,
    Read,
    Readers,
    Writers,
    batches_of,
    bytes_per_token,
    folded,
    path_points,
    read_at,
    readers_of,
    tokens,
)
from circuitome.neurons.feature_factors import FeatureFactors, described_factors, described_reads
from circuitome.neurons.neuron_scores import check_neurons
from circuitome.results import Shown

PASS_MEMORY = 400_000_000
"""Bytes of a pass with gradients where no budget is given: no slower than more, beside factors that stay."""
KEPT = 10_000
"""Edges that are kept where nobody says how many."""


@dataclass(frozen=True, eq=False)
class NeuronEdges(Shown):
    """The strongest edges of a model whose MLPs are taken apart into neurons."""

    names: tuple[tuple[str, str], ...]
    """Writer and reader of each edge, strongest |score| first."""
    values: Float[Tensor, " edges"]
    """Their scores: mean change of the metric when the edge is ablated, to first order; negative where it helps."""
    total: int
    """All edges that were scored."""
    unit: str
    """Unit of the metric."""
    method: str
    """How they were made."""

    def __repr__(self) -> str:
        return f"NeuronEdges({len(self.names):,} strongest of {self.total:,} edges, {self.method}, unit {self.unit})"

    def __len__(self) -> int:
        return len(self.names)

    def top(self, n: int) -> list[tuple[str, float]]:
        """The `n` strongest edges that were kept, as text with their scores."""
        return [(f"{u}->{v}", value) for (u, v), value in zip(self.names[:n], self.values[:n].tolist(), strict=True)]

    def nodes(self) -> tuple[str, ...]:
        """Nodes at the ends of the edges, those of the strongest edges first."""
        ends = (str(Node.parse(name).whole) for pair in self.names for name in pair)
        return tuple(dict.fromkeys(ends))


@method
def edges(
    setting: Setting,
    *,
    layers: Sequence[int] | None = None,
    steps: int = 5,
    keep: int = KEPT,
    rules: str | Rules = "plain",
) -> NeuronEdges:
    """The `keep` strongest of all edges between neurons, heads, the embedding and the logits.

    Every MLP is taken apart into its neurons, or those of `layers` alone are looked at: writers m5.n123 and readers
    m5.n123.in beside a9.h6, a9.h6.q, embed and logits. A score is that of `eap_ig` with midpoints (`steps=1`: of `eap`)
    with a neuron as a node; the scores of a layer's neurons sum to that of their MLP. SmolLM2-135M has 1.1 billion such
    edges; what is held are factors as thin as the tokens of all prompts. `rules` are those of `eap`. Source of the
    score: Hanna et al. 2024, arXiv:2403.17806; the factorisation is ours.

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> found = cm.neurons.edges(model, task, ablation="zero", keep=50)
    >>> len(found), found.total > 1000
    (50, True)

    Raises `InputError` for steps or keep < 1, for mean ablation, a layer that does not exist and for a model without
    MLPs; `NumericsError` where the metric is not finite; `MemoryBudgetError` where not even one prompt fits; as
    `backward_rules` where rules cannot act.
    """
    check_neurons(setting, steps)
    rules = rules_of(rules)
    n_layers = setting.model.graph.n_layers
    if keep < 1:
        raise InputError(f"keep must be at least 1, got {keep}.")
    if missing := [layer for layer in layers or () if not 0 <= layer < n_layers]:
        raise InputError(f"There is no MLP in layer {missing[0]}; {setting.model.name} has layers 0 to {n_layers - 1}.")
    factors = Factors.of(setting, steps, rules)
    wanted = range(n_layers) if layers is None else sorted(set(layers))
    kept, total = Strongest(keep), 0
    groups = factors.pairs(wanted)
    for done, (made_writers, made_readers) in enumerate(groups):
        writers, readers = made_writers(), made_readers()
        values = block_scores(writers, readers) / len(setting.task)
        kept.add(writers.names, readers.names, values)
        total += values.numel()
        setting.progress("scoring edges of neurons", done + 1, len(groups))
    name = with_rules("eap" if steps == 1 else f"eap-ig, {steps} steps", rules)
    return NeuronEdges(*kept.sorted(), total, setting.task.unit, name)


def block_scores(writers: Writers, readers: Readers) -> Float[Tensor, "writers readers"]:
    """Scores of all edges from some writers to some readers, summed over prompts."""
    product = writers.delta.T @ readers.gradient
    product *= writers.weights @ readers.weights.T
    shape = (len(writers.names), writers.width, len(readers.names), readers.width)
    values = product.view(shape).sum((1, 3))
    for centred, slope in readers.slopes:
        along = (writers.delta * (centred @ writers.weights.T)).unflatten(1, shape[:2]).sum(-1)
        values -= along.T @ slope
    return values


@dataclass(frozen=True)
class Factors:
    """The writers and readers of a model, layer by layer, on all prompts."""

    model: Model
    embed: Writers
    heads: list[Float[Tensor, "tokens _"]]
    """By layer, as `Writers.delta`: weights are folded where a layer is asked for, and not kept."""
    neurons: list[Float[Tensor, "tokens _"]]
    attention: list[Read]
    mlps: list[Read]
    logits: Readers
    described: dict[tuple[int, bool], FeatureFactors]
    """Features that are nodes, as in `Model.described`."""

    @classmethod
    def of(cls, setting: Setting, steps: int, rules: Rules = PLAIN) -> "Factors":
        """The factors of all prompts, whose tokens follow one another."""
        if setting.max_memory is not None:
            setting = setting.but(max_memory=_budget_beside(setting, steps))
        elif setting.model.device.type == "cpu":
            setting = setting.but(max_memory=PASS_MEMORY)
        model, changes, reads = setting.model, list[Pass](), list[list[Read]]()
        for batch in batches_of(setting):
            clean, ablated, points = path_points(setting, batch, steps, rules)
            neurons = [there - here for there, here in zip(ablated.neurons, clean.neurons, strict=True)]
            changes.append(Pass(ablated.writers.minus(clean.writers), neurons))
            total: list[Read] = []
            for point in points:  # one at a time: what a point leaves behind is thin
                total = added(total, [*reads_of(model, point, steps), *described_reads(model, point, steps, rules)])
                del point  # before the next one is made
            reads.append(total)
        for read in reads:
            read.reverse()
        # Popped, so that a batch's part of a layer is free once it is joined.
        readers = [joined([read.pop() for read in reads]) for _ in range(len(reads[0]))]
        ends = 2 * len(model.blocks)
        identity = torch.eye(model.d_model, device=model.device)
        embed = tokens([change.writers.embed for change in changes])
        return cls(
            model=model,
            embed=Writers(model.graph.writers[:1], model.d_model, identity, embed),
            heads=[
                tokens([change.writers.heads[layer].flatten(2) for change in changes]) for layer in range(ends // 2)
            ],
            neurons=[tokens([change.neurons[layer] for change in changes]) for layer in range(ends // 2)],
            attention=readers[:ends:2],
            mlps=readers[1:ends:2],
            logits=readers_of(("logits",), identity, readers[ends]),
            described=described_factors(model, changes, readers[ends + 1 :]),
        )

    def pairs(self, layers: Sequence[int]) -> list[tuple[Callable[[], Writers], Callable[[], Readers]]]:
        """Every group of writers with every group of readers behind it, MLPs of some layers alone; made when called."""
        parallel, n_layers = self.model.graph.parallel, self.model.graph.n_layers

        def writers(heads: int, neurons: int) -> list[Callable[[], Writers]]:
            of_neurons = [partial(self.neuron_writers, i) for i in range(neurons) if i in layers]
            return [lambda: self.embed, *(partial(self.head_writers, i) for i in range(heads)), *of_neurons]

        found: list[tuple[Callable[[], Writers], Callable[[], Readers]]] = []
        for layer in range(n_layers):
            found += [(group, partial(self.attention_readers, layer)) for group in writers(layer, layer)]
            if layer in layers:
                found += [(group, partial(self.mlp_readers, layer)) for group in writers(layer + (not parallel), layer)]
        return found + [(group, lambda: self.logits) for group in writers(n_layers, n_layers)]

    def head_writers(self, layer: int) -> Writers:
        """The heads of a block."""
        graph, weights = self.model.graph, self.model.blocks[layer].head_weights().flatten(0, 1)
        return Writers(graph.writers[graph.head_rows(layer)], self.model.heads.width, weights, self.heads[layer])

    def neuron_writers(self, layer: int) -> Writers:
        """The neurons of an MLP."""
        rows = self.model.blocks[layer].neuron_weights()
        return Writers(_neuron_names(layer, len(rows)), 1, rows, self.neurons[layer])

    def attention_readers(self, layer: int) -> Readers:
        """Q, k and v of a block."""
        return readers_of(*_attention_columns(self.model, layer), self.attention[layer])

    def mlp_readers(self, layer: int) -> Readers:
        """What the neurons of an MLP read."""
        return readers_of(*_neuron_columns(self.model, layer), self.mlps[layer])


def factor_bytes(model: Model, steps: int) -> int:
    """What stays of a token until all prompts have run: numbers of writers and readers, and c and r of every point.

    In each block of width d, with r numbers of q, k and v, z of the heads' outputs, f neurons of k inputs and h readers
    that is 4 (z + f + r + k f + steps (2 d + h + f)) bytes.
    """
    heads, first, d = model.heads, model.blocks[0], model.d_model
    f, k = first.n_neurons, 1 + first.gated
    block = heads.width * (heads.q + heads.readers) + (1 + k) * f + steps * (2 * d + heads.readers + f)
    return 4 * (len(model.blocks) * block + 2 * d)


def _budget_beside(setting: Setting, steps: int) -> int:
    """The budget that the factors of all prompts leave for batches.

    Raises `MemoryBudgetError` where not even one prompt fits.
    """
    model, budget, swaps = setting.model, setting.max_memory or 0, setting.ablation == "corrupted"
    lengths = [len(pair.clean) - shared_length(pair) * swaps for pair in setting.task.pairs]
    kept = sum(lengths) * factor_bytes(model, steps)
    need = kept + max(len(pair.clean) for pair in setting.task.pairs) * bytes_per_token(model)
    if need > memory_budget(model, budget):
        raise MemoryBudgetError(
            f"What all edges of neurons are made from takes {kept / 1e6:,.0f} MB for {len(lengths)} prompts, and "
            f"{need / 1e6:,.0f} MB with a batch of one, beside the weights; the budget leaves "
            f"{memory_budget(model, budget) / 1e6:,.0f} MB. Raise {memory_option(need)}, or take fewer prompts (--n)."
        )
    return budget - int(kept / USED)


def reads_of(model: Model, point: Gradients, steps: int) -> list[Read]:
    """By layer what q, k and v and what the neurons read, then what the logits do, at one point."""
    reads = list[Read]()
    for layer, block in enumerate(model.blocks):
        projected = block.split([t.detach() for t in point.activations.projected[layer]]).float()
        inputs = torch.stack(block.split_inputs(point.cache.inputs[layer]), -1).float()
        reads.append(
            read_at(
                block.attention_norm,
                point.activations.resid_pre[layer],
                projected - _attention_constants(block),
                block.split(point.projected[layer]) / steps,
                point.frozen,
            )
        )
        gradient = torch.stack(block.split_inputs(point.inputs[layer]), -1) / steps
        resid_mid = point.activations.resid_mid[layer]
        reads.append(read_at(block.mlp_norm, resid_mid, inputs - _constants(block), gradient, point.frozen))
    return [*reads, read_at(None, point.final, point.final, point.final[:, :, None] / steps)]


def added(total: Sequence[Read], more: Sequence[Read]) -> list[Read]:
    """The sum over points."""
    if not total:
        return list(more)
    return [Read(a.gradient.add_(b.gradient), a.slopes + b.slopes) for a, b in zip(total, more, strict=True)]


def joined(parts: Sequence[Read]) -> Read:
    """All batches, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    slopes = zip(*(part.slopes for part in parts), strict=True)
    return Read(
        torch.cat([part.gradient for part in parts]),
        tuple((torch.cat([c for c, _ in point]), torch.cat([r for _, r in point])) for point in slopes),
    )


def _attention_columns(model: Model, layer: int) -> tuple[Sequence[str], Tensor]:
    """Names and folded weights of q, k and v of a block."""
    block, graph = model.blocks[layer], model.graph
    weights = block.reader_weights().flatten(0, 1)
    return graph.readers[graph.attention_columns(layer)], folded(weights, block.attention_norm)


def _neuron_columns(model: Model, layer: int) -> tuple[Sequence[str], Tensor]:
    """Names and folded weights of what the neurons of an MLP read; each has one or two columns."""
    block, weights = model.blocks[layer], _input_weights(model.blocks[layer])
    return _neuron_names(layer, len(weights), "in"), folded(weights.flatten(0, 1), block.mlp_norm)


@cache
def _neuron_names(layer: int, count: int, end: str = "") -> tuple[str, ...]:
    return tuple(str(Node("neuron", layer, i, end)) for i in range(count))


def _input_weights(block: Block) -> Float[Tensor, "neuron column d_model"]:
    weights = [weight_of(projection) for projection in block.mlp_readers]
    return torch.stack(block.split_inputs(weights, 0), 1).detach().float()


def _attention_constants(block: Block) -> Float[Tensor, "reader d_head"]:
    """What each q, k and v is where the normed residual is zero before the norm's bias."""
    constant = block.reader_biases().float()
    if (norm := block.attention_norm) is not None and norm.bias is not None:
        constant = constant + block.reader_weights().float() @ norm.bias
    return constant


def _constants(block: Block) -> Tensor | float:
    """What each input of a neuron is where the normed residual is zero before the norm's bias."""
    found = [parameter(module, "bias") for module in block.mlp_readers]
    biases = [bias.detach().float() for bias in found if bias is not None]
    constant: Tensor | float = torch.stack(block.split_inputs(biases), -1) if biases else 0.0
    if (norm := block.mlp_norm) is not None and norm.bias is not None:
        constant = constant + _input_weights(block) @ norm.bias
    return constant


class Strongest:
    """The strongest of a stream of edges."""

    def __init__(self, keep: int) -> None:
        self.keep, self.least = keep, 0.0
        self.values, self.places = list[Tensor](), list[Int[Tensor, "2 edges"]]()
        self.writers, self.readers = list[str](), list[str]()
        self.at: dict[tuple[str, ...], int] = {}

    def add(self, writers: tuple[str, ...], readers: tuple[str, ...], values: Float[Tensor, "writers readers"]) -> None:
        """Take the edges of a block that may be among the strongest."""
        first, then = (self._start(names, known) for names, known in ((writers, self.writers), (readers, self.readers)))
        rows, columns = (values.abs() > self.least).nonzero().T
        self.values.append(values[rows, columns].cpu())
        self.places.append(torch.stack([rows + first, columns + then]).cpu())
        if sum(map(len, self.values)) > 4 * self.keep:
            self._shorten()

    def _start(self, names: tuple[str, ...], known: list[str]) -> int:
        """Where a group's names begin among all."""
        key = (names[0], str(id(known)))
        if key not in self.at:
            self.at[key] = len(known)
            known.extend(names)
        return self.at[key]

    def _shorten(self) -> None:
        values, places = torch.cat(self.values), torch.cat(self.places, 1)
        order = values.abs().sort(descending=True, stable=True).indices[: self.keep]
        self.values, self.places = [values[order]], [places[:, order]]
        if len(order) == self.keep:
            self.least = float(values[order[-1]].abs())

    def sorted(self) -> tuple[tuple[tuple[str, str], ...], Float[Tensor, " edges"]]:
        """Names and scores, strongest first."""
        self._shorten()
        rows, columns = self.places[0].tolist()
        return tuple((self.writers[i], self.readers[j]) for i, j in zip(rows, columns, strict=True)), self.values[0]
