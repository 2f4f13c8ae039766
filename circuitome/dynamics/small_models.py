"""Small models to watch from their first step on, and a tokenizer of the grammar's words."""

from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitome.dynamics import grammar
from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model
from circuitome.training.fresh import END, untrained

Kind = Literal["attention", "decoder", "masked"]
KINDS: tuple[str, ...] = get_args(Kind)
"""Attention without MLPs, a decoder with them (both as Llama), and a masked language model (as BERT)."""
THETA = 100.0
"""Base of the rotations: with the usual 10,000 most of a narrow head's pairs hardly turn over a hundred tokens."""
MASK, UNKNOWN = "<|mask|>", "<|unknown|>"


def small_model(
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int = 2,
    heads: int = 4,
    width: int = 64,
    length: int = 128,
    seed: int = 0,
) -> Model:
    """An untrained model for texts of `length` tokens at most: `attention` (without MLPs), `decoder` or `masked`.

    Positions are rotations in the first two (Su et al. 2021, arXiv:2104.09864) and learned vectors in the last. A
    model of attention alone is a decoder whose MLPs write nothing and are frozen, so that its checkpoint is an ordinary
    one. Neurons are four times the width.

    >>> cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer(), layers=1)
    Model(LlamaForCausalLM, llama, 23 edges, torch.float32)

    Raises `UnknownNameError` for another kind, `InputError` for a width that the heads do not divide evenly.
    """
    if kind not in KINDS:
        raise unknown_name("kind of model", kind, KINDS)
    for what, number in (("layers", layers), ("heads", heads), ("width", width), ("length", length)):
        if number < 1:
            raise InputError(f"The {what} of a model must be at least 1, got {number}.")
    if width % (2 * heads):
        raise InputError(f"A width of {width} does not give {heads} heads an even number each. Change one of the two.")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width if kind != "attention" else 8,
        "max_position_embeddings": length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "masked":
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return untrained(BertConfig(**sizes), seed=seed, tokenizer=tokenizer)
    rotations = {"rope_type": "default", "rope_theta": THETA}
    model = untrained(LlamaConfig(**sizes, rope_parameters=rotations), seed=seed, tokenizer=tokenizer)
    if kind == "attention":
        without_mlps(model)
    return model


def without_mlps(model: Model) -> None:
    """Let the MLPs of a live model write nothing, and freeze them."""
    for block in model.blocks:
        with torch.no_grad():
            for parameter in block.mlp_writer.parameters():
                parameter.zero_()
        for module in (*block.mlp, *([block.mlp_norm.module] if block.mlp_norm else [])):
            module.requires_grad_(False)


def grammar_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the grammar, one between texts, and one for hidden words.

    >>> tokenizer = cm.dynamics.grammar_tokenizer()
    >>> len(tokenizer), tokenizer("these lawyers jump .").tokens()
    (220, ['these', 'lawyers', 'jump', '.'])
    """
    nouns = [form for noun in grammar.NOUNS for form in (noun, grammar.plural(noun))]
    verbs = [
        grammar.verb_form(verb, number)
        for verb in (*grammar.ACTS, *grammar.STATES, *grammar.THOUGHTS)
        for number in grammar.NUMBERS
    ]
    others = (*grammar.ADJECTIVES, *grammar.ADVERBS, *grammar.PREPOSITIONS, "and", "that", ".")
    words = [*sum(grammar.DETERMINERS.values(), ()), *others, *nouns, *verbs]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([END, MASK, UNKNOWN, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": END, "pad_token": END, "mask_token": MASK, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
