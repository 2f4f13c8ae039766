"""Prompts of unequal length, aligned by role: which token stands for which, and runs that follow from it."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.engine.ablation import role_alignment
from circuitome.errors import InputError
from circuitome.tasks.task import Pair, Task

FAMILIES = [
    "llama",
    "gemma2",
    pytest.param("gpt2", marks=pytest.mark.slow),
    pytest.param("neox-parallel", marks=pytest.mark.slow),
]


def pair(clean, corrupted, roles, corrupted_roles):
    return Pair(clean, corrupted, (4,), (6,), roles=roles, corrupted_roles=corrupted_roles)


UNEVEN = (
    pair((3, 5, 7, 9, 11, 13), (3, 8, 8, 2, 9, 11, 13), {"name": 2, "end": 5}, {"name": 3}),
    pair((3, 5, 7, 9, 11, 13), (3, 7, 9, 11, 13), {"name": 2, "end": 5}, {"name": 1}),
)
TASK = Task("uneven", UNEVEN)


def test_tokens_between_roles_are_counted_back_from_the_later_one():
    assert role_alignment(UNEVEN[0]) == [0, 2, 3, 4, 5, 6]
    assert role_alignment(UNEVEN[1]) == [0, 0, 1, 2, 3, 4]
    same = pair((1, 2, 3), (1, 5, 3), {}, {})
    assert role_alignment(same) == [0, 1, 2]


def test_what_cannot_be_aligned_says_so():
    with pytest.raises(InputError, match="columns roles and corrupted_roles"):
        role_alignment(pair((1, 2, 3), (1, 2, 3, 4), {"a": 1}, {"b": 1}))
    with pytest.raises(InputError, match="stand in another order"):
        role_alignment(pair((1, 2, 3, 4), (1, 2, 3, 4, 5), {"a": 1, "b": 2}, {"a": 3, "b": 1}))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_prompts_of_one_length_it_is_the_corrupted_ablation(family):
    model, task = tiny(family), random_task(4)
    circuit = cm.eap(model, task).top(model.graph.n_edges // 3)
    expected = cm.run_circuit(model, task, circuit)
    torch.testing.assert_close(cm.run_circuit(model, task, circuit, ablation="by-role"), expected, rtol=0, atol=2e-5)
    one, other = cm.eap_ig(model, task, ablation="by-role").values, cm.eap_ig(model, task).values
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_empty_circuit_ends_as_the_corrupted_prompt_does(family):
    model = tiny(family)
    found = cm.run_circuit(model, TASK, cm.Circuit.empty(model.graph), ablation="by-role")
    whole = cm.run_circuit(model, TASK, cm.Circuit.full(model.graph), ablation="by-role")
    for row, at in enumerate(TASK.pairs):
        with torch.no_grad():
            corrupted, clean = (model.hf(torch.tensor([ids])).logits[0, -1] for ids in (at.corrupted, at.clean))
        torch.testing.assert_close(found[row], corrupted, rtol=0, atol=2e-5)
        torch.testing.assert_close(whole[row], clean, rtol=0, atol=2e-5)


def test_an_ablated_head_writes_what_it_writes_at_the_token_with_the_same_role():
    model = tiny("llama")
    name, row = "a1.h2", 0
    edge = f"{name}->logits"
    circuit = cm.Circuit.full(model.graph) - cm.Circuit.of(model.graph, [edge])
    found = cm.run_circuit(model, replace(TASK, pairs=TASK.pairs[:1]), circuit, ablation="by-role")[0]
    with torch.no_grad():
        clean, other = (model.record(_inputs(model, ids)) for ids in (UNEVEN[row].clean, UNEVEN[row].corrupted))
        block, head = model.blocks[1], 2
        width = model.heads.width
        change = [run.z[1][0, -1].unflatten(-1, (-1, width))[head] for run in (clean, other)]
        final = clean.final[0, -1] + (change[1] - change[0]) @ block.head_weights([head])[0]
        expected = model.unembed(final[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def _inputs(model, ids):
    from circuitome.models.model import Inputs

    return Inputs.whole(torch.tensor([ids]))


def test_columns_of_a_file_name_the_roles():
    model = cm.load("known-ioi")
    prompts = {"clean": "Ann and Bob met then Bob gave to", "corrupted": "Ann and Bob met then Bob gave"}
    row = {**prompts, "answer": "Ann", "wrong": "Bob", "roles": {"S2": ["Bob", 2]}}
    task, other = (
        cm.tasks.from_pairs(model, [{**row, "corrupted_roles": {"S2": place}}], aligned=False)
        for place in (["Bob", 2], 2)
    )
    assert dict(task.pairs[0].corrupted_roles) == {"S2": task.pairs[0].roles["S2"]}
    assert task.data_hash() != other.data_hash()
