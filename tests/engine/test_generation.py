"""What a model says next: greedy as transformers' own, drawn with the probabilities of the model."""

import pytest
import torch
from by_hand import PROMPTS
from families import CONFIGS, tiny

from circuitome.engine.generation import generate

FAMILIES = [name if name in ("gpt2", "gemma2") else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_transformers_own(name):
    model = tiny(name)
    model.hf.generation_config.eos_token_id = None
    rows = [*PROMPTS, PROMPTS[0][::-1]]
    said = generate(model, rows, 6)
    for row, more in zip(rows, said, strict=True):
        ids = torch.tensor([row])
        whole = model.hf.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert whole[0, len(row) :].tolist() == more


def test_drawn_tokens_have_the_models_probabilities():
    model, n = tiny("llama"), 4_000
    with torch.no_grad():
        expected = (model.hf(torch.tensor([PROMPTS[1]])).logits[0, -1] / 1.0).softmax(-1)
    drawn = torch.tensor(generate(model, [PROMPTS[1]] * n, 1, seed=3)).flatten()
    found = torch.bincount(drawn, minlength=len(expected)) / n
    assert float((found - expected).abs().max()) < 4 * float((expected * (1 - expected) / n).sqrt().max())
    assert generate(model, [PROMPTS[1]] * 5, 4, seed=3) == generate(model, [PROMPTS[1]] * 5, 4, seed=3)
    assert generate(model, [PROMPTS[1]] * 5, 4, seed=3) != generate(model, [PROMPTS[1]] * 5, 4, seed=4)


def test_prompts_of_several_lengths_are_gone_on_with_as_one_by_one():
    model = tiny("llama")
    prompts = [[3, 5, 7], [9], [2, 4, 6], [8, 1]]
    said = generate(model, prompts, 5)
    for ids, more in zip(prompts, said, strict=True):
        for new in range(5):
            with torch.no_grad():
                expected = int(model.hf(torch.tensor([[*ids, *more[:new]]])).logits[0, -1].argmax())
            assert more[new] == expected
