"""Answers of several tokens against explicit sums of log-probabilities, and what cannot be scored so."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.errors import TaskError
from circuitome.tasks.long_answers import make_pairs


class Letters:
    """Tokens are letters; texts are their own tokens."""

    def encode(self, text):
        return [ord(letter) - ord("a") for letter in text]

    encode_answer = encode

    def decode(self, ids):
        return "".join(chr(token + ord("a")) for token in ids)


ROWS = [
    {"clean": "abcde", "corrupted": "abfde", "answer": "gh", "wrong": "gij"},
    {"clean": "bcdef", "corrupted": "bcdgf", "answer": "klm", "wrong": "n"},
    {"clean": "cdefg", "corrupted": "cdefh", "answer": "o", "wrong": "p"},
]


def log_prob(model, prompt, answer):
    """log p(answer | prompt) by one pass of the plain model."""
    ids = [*prompt, *answer]
    with torch.no_grad():
        logs = model.hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def expected(model, side):
    encode = Letters().encode
    values = [
        log_prob(model, encode(row[side]), encode(row["answer"]))
        - log_prob(model, encode(row[side]), encode(row["wrong"]))
        for row in ROWS
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_mean_metric_is_that_of_summed_log_probabilities(name):
    model, task = tiny(name), cm.tasks.from_pairs(Letters(), ROWS, "answer_log_prob", name="long")
    graph = model.graph
    for side, circuit in {"clean": cm.Circuit.full(graph), "corrupted": cm.Circuit.empty(graph)}.items():
        metric = task.score(cm.run_circuit(model, task, circuit), range(len(task))).mean()
        assert float(metric) == pytest.approx(expected(model, side), abs=1e-5)
    assert task.unit == "nats" and task.measure.name == "answer_log_prob"
    assert len(set(task.groups)) == 3 and len(task) == 2 + 3 + 1
    assert cm.eap_ig(model, task, steps=2).values.isfinite().all()
    whole = cm.exact(model, task, edges=cm.Circuit.of(graph, ["m1->logits"]))
    without = cm.run_circuit(model, task, ~cm.Circuit.of(graph, ["m1->logits"]))
    change = task.score(without, range(len(task))).mean() - expected(model, "clean")
    assert whole["m1->logits"] == pytest.approx(float(change), abs=1e-5)


def test_rows_go_on_with_the_tokens_before():
    rows = make_pairs(Letters(), "abc", "abd", ["ef"], ["gh"])
    assert [(row.clean_text, row.answers, row.wrongs) for row in rows] == [
        ("abc", (4,), (6,)),
        ("abce", (5,), ()),
        ("abcg", (), (7,)),
    ]
    assert [row.corrupted_text for row in rows] == ["abd", "abde", "abdg"]
    assert [row.roles["end"] for row in rows] == [2, 3, 3]
    assert len(make_pairs(Letters(), "abc", "abd", ["e"], ["f", "g"])) == 1


@pytest.mark.parametrize(
    ("row", "metric", "message"),
    [
        (
            {"answer": ["ef", "g"], "wrong": "h"},
            "answer_log_prob",
            "need one answer and at most one wrong answer, got 2 and 1",
        ),
        ({"answer": "ef", "wrong": "ef"}, "answer_log_prob", "both the right and the wrong"),
        ({"answer": "ef", "wrong": "g"}, "prob_diff", "must be one token.*answer_log_prob"),
        ({"answer": "ef", "wrong": "g", "corrupted": "ab"}, "answer_log_prob", "same number of tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(row, metric, message):
    with pytest.raises(TaskError, match=message):
        cm.tasks.from_pairs(Letters(), [{"clean": "abc", "corrupted": "abd"} | row], metric)


def test_another_metric_is_refused():
    with pytest.raises(TaskError, match="only the metric of its own"):
        cm.tasks.from_pairs(Letters(), ROWS, "answer_log_prob").measured_by("logit_diff")
