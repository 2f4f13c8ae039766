"""Retrieval heads: hand-made traces, prompts whose needle is where they say, and slow forms of reading and decoding."""

import json

import pytest
import torch
from families import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitome.errors import DataFileError, InputError, UnknownNameError, UnsupportedModelError
from circuitome.heads.long_context.decoding import MaskedAttention, answer_log_probs, greedy, prefill
from circuitome.heads.long_context.masking import mask_heads
from circuitome.heads.long_context.needles import Needle, needle_prompts, own_needles, own_text, read_needles, recall
from circuitome.heads.long_context.retrieval import RetrievalScores, copy_scores, retrieval_scores
from circuitome.models.attention import attending, plain_attention
from circuitome.models.loading import load
from circuitome.models.model import Model

WORDS = [*"abcdefghijklmnopqrstuvwx.?:QA"]
TEXT = " ".join(f"{a} {b} {c} ." for a in "abcd" for b in "efgh" for c in "ijkl")
NEEDLES = (Needle("u v w x .", "u v", "w x"), Needle("s t r .", "s t", "r"))
SIZES = {"lengths": (30, 40), "depths": (0.0, 0.5, 1.0), "text": TEXT, "needles": NEEDLES}


def spoken(name="llama", *, bos=False):
    """A random model with a tokenizer of words."""
    raw = Tokenizer(models.WordLevel({word: i + 3 for i, word in enumerate(WORDS)} | {"?u": 0}, unk_token="?u"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        from tokenizers.processors import TemplateProcessing

        raw.post_processor = TemplateProcessing(single="a $A", special_tokens=[("a", 3)])
    model = tiny(name)
    return Model(model.hf, PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?u"), f"tiny-{name}")


# hand-made traces ------------------------------------------------------------------------------------------------


def trace(places, said, prompt, span):
    """Scores of one head that attends to these places, step by step."""
    pattern = torch.zeros(len(places), 1, 1, len(prompt) + len(said))
    for step, place in enumerate(places):
        pattern[step, 0, 0, place] = 1.0
    paper, code = copy_scores(pattern.argmax(-1), said, prompt, span)
    return float(paper), float(code)


PROMPT = [9, 9, 11, 12, 13, 14, 9, 12]  # the needle is 11 12 13 14


@pytest.mark.parametrize(
    ("places", "said", "paper", "code"),
    [
        ([2, 3, 4, 5], [11, 12, 13, 14], 1.0, 1.0),  # copies everything
        ([2, 3, 0, 0], [11, 12, 13, 14], 0.5, 0.5),  # k of n
        ([3, 3, 3], [11, 12, 13], 0.25, 0.25),  # looks at one token: a hit only when that is said
        ([7, 7], [12, 12], 0.0, 0.0),  # the right token, outside the needle
        ([3, 8], [12, 12], 0.25, 0.25),  # behind the prompt
        ([3] * 6, [12] * 6, 0.25, 1.5),  # said over and over: above 1 in the code's form alone
        ([], [], 0.0, 0.0),
    ],
)
def test_hand_made_traces(places, said, paper, code):
    assert trace(places, said, PROMPT, (2, 6)) == (paper, code)


def test_a_needle_that_says_a_token_twice():
    assert trace([2, 4], [7, 7], [1, 1, 7, 8, 7, 1], (2, 5)) == (0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("found", "expected", "share"),
    [
        ("Drink CIDER, on the wall.", "drink cider on the wall", 1.0),
        ("the the the", "the wall the", 2 / 3),
        ("", "wall", 0.0),
        ("wall", "", 0.0),
    ],
)
def test_recall(found, expected, share):
    assert recall(found, expected) == pytest.approx(share)


# prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_needles_are_where_the_prompts_say(bos):
    model = spoken(bos=bos)
    prompts = needle_prompts(model, **SIZES)
    assert len(prompts) == 12
    for prompt in prompts:
        needle = NEEDLES[prompt.needle]
        start, end = prompt.span
        assert len(prompt.ids) in (30, 40)
        assert model.decode(prompt.needle_ids) == needle.text
        assert model.decode(prompt.ids[end:]).endswith(f"Q : {needle.question} A :")
        assert start == bos or prompt.depth == 1 or model.decode(prompt.ids[:start]).endswith(".")
        rest = prompt.ids[bos:start] + prompt.ids[end:]
        assert list(rest[: len(rest) - 6]) == model.encode_answer(TEXT)[: len(rest) - 6]
        assert not bos or prompt.ids[0] == 3
    deep = [prompt.span[0] for prompt in prompts if prompt.needle == 0 and len(prompt.ids) == 40]
    assert deep == sorted(deep) and deep[0] == bos and deep[2] == 40 - 6 - 5


def test_own_text_and_needles():
    text = own_text()
    assert 1500 < len(text.split()) < 2000
    assert len(own_needles()) == 3
    for needle in own_needles():
        assert needle.answer in needle.text
        assert needle.text not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (11,)}, "11 tokens has no room for text: needle 1 takes 5, .* at least 12"),
        ({"text": "a b c . d e f ."}, "The text has 8 tokens; prompts of 30 need 19 .* at most 19"),
        ({"needles": (Needle(" ", "a", "b"),)}, "The needle of needle 1 has no tokens"),
        ({"needles": (Needle("a b", "a", ""),)}, "The answer of needle 1 has no tokens"),
        ({"depths": (0.5, 1.5)}, "from 0 to 1; got 1.5"),
        ({"lengths": ()}, "at least one length"),
        ({"steps": 0}, "steps .* at least 1, got 0"),
    ],
)
def test_searches_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        retrieval_scores(spoken(), **{**SIZES, **change})


