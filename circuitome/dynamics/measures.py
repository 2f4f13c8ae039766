"""What is measured of a model at one step of its training: losses, heads, composition, syntax, size, dimension."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.dynamics.arcs import syntax
from circuitome.dynamics.grammar import MinimalPair
from circuitome.dynamics.minimal_pairs import pair_scores
from circuitome.dynamics.task_circuits import task_circuit
from circuitome.dynamics.trees import Tree
from circuitome.engine.setting import Setting
from circuitome.heads.atlas.all_heads import one_pass
from circuitome.heads.atlas.induction_heads import context_score
from circuitome.heads.atlas.repeated import Repeated, repeated_tokens, usual_period
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.tasks.held_out import Split
from circuitome.training.objectives import logits_of, rows_at_once
from circuitome.training.streams import NOT_COUNTED, Rows, Stream, split
from circuitome.weights.head_composition import KINDS, composition

SEQUENCES, PERIOD, EXAMPLE = 16, 24, 8
"""Repeated random sequences, tokens of a period at most, and those of the example."""
POINTS = 512
"""Tokens whose places in the stream tell the dimension."""


@dataclass(frozen=True)
class Measure:
    """What a curve shows."""

    title: str
    """Its name."""
    about: str
    """What it is."""
    unit: str
    """Its unit."""
    heads: bool = False
    """Whether every head has a curve."""


SUBJECTS = "nsubj"
"""The relation that agreement of number needs."""
LOSS, ATTENTION, ARCS = "nats a token", "share of attention", "share of arcs"
COMPOSED = "strongest pair of heads, above chance"
MEASURES = {
    "held_out_loss": Measure("held-out loss", "loss on held-out rows", LOSS),
    "in_context": Measure("in-context score", "loss late in a row minus loss early in it", LOSS),
    "repeat_loss": Measure("loss on repeats", "loss on random tokens said again", LOSS),
    "previous": Measure("previous token", "attention to the token before", ATTENTION, heads=True),
    "induction": Measure("prefix matching", "attention behind earlier copies", ATTENTION, heads=True),
    "copying_ratio": Measure("copying", "raises minus cuts of attended tokens' logits", "ratio", heads=True),
    "q_composition": Measure("Q-composition", COMPOSED, "share"),
    "k_composition": Measure("K-composition", COMPOSED, "share"),
    "v_composition": Measure("V-composition", COMPOSED, "share"),
    "uas": Measure("arcs by heads", "arcs of trees that the best head of each relation finds (UAS)", ARCS),
    "subjects": Measure("subjects by heads", "arcs between subjects and their verbs that the best head finds", ARCS),
    "uas_offsets": Measure("arcs by offsets", "arcs that the best distance of each relation finds", ARCS),
    "pairs": Measure("minimal pairs", "right sentence likelier", "share of pairs"),
    "weight_norm": Measure("weight norm", "norm of all weights", ""),
    "dimension": Measure("dimension", "intrinsic dimension of the final stream (TwoNN)", "dimensions"),
}
"""All that is measured, by name."""
SHARED = "share of edges"
TASK_MEASURES = {
    "task_metric": Measure("{}: metric", "how well held-out prompts of {} are done", ""),
    "circuit_size": Measure("{}: edges for .9", "edges of the smallest circuit that keeps .9 of {}", "edges"),
    "circuit_jaccard": Measure("{}: circuit in common", "edges shared with the last step's circuit", SHARED),
    "strongest_jaccard": Measure("{}: strongest in common", "the same of as many strongest ones", SHARED),
}
"""Curves of the circuit of a task, by the beginning of their names, such as circuit_size:induction."""
CIRCUITS = "circuits"
"""Name under which a checkpoint's circuits are kept, by task."""


