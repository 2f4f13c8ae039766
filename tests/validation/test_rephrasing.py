"""Template-specific circuits: found where wording matters, not where it does not, by hand and by resampling."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import random_task

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.validation.criteria import missing
from circuitome.validation.robustness import summary
from circuitome.validation.robustness.rephrasing import cuts_of, rephrasing, wordings
from circuitome.validation.robustness.score_agreement import jaccard
from circuitome.validation.verdict import Verdict

GRAPH = Graph(2, 2, 1)
NAMES = [f"t-{number}" for number in range(4)] * 6
TASK = random_task(24)


def named(task, names):
    return replace(
        task, pairs=tuple(replace(pair, template=name) for pair, name in zip(task.pairs, names, strict=True))
    )


def noise(n, seed):
    return torch.randn(n, GRAPH.n_edges, generator=torch.Generator().manual_seed(seed))


def scores_of(samples):
    return EdgeScores.of(GRAPH, samples, "logits", "by hand")


def by_template(strength):
    """Scores with a part that all prompts share, one that those of a template share, and one of each prompt."""
    places = torch.tensor([int(name[-1]) for name in NAMES])
    return scores_of(noise(1, 0) + strength * noise(4, 1)[places] + noise(24, 2))


def test_wording_that_matters_is_told_from_wording_that_does_not():
    task = named(TASK, NAMES)
    same, other = rephrasing(task, by_template(0.0), 12), rephrasing(task, by_template(2.0), 12)
    assert same.specific == () and same.to_dict()["template_specific"] == ""
    (way,) = other.specific
    assert way.name == "templates" and way.groups == 4 and way.between < way.exchanged.range[0]
    said = other.to_dict()["template_specific"]
    assert said.startswith("Template-specific: circuits of different templates share 0.")
    assert f"{way.between:.2f} of their edges" in said and f"{way.exchanged.mean:.2f} [" in said


def test_few_of_many_tasks_whose_wording_does_not_matter_are_called_specific():
    task, found = named(TASK, NAMES), 0
    for seed in range(20):
        found += bool(rephrasing(task, scores_of(noise(1, seed) + noise(24, 100 + seed)), 12, seed=seed).specific)
    assert found <= 3  # half of one is expected: 2.5 % of draws lie below


def test_the_overlap_by_hand():
    names = ["a", "b"] * 6
    samples = noise(1, 0) + noise(12, 3)
    (way,) = rephrasing(named(random_task(12), names), scores_of(samples), 9).ways
    first, second = (scores_of(samples[side::2]).top(9).mask[GRAPH.mask][None] for side in (0, 1))
    assert way.between == pytest.approx(float(jaccard(first, second)))


def test_cuts_are_halves_and_differ():
    generator = torch.Generator().manual_seed(0)
    assert cuts_of(["a", "b"] * 3, generator).tolist() in ([[False, True] * 3], [[True, False] * 3])
    assert len(cuts_of(list("abcd"), generator)) == 3 and len(cuts_of(list("abc"), generator)) == 3
    many = cuts_of(list("abcdefgh"), generator)
    assert len(many) == 6 and many.sum(1).tolist() == [4] * 6
    assert len({tuple(cut) for cut in many.tolist()} | {tuple(cut) for cut in (~many).tolist()}) == 12


def test_ways_to_cut_prompts():
    orders = [f"{order}-{number}" for order in ("ABBA", "BABA") for number in range(3)] * 4
    ways = wordings(named(TASK, orders))
    assert {name: len({*groups}) for name, groups in ways.items()} == {"templates": 6, "families of templates": 2}
    assert wordings(named(TASK, ["a"] * 24)) == {} == wordings(TASK)


def test_paraphrases_stand_against_the_tasks_own_words():
    own, other = noise(1, 0) + noise(24, 1), noise(1, 5) + noise(24, 6)
    found = rephrasing(TASK, scores_of(own), 12, paraphrases=scores_of(other))
    assert [way.name for way in found.ways] == ["wordings (own and paraphrased)"] and found.ways[0].n == 48
    assert found.specific
    assert not rephrasing(TASK, scores_of(own), 12, paraphrases=scores_of(noise(1, 0) + noise(24, 6))).specific


def test_the_verdict_says_so_and_only_then():
    specific = {"rephrasing": {"template_specific": "Template-specific: circuits differ."}}
    untold, unmeasured = {"rephrasing": {"note": "cannot be told"}}, dict[str, dict[str, str]]()
    line = missing("equivalence", "too few prompts")

    def reason(sections):
        return Verdict.reason.fget(SimpleNamespace(criteria=(line,), robustness=sections))

    assert reason(unmeasured).startswith("Nothing speaks against it") and reason(untold) == reason(unmeasured)
    assert reason(specific) == f"{reason(unmeasured)} Template-specific: circuits differ."


@pytest.mark.slow
def test_one_pass_of_paraphrases_serves_transfer_and_rephrasing(monkeypatch):
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 12)
    passes = []

    def counted(setting):
        passes.append(setting.task.name)
        return cm.eap_ig(setting)

    def variants(*given, **options):
        return {"paraphrase": replace(cm.ground_truth.task("known-ioi", 8, 3), name="other words")}

    monkeypatch.setattr(summary, "eap_ig", counted)
    monkeypatch.setattr(summary, "variants_of", variants)
    sections = summary._Sections(Setting(model, task), cm.ground_truth.true_circuit(model, task), None)
    ways = sections.rephrasing()["ways"]
    sections.transfer()
    assert [way["name"] for way in ways] == ["templates", "wordings (own and paraphrased)"]
    assert passes == [task.name, "other words"]


def test_bad_input():
    with pytest.raises(InputError, match=r"cannot be told: .* has one template"):
        rephrasing(TASK, by_template(0.0), 12)
    with pytest.raises(InputError, match=r"hold no per-prompt samples"):
        rephrasing(named(TASK, NAMES), EdgeScores(GRAPH, torch.zeros(GRAPH.mask.shape)), 12)
    with pytest.raises(InputError, match=r"Circuits of 0 edges"):
        rephrasing(named(TASK, NAMES), by_template(0.0), 0)
