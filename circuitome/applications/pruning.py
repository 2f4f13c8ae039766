"""Structural pruning: the same share of heads, neurons or blocks goes, by what they do, and the model gets smaller.

Removed heads and neurons leave their mean over texts behind as a bias where the architecture holds one, so that the
smaller model is the model under mean ablation (An et al. 2024, arXiv:2312.11983). Heads go with their key/value head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from circuitome.applications.gates import Parts, text_gates
from circuitome.applications.rankings import Measured, check_ranking, ranked_blocks, ranked_parts
from circuitome.applications.structure import BlockParts, SmallerModel, cut, groups_allowed, heads_go, whole, without
from circuitome.editing.checkpoint import holds_mean
from circuitome.editing.edit import MEANS
from circuitome.editing.steering import neutral_windows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows


@dataclass(frozen=True, eq=False)
class Pruned(SmallerModel):
    """A pruned model, and what of the larger one is in it."""

    kept: tuple[BlockParts, ...]
    """Its blocks with their heads and neurons, by their numbers in the larger model."""
    by: str
    """What parts were ranked by."""
    means: tuple[str, ...]
    """Kinds of removed parts that left their means behind: head, neuron."""

    def __repr__(self) -> str:
        return f"Pruned({self.model.name} by {self.by}: {'; '.join(self.removed)})"

    @property
    def removed(self) -> list[str]:
        """What was removed, in words."""
        whole_groups, neurons = self.before.heads.kv, self.before.blocks[0].n_neurons
        each, said = self.before.heads.q // self.before.heads.kv, []
        if blocks := len(self.before.blocks) - len(self.kept):
            said.append(f"{blocks} of {len(self.before.blocks)} blocks")
        groups = whole_groups - len(self.kept[0].groups)
        if groups:
            how = "" if heads_go(self.before) else ", set to zero and not cut"
            said.append(f"{groups * each} of {whole_groups * each} heads of each block{how}")
        if gone := neurons - len(self.kept[0].neurons):
            said.append(f"{gone:,} of {neurons:,} neurons of each MLP")
        return said or ["nothing"]


@method
def prune(
    setting: Setting,
    share: float = 0.2,
    *,
    texts: str | Sequence[str] | Windows,
    by: str = "importance",
    heads: bool = True,
    neurons: bool = True,
    blocks: bool = False,
    value: str = "mean",
    rounds: int = 1,
    circuit: Circuit | None = None,
) -> Pruned:
    """The model without a share of the heads and neurons of each block, or of its blocks: a smaller, faster model.

    `by` says which go first. "importance": those whose removal moves the predictions on `texts` least, to second order,
    E[s^2] / 2 nats a token (`circuitome.applications.gates`); of blocks, the measured rise of the loss. "circuit": that
    and what parts do to the task's gap, in equal parts; of `circuit` alone if it is given. "magnitude", "random": to
    compare with. Heads go in whole key/value heads, as many in each block as the configuration allows nearest to the
    share. With `value="mean"` removed parts leave their mean over `texts` behind where the architecture holds a bias.
    `rounds` removes in as many steps, with scores taken anew. Costs a forward-backward pass over the texts a round, and
    one over the prompts by circuit.

    >>> model = cm.load("known-ioi")
    >>> texts = cm.neurons.packed([model.encode("Ann and Bob met then Bob gave to")] * 4)
    >>> cm.prune(model, 0.5, texts=texts, heads=False)
    Pruned(known-ioi by importance: 2 of 4 neurons of each MLP)

    Raises `InputError` for a share outside of 0 to 1, for nothing to remove, and for a ranking without its task.
    """
    check_ranking(by, setting.prompts)
    if not 0 <= share <= 1 or rounds < 1:
        raise InputError(f"share is from 0 to 1 and rounds at least 1; got {share:g} and {rounds}.")
    if not heads | neurons | blocks:
        raise InputError("There is nothing to remove: choose heads, neurons or blocks.")
    if value not in MEANS:
        raise unknown_name("value of removed parts", value, MEANS)
    model = setting.model
    cut_texts = texts if isinstance(texts, Windows) else neutral_windows(model, texts, setting.seed)
    if circuit is not None and circuit.graph.with_neurons([]) != model.graph.with_neurons([]):
        raise InputError(f"The circuit belongs to another model: {circuit.graph}; {model.name} has {model.graph}.")
    kinds = tuple(kind for kind in ("head", "neuron") if value == "mean" and holds_mean(model, kind))
    asked = _Asked(setting, cut_texts, by, (heads, neurons, blocks), kinds, circuit)
    state = _State(model, tuple(whole(model)))
    for done in range(1, rounds + 1):
        state = _round(asked, state, share * done / rounds)
    return Pruned(state.model, model, state.kept, by, kinds)


@dataclass(frozen=True)
class _Asked:
    """What does not change from round to round."""

    setting: Setting
    texts: Windows
    by: str
    what: tuple[bool, bool, bool]
    kinds: tuple[str, ...]
    circuit: Circuit | None


@dataclass(frozen=True)
class _State:
    """The model so far, and what of the first one is in it and still does something."""

    model: Model
    kept: tuple[BlockParts, ...]


def _round(asked: _Asked, state: _State, share: float) -> _State:
    """Remove until the share of the first model is gone."""
    first, model = asked.setting.model, state.model
    setting = asked.setting.but(model=model)
    gates, means = text_gates(setting, asked.texts)
    constants = Parts(means.heads * ("head" in asked.kinds), means.neurons * ("neuron" in asked.kinds))
    circuit = asked.circuit if model is first else None
    measured = Measured(setting, asked.texts, gates, constants, circuit)
    heads, neurons, blocks = asked.what
    layers = list(range(len(model.blocks)))
    if blocks:
        count = max(1, round(len(first.blocks) * (1 - share)))
        layers = _best(ranked_blocks(measured, asked.by, setting.seed), layers, count)
    chosen = [state.kept[i] for i in layers]
    if heads or neurons:
        numbers = ranked_parts(measured, asked.by, setting.seed)
        groups = _groups(first, share) if heads else len(state.kept[0].groups)
        total = first.blocks[0].n_neurons
        count = round(total * (1 - share)) if neurons else len(state.kept[0].neurons)
        chosen = [_fewer(model, first, state.kept[i], numbers, i, groups, count) for i in layers]
    places = [_places(first, state.kept[i], parts, i) for i, parts in zip(layers, chosen, strict=True)]
    return _State(cut(model, places, _constants(model, places, means, asked.kinds)), tuple(chosen))


def _groups(model: Model, share: float) -> int:
    """Key/value heads that stay: of what the configuration allows the nearest to the share, more of two as near."""
    kv = model.heads.kv
    allowed = [0, *(n for n in range(1, kv + 1) if not heads_go(model) or groups_allowed(model, n))]
    return min(allowed, key=lambda n: (abs(n - kv * (1 - share)), -n))


def _best(numbers: Tensor, which: Sequence[int], count: int) -> list[int]:
    """The `count` of `which` with the largest numbers, in their order."""
    order = sorted(which, key=lambda i: -float(numbers[i]))
    return sorted(order[:count])


def _fewer(
    model: Model, first: Model, parts: BlockParts, numbers: Parts, layer: int, groups: int, neurons: int
) -> BlockParts:
    """The parts of a block that stay, by their numbers in the first model."""
    at = _index(first, parts)
    of_groups, of_neurons = numbers.heads[layer].tolist(), numbers.neurons[layer].tolist()
    kept_groups = sorted(sorted(parts.groups, key=lambda g: -of_groups[at[0][g]])[:groups])
    kept_neurons = sorted(sorted(parts.neurons, key=lambda n: -of_neurons[at[1][n]])[:neurons])
    return replace(parts, groups=tuple(kept_groups), neurons=tuple(kept_neurons))


def _index(first: Model, parts: BlockParts) -> tuple[dict[int, int], dict[int, int]]:
    """Where groups and neurons of the first model are in the present one."""
    groups = parts.groups if heads_go(first) else range(first.heads.kv)
    return {g: i for i, g in enumerate(groups)}, {n: i for i, n in enumerate(parts.neurons)}


def _places(first: Model, before: BlockParts, after: BlockParts, layer: int) -> BlockParts:
    """What stays, by its numbers in the present model."""
    groups, neurons = _index(first, before)
    return BlockParts(layer, tuple(groups[g] for g in after.groups), tuple(neurons[n] for n in after.neurons))


def _constants(model: Model, kept: Sequence[BlockParts], means: Parts, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Means of the removed parts, by name, of the kinds that can leave theirs behind."""
    values = {"head": means.heads, "neuron": means.neurons}
    names = (Node.parse(name) for parts in kept for name in without(model, parts).names(model))
    return {str(node): values[node.kind][node.layer, node.index] for node in names if node.kind in kinds}
