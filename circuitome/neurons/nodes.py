"""Which neurons become nodes, and what is to be said of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.neurons.neuron_scores import scores
from circuitome.neurons.projections import logits_of
from circuitome.tasks.task import Pair
from circuitome.weights.pairs import token_name

NODES = 300
"""Neurons that become nodes where nobody says how many."""


@method
def take_apart(setting: Setting, *, neurons: int = NODES, layers: Sequence[int] | None = None) -> Model:
    """The model with the MLPs of `layers` (all by default) taken apart: their strongest neurons are its nodes.

    Strongest by |score| under the rules of RelP (`cm.neurons.scores(steps=1, rules="relp")`): `neurons` of all these
    layers together, and no more. What else these MLPs have is in no circuit; other MLPs stay whole. On subject-verb
    agreement in SmolLM2-135M, 30 neurons by this score carry what 300 by plain gradients do not.

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> split = cm.neurons.take_apart(model, task, neurons=5, ablation="zero")
    >>> sum(map(len, split.graph.neurons)), split.graph.apart == tuple(range(model.graph.n_layers))
    (5, True)

    Raises `InputError` for neurons < 1 and a layer that does not exist, and as `cm.neurons.scores`.
    """
    model = setting.model
    apart = range(len(model.blocks)) if layers is None else sorted(set(layers))
    if neurons < 1:
        raise InputError(f"At least one neuron has to be a node, got {neurons}.")
    model.with_neurons([], apart=apart)  # refuses layers that do not exist, before any work
    strength = scores(setting, steps=1, rules="relp").values.abs()
    elsewhere = [layer for layer in range(len(model.blocks)) if layer not in apart]
    strength[elsewhere] = -1.0
    order = strength.flatten().argsort(descending=True, stable=True)[: min(neurons, len(apart) * strength.shape[1])]
    places = [divmod(i, strength.shape[1]) for i in order.tolist()]
    return model.with_neurons([Node("neuron", *place) for place in places], apart=apart)


@dataclass(frozen=True)
class DescribedNeuron:
    """A neuron (or a feature that is a node) on some prompts: where ablation changes it most, and what it then says."""

    name: str
    """m5.n123."""
    place: str
    """Where ablation changes it most on most prompts: a token's role, or where it has none the token in quotes."""
    clean: float
    """What it writes with there, mean over prompts."""
    ablated: float
    """The same when ablated."""
    raises: tuple[str, ...]
    """Tokens whose logits it raises most by itself when it acts as there, most first."""
    lowers: tuple[str, ...]
    """Tokens whose logits it lowers most."""


@method
@on_neurons
def describe(setting: Setting, neurons: Sequence[str], *, top: int = 5) -> tuple[DescribedNeuron, ...]:
    """Where on the task's prompts neurons change most when ablated, and the `top` tokens that they raise and lower.

    Features of a dictionary that are nodes of the model likewise.

    Tokens are those that the unembedding reads from the neuron's output weights alone, the final norm's gain folded in;
    their sign is that of the neuron's mean activity there.

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> cm.neurons.describe(model, task, ["m0.n0"], ablation="zero", top=2)[0].name
    'm0.n0'

    Raises `InputError` for a name that is no neuron.
    """
    names = list(dict.fromkeys(str(Node.parse(name)) for name in neurons))
    view = setting.model if {*names} <= {*setting.model.graph.writers} else setting.model.with_neurons(names)
    places = [(name, *_place_of(view, Node.parse(name))) for name in names]
    setting, kept = setting.but(model=view), {name: list[tuple[str, float, float]]() for name in names}
    for batch in setting.batches():
        with torch.no_grad():
            clean = WriterValues.of(view, view.record(batch.clean, logits=False))
        ablated = setting.ablated_values(batch, clean)
        real, last = batch.clean.real(), torch.zeros_like(batch.clean.real())
        last[torch.arange(len(last)), batch.clean.read] = 1.0  # all that matters of the last block
        for name, layer, stream, i in places:
            here, there = (
                (values.stream(view, layer)[1] if stream else values.neurons[layer])[..., i]
                for values in (clean, ablated)
            )
            at = ((here - there).abs() * (last if layer == len(view.blocks) - 1 else real)).argmax(1)
            rows = torch.arange(len(at), device=at.device)
            positions = batch.clean.positions.expand_as(batch.clean.ids)[rows, at].tolist()
            found = [_place(view, setting.task.pairs[row], i) for row, i in zip(batch.rows, positions, strict=True)]
            values = (t[rows, at].tolist() for t in (here, there))
            kept[name].extend(zip(found, *values, strict=True))
    directions = [view.part_weights(layer, [i], stream=stream)[0] for _, layer, stream, i in places]
    if not directions:
        return ()
    logits = logits_of(view, torch.stack(directions))
    return tuple(_described(view, name, kept[name], row, top) for name, row in zip(names, logits, strict=True))


def _place_of(model: Model, node: Node) -> tuple[int, bool, int]:
    """The block of a neuron or feature that is a node, whether it is one of the stream, and its place among these."""
    stream = node.kind == "stream_feature"
    layer = node.layer - stream
    which = model.graph.features_behind(layer) if stream else model.graph.neurons_of(layer)
    return layer, stream, which.index(node.index)


def _place(model: Model, pair: Pair, position: int) -> str:
    """The role of a token, or the token itself."""
    role = next((name for name, at in pair.roles.items() if at == position), "")
    return role or f'"{token_name(model, pair.clean[position])}"'


def _described(
    model: Model,
    name: str,
    kept: Sequence[tuple[str, float, float]],
    logits: Float[Tensor, " vocab"],
    top: int,
) -> DescribedNeuron:
    found, clean, ablated = zip(*kept, strict=True)
    activity = sum(clean) / len(clean)
    up, down = (
        (sign * (1 if activity >= 0 else -1) * logits).topk(min(top, len(logits))).indices.tolist() for sign in (1, -1)
    )
    common = Counter(found).most_common(1)[0][0]
    raises, lowers = (tuple(token_name(model, i) for i in some) for some in (up, down))
    return DescribedNeuron(name, common, activity, sum(ablated) / len(ablated), raises, lowers)
