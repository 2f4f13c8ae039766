"""Faithfulness as different papers define it, under every ablation, by template and over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import ABLATIONS
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.progress import silent
from circuitome.results import Estimate
from circuitome.tasks.losses import kl
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import normalised


@dataclass(frozen=True)
class OtherAblation:
    """Faithfulness of one circuit under another ablation than the one it was found with."""

    name: str
    """The ablation, and whose prompts it takes its values from."""
    edges: Estimate | None
    """Normalised faithfulness of the circuit's edges; None where the ablation cannot be."""
    note: str = ""
    """Why it cannot be."""


def faithfulness_variants(setting: Setting, samples: Float[Tensor, "prompts 3"]) -> dict[str, Estimate]:
    """Faithfulness from per-prompt metrics of circuit, model and empty circuit, the columns of `samples`.

    - normalised: (F(C) - F(0)) / (F(M) - F(0)) (Hanna et al. 2024).
    - difference: |F(M) - F(C)|, in the metric's unit (Wang et al. 2022).
    - ratio of means: F(C) / F(M); mean of ratios: the mean over prompts of the same, unstable where the model's metric
      is near 0.
    """
    estimate = partial(setting.estimate, torch.cat([samples, samples[:, :1] / samples[:, 1:2]], 1))
    return {
        "normalised": normalised(setting, samples),
        "difference": estimate(lambda m: (m[:, 1] - m[:, 0]).abs(), setting.task.unit),
        "ratio of means": estimate(lambda m: m[:, 0] / m[:, 1], "share of the model's metric"),
        "mean of ratios": estimate(lambda m: m[:, 3], "share of the model's metric"),
    }


def distribution_variants(evaluator: Evaluator, circuit: Circuit) -> dict[str, Estimate]:
    """How near the circuit's whole output is to the model's, at the position read, beside that of the empty circuit.

    - KL: KL(model || circuit) over the vocabulary, in nats, mean over prompts.
    - argmax agreement: share of prompts on which both give the same first token.
    """
    clean, setting = evaluator.logits(), evaluator.setting
    variants: dict[str, Estimate] = {}
    for name, measured in (("circuit", circuit), ("empty circuit", Circuit.empty(circuit.graph))):
        logits = evaluator.logits(measured)
        variants[f"KL, {name}"] = setting.mean(kl(clean, logits), "nats")
        same = (clean.argmax(-1) == logits.argmax(-1)).float()
        variants[f"argmax agreement, {name}"] = setting.mean(same, "share of prompts")
    return variants


def node_circuit(circuit: Circuit) -> Circuit:
    """All edges between the nodes that `circuit` touches: what a claim about nodes alone says."""
    graph = circuit.graph
    rows = circuit.mask.any(1) | (graph.inputs & circuit.mask.any(0)).any(1)
    columns = (graph.inputs & rows[:, None]).any(0)
    columns[-1] = True
    return Circuit(graph, graph.mask & rows[:, None] & columns[None])


def other_ablations(setting: Setting, circuit: Circuit, others: Mapping[str, Task]) -> tuple[OtherAblation, ...]:
    """Normalised faithfulness under each ablation but the setting's, and under those of `others`.

    `others` are tasks with the same clean prompts and other corrupted ones, by name (IOI's ABC distribution); they are
    measured with corrupted and mean-position. An ablation that cannot be is listed with the reason. Measurements are
    kept in the setting's checkpoint, a folder.
    """
    folder = setting.checkpoint
    unequal = any(len(pair.clean) != len(pair.corrupted) for pair in setting.task.pairs)
    skipped = {setting.ablation} if unequal else {setting.ablation, "by-role"}  # by-role is then the same as corrupted
    plans = [(name, setting.task, name) for name in ABLATIONS if name not in skipped]
    for name, other in others.items():
        plans += [(f"{kind}, {name} prompts", other, kind) for kind in ("corrupted", "mean-position")]
    rows = []
    for index, (name, prompts, kind) in enumerate(plans):
        path = None if folder is None else folder / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
        here = setting.but(prompts=prompts, ablation=kind, checkpoint=path, progress=silent)
        try:
            evaluator = Evaluator(here)
            samples = evaluator.samples(evaluator.circuits([circuit, Circuit.empty(circuit.graph)])[0])
            evaluator.save()
        except InputError as error:
            rows.append(OtherAblation(name, None, str(error)))
            continue
        rows.append(OtherAblation(name, normalised(here, samples)))
        setting.progress("other ablations", index + 1, len(plans))
    return tuple(rows)


def by_template(setting: Setting, samples: Float[Tensor, "prompts 3"]) -> dict[str, Estimate]:
    """Normalised faithfulness of each template's prompts, from `samples` as above; none where there is one template."""
    task = setting.task
    names = sorted({pair.template for pair in task.pairs})
    if len(names) < 2:
        return {}
    shares = {}
    for name in names:
        rows = task.rows_of(name)
        part = setting.but(prompts=replace(task, pairs=tuple(task.pairs[row] for row in rows)))
        shares[name or "none"] = normalised(part, samples[rows])
    return shares


def over_prompts(samples: Float[Tensor, "prompts 3"]) -> dict[str, float]:
    """Quartiles over prompts of (circuit - empty) / (model - empty): one mean hides how far prompts lie apart."""
    metric, clean, empty = samples.T
    ratios = (metric - empty) / (clean - empty)
    finite = ratios[torch.isfinite(ratios)]
    if not len(finite):
        return {}
    quartiles = torch.quantile(finite, torch.tensor([0.25, 0.5, 0.75])).tolist()
    return dict(zip(("lower quartile", "median", "upper quartile"), quartiles, strict=True))
