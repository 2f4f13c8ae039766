"""Would another day have given the same circuit? Backups, resampled and other prompts, other tasks, other methods."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.progress import silent
from circuitome.tasks import TASKS
from circuitome.tasks.task import Task
from circuitome.validation.criteria import FAIL, PASS, UNCLEAR, Criterion
from circuitome.validation.robustness.backup_heads import backups
from circuitome.validation.robustness.rediscovery import rediscovery
from circuitome.validation.robustness.shuffled_labels import shuffled_null
from circuitome.validation.robustness.stability import bootstrap_stability, method_agreement
from circuitome.validation.robustness.transfer import transfer, variants_of

OTHER_TASKS = 2
"""Other tasks that the circuit is tried on."""
TOTALS = 4
"""Parts that react most, of which total contributions are measured too."""
STABLE = 0.5
"""Jaccard of the circuit's edges with those of resampled prompts from which on it counts as stable."""
DROP = 0.1
"""How much less faithful it may be on other prompts of its task."""


@method
def robustness(setting: Setting, circuit: Circuit, scores: EdgeScores | None = None) -> dict[str, Any]:
    """What becomes of a circuit when heads, prompts, tasks or methods change, as plain JSON values by section.

    - backups: the strongest heads knocked out, who took over (`backups`); rediscovery: EAP-IG again without them.
    - stability: EAP-IG's circuit of the same size on resampled prompts (`bootstrap_stability`).
    - shuffled: the same with answers and wrong answers exchanged at random (`shuffled_null`).
    - transfer: the circuit on another seed, paraphrases, templates and other tasks, and theirs here (`transfer`).
    - methods: overlap with the circuits of EAP and EAP-IG, and of `scores` where they come from elsewhere.

    A section that cannot be holds only a "note" with the reason. Scores by EAP-IG with their
    samples are not computed again. Finished sections are kept in the setting's checkpoint, a folder.
    """
    size, (model, task) = len(circuit), (setting.model, setting.task)
    quiet = setting.but(progress=silent, checkpoint=None)

    @functools.cache
    def reference() -> EdgeScores:
        known = scores is not None and scores.samples is not None and scores.method.startswith("eap-ig, 5")
        return scores if scores is not None and known else eap_ig(quiet)

    def knocked() -> dict[str, Any]:
        taken = backups(quiet, top=TOTALS)
        kind = setting.ablation if setting.ablation in ("mean", "zero") else "mean"
        again = rediscovery(quiet, taken.knocked, edges=size, knock_out=kind, before=reference())
        return {**_short(taken.to_dict(), "reactions"), "rediscovery": _short(again.to_dict(), "gained", "lost")}

    def elsewhere() -> dict[str, Any]:
        here = "these prompts"
        tasks = {here: task, **_few_others(variants_of(model, task, seed=setting.seed))}
        return transfer(quiet, tasks, size=size, scores={here: reference()}, circuits={here: circuit}).to_dict()

    def methods() -> dict[str, Any]:
        every = {"eap": eap(quiet), "eap-ig": reference()}
        if scores is not None and not scores.method.startswith(("eap-ig", "eap,")):
            every[scores.method or "this circuit's"] = scores
        return method_agreement(every, size).to_dict()

    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "backups": knocked,
        "stability": lambda: bootstrap_stability(reference(), size, seed=setting.seed).to_dict(),
        "shuffled": lambda: shuffled_null(reference(), size, seed=setting.seed).to_dict(),
        "transfer": elsewhere,
        "methods": methods,
    }
    made = {}
    for done, (name, make) in enumerate(sections.items()):
        setting.progress("robustness", done, len(sections))
        made[name] = _kept(setting.checkpoint, name, make)
    setting.progress("robustness", len(sections), len(sections))
    return made


def robust_criteria(found: Mapping[str, Any]) -> list[Criterion]:
    """The lines of the verdict that rest on `robustness`."""
    lines = []
    if "p_value" in (shuffled := found["shuffled"]):
        p = shuffled["p_value"]
        note = f"{shuffled['significant_edges']} edges are stronger than any under shuffled labels"
        beside = "the strength of circuits found with answer and wrong answer exchanged at random"
        verdict = PASS if p < 0.05 else FAIL
        lines.append(Criterion("beats shuffled labels", p, None, None, beside, "p below 0.05", verdict, note))
    if "edges" in (stability := found["stability"]):
        spread = stability["edges"]
        verdict = PASS if spread["low"] >= STABLE else FAIL if spread["high"] < STABLE else UNCLEAR
        beside = f"random circuits {stability['chance_edges']:.3f}; halves of the prompts {_value(stability)}"
        note = "Jaccard of edges between EAP-IG circuits of this size on resampled prompts and on all"
        threshold = f"at least {STABLE}"
        lines.append(
            Criterion("stability", spread["mean"], spread["low"], spread["high"], beside, threshold, verdict, note)
        )
    if "faithfulness" in (away := found["transfer"]):
        own, *others = zip(away["names"], away["faithfulness"][0], strict=True)
        fresh = [one for name, one in others if name.startswith("seed ")]
        if fresh:
            share, least = fresh[0], min(1.0, own[1]["value"]) - DROP
            verdict = PASS if share["low"] >= least else FAIL if share["high"] < least else UNCLEAR
            elsewhere = [f"{name} {one['value']:.2f}" for name, one in others if name in TASKS]
            beside = f"other tasks: {', '.join(elsewhere)}" if elsewhere else ""
            threshold = f"at least {least:.2f}, {DROP} below its own"
            low, high = share["low"], share["high"]
            lines.append(Criterion("other prompts", share["value"], low, high, beside, threshold, verdict))
    return lines


def _value(stability: Mapping[str, Any]) -> str:
    return f"{stability['edges_halves']['mean']:.3f}"


def _few_others(variants: Mapping[str, Task]) -> dict[str, Task]:
    """All variants of the task itself, and the first few other tasks."""
    others = [name for name in variants if name in TASKS][OTHER_TASKS:]
    return {name: one for name, one in variants.items() if name not in others}


def _short(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """With lists of parts or edges cut to the first 20."""
    return found | {name: found[name][:20] for name in names}


def _kept(memory: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A section from its file, or made and written there."""
    path = None if memory is None else memory / f"{name}.json"
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    try:
        found = make()
    except InputError as error:
        found = {"note": str(error)}
    if path is not None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.rename(path)
    return found
