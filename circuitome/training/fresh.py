"""Models and vocabularies to begin a training with."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitome.errors import InputError
from circuitome.models.check import check_model
from circuitome.models.loading import auto_class
from circuitome.models.model import Model

END = "<|end|>"
"""The token between texts in a vocabulary that was made here."""


def untrained(
    like: Model | PreTrainedConfig,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """A model with the architecture's own random initialisation, in float32.

    `like` is a model, whose shape, tokenizer and device it gets, or a configuration of transformers.

    >>> model = cm.training.untrained(cm.load("known-ioi"), seed=1)
    >>> len(model.blocks), model.dtype
    (3, torch.float32)

    Raises `UnsupportedModelError` for an architecture that is not supported, and what `load`'s check raises.
    """
    config: Any = copy.deepcopy(like.hf.config if isinstance(like, Model) else like)
    config.dtype = torch.float32
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hf: Any
        if isinstance(like, Model):
            hf = type(like.hf)(config)
            device = device or like.device
            tokenizer = tokenizer or like.tokenizer
        else:
            hf = auto_class(config).from_config(config)
    if device is not None:
        hf.to(device)
    made = Model(hf.eval(), tokenizer, config._name_or_path or type(hf).__name__)
    check_model(made)
    return made


def vocabulary(texts: str | Iterable[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from `texts`, which spells any text; a small one makes small models quick.

    Its first token is `<|end|>`, which is put behind each text. Training is that of Hugging Face's tokenizers.

    >>> tokenizer = cm.training.vocabulary("the cat sat on the mat", size=270)
    >>> tokenizer.decode(tokenizer("the dog").input_ids)
    'the dog'

    Raises `InputError` for a size below 257: one token a byte, and the end of a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise InputError(f"A vocabulary of bytes holds at least 257 tokens, got {size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([texts] if isinstance(texts, str) else texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