def test_models_that_cannot_be_searched():
    with pytest.raises(InputError, match=r"learned positions for 64 .* at most 40"):
        retrieval_scores(spoken("gpt2"), **{**SIZES, "lengths": (50,)})
    known = load("known-induction")
    known.tokenizer = spoken().tokenizer
    with pytest.raises(UnsupportedModelError, match="outside of transformers' attention interface"):
        retrieval_scores(known, **{**SIZES, "lengths": (20,)})


def test_needle_files_say_which_line(tmp_path):
    path = tmp_path / "needles.jsonl"
    good = {"needle": "a", "question": "b", "answer": "c"}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good))
    assert read_needles(path) == (Needle("a", "b", "c"),) * 2
    path.write_text(json.dumps(good) + "\n" + json.dumps({"needle": "a"}))
    with pytest.raises(DataFileError, match=r"needles.jsonl:2 is not a needle"):
        read_needles(path)
    path.write_text("")
    with pytest.raises(DataFileError, match="holds no needles"):
        read_needles(path)
    with pytest.raises(DataFileError, match="cannot be read"):
        read_needles(tmp_path / "no.jsonl")


# reading and decoding, against the plain model --------------------------------------------------------------------


def plain_run(model, prompt, steps, change=None):
    """Tokens said and, per step, each head's strongest key: no cache, the whole prompt anew for every token."""
    ids, said, most = list(prompt.ids), [], []
    for _ in range(steps):
        patterns = []
        with torch.no_grad(), model.watching_attention(lambda layer, p, kept=patterns: kept.append(p[0, :, -1])):
            logits = model.hf(torch.tensor([ids])).logits[0, -1]
        most.append(torch.stack(patterns).argmax(-1))
        said.append(int(logits.argmax()))
        ids.append(said[-1])
    return said, torch.stack(most)


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gemma2", "gpt2"))])
def test_scores_are_those_of_decoding_without_a_cache(name):
    model = spoken(name)
    scores = retrieval_scores(model, **SIZES, steps=4)
    assert scores.samples.shape == (12, 3, 4)
    for row in (0, 3, 7, 11):
        prompt = scores.prompts[row]
        said, most = plain_run(model, prompt, 4)
        assert scores.answers[row] == model.decode(said)
        paper, code = copy_scores(most, said, prompt.ids, prompt.span)
        torch.testing.assert_close(scores.samples[row], paper)
        torch.testing.assert_close(scores.hits[row], code)


