"""Arcs found by attention: word-by-word reference, a hand-set model, and tokens laid over words by characters."""

import pytest
import torch
from families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import circuitome as cm
from circuitome.dynamics.arcs import DIRECTIONS, OFFSETS
from circuitome.errors import DataFileError, InputError
from circuitome.models.inputs import Inputs
from circuitome.models.known import KnownConfig, KnownForCausalLM, tokenizer_of
from circuitome.models.model import Model

WORDS = ["the", "cat", "dog", "sleeps", "sees", "that"]
SHAPES = [  # heads and relations of sentences whose words stand at these places
    ([1, 2, -1, 4, 2], ["det", "nsubj", "root", "det", "obj"], "the cat sees the dog"),
    ([1, 2, -1], ["det", "nsubj", "root"], "the dog sleeps"),
    ([1, 5, 4, 4, 1, -1], ["det", "nsubj", "obj", "nsubj", "acl", "root"], "the cat that cat sees sleeps"),
]


def trees(shapes=SHAPES, copies=2):
    return [
        cm.dynamics.Tree.of(text.split(), heads, relations) for heads, relations, text in shapes for _ in range(copies)
    ]


CHAIN = [([1, -1, 1], ["nsubj", "root", "obj"], "cat sees dog")]
"""Each word has one earlier word that it is joined with, so that one head can show all arcs in a decoder."""


def hand_set(causal: bool, shape=SHAPES[0]) -> Model:
    """A model whose head 0 attends from each place to its head's, or the later of both to the earlier; head 1 does not.

    Place decides: all sentences have the tree of `shape`.
    """
    heads, size = shape[0], 6
    config = KnownConfig(
        vocab_size=7,
        hidden_size=2 * size,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=2 * size,
        intermediate_size=1,
        max_position_embeddings=size,
        is_causal=causal,
        output_size=7,
        vocabulary=["BOS", *WORDS],
    )
    hf = KnownForCausalLM(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.embed_positions.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], 1))
        attention = hf.layers[0].self_attn
        attention.k_proj.weight[: 2 * size].copy_(torch.eye(2 * size))
        for child, head in enumerate(heads):
            if head >= 0:
                later, earlier = (child, head) if head < child else (head, child)
                row, column = (later, earlier) if causal else (child, head)
                attention.q_proj.weight[1 + column, 1 + row] = 50.0  # BOS is at 0
    return Model(hf.eval(), tokenizer_of(config), "hand-set")


def test_a_head_that_attends_along_the_arcs_finds_all_of_them():
    found = cm.dynamics.syntax(hand_set(False), trees(SHAPES[:1], copies=6), min_arcs=1)
    assert found.kinds == ("det", "nsubj", "obj") and found.uas().value == 1.0
    assert found.best() == ("a0.h0, child attends to head",) * 3
    assert not found.by_head[:, 0, 0, 1].all()


def test_in_a_decoder_the_later_word_shows_the_arc():
    found = cm.dynamics.syntax(hand_set(True, CHAIN[0]), trees(CHAIN, copies=6), min_arcs=1)
    assert found.kinds == ("nsubj, child first", "obj, head first") and found.uas().value == 1.0
    assert found.best()[0] == "a0.h0, head attends to child" and found.best()[1] == "a0.h0, child attends to head"
    assert found.exists.tolist() == [[False, True], [True, False]] * 6


def slow(model: Model, tree, shares):
    """Right or not of every arc, direction, layer and head, word by word."""
    layers = []
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: layers.append(pattern[0])):
        model.logits(Inputs.whole(torch.tensor([model.encode(tree.text)])))
    tokens = [[t for t in range(shares.shape[1]) if shares[w, t]] for w in range(len(tree.words))]
    right = {}
    for relation, child, head in tree.arcs():
        for direction, (word, other) in enumerate([(child, head), (head, child)]):
            for layer, patterns in enumerate(layers):
                for h, pattern in enumerate(patterns):
                    best, most = None, -1.0
                    for candidate in range(len(tree.words)):
                        if candidate == word or (model.causal and candidate > word):
                            continue
                        value = sum(float(pattern[q, tokens[candidate]].sum()) for q in tokens[word]) / len(
                            tokens[word]
                        )
                        if value > most + 1e-9:
                            best, most = candidate, value
                    possible = not model.causal or other < word
                    right[relation, child, direction, layer, h] = possible and best == other
    return right


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_equal_to_word_by_word(family):
    model = tiny(family)
    model.tokenizer = pieces(61)
    sentences = trees()
    found = cm.dynamics.syntax(model, sentences, min_arcs=1)
    row = 0
    expected = []
    order = sorted(range(len(sentences)), key=lambda i: len(model.encode(sentences[i].text)))
    for number in order:
        tree = sentences[number]
        right = slow(model, tree, cm.dynamics.tokens_of_words(model, tree)[1])
        for relation, child, head in tree.arcs():
            name = f"{relation}, {'child' if child < head else 'head'} first"
            assert found.kinds[found.kind[row]] == name and found.sentence[row] == number
            shape = found.by_head.shape[1:]
            expected.append(
                [right[relation, child, d, layer, h] for d in range(2) for layer in range(3) for h in range(4)]
            )
            offsets = [[(o - w == offset) and o < w for offset in OFFSETS] for w, o in [(child, head), (head, child)]]
            assert found.by_offset[row].tolist() == offsets
            row += 1
    assert torch.equal(found.by_head, torch.tensor(expected).view(-1, *shape))
    assert row == len(found.kind)


