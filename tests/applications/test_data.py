"""Which texts to train on: made documents and their control, agreement with a circuit, repetition."""

import copy
from collections import Counter

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.applications import instructions, text_choice
from circuitome.errors import UnknownNameError
from circuitome.models.model import Model


def test_the_control_has_the_same_strings():
    made = instructions.documents(40, seed=3)
    assert made == instructions.documents(40, seed=3) != instructions.documents(40, seed=4)
    plain, augmented, shuffled = (instructions.corpus(made, kind, 0.5, 1) for kind in instructions.KINDS)
    assert plain == [document.text for document in made]
    with_questions = [i for i in range(40) if augmented[i] != plain[i]]
    assert len(with_questions) == 20 and with_questions == [i for i in range(40) if shuffled[i] != plain[i]]
    lines = [Counter(line for text in texts for line in text.split("\n")) for texts in (augmented, shuffled)]
    assert lines[0] == lines[1] and augmented != shuffled
    for i in with_questions:
        assert augmented[i] == made[i].augmented(made[i].questions)
        assert shuffled[i].split("\n")[1:] != augmented[i].split("\n")[1:]
    with pytest.raises(UnknownNameError):
        instructions.corpus(made, "odd")


@pytest.mark.parametrize("family", ["llama-bias", "gpt2", "neox-parallel", "phi3"])
@pytest.mark.parametrize("part", [False, True])
def test_agreement_is_what_a_small_step_does(family, part):
    """A step of plain gradient descent on a text, on the circuit's weights alone or on all, in double precision."""
    model, task = tiny(family, dtype=torch.float64), random_task(4)
    circuit = _circuit(model) if part else None
    cut = cm.neurons.packed([list(pair.corrupted) for pair in task.pairs])
    found = cm.applications.agreement(model, task, cut, circuit=circuit)
    masks = [torch.ones_like(p) for p in model.hf.parameters()]
    if circuit is not None:
        masks = text_choice.inside(model, circuit)
        assert 0 < sum(float(m.sum()) for m in masks) < sum(m.numel() for m in masks)
    rate = 1e-4  # norms compute in single precision, so a smaller step drowns
    for row in (0, 2):
        ids = cut.ids[row : row + 1, : cut.lengths[row]].long()
        values = []
        for sign in (1, -1):
            moved = Model(copy.deepcopy(model.hf), None, "moved")
            cm.training.next_token(moved, cm.training.Rows(ids)).backward()
            with torch.no_grad():
                for p, mask in zip(moved.hf.parameters(), masks, strict=True):
                    if p.grad is not None:
                        p -= sign * rate * p.grad * mask
            values.append(_metric(moved, task))
        assert float(found[row]) == pytest.approx((values[0] - values[1]) / (2 * rate), rel=1e-2, abs=3e-3)
    assert all(p.requires_grad for p in model.hf.parameters())


def _circuit(model):
    return cm.Circuit.of(model.graph, ["embed->a1.h1.q", "a1.h1->m2.in", "m2->logits"])


def _metric(model, task):
    """The logit difference in double precision, which the task's own rounds to single."""
    total = 0.0
    with torch.no_grad():
        for pair in task.pairs:
            logits = model.hf(torch.tensor([pair.clean])).logits[0, -1]
            total += float(logits[pair.answers[0]] - logits[pair.wrongs[0]])
    return total / len(task)


def test_repetition_and_choice():
    cut = cm.neurons.packed([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4], [5, 5, 5]])
    shares = cm.applications.repetition(cut)
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.0, 0.5]))
    assert cm.applications.chosen_windows(shares, "top", 1 / 3).tolist() == [0]
    assert cm.applications.chosen_windows(shares, "bottom", 2 / 3).tolist() == [1, 2]
    drawn = cm.applications.chosen_windows(shares, "random", 2 / 3, seed=4)
    assert len(set(drawn.tolist())) == 2 and torch.equal(
        drawn, cm.applications.chosen_windows(shares, "random", 2 / 3, seed=4)
    )


def test_induction_is_seen_where_it_is():
    assert cm.applications.induction_gain(cm.load("known-induction"), rows=8, length=16) > 1.0
    assert abs(cm.applications.induction_gain(tiny("llama"), rows=32, length=32)) < 1.0
