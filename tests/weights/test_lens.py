import pytest
import torch
from families import CONFIGS

from circuitome.errors import InputError
from circuitome.models.loading import load
from circuitome.weights.lens import logit_lens

IDS = (5, 9, 33, 2, 47, 9)

QUICK = ("gpt2", "neox-parallel", "gemma2", "olmo2")
"""Families with what is special: fused, interleaved and parallel, sandwich norms and caps, norms on q and k."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_the_last_stage_is_the_model(small, name):
    model = small(name)
    lens = logit_lens(model, IDS, target=7, k=61)
    with torch.no_grad():
        logs = model.hf(torch.tensor([IDS])).logits[0].log_softmax(-1)
    assert len(lens.stages) == (4 if model.graph.parallel else 7) and lens.stages[-1] == "m2"
    torch.testing.assert_close(lens.probability[-1], logs.exp().gather(1, lens.top[-1]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lens.target_probability[-1], logs.exp()[:, 7], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lens.kl[-1], torch.zeros(6))


def test_every_measure_of_an_inner_stage(small, monkeypatch):
    import circuitome.weights.lens as module

    model = small("llama")
    whole = logit_lens(model, IDS, k=3)
    monkeypatch.setattr(module, "CHUNK", 100)  # one position at a time
    lens = logit_lens(model, IDS, k=3)
    with torch.no_grad():
        output = model.hf(torch.tensor([IDS]), output_hidden_states=True)
        logs = model.hf.lm_head(model.hf.model.norm(output.hidden_states[1][0])).log_softmax(-1)
        final = output.logits[0].log_softmax(-1)
    stage = lens.stages.index("m0")
    target = final.argmax(-1)
    assert lens.targets.tolist() == target.tolist()
    rank = (logs > logs.gather(1, target[:, None])).sum(1) + 1
    assert lens.rank[stage].tolist() == rank.tolist() and lens.rank[-1].tolist() == [1] * 6
    torch.testing.assert_close(lens.kl[stage], (final.exp() * (final - logs)).sum(1))
    torch.testing.assert_close(lens.entropy[stage], -(logs.exp() * logs).sum(1))
    assert lens.top[stage].tolist() == logs.topk(3).indices.tolist()
    torch.testing.assert_close(whole.kl, lens.kl, atol=1e-5, rtol=1e-5)
    assert lens.to_dict()["names"][stage][0] == f"#{int(lens.top[stage, 0, 0])}"


def test_text_and_targets_by_name():
    model = load("known-induction")
    lens = logit_lens(model, "a b c a", target="b")
    assert lens.tokens[:3] == ("BOS", "a", "b")
    assert lens.rank[:, -1].tolist()[-1] == 1 and lens.target_probability[0, -1] < 0.5 < lens.target_probability[-1, -1]
    assert set(lens.target_names) == {"b"}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ((), {}, "has no tokens"),
        ("a b", {"target": "a b"}, "must be one token, got 3: BOS|a|b"),
        ("a b", {"target": 99}, "has outputs 0 to 16, not 99"),
        ("a b", {"k": 0}, "must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(prompt, options, message):
    with pytest.raises(InputError, match=message):
        logit_lens(load("known-induction"), prompt, **options)
