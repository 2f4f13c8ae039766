"""Causal models: variables from functions, interventions on them, and what is refused."""

import pytest

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError

IOI = cm.causal.model(
    answer=lambda name: name,
    name=lambda position, first, second: second if position == "first" else first,
    position=lambda first, again: "first" if again == first else "second",
)
BASE = {"first": "Ann", "second": "Bob", "again": "Bob"}
SOURCE = {"first": "Cid", "second": "Dan", "again": "Cid"}


def test_variables_come_in_the_order_of_computation_whatever_the_order_of_definition():
    assert IOI.order == ("position", "name", "answer") and IOI.variables == ("position", "name")
    assert set(IOI.inputs) == {"first", "second", "again"} and IOI.output == "answer"
    assert IOI.run(BASE) == {**BASE, "position": "second", "name": "Ann", "answer": "Ann"}


@pytest.mark.parametrize(
    ("names", "answer"), [(["position"], "Bob"), (["name"], "Dan"), (["position", "name"], "Dan"), (["first"], "Cid")]
)
def test_an_interchange_recomputes_what_comes_behind_it(names, answer):
    assert IOI.interchange(BASE, SOURCE, names)["answer"] == answer


def test_a_set_variable_is_not_computed_and_a_set_input_need_not_be_given():
    broken = cm.causal.model(a=lambda x: 1 / 0, answer=lambda a: a + 1)
    assert broken.run({}, set={"x": 0, "a": 2})["answer"] == 3


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({}, "at least one variable"),
        ({"a": lambda b: b, "b": lambda a: a}, "from one another: [ab] -> [ab] -> [ab]"),
        ({"a": lambda a: a}, "from one another: a -> a"),
        ({"a": lambda x: x, "b": lambda x: x}, "computed from a or b"),
        ({"a": lambda *x: x}, r"'a' has the parameter \*x"),
        ({"a": lambda a: a}, r"Let one of them be computed from others, or have no function: then it is an input\."),
        ({"answer": 3}, r"'answer' must be a function of others, got 3\. Give a lambda or a def\."),
        ({"answer": max}, r"does not say what .*, the function of 'answer', is computed from\. Name that: lambda a, b"),
    ],
)
def test_what_is_no_causal_model_is_refused_when_it_is_made(functions, message):
    with pytest.raises(InputError, match=message):
        cm.causal.model(**functions)


def test_errors_of_a_run_name_variable_and_input():
    with pytest.raises(InputError, match=r"lacks its input 'again'"):
        IOI.run({"first": "Ann", "second": "Bob"})
    with pytest.raises(UnknownNameError, match=r"no variable 'postion'. Did you mean 'position'"):
        IOI.run(BASE, set={"postion": 1})
    divides = cm.causal.model(ratio=lambda a, b: a / b, answer=lambda ratio: ratio)
    with pytest.raises(InputError, match=r"'ratio' cannot be computed from a=1, b=0: ZeroDivisionError: .*\. Mend its"):
        divides.run({"a": 1, "b": 0})


def test_inputs_are_read_at_the_roles_of_their_names():
    task, model = cm.ground_truth.task("known-ioi", 4), cm.load("known-ioi")
    causal = cm.causal.model(answer=lambda IO, S2: IO)
    for pair in task.pairs:
        assert causal.inputs_of(model, pair) == {
            "IO": model.decode([pair.answers[0]]),
            "S2": model.decode([pair.wrongs[0]]),
        }
    with pytest.raises(UnknownNameError, match=r"no role 'S3'. Did you mean 'S2' or 'S1'"):
        cm.causal.model(answer=lambda S3: S3).inputs_of(model, task.pairs[0])
    typo = cm.causal.model(position=lambda S1: S1, answer=lambda postion: postion)
    with pytest.raises(UnknownNameError, match=r"variable 'position' has a like name"):
        typo.inputs_of(model, task.pairs[0])


def test_ready_models_answer_as_their_tasks_do():
    for name in ("known-ioi", "known-induction"):
        model, task = cm.load(name), cm.ground_truth.task(name, 8)
        causal = cm.causal.ready(name)
        for pair in task.pairs:
            assert causal.run(causal.inputs_of(model, pair))[causal.output] == model.decode([pair.answers[0]])
    with pytest.raises(UnknownNameError, match=r"no causal model for the task 'capitals'"):
        cm.causal.ready("capitals")
