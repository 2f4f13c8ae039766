"""Prompts of random tokens with named positions, and a causal model of what a random model says after them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import circuitome as cm
from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task


def random_words(model: Model, n: int = 14, seed: int = 0) -> tuple[Task, cm.causal.CausalModel]:
    """Prompts of two lengths with the roles early and late, whose causal model is what the model happens to answer."""
    generator = torch.Generator().manual_seed(seed)
    pairs, said = [], {}
    for i in range(n):
        ids = tuple(torch.randint(3, 61, (6 + 2 * (i % 2),), generator=generator).tolist())
        with torch.no_grad():
            said[ids] = int(model.hf(torch.tensor([ids])).logits[0, -1, 3:].argmax()) + 3
        roles = {"early": 1 + i % 2, "late": 3 + i % 2, "end": len(ids) - 1}
        pairs.append(Pair(ids, (*ids[:-1], 3), (said[ids],), (), template=f"t{i % 2}", roles=roles))
    causal = cm.causal.model(word=lambda prompt: f"{said[prompt]}", answer=lambda word: word)
    return Task("random", tuple(pairs)), causal.reading(lambda tokens, pair: {"prompt": pair.clean})


def numbers() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the ids themselves."""
    raw = Tokenizer(models.WordLevel({f"{i}": i for i in range(1, 61)} | {"?": 0}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")