@dataclass(frozen=True, eq=False)
class Measures:
    """Held-out texts, repeated sequences, trees and pairs that every checkpoint of a model is measured on."""

    rows: Rows | None
    """Held-out rows of what is trained on; None: their loss is not measured."""
    repeated: Repeated | None
    """Repeated random tokens; None: heads are not measured."""
    trees: tuple[Tree, ...] = ()
    """Sentences with trees; none: syntax is not measured."""
    pairs: tuple[MinimalPair, ...] = ()
    """Minimal pairs."""
    tasks: tuple[Split, ...] = ()
    """Tasks whose circuits are looked for, and held-out prompts of theirs."""
    ranking: str = "eap-ig"
    """What ranks the edges for them, as in `task_circuit`."""
    min_arcs: int = 20
    """Arcs that a relation needs."""
    example: Inputs | None = None
    """One short text on which the attention of every head is kept; None: none is."""
    max_memory: int | None = None
    """Budget in bytes of what is measured in batches: trees, pairs and circuits."""

    @classmethod
    def of(
        cls,
        model: Model,
        held_out: Stream | None,
        *,
        rows: int = 64,
        length: int = 64,
        trees: Sequence[Tree] = (),
        pairs: Sequence[MinimalPair] = (),
        tasks: Sequence[Split] = (),
        ranking: str = "eap-ig",
        tokens: Sequence[int] | None = None,
        seed: int = 0,
        max_memory: int | None = None,
    ) -> "Measures":
        """What suits a model: `rows` of a stream that is not trained on, and repeated tokens of its vocabulary.

        `tokens` are those that repeated sequences are made of; ordinary words where nobody says. `tasks` are those of
        `watched_tasks`, `ranking` is that of `task_circuit`.
        """
        held = None if held_out is None else held_out.batch(0, rows, length, seed)
        period = usual_period(model) if tokens is None else min(PERIOD, length // 2)
        repeated = repeated_tokens(model, n=SEQUENCES, period=min(PERIOD, period), seed=seed, tokens=tokens)
        example = _example(model, trees, min(EXAMPLE, period), seed, tokens)
        given = (held, repeated, tuple(trees), tuple(pairs), tuple(tasks), ranking)
        return cls(*given, example=example, max_memory=max_memory)

    @property
    def watches(self) -> tuple[str, ...]:
        """Names of the tasks: a training that went on without them would have no circuits at its first steps."""
        return tuple(sorted(task.search.name for task in self.tasks))

    def words(self, model: Model) -> list[str]:
        """Tokens of the example as text, or as numbers where the model has no tokenizer."""
        ids = [] if self.example is None else self.example.ids[0].tolist()
        return [model.decode([i]) if model.tokenizer is not None else str(i) for i in ids]

    def __call__(self, model: Model) -> dict[str, Any]:
        """All measures by name in `MEASURES`, samples first: rows, sequences or pairs; those of heads [n, layer, head].

        `attention` is that in the example, [layer, head, query, key], with three decimals. Where there are tasks,
        `circuits` holds their `TaskCircuit` by name. A measure that the model or the texts do not allow is left out.
        """
        measured: dict[str, Any] = {}
        with model.reserved(), torch.no_grad():
            if self.rows is not None:
                measured |= _losses(model, self.rows, self.max_memory)
            if self.repeated is not None:
                measured |= _heads(model, self.repeated)
            if not model.masked:
                measured |= _composition(model)
            setting = Setting(model, max_memory=self.max_memory)
            if self.trees:
                parses = syntax(setting, self.trees, min_arcs=self.min_arcs)
                measured |= {"uas": torch.tensor([parses.uas().value])}
                measured |= {"uas_offsets": torch.tensor([parses.uas("offset").value])}
                if subjects := [kind for kind in parses.kinds if kind.startswith(SUBJECTS)]:
                    measured["subjects"] = torch.tensor([parses.uas("head", subjects[0]).value])
            if self.pairs:
                measured["pairs"] = pair_scores(setting, self.pairs).right
            if self.example is not None:
                measured["attention"] = _attention(model, self.example)
            norms = torch.stack([p.detach().float().norm() for p in model.hf.parameters()])
            measured["weight_norm"] = norms.norm()[None].cpu()
            if self.tasks:
                prompts = {task.search.name: task for task in self.tasks}
                measured[CIRCUITS] = {
                    name: task_circuit(setting.but(prompts=task.search), held_out=task.held_out, ranking=self.ranking)
                    for name, task in prompts.items()
                }
        return measured


def _example(
    model: Model, trees: Sequence[Tree], period: int, seed: int, tokens: Sequence[int] | None
) -> Inputs | None:
    """A short sentence of the trees, or repeated tokens where there are none."""
    if model.tokenizer is not None:
        for tree in trees:
            ids = model.encode(tree.text)
            if period < len(ids) <= 2 * period:
                return Inputs.whole(torch.tensor([ids]))
    return repeated_tokens(model, n=1, period=period, seed=seed, tokens=tokens).inputs


def _attention(model: Model, example: Inputs) -> Float[Tensor, "layer head query key"]:
    patterns: list[Tensor] = []
    with model.watching_attention(lambda layer, pattern: patterns.append(pattern[0].double().cpu())):
        model.logits(_on(example, model.device))
    return torch.stack(patterns).round(decimals=3)


def _losses(model: Model, rows: Rows, max_memory: int | None) -> dict[str, Tensor]:
    """Mean loss of each held-out row, in-context score of a decoder, and the dimension of the final stream."""
    tokens, stream, losses = rows.to(model.device), list[Tensor](), list[Tensor]()
    shift = 0 if rows.labels is not None else 1
    hook = model.final_norm.module.register_forward_pre_hook
    targets = tokens.targets[:, shift:].long()
    with hooked(hook, lambda module, args: stream.append(args[0].detach())):
        for part in split(tokens, rows_at_once(model, tokens.ids.shape[1], max_memory)):
            logits, wanted = logits_of(model, part)[:, : -shift or None], part.targets[:, shift:].long()
            options: Any = {"ignore_index": NOT_COUNTED, "reduction": "none"}
            losses.append(nn.functional.cross_entropy(logits.transpose(1, 2), wanted, **options).cpu())
    every, counted = torch.cat(losses), (targets != NOT_COUNTED).cpu()
    means = every.sum(1) / counted.sum(1).clamp(min=1)
    measured = {"held_out_loss": means[counted.any(1)]}
    if not model.masked and bool(counted.all()):
        measured["in_context"] = context_score(every)
    real = torch.ones_like(tokens.ids) if tokens.mask is None else tokens.mask
    places = torch.cat(stream)[real.bool()].float()
    chosen = torch.linspace(0, len(places) - 1, min(POINTS, len(places)), device=places.device).long()
    return {**measured, "dimension": two_nn(places[chosen])[None].cpu()}


def _heads(model: Model, repeated: Repeated) -> dict[str, Tensor]:
    """Scores of heads on repeated sequences, and the loss on later repeats."""
    here = replace(repeated, inputs=_on(repeated.inputs, model.device))
    scores = one_pass(model, here)
    measured = dict[str, Tensor]()
    for name in ("previous", "induction", "copying_ratio"):
        measured |= {name: scores[name]} if name in scores else {}
    if not model.masked:
        logits = model.every_logits(here.inputs)[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), here.inputs.ids[:, 1:], reduction="none").cpu()
        place = torch.arange(1, repeated.length) - repeated.front
        late = (place >= repeated.period) & (place % repeated.period > 0)
        measured["repeat_loss"] = losses[:, late].mean(1)
    return measured


