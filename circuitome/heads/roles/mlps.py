"""What the MLPs of a circuit do: where they matter, what they read, which tokens they raise, and whom they feed."""

from dataclasses import asdict, dataclass, replace
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
from circuitome.heads.roles.positions import Places, places
from circuitome.heads.roles.unembedding import Unembedding
from circuitome.results import Shown

NAMED = 5
"""Tokens that are named as raised or lowered."""
CLEAR = 0.02
"""Share of the gap from which on an MLP is ablated token by token."""


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
    raised: tuple[tuple[str, ...], ...]
    """By MLP: the tokens whose logits rise most by what it writes where the answer is read and its ablated self does
    not, mean over the prompts; the strongest first."""
    lowered: tuple[tuple[str, ...], ...]
    """The tokens whose logits fall most."""
    scale: float
    """The gap between the clean and the ablated metric on these prompts."""
    unit: str
    """Unit of the metric."""

    def __repr__(self) -> str:
        return f"MlpExplanation({len(self.names)} MLPs of a circuit of {len(self.circuit)} edges)"

    def acts_at(self, place: int) -> str:
        """The role of the token at which ablating an MLP changes the metric most; nothing where no token does."""
        effects = self.by_role[:, place].nanmean(0)
        if bool(effects.isnan().all()):
            return ""
        strongest = int(effects.abs().nan_to_num(-1.0).argmax())
        return self.roles[strongest] if float(effects[strongest].abs()) >= CLEAR * self.scale else ""

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
                "by_role": dict(zip(self.roles, self.by_role[:, i].nanmean(0).tolist(), strict=True)),
                "acts_at": self.acts_at(i),
                "raised": list(self.raised[i]),
                "lowered": list(self.lowered[i]),
                "reads": list(self.reads(self.names[i])),
                "feeds": list(self.feeds(self.names[i])),
            }
            for i in self.ranked
        ]


@method
def explain_mlps(setting: Setting, circuit: Circuit) -> MlpExplanation:
    """What every MLP of a circuit does: effects of ablating it, where it acts, what it raises, reads and feeds.

    Measured on the task's first 16 prompts. An ablated MLP writes what the setting's `ablation` says, at all positions,
    at the last, or at the token of one role; the latter for MLPs whose whole effect is at least 2 % of the gap. Costs
    about a third of a pass over the 16 prompts for each of these. A circuit without MLPs gives an explanation of none.

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
    where, n = places(some.task), len(some.task)
    effects, gaps = torch.zeros(3, n, len(names)), torch.zeros(n)
    by_role = torch.full((n, len(names), len(where.names)), torch.nan)
    writes = torch.zeros(len(names), setting.model.d_model)
    with torch.no_grad():
        for batch in some.batches() if names else ():
            run, rows = _Run(some, batch, where), list(batch.rows)
            gaps[rows] = run.gap
            for place, layer in enumerate(Node.parse(name).layer for name in names):
                effects[:, rows, place], written = run.effects(layer)
                writes[place] += written
                setting.progress("ablating MLPs", place + 1, len(names))
        # Decided over all prompts, so that it does not depend on how they are cut into batches.
        clear = (effects[0].mean(0).abs() >= CLEAR * gaps.mean().abs()).tolist()
        for batch in some.batches() if any(clear) else ():
            run, rows = _Run(some, batch, where), list(batch.rows)
            for place, name in enumerate(names):
                if clear[place]:
                    by_role[rows, place] = run.by_role(Node.parse(name).layer)
    tokens = [_extremes(setting, vector) for vector in writes / n]
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
        scale=max(float(gaps.mean()), 1e-9),
        unit=setting.task.unit,
    )


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
        self.marks = _marks(setting, batch, where)
        self.there = where.at[list(batch.rows)] >= 0

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """Metric of the clean run minus that with everything ablated."""
        changes = [block.head_weights() for block in self.model.blocks]
        heads = [torch.einsum("bphe,hed->bpd", z, w) for z, w in zip(self.change.heads, changes, strict=True)]
        change = sum([*heads, *self.change.mlps], self.change.embed)
        return (self.metric + self.readout((self.final + self.batch.clean.at_read(change))[None])[0]).cpu()

    def effects(self, layer: int) -> tuple[Float[Tensor, "3 batch"], Float[Tensor, " d_model"]]:
        """Effects at all positions, at the last and on the logits alone; and what is written, summed over prompts."""
        end, rows = torch.zeros_like(self.marks[0]), torch.arange(len(self.final))
        end[rows, self.batch.clean.read.cpu()] = 1
        change = self.batch.clean.at_read(self.change.mlps[layer])
        direct = self.readout.effects(self.final, change[None])[1]
        total = self._ablated(layer, torch.stack([torch.ones_like(end), end]))
        written = -(change / self.model.final_norm.sigma(self.final)).sum(0)
        return torch.cat([total, direct.cpu()]), written.cpu()

    def by_role(self, layer: int) -> Float[Tensor, "batch role"]:
        """Effects at the token of each role; NaN where a prompt has none."""
        return torch.where(self.there, self._ablated(layer, self.marks).T, torch.nan)

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


def _extremes(setting: Setting, vector: Float[Tensor, " d_model"]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tokens whose logits a vector raises and lowers most, as text; none where outputs are not input tokens."""
    unembedding = Unembedding(setting.model)
    if not unembedding.outputs_are_tokens or setting.model.tokenizer is None:
        return (), ()
    logits = unembedding.weight.float() @ unembedding.direction(vector.to(unembedding.weight.device))
    count = min(NAMED, len(logits) // 2)
    up, down = (logits.topk(count, largest=largest).indices.tolist() for largest in (True, False))
    return tuple(setting.model.decode([token]) for token in up), tuple(setting.model.decode([token]) for token in down)
