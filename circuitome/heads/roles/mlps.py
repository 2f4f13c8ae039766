"""What the MLPs of a circuit do: where they matter, what they read, which tokens they raise, and whom they feed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, ablated_values
from circuitome.engine.batches import Batch
from circuitome.engine.circuit_run import check_graph
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.heads.roles.ablations import ABLATED_EVERYWHERE
from circuitome.heads.roles.features import intervals
from circuitome.heads.roles.measure import scale_of
from circuitome.heads.roles.positions import END, Places, places
from circuitome.heads.roles.rules import Interval
from circuitome.models.model import Model
from circuitome.results import Shown
from circuitome.weights.folding import outputs_are_tokens, unembedding_rows

NAMED = 5
"""Tokens that are named as raised or lowered."""
LEAST_CHANGE = 0.001
"""Change of a token's probability from which on it is named."""
CLEAR = 0.02
"""Share of the gap from which on an MLP is ablated token by token."""
THIRDS = ("early", "middle", "late")
"""Thirds of a model's layers."""

TokenChanges = tuple[tuple[str, float], ...]
"""Tokens as text, each with the change of its probability."""


@dataclass(frozen=True, eq=False, repr=False)
class MlpExplanation(Shown):
    """The MLPs of a circuit, each with its effects. Effects are changes of the metric on some prompts: negative helps.

    The prompts are the first of the task; an MLP is ablated by replacing what it writes, everything behind reacting.
    """

    circuit: Circuit
    """The circuit."""
    names: tuple[str, ...]
    """The MLPs, first layer first."""
    all_positions: Float[Tensor, "some mlp"]
    """Effect of ablating the MLP everywhere."""
    last_position: Float[Tensor, "some mlp"]
    """Effect of ablating it at the token after which the answer is read."""
    direct: Float[Tensor, "some mlp"]
    """Effect when the logits, and nothing else, see it ablated."""
    by_role: Float[Tensor, "some mlp role"]
    """Effect of ablating it at the token of each role; NaN where a prompt has none, or the whole effect is small."""
    roles: tuple[str, ...]
    """Names of the roles."""
    raised: tuple[TokenChanges, ...]
    """By MLP: the tokens whose probability after the prompt it raises most, the strongest first, each with the change:
    its probability minus that when the logits, and nothing else, see the MLP ablated; mean over the prompts, 0 to 1.
    Tokens that change by less than 0.001 are not named, and none of a model whose outputs are not its input tokens."""
    lowered: tuple[TokenChanges, ...]
    """The tokens whose probability it lowers most; their changes are negative."""
    scale: float
    """What effects are shares of: the gap between the clean and the ablated metric on these prompts, or the spread of
    the clean metric where that is larger."""
    unit: str
    """Unit of the metric."""

    def __repr__(self) -> str:
        return f"MlpExplanation({len(self.names)} MLPs of a circuit of {len(self.circuit)} edges)"

    @cached_property
    def role_effects(self) -> tuple[tuple[Interval, ...], ...]:
        """By MLP and role: the mean effect of ablating it there and its 99 % interval, over prompts with such a token.

        NaN where it is unknown; no interval with fewer than three such prompts.
        """
        return tuple(
            tuple(intervals(samples[~samples.isnan(), None])[0] for samples in self.by_role[:, place].T)
            for place in range(len(self.names))
        )

    def acts_at(self, place: int) -> str:
        """The role of the token at which ablating an MLP surely changes the metric, and most if there are several.

        Surely: by at least 2 % of the scale, and the 99 % interval excludes 0. Nothing where no token does.
        """
        effects = {
            role: abs(effect.value)
            for role, effect in zip(self.roles, self.role_effects[place], strict=True)
            if abs(effect.value) >= CLEAR * self.scale and excludes_zero(effect)
        }
        return max(effects, key=lambda role: effects[role], default="")

    @cached_property
    def classes(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The MLPs that surely matter, strongest first, by third of the model's layers and by where they act.

        Thirds are "early", "middle" and "late"; the second name is that of `acts_at`. Surely: ablating the MLP there,
        or at all positions, changes the metric by at least 2 % of the scale, and the 99 % interval excludes 0.
        """
        whole, classes = intervals(self.all_positions) if self.names else [], dict[tuple[str, str], list[str]]()
        for place in self.ranked:
            sure = abs(whole[place].value) >= CLEAR * self.scale and excludes_zero(whole[place])
            if sure or self.acts_at(place):
                third = THIRDS[3 * Node.parse(self.names[place]).layer // self.circuit.graph.n_layers]
                classes.setdefault((third, self.acts_at(place)), []).append(self.names[place])
        order = [(third, role) for third in THIRDS for role in ("", *self.roles)]
        return {name: tuple(classes[name]) for name in order if name in classes}

    def reads(self, name: str) -> tuple[str, ...]:
        """The writers from which the circuit's edges lead into an MLP."""
        graph = self.circuit.graph
        column = graph.mlp_column(Node.parse(name).layer)
        return tuple(graph.writers[row] for row in self.circuit.mask[:, column].nonzero().flatten().tolist())

    def feeds(self, name: str) -> tuple[str, ...]:
        """The readers to which the circuit's edges lead from an MLP."""
        graph = self.circuit.graph
        return tuple(
            graph.readers[column] for column in self.circuit.mask[graph.row(name)].nonzero().flatten().tolist()
        )

    @property
    def ranked(self) -> tuple[int, ...]:
        """Places on the MLP axis, the largest effect at all positions first."""
        return tuple(self.all_positions.mean(0).abs().argsort(descending=True, stable=True).tolist())

    def to_dict(self) -> list[dict[str, Any]]:
        """Every MLP, the most important first, as plain JSON values; effects in the metric's unit."""
        names = ("direct", "last_position", "all_positions") if self.names else ()
        kinds = {name: intervals(getattr(self, name)) for name in names}
        return [
            {
                "mlp": self.names[i],
                "effects": {name: asdict(values[i]) for name, values in kinds.items()},
                "by_role": dict(zip(self.roles, map(asdict, self.role_effects[i]), strict=True)),
                "acts_at": self.acts_at(i),
                "raised": [{"token": token, "change": change} for token, change in self.raised[i]],
                "lowered": [{"token": token, "change": change} for token, change in self.lowered[i]],
                "reads": list(self.reads(self.names[i])),
                "feeds": list(self.feeds(self.names[i])),
            }
            for i in self.ranked
        ]


@method
def explain_mlps(setting: Setting, circuit: Circuit) -> MlpExplanation:
    """What every MLP of a circuit does: effects of ablating it, where it acts, what it raises, reads and feeds.

    Measured on the task's first 16 prompts. An ablated MLP writes what the setting's `ablation` says, at all positions,
    at the last, or at the token of one role; the latter for MLPs whose whole effect is at least 2 % of the gap. The
    cost grows with how far each is below the logits. A circuit without MLPs gives an explanation of none.

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> circuit = cm.ground_truth.true_circuit(model, task, ablation="zero")
    >>> cm.heads.explain_mlps(model, circuit, task, ablation="zero").names
    ('m0', 'm1', 'm2')

    Raises `InputError` for a circuit of another model, `TaskError` for pairs that cannot be swapped, `NumericsError`
    where the metric is not finite.
    """
    check_graph(setting.model, circuit)
    names = tuple(name for name in circuit.nodes if Node.parse(name).kind == "mlp")
    some = setting.but(prompts=replace(setting.task, pairs=setting.task.pairs[:ABLATED_EVERYWHERE]))
    where = places(some.task)
    layers = [Node.parse(name).layer for name in names]
    with torch.no_grad():
        effects, changes, metrics = _whole_effects(some, where, layers)
        scale = scale_of(*metrics)
        # Decided over all prompts, so that it does not depend on how they are cut into batches.
        clear = (effects[0].mean(0).abs() >= CLEAR * scale).tolist()
        by_role = _role_effects(some, where, layers, effects[1], clear)
    tokens = [_extremes(setting.model, change) for change in changes]
    return MlpExplanation(
        circuit=circuit,
        names=names,
        all_positions=effects[0],
        last_position=effects[1],
        direct=effects[2],
        by_role=by_role,
        roles=where.names,
        raised=tuple(up for up, _ in tokens),
        lowered=tuple(down for _, down in tokens),
        scale=scale,
        unit=setting.task.unit,
    )


def excludes_zero(effect: Interval) -> bool:
    """Whether the interval of an effect is known and does not hold 0."""
    return effect.low > 0 or effect.high < 0


def _whole_effects(
    setting: Setting, where: Places, layers: Sequence[int]
) -> tuple[Float[Tensor, "3 some mlp"], Float[Tensor, "mlp vocab"], Float[Tensor, "2 some"]]:
    """Effects at all positions, at the last and on the logits alone; changes of probabilities; both metrics.

    The changes are means over prompts, one row for each of `layers`; their vocabulary is empty where tokens cannot be
    named. The metrics are the clean and the ablated one.
    """
    model, n = setting.model, len(setting.task)
    named = model.tokenizer is not None and outputs_are_tokens(model)
    effects, metrics = torch.zeros(3, n, len(layers)), torch.zeros(2, n)
    changes = torch.zeros(len(layers), len(unembedding_rows(model)) if named else 0)
    for batch in setting.batches() if layers else ():
        run, rows = _Run(setting, batch, where), list(batch.rows)
        metrics[:, rows] = run.metrics
        for place, layer in enumerate(layers):
            effects[:, rows, place] = run.effects(layer)
            if named:
                changes[place] += run.changes(layer) / n
            setting.progress("ablating MLPs", place + 1, len(layers))
    return effects, changes, metrics


def _role_effects(
    setting: Setting, where: Places, layers: Sequence[int], last: Float[Tensor, "some mlp"], clear: Sequence[bool]
) -> Float[Tensor, "some mlp role"]:
    """Effects of the MLPs that are `clear` at the token of each role; NaN for the others. `last`: those at the last."""
    effects = torch.full((len(setting.task), len(layers), len(where.names)), torch.nan)
    for batch in setting.batches() if any(clear) else ():
        run, rows = _Run(setting, batch, where), list(batch.rows)
        for place, layer in enumerate(layers):
            if clear[place]:
                effects[rows, place] = run.by_role(layer, last[rows, place])
            setting.progress("ablating MLPs token by token", place + 1, len(layers))
    return effects


class _Run:
    """The clean prompts of a batch, run on with one MLP ablated."""

    def __init__(self, setting: Setting, batch: Batch, where: Places) -> None:
        self.setting, self.batch, self.model = setting, batch, setting.model
        activations = self.model.record(batch.clean, logits=False)
        clean = WriterValues.of(self.model, activations)
        self.change = ablated_values(self.model, setting.task, batch, setting.replacement, clean).minus(clean)
        self.rest = PartialForward(self.model, batch.clean, activations)
        self.readout = Readout(self.model, setting.task, batch.rows, "metric")
        assert activations.final is not None
        self.final = batch.clean.at_read(activations.final).float()
        self.metric = -self.readout(self.final[None])[0]
        self.marks, self.end = _marks(setting, batch, where), where.names.index(END)
        self.there = where.at[list(batch.rows)] >= 0

    @property
    def metrics(self) -> Float[Tensor, "2 batch"]:
        """Metric of the clean run, and with everything ablated."""
        weights = [block.head_weights() for block in self.model.blocks]
        heads = (torch.einsum("bphe,hed->bpd", z, w) for z, w in zip(self.change.heads, weights, strict=True))
        change = sum(chain(heads, self.change.mlps), self.change.embed)
        ablated = -self.readout((self.final + self.batch.clean.at_read(change))[None])[0]
        return torch.stack([self.metric, ablated]).cpu()

    def effects(self, layer: int) -> Float[Tensor, "3 batch"]:
        """Effects at all positions, at the last and on the logits alone."""
        end = self.marks[self.end]
        direct = self.readout.effects(self.final, self._at_read(layer)[None])[1]
        return torch.cat([self._ablated(layer, torch.stack([torch.ones_like(end), end])), direct.cpu()])

    def changes(self, layer: int) -> Float[Tensor, " vocab"]:
        """Probability of each token minus that when the logits alone see the MLP ablated, summed over the prompts."""
        return (self.probabilities - self._probabilities(self.final + self._at_read(layer))).sum(0).cpu()

    @cached_property
    def probabilities(self) -> Float[Tensor, "batch vocab"]:
        """Probabilities of all tokens behind the clean prompts."""
        return self._probabilities(self.final)

    def _probabilities(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
        return self.model.unembed(final.to(self.model.dtype)).float().softmax(-1)

    def _at_read(self, layer: int) -> Float[Tensor, "batch d_model"]:
        """What an MLP writes more where the answer is read when it is ablated."""
        return self.batch.clean.at_read(self.change.mlps[layer])

    def by_role(self, layer: int, last: Float[Tensor, " batch"]) -> Float[Tensor, "batch role"]:
        """Effects at the token of each role; NaN where a prompt has none. `last` is known already, for the role "end".

        A token in the prefix that clean and corrupted prompts share is not ablated: there, nothing changes.
        """
        effects = torch.zeros(self.marks.shape[:2])
        effects[self.end] = last
        run_on = [role for role, marks in enumerate(self.marks) if role != self.end and bool(marks.any())]
        if run_on:
            effects[run_on] = self._ablated(layer, self.marks[run_on])
        return torch.where(self.there, effects.T, torch.nan)

    def _ablated(self, layer: int, masks: Float[Tensor, "copies batch pos"]) -> Float[Tensor, "copies batch"]:
        """Effect of ablating the MLP where each mask says."""
        changes = self.change.mlps[layer] * masks[..., None].to(self.final.device)
        step = dense_copies(self.model, self.batch.clean, self.setting.max_memory)
        finals = [self.rest.written(Node.mlp(layer), some).float() for some in changes.split(step)]
        return (-self.readout(torch.cat(finals)) - self.metric).cpu()


def _marks(setting: Setting, batch: Batch, where: Places) -> Float[Tensor, "role batch pos"]:
    """1 at the token of each role, in the suffixes that the batch runs; a role in the shared prefix cannot change."""
    marks = torch.zeros(len(where.names), *batch.clean.ids.shape)
    for i, row in enumerate(batch.rows):
        start = setting.task.pairs[row].answer_position - int(batch.clean.read[i])
        for role, position in enumerate(where.at[row].tolist()):
            if position >= start:
                marks[role, i, position - start] = 1
    return marks


def _extremes(model: Model, changes: Float[Tensor, " vocab"]) -> tuple[TokenChanges, TokenChanges]:
    """The tokens whose probabilities rise and fall most, as text, with the changes; none of an empty vocabulary."""
    sides = []
    for sign in (1, -1):
        values, tokens = (sign * changes).topk(min(NAMED, len(changes)))
        known = zip(values.tolist(), tokens.tolist(), strict=True)
        sides.append(tuple((model.decode([token]), sign * value) for value, token in known if value >= LEAST_CHANGE))
    return sides[0], sides[1]