def test_answers_end_where_they_should():
    model = spoken()
    prompts = needle_prompts(model, **SIZES)[:3]
    said, _ = plain_run(model, prompts[1], 4)
    (batch,) = prefill(model, prompts)
    row = batch.rows.index(1)
    answers = greedy(model, batch, 4, ends=lambda before, token: token == said[2])
    assert answers[row] == said[: said.index(said[2])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_log_probs_are_those_of_the_whole_text(name):
    model = spoken(name)
    prompts = needle_prompts(model, **SIZES)
    for batch in prefill(model, prompts):
        for found, prompt in zip(answer_log_probs(model, batch), batch.prompts, strict=True):
            with torch.no_grad():
                logits = model.hf(torch.tensor([[*prompt.ids, *prompt.answer_ids]])).logits[
                    0, -len(prompt.answer_ids) - 1 : -1
                ]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(prompt.answer_ids)[:, None]).mean()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# masked heads ----------------------------------------------------------------------------------------------------


def masked_by_hand(model, prompt, heads, mode, first):
    """Mean log-probability of the answer when `heads` are masked at all queries from `first` on, one whole pass."""
    ids = torch.tensor([[*prompt.ids, *prompt.answer_ids]])

    def attend(call, query, key, value):
        z, pattern = plain_attention(call, query, key, value)
        groups = query.shape[1] // key.shape[1]
        seen = torch.ones_like(pattern[0, 0]).tril()
        if call.window is not None:
            seen = seen.triu(1 - call.window)
        even = (seen / seen.sum(-1, keepdim=True)) @ value.repeat_interleave(groups, 1)
        for layer, head in heads:
            if layer == call.layer:
                z[:, head, first:] = even[:, head, first:] if mode == "even" else 0
        return z

    with torch.no_grad(), attending(model, attend):
        logits = model.hf(ids).logits[0, len(prompt.ids) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(prompt.answer_ids)[:, None]).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "where"),
    [
        ("llama", "zero", "decode"),
        ("llama", "even", "everywhere"),
        ("gemma2", "even", "decode"),
        pytest.param("olmo2", "even", "decode", marks=pytest.mark.slow),
        pytest.param("qwen2", "zero", "everywhere", marks=pytest.mark.slow),
    ],
)
def test_masking_is_what_it_says(name, mode, where):
    model, heads = spoken(name), ((0, 1), (2, 0), (2, 3))
    prompts = needle_prompts(model, **SIZES)
    check = mask_heads(model, prompts, heads, mode=mode, where=where, draws=2, decode=False)
    assert check.recalls.isnan().all()
    for row in (1, 11):
        prompt = prompts[row]
        first = len(prompt.ids) - 1 if where == "decode" else 0
        for index, masked in enumerate(((), heads, *check.draws)):
            expected = masked_by_hand(model, prompt, masked, mode, first)
            assert float(check.log_probs[index, row]) == pytest.approx(expected, abs=1e-4)


def test_random_heads_are_never_those_that_are_masked():
    model = spoken()
    prompts, heads, avoid = needle_prompts(model, **SIZES)[:1], ((0, 1), (2, 3)), ((1, 1),)

    def draws(seed):
        return mask_heads(model, prompts, heads, avoid=avoid, draws=12, decode=False, seed=seed).draws

    drawn = draws(0)
    assert all(len(set(draw)) == 2 for draw in drawn)
    some = {head for draw in drawn for head in draw}
    assert not some & {*heads, *avoid}
    assert len(some) >= 8  # of the nine others
    assert draws(0) == drawn != draws(1)


def test_estimates_of_a_check():
    model = spoken()
    prompts = needle_prompts(model, **SIZES)[:4]
    check = mask_heads(model, prompts, ((0, 0),), draws=2, steps=3)
    found = check.estimates()["log_prob"]
    assert found["unmasked"].value == pytest.approx(float(check.log_probs[0].mean()))
    assert found["masked_minus_random"].value == pytest.approx(
        float(check.log_probs[1].mean() - check.log_probs[2:].mean())
    )
    assert found["masked"].n == 4
    assert not check.recalls.isnan().any()


