"""Sentences with their dependency trees: read from CoNLL-U files, and laid over a model's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import DataFileError, InputError
from circuitome.models.model import Model

LEFT_OUT = ("root", "punct")
"""Relations that are no arc between two words, or say nothing of syntax."""
Span = tuple[int, int]
"""First character, and one past the last."""


@dataclass(frozen=True)
class Tree:
    """A sentence and which word depends on which."""

    text: str
    """The sentence."""
    words: tuple[str, ...]
    """Its syntactic words; two words that are written as one token (du = de le) are two."""
    spans: tuple[Span, ...]
    """Where each word stands in the text; du, which is not de and le side by side, is the place of both."""
    heads: tuple[int, ...]
    """For each word, which word it depends on, from 0; -1 for the root."""
    relations: tuple[str, ...]
    """What each word is to its head, without subtypes: nsubj, det ..."""

    def arcs(self) -> list[tuple[str, int, int]]:
        """Relation, child and head of each arc but those of root and punctuation."""
        return [
            (relation, child, head)
            for child, (head, relation) in enumerate(zip(self.heads, self.relations, strict=True))
            if head >= 0 and relation not in LEFT_OUT
        ]

    @classmethod
    def of(cls, words: Sequence[str], heads: Sequence[int], relations: Sequence[str]) -> "Tree":
        """A sentence of words with a space between any two."""
        starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
        spans = tuple((start, start + len(word)) for start, word in zip(starts, words, strict=True))
        return cls(" ".join(words), tuple(words), spans, tuple(heads), tuple(relations))


def read_trees(path: str | Path) -> list[Tree]:
    r"""The sentences of a CoNLL-U file, or of all .conllu files below a folder.

    The text is put together from the written tokens and `SpaceAfter=No`. Words of a token that is written as one (lines
    2-3) have their parts of it where it is just these words (don't = do n't), else all of it (du = de le). Words that
    are not written (line 2.1) and enhanced dependencies are left out. Of a relation such as nsubj:pass the part before
    the colon counts.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.conllu"
    >>> row = "{0}\t{1}\t_\tX\t_\t_\t{2}\t{3}\t_\t_"
    >>> _ = path.write_text("\n".join(row.format(*cells) for cells in [(1, "It", 2, "nsubj"), (2, "is", 0, "root")]))
    >>> cm.dynamics.read_trees(path)[0].arcs()  # relation, child, head
    [('nsubj', 0, 1)]

    Raises `InputError` where the package conllu is not installed, `DataFileError` for a file that cannot be read, and
    for a sentence that is no tree, which it names by the line at which it begins.
    """
    try:
        import conllu
    except ImportError:
        raise InputError("Reading CoNLL-U files needs the package conllu: pip install 'circuitome[trees]'.") from None
    place = Path(path)
    if place.is_dir():
        files = sorted(place.rglob("*.conllu"))
        if not files:
            raise DataFileError(f"The folder {path} holds no .conllu file. Give one with trees, or a file.")
        return [tree for file in files for tree in read_trees(file)]
    try:
        raw = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataFileError(f"{path}: cannot be read ({reason}). Give a CoNLL-U file.") from None
    trees, line = [], 1
    for block in raw.replace("\r\n", "\n").split("\n\n"):
        if any(row and not row.startswith("#") for row in block.split("\n")):
            try:
                trees.append(_tree(conllu.parse(block.strip("\n") + "\n\n")[0]))
            except (conllu.exceptions.ParseException, ValueError, TypeError, IndexError, KeyError) as error:
                raise DataFileError(f"{path}, sentence at line {line}: it is no CoNLL-U tree ({error}).") from None
        line += block.count("\n") + 2
    if not trees:
        raise DataFileError(f"{path}: the file holds no sentence. Give a CoNLL-U file.")
    return trees


def _tree(rows: Any) -> Tree:
    """A sentence as conllu parsed it. Raises `ValueError` where heads are missing or lead nowhere."""
    words = [row for row in rows if isinstance(row["id"], int)]
    text, written = "", dict[int, Span]()
    for row in rows:
        first, last = (row["id"][0], row["id"][2]) if isinstance(row["id"], tuple) else (row["id"], row["id"])
        if first in written or (isinstance(row["id"], tuple) and row["id"][1] != "-"):
            continue  # a word that is not written, or one of a written token that came before
        places = _places(row["form"], [word["form"] for word in words[first - 1 : last]])
        written |= {first + i: (len(text) + a, len(text) + b) for i, (a, b) in enumerate(places)}
        text += row["form"] + ("" if (row["misc"] or {}).get("SpaceAfter") == "No" else " ")
    heads = [row["head"] for row in words]
    if [row["id"] for row in words] != list(range(1, len(words) + 1)):
        raise ValueError("words are not numbered 1, 2, ...")
    if any(not isinstance(head, int) or not 0 <= head <= len(words) for head in heads):
        raise ValueError(f"heads must be numbers from 0 to {len(words)}")
    return Tree(
        text.rstrip(),
        tuple(row["form"] for row in words),
        tuple(written[row["id"]] for row in words),
        tuple(head - 1 for head in heads),
        tuple(row["deprel"].split(":")[0] for row in words),
    )


def _places(written: str, words: Sequence[str]) -> list[Span]:
    """Where the words of a written token stand in it: side by side, or all over it where it is not just them."""
    if "".join(words) != written:
        return [(0, len(written))] * len(words)
    ends = list(accumulate(map(len, words)))
    return list(zip([0, *ends], ends, strict=False))


def tokens_of_words(model: Model, tree: Tree) -> tuple[list[int], Float[Tensor, "word token"]]:
    """Token ids of a sentence, special ones included, and 1 where a token shares a character with a word.

    Characters decide, not spaces: a token may be part of a word, hold the space in front of it, or reach over two
    words, of which it then is a part of each. Special tokens are part of none. A word that no token shows has a row
    of zeros. Raises `InputError` without a tokenizer that says which characters its tokens stand for.

    >>> tree = cm.dynamics.Tree.of(["Ann", "and", "Bob"], [-1, 2, 0], ["root", "cc", "conj"])
    >>> cm.dynamics.tokens_of_words(cm.load("known-ioi"), tree)[1]  # BOS in front
    tensor([[0., 1., 0., 0.],
            [0., 0., 1., 0.],
            [0., 0., 0., 1.]])
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise InputError(
            f"{model.name} has no tokenizer that says which characters its tokens stand for, so its tokens cannot be "
            "laid over words. Load it with a fast tokenizer of Hugging Face."
        )
    coded = tokenizer(tree.text, return_offsets_mapping=True, return_special_tokens_mask=True)
    share = torch.zeros(len(tree.words), len(coded["input_ids"]))
    for token, ((start, end), special) in enumerate(
        zip(coded["offset_mapping"], coded["special_tokens_mask"], strict=True)
    ):
        for word, (first, last) in enumerate(tree.spans):
            if not special and max(start, first) < min(end, last):
                share[word, token] = 1.0
    return list(coded["input_ids"]), share
