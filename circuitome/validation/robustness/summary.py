"""Would another day have given the same circuit? Backups, resampled and other prompts, other tasks, other methods."""

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.progress import silent
from circuitome.tasks import TASKS
from circuitome.tasks.task import Task
from circuitome.validation.criteria import FAIL, PASS, Criterion, decided
from circuitome.validation.robustness.backup_heads import backups
from circuitome.validation.robustness.rediscovery import rediscovery
from circuitome.validation.robustness.rephrasing import rephrasing
from circuitome.validation.robustness.score_agreement import method_agreement
from circuitome.validation.robustness.shuffled_labels import shuffled_null
from circuitome.validation.robustness.stability import bootstrap_stability
from circuitome.validation.robustness.transfer import transfer, variants_of
from circuitome.validation.tests.hypotheses import ALPHA

PARAPHRASE = "paraphrase"
"""The variant of a task in other sentences."""
OTHER_TASKS = 2
"""Other tasks that the circuit is tried on."""
TOTALS = 4
"""Parts that react most, of which total contributions are measured too."""
STABLE = 0.5
"""Jaccard of the circuit's edges with those of resampled prompts from which on it counts as stable."""
DROP = 0.1
"""How much farther from 1 its faithfulness may be on other prompts of its task."""


@method
@on_neurons
def robustness(setting: Setting, circuit: Circuit, scores: EdgeScores | None = None) -> dict[str, Any]:
    """What becomes of a circuit when heads, prompts, tasks or methods change, as plain JSON values by section.

    - backups: the most helpful heads ablated, who took over (`backups`); rediscovery: EAP-IG again without them.
    - stability: the circuit of the same size on resampled prompts (`bootstrap_stability`).
    - shuffled: the same with answers and wrong answers exchanged at random (`shuffled_null`).
    - transfer: the circuit on another seed, paraphrases, templates and other tasks, and theirs here (`transfer`).
    - rephrasing: whether the circuit changes more with the wording than with the prompts (`rephrasing`).
    - methods: overlap with the circuits of EAP and EAP-IG, and of `scores` where they come from elsewhere.

    Scores are those of EAP-IG; where `scores` are such and hold their samples, nothing is scored again.
    A section that cannot be holds only a "note" with the reason. Finished sections are kept in the setting's
    checkpoint, a folder. Raises `RunError` where that holds the sections of another circuit, model or task.
    """
    sections = _Sections(setting.but(progress=silent, checkpoint=None), circuit, scores)
    digests = [hashlib.sha256(circuit.mask.numpy().tobytes()).hexdigest()]
    digests += [] if scores is None else [hashlib.sha256(scores.values.numpy().tobytes()).hexdigest()]
    made = {}
    for done, name in enumerate(SECTIONS):
        setting.progress("robustness", done, len(SECTIONS))
        path = None if setting.checkpoint is None else setting.checkpoint / f"{name}.safetensors"
        kept = setting.but(checkpoint=path).kept(f"robustness, {name}", *digests)
        if before := kept.read():
            made[name] = before[1]
            continue
        try:
            made[name] = getattr(sections, name)()
        except InputError as error:
            made[name] = {"note": str(error)}
        kept.write({}, made[name])
    setting.progress("robustness", len(SECTIONS), len(SECTIONS))
    return made


SECTIONS = ("backups", "stability", "shuffled", "transfer", "rephrasing", "methods")
"""Sections of `robustness`: methods of `_Sections`."""


