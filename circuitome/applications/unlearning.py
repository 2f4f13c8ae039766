"""Unlearning: the parts that do a behaviour at the least price elsewhere are held at constants, until it is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitome.applications.gates import Parts, task_gates, text_gates
from circuitome.applications.rankings import members, metrics, prices
from circuitome.editing.changes import Replaced
from circuitome.editing.checkpoint import holds_mean
from circuitome.editing.edit import Edit
from circuitome.editing.steering import neutral_windows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows

KINDS = ("heads", "neurons")
STEP = 0.5
"""The share of what is still to be unlearnt that one round takes, by first-order estimates."""
EACH = 1e-5
"""Nats a token that a part more must be worth: without it, many parts that do nearly nothing would be taken."""


@dataclass(frozen=True, eq=False)
class Unlearned:
    """An edit that takes a behaviour out, and how it came about."""

    edit: Edit
    """The parts held at their means, or at zero where the architecture has no bias for means."""
    parts: tuple[str, ...]
    """Heads and neurons, in the order in which they were taken."""
    left: tuple[float, ...]
    """Share of the model's gap of clean and corrupted metric that is left before each round and at the end."""
    reached: bool
    """Whether what was asked for is reached on these prompts."""
    prices: Mapping[str, float]
    """What each part alone costs on neutral text, to second order, nats a token."""

    def __repr__(self) -> str:
        return f"Unlearned({len(self.parts)} parts, {self.left[-1]:.2f} of the gap left)"


@method
def unlearn(
    setting: Setting,
    *,
    texts: str | Sequence[str] | Windows,
    left: float = 0.05,
    kinds: Sequence[str] = KINDS,
    circuit: Circuit | None = None,
    rounds: int = 20,
) -> Unlearned:
    """An `Edit` after which `left` of the task's gap is left, at a small price on `texts`.

    The gap is the mean metric on clean minus that on corrupted prompts. In each round, with what is taken so far in
    force, every head and neuron gets its first-order effect on the gap when it is held at its mean over the texts, and
    those with the largest effect per nat of price go, until half of what is still to go would be gone by these effects.
    The price is the divergence on texts to second order (`circuitome.applications.gates`). With a `circuit`, only its
    heads, and neurons of its MLPs, are taken. Costs a forward-backward pass over the texts, and two over the prompts a
    round.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> texts = cm.neurons.packed([pair.clean for pair in task.pairs])
    >>> cm.unlearn(model, task, texts=texts, kinds=["heads"]).reached
    True

    Raises `InputError` where the model does not do the task, and for kinds of parts that there are not.
    """
    if not set(kinds) <= set(KINDS) or not kinds:
        raise InputError(f"Kinds of parts are {' and '.join(KINDS)}, got {', '.join(kinds) or 'none'}.")
    if not 0 <= left < 1 or rounds < 1:
        raise InputError(f"left is a share from 0 to below 1 and rounds at least 1; got {left:g} and {rounds}.")
    model = setting.model
    cut = texts if isinstance(texts, Windows) else neutral_windows(model, texts, setting.seed)
    whole = _gap(setting)
    if not whole > 0:
        raise InputError(
            f"{model.name} does not do {setting.task.name}: its mean {setting.task.measure} is not higher on clean "
            "than on corrupted prompts, so there is nothing to unlearn."
        )
    gates, means = text_gates(setting, cut)
    constants = Parts(means.heads * holds_mean(model, "head"), means.neurons * holds_mean(model, "neuron"))
    price = prices(gates, cut, constants)
    allowed = price.map(torch.ones_like) if circuit is None else members(circuit, gates.written)
    allowed = Parts(allowed.heads * ("heads" in kinds), allowed.neurons * ("neurons" in kinds))
    taken, shares = list[str](), [1.0]
    while shares[-1] > left and len(shares) <= rounds:
        with model.edited(held(taken, constants)):
            effect = task_gates(setting).changes(constants).map(lambda values: -values.mean(0) / whole)
        more = _chosen(effect, price, allowed, taken, STEP * (shares[-1] - left))
        if not more:
            break
        taken += more
        with model.edited(held(taken, constants)):
            shares.append(_gap(setting) / whole)
        setting.progress("unlearning", len(shares) - 1, rounds)
    known = {name: float(_value(price, name)) for name in taken}
    return Unlearned(held(taken, constants), tuple(taken), tuple(shares), shares[-1] <= left, known)


def _gap(setting: Setting) -> float:
    clean, corrupted = metrics(setting)
    return float((clean - corrupted).mean())


def held(names: Sequence[str], constants: Parts) -> Edit:
    """The parts held at their constants."""
    values = {name: torch.atleast_1d(_value(constants, name)) for name in names}
    return Edit((Replaced(values),)) if values else Edit()


def _value(of: Parts, name: str) -> Tensor:
    node = Node.parse(name)
    return (of.heads if node.kind == "head" else of.neurons)[node.layer, node.index]


def _chosen(effect: Parts, price: Parts, allowed: Parts, taken: Sequence[str], wanted: float) -> list[str]:
    """Parts not yet taken with the largest effect per nat, until their effects come to what is wanted."""
    values, worth = list[Tensor](), list[Tensor]()
    for of, cost, on in ((effect.heads, price.heads, allowed.heads), (effect.neurons, price.neurons, allowed.neurons)):
        values.append((of * on).flatten())
        worth.append((of * on / (cost + EACH)).flatten())
    effects, order = torch.cat(values), torch.cat(worth).sort(descending=True).indices.tolist()
    count, per = effect.heads.numel(), (effect.heads.shape[1], effect.neurons.shape[1])
    chosen, total, before = list[str](), 0.0, set(taken)
    for i in order:
        if total >= wanted or not float(effects[i]) > 0:
            break
        kind, place = ("head", divmod(i, per[0])) if i < count else ("neuron", divmod(i - count, per[1]))
        name = str(Node(kind, *place))
        if name not in before:
            chosen.append(name)
            total += float(effects[i])
    return chosen


def random_like(model: Model, names: Sequence[str], seed: int) -> list[str]:
    """As many other heads, and as many other neurons, of any block, drawn at random."""
    generator, drawn = torch.Generator().manual_seed(seed), list[str]()
    for kind, per in (("head", model.heads.q), ("neuron", model.blocks[0].n_neurons)):
        own = {name for name in names if Node.parse(name).kind == kind}
        order = torch.randperm(per * len(model.blocks), generator=generator)[: 2 * len(own)].tolist()
        others = (str(Node(kind, *divmod(i, per))) for i in order)
        drawn += [name for name in others if name not in own][: len(own)]
    return drawn