@pytest.mark.parametrize(
    ("heads", "options", "error", "message"),
    [
        (((0, 9),), {}, InputError, "no head a0.h9: 3 layers of 4 heads"),
        ((), {}, InputError, "0 heads to mask"),
        (tuple((0, h) for h in range(4)) + tuple((1, h) for h in range(4)), {}, InputError, "8 heads .* and 4 others"),
        (((0, 0),), {"draws": 0}, InputError, "at least 1, got 0"),
        (((0, 0),), {"mode": "zeros"}, UnknownNameError, "Did you mean 'zero'"),
        (((0, 0),), {"where": "decoding"}, UnknownNameError, "Did you mean 'decode'"),
    ],
)
def test_masks_that_cannot_be(heads, options, error, message):
    model = spoken()
    with pytest.raises(error, match=message):
        mask_heads(model, needle_prompts(model, **SIZES)[:1], heads, **options)


# means over runs -------------------------------------------------------------------------------------------------


def scores_of(recalls):
    prompts = needle_prompts(spoken(), **SIZES)[: len(recalls)]
    samples = torch.zeros(len(recalls), 2, 2)
    samples[0, 1, 0], samples[1, 1, 0], samples[2, 0, 1] = 0.8, 0.4, 1.0
    return RetrievalScores(prompts, ("",) * len(recalls), torch.tensor(recalls), samples, 2 * samples)


def test_means_are_over_successful_runs():
    scores = scores_of([0.9, 0.6, 0.5, 0.2])
    assert scores.conditional and scores.success.tolist() == [True, True, False, False]
    assert float(scores.mean[1, 0]) == pytest.approx(0.6)
    assert float(scores.mean_hits[1, 0]) == pytest.approx(1.2)
    assert float(scores.frequency[1, 0]) == 1.0
    assert scores.heads(1) == ((1, 0),) == scores.retrieval_heads()
    name, estimate = scores.top(1)[0]
    stretch = 12.706 / 1.960 * 2**0.5  # Student's t with one degree of freedom: two runs say little
    assert name == "a1.h0" and estimate.n == 2 and estimate.low == pytest.approx(0.6 - 0.2 * stretch, rel=1e-3)


def test_without_a_success_means_are_over_all_runs_and_say_so():
    scores = scores_of([0.5, 0.4, 0.2, 0.0])
    assert not scores.conditional
    assert float(scores.mean[1, 0]) == pytest.approx(0.3)
    assert float(scores.mean[0, 1]) == pytest.approx(0.25)
    assert float(scores.frequency[0, 1]) == 0.25


@pytest.mark.slow
def test_the_plain_attention_is_the_models_own():
    """What masking rests on: our function gives the model's logits and patterns, in every architecture."""
    from families import CONFIGS

    for name in CONFIGS:
        model, ids = tiny(name), torch.arange(3, 15)[None]
        own, theirs = [], []
        with torch.no_grad():
            with model.watching_attention(lambda layer, pattern, kept=theirs: kept.append(pattern)):
                expected = model.hf(ids).logits
            with attending(model, MaskedAttention(watch=lambda layer, pattern, kept=own: kept.append(pattern))):
                found = model.hf(ids).logits
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        for a, b in zip(own, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_line_break_ends_an_answer_only_behind_it():
    from circuitome.heads.long_context.decoding import at_line_end

    model = spoken()
    model.tokenizer = None
    model.decode = lambda ids: "".join({7: "\n", 8: " "}.get(i, "x") for i in ids)
    model.hf.generation_config.eos_token_id = 9
    stop = at_line_end(model)
    assert [stop(said, 7) for said in ([], [7, 8], [5], [7, 5])] == [False, False, True, True]
    assert stop([], 9) and not stop([5], 5)
