"""Edges that come back in draws of prompts: from samples as from running again, by template, after a stop."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.results import drawn_rows, resample_means
from circuitome.validation.robustness.consensus import StableCircuit

MODEL = tiny("llama", layers=2)
TASK = random_task(12, lengths=(7,))


def templated(task, templates):
    pairs = (replace(pair, template=template) for pair, template in zip(task.pairs, templates, strict=True))
    return replace(task, pairs=tuple(pairs))


def without_samples(setting):
    return replace(cm.eap(setting), samples=None)


@dataclass(frozen=True)
class Chosen:
    scores: cm.EdgeScores
    circuit: cm.Circuit


def test_drawn_rows_are_those_that_means_are_taken_of():
    data = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    for groups in ((), (0, 0, 1, 1, 1, 2, 2, 3, 3)):
        rows = drawn_rows(9, draws=7, seed=3, groups=groups)
        means = torch.stack([data[some].mean(0) for some in rows])
        torch.testing.assert_close(means, resample_means(data, seed=3, resamples=7, groups=groups))
    assert {len(some) for some in rows} - {9}  # templates of several sizes


@pytest.mark.parametrize("templates", ["", "aabbbcccdddd"])
def test_draws_from_samples_are_those_of_running_again(templates):
    task = templated(TASK, templates) if templates else TASK
    options = {"size": 40, "draws": 3, "share": 0.5, "seed": 4}
    again = cm.stable(MODEL, task, method=without_samples, **options)
    from_samples = cm.stable(MODEL, task, method=cm.eap, **options)
    assert again.reruns and not from_samples.reruns
    assert torch.equal(again.counts, from_samples.counts) and 0 < len(again.at(1.0)) < 40 < len(again.at(1e-9))


def test_shares_by_hand():
    graph = MODEL.graph
    counts = graph.matrix(torch.tensor([10.0, 9, 7, 5, 1] + [0.0] * (graph.n_edges - 5))).int()
    scores = cm.EdgeScores(graph, counts.float())
    found = StableCircuit(scores, scores.top(3), counts, 10, False, 0.8)
    assert {share: len(circuit) for share, circuit in found.by_share().items()} == {
        0.5: 4,
        0.7: 3,
        0.8: 2,
        0.9: 2,
        1: 1,
    }
    assert len(found.circuit) == 2 and len(found.at(1e-9)) == 5 and float(found.kept.max()) == 1
    told = found.to_dict()
    assert told["edges"][2] == {"share": 0.8, "edges": 2} and told["edges_of_all_prompts"] == 3


def test_an_edge_of_one_template_does_not_come_back():
    """One edge matters on all prompts, another more, but only in one template of four."""
    task, graph = templated(TASK, "aaabbbcccddd"), MODEL.graph
    samples = 0.01 * torch.rand(12, graph.n_edges, generator=torch.Generator().manual_seed(0))
    samples[:, 7] = -1.0
    samples[:3, 3] = -50.0
    scores = cm.EdgeScores.of(graph, samples, "logits", "by hand")
    found = cm.stable(MODEL, task, method=lambda setting: scores, size=1, share=0.5, draws=400)
    names = [graph.edge_name(*place) for place in graph.mask.nonzero()[[3, 7]].tolist()]
    kept = {name: float(found.kept[graph.edge(name)]) for name in names}
    assert scores.top(1) == cm.Circuit.of(graph, names[:1])
    # drawn at least once: 1 - (3/4)^4 = .684 of draws; by prompts it would be in .968 of them
    assert kept[names[0]] == pytest.approx(0.684, abs=0.06) and sum(kept.values()) == pytest.approx(1)
    by_prompt = cm.stable(MODEL, TASK, method=lambda setting: scores, size=1, share=0.5, draws=400)
    assert float(by_prompt.kept[graph.edge(names[0])]) == pytest.approx(0.968, abs=0.03)


def test_a_method_may_choose_its_own_circuit():
    def method(setting):
        scores = cm.eap(setting)
        return Chosen(scores, scores.above(float(scores.values.abs().max()) / 2))

    found = cm.stable(MODEL, TASK, method=method, draws=3, share=0.3)
    assert found.reruns and found.whole == method(Setting(MODEL, TASK)).circuit


def test_a_stopped_call_goes_on(tmp_path):
    ran = []

    def counted(setting):
        ran.append(setting.task.data_hash())
        if len(ran) == 3:
            raise KeyboardInterrupt
        return without_samples(setting)

    call = partial(cm.stable, MODEL, TASK, size=20, draws=4, share=0.3, checkpoint=tmp_path / "stable.safetensors")
    with pytest.raises(KeyboardInterrupt):
        call(method=counted)
    resumed = call(method=counted)
    assert len(ran) == 3 + 4 and len(set(ran)) == 5  # all prompts twice, and the draw that was stopped
    assert torch.equal(resumed.counts, cm.stable(MODEL, TASK, method=cm.eap, size=20, draws=4, share=0.5).counts)


def test_bad_input():
    for share in (0, 1.2, -1):
        with pytest.raises(InputError, match=r"above 0 up to 1; got"):
            cm.stable(MODEL, TASK, method=cm.eap, size=5, share=share)
    with pytest.raises(InputError, match=r"at least 2 draws of prompts, got 1"):
        cm.stable(MODEL, TASK, method=cm.eap, size=5, draws=1)
    with pytest.raises(InputError, match=r"eap scores edges and chooses none: say how many with size"):
        cm.stable(MODEL, TASK, method=cm.eap)
    noise = cm.EdgeScores.of(MODEL.graph, torch.eye(12, MODEL.graph.n_edges), "logits", "by hand")
    with pytest.raises(InputError, match=r"No edge comes back in 1 of 50 draws.*in is 0\.\d+: that share keeps [1-9]"):
        cm.stable(MODEL, TASK, method=lambda setting: noise, size=1, share=1.0, draws=50)
