"""Prompts as a user would run them through `model.hf`, for tests of interventions."""

import torch

PROMPTS = [[5, 9, 33, 12, 7, 20, 41], [8, 30, 17, 25], [3, 4, 50, 6, 55, 22]]


def padded(side, prompts=PROMPTS):
    width = max(map(len, prompts))
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
    for i, row in enumerate(prompts):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def run(model, inputs):
    """Logits at real tokens."""
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    out = model.hf(**inputs, position_ids=places, use_cache=False).logits
    return out[inputs["attention_mask"].bool()]


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)
