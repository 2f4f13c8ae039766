"""A small saved model that reads letters."""

from families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


def save_letters(path):
    """Save a random Llama of 190 edges with a word-level tokenizer to a folder."""
    tiny("llama").hf.save_pretrained(path)
    raw = Tokenizer(models.WordLevel({word: i + 3 for i, word in enumerate(WORDS)} | {"?": 0}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?").save_pretrained(path)
