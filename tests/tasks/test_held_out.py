"""Prompts held apart: nothing in common, drawn again alike, and refused where there are too few."""

import json

import pytest
from families import random_task

import circuitome as cm
from circuitome.errors import TaskError
from circuitome.runs.draw import Origin
from circuitome.tasks.held_out import FEWEST, fresh, split


def prompts_of(*tasks):
    return [{pair.clean for pair in task.pairs} for task in tasks]


def apart(*tasks):
    sets = prompts_of(*tasks)
    return sum(map(len, sets)) == len(set.union(*sets))


@pytest.fixture(scope="module")
def model():
    return cm.load("known-ioi")


def test_a_split_holds_every_pair_once_and_no_prompt_twice(model):
    task = cm.ground_truth.task("known-ioi", 64)
    parts = split(task, seed=3)
    tasks = parts.search, parts.sizing, parts.held_out
    assert apart(*tasks) and sum(map(len, tasks)) == len(task)
    assert len(parts.search) > len(parts.held_out) >= FEWEST
    assert split(task, seed=3) == parts != split(task, seed=4)


def test_few_prompts_are_not_split():
    with pytest.raises(TaskError, match=r"has 5 different prompts.*takes at least 32.*--held-out FILE"):
        split(random_task(5))


def test_what_was_seen_is_left_out():
    task = random_task(12)
    some = split(random_task(40)).search
    assert fresh(task, [task]) is None
    left = fresh(task, [])
    assert left == task and fresh(task, [some]) != task


@pytest.mark.parametrize("wanted", [(), ("held_out",), ("held_out", "sizing")])
def test_a_generator_draws_more(model, wanted):
    origin = Origin(task="known-ioi", model="known-ioi", n=30, seed=5, data=None, apart=wanted)
    parts = origin.parts(model)
    tasks = [task for task in (parts.search, parts.sizing, parts.held_out) if task is not None]
    assert len(tasks) == 1 + len(wanted) and apart(*tasks)
    assert parts == origin.parts(model)
    if wanted == ("held_out",):
        assert parts.search == origin.draw(model)


def test_draws_that_repeat_each_other_are_split(model):
    tracr = cm.load("tracr-length")
    everything = Origin(
        task="tracr-length", model="tracr-length", n=10_000, seed=0, data=None, apart=("held_out", "sizing")
    )
    parts = everything.parts(tracr)
    assert apart(parts.search, parts.sizing, parts.held_out)
    assert len(parts.search) + len(parts.sizing) + len(parts.held_out) == len(everything.draw(tracr))


def test_a_file_of_held_out_prompts_is_taken_as_it_is(model, tmp_path):
    task = cm.ground_truth.task("known-ioi", 80)
    words = {pair.clean: (pair, model.decode(pair.answers[:1]), model.decode(pair.wrongs[:1])) for pair in task.pairs}
    rows = [
        json.dumps({"clean": pair.clean_text, "corrupted": pair.corrupted_text, "answer": right, "wrong": wrong})
        for pair, right, wrong in words.values()
    ]
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours.write_text("\n".join(rows[:40]))
    theirs.write_text("\n".join(rows[40:50]))
    origin = Origin(task="ours", model="known-ioi", n=1, seed=0, data=str(ours), apart=("held_out",))
    assert origin.parts(model).held_out is None and len(origin.parts(model).search) == 40
    both = Origin(
        task="ours", model="known-ioi", n=1, seed=0, data=str(ours), apart=("held_out", "sizing"), held_out=str(theirs)
    ).parts(model)
    assert len(both.held_out) == 10 and len(both.search) + len(both.sizing) == 40
    assert apart(both.search, both.sizing, both.held_out)
