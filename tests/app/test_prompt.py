"""The prompt box says what the library says."""

import pytest
import torch

import circuitome as cm
from circuitome.app.prompt import answer
from circuitome.errors import InputError
from circuitome.models.loading import keeping_model, let_go
from circuitome.studies.see import probabilities

PROMPT = "Ann and Bob met then Bob gave to"


@pytest.mark.parametrize("ablate", [[], ["a2.h0"], ["a0.h0", "m1"]])
def test_next_tokens_attention_and_lens_are_those_of_the_library(ablate):
    model = cm.load("known-ioi")
    found = answer({"model": "known-ioi", "prompt": PROMPT, "heads": ["a1.h0", "a2.h0"], "ablate": ablate})
    plain = probabilities(model, model.encode(PROMPT))
    if ablate:
        with cm.ablate(model, ablate, value="zero"):
            changed = probabilities(model, model.encode(PROMPT))
            attention = cm.attention(model, PROMPT, ["a1.h0", "a2.h0"])
            lens = cm.logit_lens(model, PROMPT, k=3)
    else:
        changed, attention = None, cm.attention(model, PROMPT, ["a1.h0", "a2.h0"])
        lens = cm.logit_lens(model, PROMPT, k=3)
    for row in found["next"]:
        token = model.encode(row["token"])[-1]
        assert row["probability"] == pytest.approx(float(plain[token]), abs=1e-6)
        assert row["ablated"] == (None if changed is None else pytest.approx(float(changed[token]), abs=1e-6))
    for head, pattern in found["attention"].items():
        assert torch.allclose(torch.tensor(pattern), attention[head][0].float(), atol=1e-6)
    assert [stage["after"] for stage in found["lens"]] == list(lens.stages)
    shown = torch.tensor([[p for _, p in stage["tokens"]] for stage in found["lens"]])
    assert torch.allclose(shown, lens.probability[:, -1].float(), atol=1e-6)


def test_a_prompt_that_is_too_long_and_a_head_that_is_none_are_refused():
    for change, words in (({"prompt": "Ann " * 600}, "takes 1 to 512"), ({"heads": ["a9.h9"]}, "no head a9.h9")):
        with pytest.raises(InputError, match=words):
            answer({"model": "known-ioi", "prompt": PROMPT, **change})


def test_a_route_is_a_drawing_without_scripts_that_run():
    found = answer({"model": "known-ioi", "prompt": PROMPT, "routes": True})
    assert found["drawing"].startswith("<svg") and "<script" not in found["drawing"]
    assert found["data"]["lowest"] < found["data"]["threshold"] and found["data"]["edges"]
    assert all(name.startswith("m") for name in found["neurons"])


def test_the_model_that_was_loaded_last_is_given_again_inside_only():
    with keeping_model():
        first = cm.load("known-ioi")
        assert cm.load("known-ioi") is first
        assert cm.load("known-ioi", dtype=torch.float64) is not first
        again = cm.load("known-ioi")
        assert again is not first and cm.load("known-ioi") is again
        let_go()
        assert cm.load("known-ioi") is not again
    assert cm.load("known-ioi") is not cm.load("known-ioi")
