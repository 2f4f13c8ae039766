"""The grammar's trees and pairs, and how pairs are scored."""

import pytest
import torch
from dynamics.test_arcs import pieces
from families import tiny

import circuitome as cm
from circuitome.dynamics.grammar import DETERMINERS, NOUNS, STATES, plural, verb_form
from circuitome.errors import DataFileError, InputError
from circuitome.models.inputs import Inputs

PLURALS = {plural(noun) for noun in NOUNS}
SINGULAR_VERBS = {verb_form(verb, "singular") for verb in STATES}


def test_trees_are_projective_trees_whose_verbs_agree():
    for tree in cm.dynamics.grammar_trees(200):
        assert tree.heads.count(-1) == 1
        for word in range(len(tree.words)):  # every word reaches the root
            steps = 0
            while (word := tree.heads[word]) >= 0:
                assert (steps := steps + 1) < len(tree.words)
        arcs = [(child, head) for child, head in enumerate(tree.heads) if head >= 0]
        for a, b in (sorted(arc) for arc in arcs):
            assert not any(a < c < b < d for c, d in (sorted(arc) for arc in arcs))
        for relation, child, head in tree.arcs():
            if relation == "nsubj" and tree.words[head] in (*STATES, *SINGULAR_VERBS) and tree.words[child] != "that":
                conj = any(h == child and r == "conj" for h, r in zip(tree.heads, tree.relations, strict=True))
                many = tree.words[child] in PLURALS or conj
                assert (tree.words[head] in SINGULAR_VERBS) == (not many), tree.text
            if relation == "det":
                number = "plural" if tree.words[head] in PLURALS else "singular"
                assert tree.words[child] in DETERMINERS[number]


@pytest.mark.slow
def test_sentences_hardly_repeat():
    texts = {tree.text for tree in cm.dynamics.grammar_trees(1500)}
    assert len(texts) > 1480
    assert len(texts & {tree.text for tree in cm.dynamics.grammar_trees(1500, seed=1)}) < 10


def test_pairs_differ_in_one_word():
    pairs = cm.dynamics.grammar_pairs(20)
    assert len(pairs) == 120 and len({pair.kind for pair in pairs}) == 6
    for pair in pairs:
        good, bad = pair.good.split(), pair.bad.split()
        assert len(good) == len(bad) and sum(a != b for a, b in zip(good, bad, strict=True)) == 1
    coordinated = [pair.good.split()[-2] for pair in pairs if pair.kind == "coordination"]
    assert not set(coordinated) & SINGULAR_VERBS


@pytest.mark.parametrize("front", [(), (7, 9)])
def test_scores_equal_sums_token_by_token(front):
    model = tiny("llama")
    model.tokenizer = pieces(61)
    pairs = cm.dynamics.grammar_pairs(3)
    scores = cm.dynamics.pair_scores(model, pairs, front=front)
    for row, pair in enumerate(pairs):
        for text, given in ((pair.good, scores.good[row]), (pair.bad, scores.bad[row])):
            ids = [*front, *model.encode(text)]
            with torch.no_grad():
                logits = model.every_logits(Inputs.whole(torch.tensor([ids])))[0].log_softmax(-1)
            assert float(given) == pytest.approx(
                sum(float(logits[i, ids[i + 1]]) for i in range(max(0, len(front) - 1), len(ids) - 1)), rel=1e-4
            )
    share = sum(float(scores.good[i]) > float(scores.bad[i]) for i in range(len(pairs))) / len(pairs)
    assert scores.accuracy().value == pytest.approx(share)


def test_reading_pairs(tmp_path):
    path = tmp_path / "agreement.jsonl"
    path.write_text(
        '{"sentence_good": "a b", "sentence_bad": "a c"}\n\n{"sentence_good": "d", "sentence_bad": "e", "UID": "x"}\n'
    )
    pairs = cm.dynamics.read_pairs(path)
    assert [(pair.good, pair.kind) for pair in pairs] == [("a b", "agreement"), ("d", "x")]
    assert cm.dynamics.read_pairs(tmp_path) == pairs
    path.write_text('{"sentence_good": "a b"}\n')
    with pytest.raises(DataFileError, match="line 1: expected an object"):
        cm.dynamics.read_pairs(path)


def test_no_pairs_are_refused():
    with pytest.raises(InputError, match="no minimal pairs"):
        cm.dynamics.pair_scores(tiny("llama"), [])
