"""What a model says next, token by token, in any of its passes' circumstances: greedy or drawn."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from circuitome.models.inputs import Inputs
from circuitome.models.model import Model


def generate(model: Model, prompts: Sequence[Sequence[int]], new: int, *, seed: int | None = None) -> list[list[int]]:
    """The token ids that follow each prompt, `new` of them or until the text ends; prompts of one length together.

    Greedy without `seed`; with it drawn at temperature 1 by Gumbel noise, so that a seed gives the same noise for the
    same prompts whatever the model's logits are: small changes of the model change few tokens.

    >>> from circuitome.engine.generation import generate
    >>> model = cm.load("known-ioi")
    >>> prompt = model.encode("Ann and Bob met then Bob gave to")
    >>> [model.decode(ids) for ids in generate(model, [prompt, prompt], 1)]
    ['Ann', 'Ann']
    """
    model.check_sums("Generation")
    said = list[list[int]]([] for _ in prompts)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for length in dict.fromkeys(map(len, prompts)):
        rows = [i for i, ids in enumerate(prompts) if len(ids) == length]
        cache = Cache([DynamicLayer() for _ in model.blocks])
        feed = torch.tensor([list(prompts[i]) for i in rows], device=model.device)
        for past in range(length, length + new):
            at = torch.arange(past - feed.shape[1], past, device=model.device).expand_as(feed)
            mask = torch.ones(len(rows), past, dtype=torch.long, device=model.device)
            last = torch.full((len(rows),), feed.shape[1] - 1, device=model.device)
            with torch.no_grad():
                feed = _chosen(model.logits(Inputs(feed, mask, at, last, cache)), generator)
            for i, token in zip(rows, feed[:, 0].tolist(), strict=True):
                said[i].append(token)
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return [more[: more.index(end)] if end in more else more for more in said]


def _chosen(logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None) -> Int[Tensor, "batch 1"]:
    """The likeliest token of each row, or a drawn one."""
    if generator is None:
        return logits.argmax(-1, keepdim=True)
    noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
    return (logits.float() + noise.to(logits.device)).argmax(-1, keepdim=True)