def test_best_is_chosen_on_one_half_and_scored_on_the_other():
    found = cm.dynamics.syntax(hand_set(False), trees(copies=9), min_arcs=1)
    hits, total, right = found.by_head.flatten(1), 0, 0
    for kind in range(len(found.kinds)):
        for half in (True, False):
            rows = [i for i in range(len(hits)) if found.kind[i] == kind and bool(found.half[i]) == half]
            others = [i for i in range(len(hits)) if found.kind[i] == kind and bool(found.half[i]) != half]
            shares = [sum(float(hits[i, option]) for i in others) / len(others) for option in range(hits.shape[1])]
            option = shares.index(max(shares))
            right, total = right + sum(int(hits[i, option]) for i in rows), total + len(rows)
    assert found.uas().value == pytest.approx(right / total)
    assert {bool(found.half[found.sentence == s].float().mean() % 1 == 0) for s in found.sentence.unique()} == {True}


def test_offsets_on_a_sample():
    found = cm.dynamics.syntax(hand_set(False), trees(SHAPES[:2], copies=4), min_arcs=1)
    det = found.kinds.index("det")
    assert found.best("offset")[det] == f"+1, {DIRECTIONS[0]}" and found.uas("offset", "det").value == 1.0
    # nsubj: the verb follows the noun in both; obj: the object is two words behind the verb
    assert found.uas("offset", "nsubj").value == found.uas("offset", "obj").value == 1.0