def _composition(model: Model) -> dict[str, Tensor]:
    if len(model.blocks) < 2:
        return {}
    found = composition(model)
    return {f"{kind}_composition": found.of(kind, above=found.baseline).max()[None].cpu() for kind in KINDS}


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    fields = {name: getattr(inputs, name).to(device) for name in ("ids", "mask", "positions", "read")}
    return replace(inputs, **fields)


def two_nn(points: Float[Tensor, "point d"]) -> Float[Tensor, ""]:
    """Intrinsic dimension from the distances r1, r2 of each point to its two nearest neighbours.

    (n - 1) / sum of log(r2 / r1), the maximum-likelihood estimate without bias; points that coincide with another are
    left out. NaN for fewer than 3 points. float64.
    Source: Facco et al. 2017, Scientific Reports 7, 12140; without their cut of the largest ratios.

    >>> plane = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 2).triu()
    >>> round(float(cm.dynamics.two_nn(torch.cat([plane, plane @ torch.ones(2, 5)], 1))))
    2
    """
    if len(points) < 3:
        return torch.tensor(torch.nan)
    places = points.double()
    distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    nearest = distances.topk(2, largest=False).values
    nearest = nearest[nearest[:, 0] > 0]
    return ((len(nearest) - 1) / (nearest[:, 1] / nearest[:, 0]).log().sum().clamp(min=1e-30)).float()