class _Sections:
    """What makes the sections; scores of EAP-IG are made at most once."""

    def __init__(self, setting: Setting, circuit: Circuit, given: EdgeScores | None) -> None:
        self.setting, self.circuit, self.size, self.given = setting, circuit, len(circuit), given

    @cached_property
    def paraphrased(self) -> EdgeScores | None:
        """Scores by EAP-IG of the task's paraphrases, where its generator has some."""
        setting = self.setting
        others = variants_of(setting.model, setting.task, seed=setting.seed, others=False)
        return eap_ig(setting.but(prompts=others[PARAPHRASE])) if PARAPHRASE in others else None

    @cached_property
    def scores(self) -> EdgeScores:
        """Scores by EAP-IG with those of every prompt: the given ones where they are that."""
        given = self.given
        known = given is not None and given.samples is not None and given.method.startswith("eap-ig, 5")
        return given if given is not None and known else eap_ig(self.setting)

    def backups(self) -> dict[str, Any]:
        reactions = backups(self.setting, top=TOTALS)
        knock_out = self.setting.ablation if self.setting.ablation in ("mean", "zero") else "mean"
        again = rediscovery(self.setting, reactions.ablated, edges=self.size, knock_out=knock_out, before=self.scores)
        found_again = _short(again.to_dict(), "gained", "lost")
        return {**_short(reactions.to_dict(), "reactions"), "rediscovery": found_again}

    def stability(self) -> dict[str, Any]:
        return bootstrap_stability(self.scores, self.size, seed=self.setting.seed).to_dict()

    def shuffled(self) -> dict[str, Any]:
        return shuffled_null(self.scores, self.size, seed=self.setting.seed).to_dict()

    def transfer(self) -> dict[str, Any]:
        setting, here = self.setting, "these prompts"
        others = variants_of(setting.model, setting.task, seed=setting.seed)
        tasks = {here: setting.task, **_few_others(others)}
        scores, circuits = {here: self.scores}, {here: self.circuit}
        if self.paraphrased is not None:
            scores[PARAPHRASE] = self.paraphrased
        return transfer(setting, tasks, size=self.size, scores=scores, circuits=circuits).to_dict()

    def rephrasing(self) -> dict[str, Any]:
        task, seed = self.setting.task, self.setting.seed
        return rephrasing(task, self.scores, self.size, paraphrases=self.paraphrased, seed=seed).to_dict()

    def methods(self) -> dict[str, Any]:
        every = {"eap": eap(self.setting), "eap-ig": self.scores}
        if self.given is not None and not self.given.method.startswith(("eap-ig", "eap,")):
            every[self.given.method or "this circuit's"] = self.given
        return method_agreement(every, self.size).to_dict()


def robust_criteria(sections: Mapping[str, Any]) -> list[Criterion]:
    """The lines of the verdict that rest on `robustness`; none for a section that could not be."""
    makers = {"shuffled": _beats_shuffled_labels, "stability": _stable, "transfer": _on_other_prompts}
    lines = (make(sections[name]) for name, make in makers.items() if "note" not in sections[name])
    return [line for line in lines if line is not None]


def _beats_shuffled_labels(shuffled: Mapping[str, Any]) -> Criterion:
    """Whether the circuit is stronger than those found under shuffled labels."""
    p = shuffled["p_value"]
    note = f"{shuffled['significant_edges']} edges are stronger than any under shuffled labels"
    beside = "the strength of circuits found with answer and wrong answer exchanged at random"
    verdict = PASS if p < ALPHA else FAIL
    return Criterion("beats shuffled labels", p, None, None, beside, f"p below {ALPHA}", verdict, note)


def _stable(stability: Mapping[str, Any]) -> Criterion:
    """Whether resampled prompts give nearly the same circuit."""
    edges, halves = stability["edges"], stability["edges_halves"]["mean"]
    verdict = decided(edges["low"], edges["high"], STABLE, math.inf)
    beside = f"random circuits {stability['chance_edges']:.3f}; halves of the prompts {halves:.3f}"
    note = "Jaccard of edges between EAP-IG circuits of this size on resampled prompts and on all"
    threshold = f"at least {STABLE}"
    return Criterion("stability", edges["mean"], edges["low"], edges["high"], beside, threshold, verdict, note)


def _on_other_prompts(transfer: Mapping[str, Any]) -> Criterion | None:
    """Whether the circuit is as faithful on other prompts of its task; None where there are no others."""
    here, *others = zip(transfer["names"], transfer["faithfulness"][0], strict=True)
    fresh = next((share for name, share in others if name.startswith("seed ")), None)
    if fresh is None:
        return None
    least, most = min(1.0, here[1]["value"]) - DROP, max(1.0, here[1]["value"]) + DROP
    low, high = fresh["low"], fresh["high"]
    verdict = decided(low, high, least, most)
    elsewhere = [f"{name} {share['value']:.2f}" for name, share in others if name in TASKS]
    beside = f"other tasks: {', '.join(elsewhere)}" if elsewhere else ""
    threshold = f"{least:.2f} to {most:.2f}: from 1 no more than {DROP} farther than on its own"
    return Criterion("other prompts", fresh["value"], low, high, beside, threshold, verdict)


def _few_others(variants: Mapping[str, Task]) -> dict[str, Task]:
    """All variants of the task itself, and the first few other tasks."""
    left_out = [name for name in variants if name in TASKS][OTHER_TASKS:]
    return {name: task for name, task in variants.items() if name not in left_out}


def _short(section: dict[str, Any], *names: str) -> dict[str, Any]:
    """With lists of parts or edges cut to the first 20."""
    return section | {name: section[name][:20] for name in names}