def pieces(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of two-letter pieces and single letters, spaces in front of tokens."""
    letters = ["<unk>", *"abcdefghijklmnopqrstuvwxyz ", *(" " + c for c in "tcds"), "th", "at", "ee", "le", "og", "ps"]
    vocabulary = {piece: i for i, piece in enumerate(letters)}
    assert len(vocabulary) <= size
    merges = [(" ", "t"), (" ", "c"), (" ", "d"), (" ", "s"), ("t", "h"), ("a", "t"), ("e", "e"), ("l", "e")]
    merges += [("o", "g"), ("p", "s")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>")), unk_token="<unk>"
    )


def test_tokens_that_reach_over_words_and_into_spaces():
    """`cat d` is one token of two words; `og` is the rest of the second; the space alone is of none."""
    whole = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("cat d", -1.0), ("og", -1.0), ("s", -2.0), (" ", -3.0)], unk_id=0)
    )
    model = Model(hand_set(True).hf, PreTrainedTokenizerFast(tokenizer_object=whole), "odd")
    tree = cm.dynamics.Tree.of(["cat", "dog", "s"], [1, -1, 1], ["x", "root", "y"])
    ids, share = cm.dynamics.tokens_of_words(model, tree)
    assert [model.decode([i]) for i in ids] == ["cat d", "og", " ", "s"]
    assert share.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]


def test_bytes_of_one_character_are_all_of_its_word():
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "Ġ": 2, "ð": 3, "Ł": 4, "ĺ": 5, "Ģ": 6}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = Model(hand_set(True).hf, PreTrainedTokenizerFast(tokenizer_object=tokenizer), "bytes")
    ids, share = cm.dynamics.tokens_of_words(
        model, cm.dynamics.Tree.of(["a", "\N{GRINNING FACE}"], [-1, 0], ["root", "x"])
    )
    assert len(ids) == 6  # a, a space, and four bytes
    assert share[0].tolist() == [1, 0, 0, 0, 0, 0] and share[1].tolist() == [0, 0, 1, 1, 1, 1]


CONLLU = """# text = du pain, vite
1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\t_\t_\t3\tcase\t_\t_
2\tle\tle\tDET\t_\t_\t3\tdet:art\t_\t_
3\tpain\tpain\tNOUN\t_\t_\t0\troot\t_\tSpaceAfter=No
4\t,\t,\tPUNCT\t_\t_\t5\tpunct\t_\t_
4.1\tmange\t_\tVERB\t_\t_\t_\t_\t_\t_
5\tvite\tvite\tADV\t_\t_\t3\tadvmod\t_\t_

"""


def test_conllu_with_written_tokens_of_two_words_and_words_that_are_not_written(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU * 2, encoding="utf-8")
    first, second = cm.dynamics.read_trees(path)
    assert first == second and first.text == "du pain, vite"
    assert first.words == ("de", "le", "pain", ",", "vite")
    assert [first.text[a:b] for a, b in first.spans] == ["du", "du", "pain", ",", "vite"]
    assert first.arcs() == [("case", 0, 2), ("det", 1, 2), ("advmod", 4, 2)]
    assert cm.dynamics.read_trees(tmp_path) == [first, second]


WRITTEN = """# newdoc id = x
# sent_id = 1
# text = «Don't», naïve 😀 said.
1\t«\t«\tPUNCT\t_\t_\t3\tpunct\t3:punct\tSpaceAfter=No
2-3\tDon't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
2\tDo\tdo\tAUX\t_\t_\t7\taux:x\t7:aux\t_
3\tn't\tnot\tPART\t_\t_\t7\tadvmod\t7:advmod\t_
4\t»\t»\tPUNCT\t_\t_\t3\tpunct\t3:punct\tSpaceAfter=No
5\t,\t,\tPUNCT\t_\t_\t3\tpunct\t3:punct\t_
6\tnaïve 😀\tnaïve\tADJ\t_\t_\t7\txcomp\t7:xcomp|6.1:dep\t_
6.1\tis\tbe\tVERB\t_\t_\t_\t_\t0:root\t_
7\tsaid\tsay\tVERB\t_\t_\t0\troot\t0:root\tSpaceAfter=No
8\t.\t.\tPUNCT\t_\t_\t7\tpunct\t7:punct\tSpaceAfter=No

"""


def test_conllu_as_treebanks_have_it(tmp_path):
    """Contractions, empty nodes, enhanced dependencies, words with spaces, other letters; no arcs of punctuation."""
    path = tmp_path / "a.conllu"
    path.write_text(WRITTEN, encoding="utf-8")
    (tree,) = cm.dynamics.read_trees(path)
    assert tree.text == "«Don't», naïve 😀 said."
    assert [tree.text[a:b] for a, b in tree.spans] == list(tree.words)
    assert tree.words == ("«", "Do", "n't", "»", ",", "naïve 😀", "said", ".")
    assert tree.arcs() == [("aux", 1, 6), ("advmod", 2, 6), ("xcomp", 5, 6)]


def test_sentences_longer_than_the_model_are_left_out_and_counted():
    short, long = trees(CHAIN, copies=1)[0], cm.dynamics.Tree.of(["cat"] * 9, [-1, *range(8)], ["root", *["x"] * 8])
    found = cm.dynamics.syntax(hand_set(True, CHAIN[0]), [short, long, short], min_arcs=1)
    assert found.left_out == 1 and found.sentence.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\t3\tadvmod", "\t9\tadvmod", "line 10.*heads must be numbers from 0 to 5"),
        ("5\tvite", "6\tvite", "line 10.*not numbered"),
        ("\t3\tadvmod", "\tx\tadvmod", "line 10"),
        ("\tpain", "", "line 10"),
    ],
)
def test_bad_trees_are_refused_with_their_line(tmp_path, old, new, words):
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU + CONLLU.replace(old, new), encoding="utf-8")
    with pytest.raises(DataFileError, match=words):
        cm.dynamics.read_trees(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataFileError, match=r"no \.conllu file"):
        cm.dynamics.read_trees(tmp_path)
    with pytest.raises(DataFileError, match="cannot be read"):
        cm.dynamics.read_trees(tmp_path / "a.conllu")
    (tmp_path / "a.conllu").write_text("# nothing\n")
    with pytest.raises(DataFileError, match="no sentence"):
        cm.dynamics.read_trees(tmp_path)


def test_too_few_arcs_and_no_tokenizer_are_refused():
    with pytest.raises(InputError, match="No relation has 100 arcs"):
        cm.dynamics.syntax(hand_set(True), trees())
    with pytest.raises(InputError, match="no tokenizer"):
        cm.dynamics.syntax(tiny("llama"), trees())
