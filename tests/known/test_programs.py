"""Compiled models give what their programs mean, on every input."""

import pytest
import torch

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError
from circuitome.models.known import KNOWN, known_config, known_file
from circuitome.validation.ground_truth.programs import PROGRAMS

FEW = 400
"""Inputs of each program that the quick test tries."""


@pytest.fixture(scope="module", params=list(PROGRAMS))
def name(request):
    return request.param


@pytest.mark.slow
def test_every_position_gives_what_the_program_says(name):
    model, program = cm.load(name), PROGRAMS[name]
    ids = {token: i for i, token in enumerate(known_config(name).vocabulary)}
    inputs = program.inputs()
    inputs = inputs[:: max(1, len(inputs) // FEW)]
    for length in sorted({len(row) for row in inputs}):
        rows = [row for row in inputs if len(row) == length]
        with torch.no_grad():
            logits = model.hf(torch.tensor([[0, *(ids[token] for token in row)] for row in rows])).logits
        for row, given in zip(rows, logits, strict=True):
            for position, output in enumerate(program.meaning(row), start=1):
                if isinstance(output, str):
                    assert int(given[position].argmax()) == ids[output], (row, position)
                elif output is not None:
                    assert float(given[position, 0]) == pytest.approx(output, abs=1e-3), (row, position)


@pytest.mark.slow
def test_the_task_reads_every_output(name):
    model, task = cm.load(name), cm.ground_truth.task(name, 20)
    assert task == cm.ground_truth.task(name, 20) != cm.ground_truth.task(name, 20, seed=1)
    rows = range(len(task))
    with torch.no_grad():
        logits = torch.stack(
            [model.hf(torch.tensor([pair.clean])).logits[0, pair.answer_position] for pair in task.pairs]
        )
    metric = task.score(logits, rows)
    if logits.shape[1] > 1:
        assert bool((metric > 0).all())  # the right output is above the one of the other input
    assert all(pair.answer_position and len(pair.clean) == len(pair.corrupted) for pair in task.pairs)


@pytest.mark.parametrize("name", ["known-induction", "known-ioi"])
def test_hand_set_models_do_their_task(name):
    model, task = cm.load(name), cm.ground_truth.task(name, 40)
    with torch.no_grad():
        best = [int(model.hf(torch.tensor([p.clean])).logits[0, p.answer_position].argmax()) for p in task.pairs]
    assert [(token,) for token in best] == [pair.answers for pair in task.pairs]


def test_names_and_bad_input():
    assert set(cm.ground_truth.NAMES) == set(KNOWN) >= set(PROGRAMS)
    assert all(known_file(name).is_file() for name in KNOWN)
    with pytest.raises(UnknownNameError, match="tracr-reverse"):
        cm.load("tracr-revers")
    with pytest.raises(UnknownNameError, match="known model"):
        cm.ground_truth.task("gpt2")
    with pytest.raises(InputError, match="at least one"):
        cm.ground_truth.task("tracr-sort", 0)
    with pytest.raises(InputError, match="too many inputs"):
        cm.ground_truth.task("known-ioi", None)
