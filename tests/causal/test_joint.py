"""Several variables at once, and a variable set to a value in the model's own passes."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.errors import InputError

PLACES = {"repeated": "a1.h0@end", "name": "a2.h0@end"}


@pytest.fixture
def known():
    return cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32), cm.causal.ready("known-ioi")


def test_joint_interchanges_are_right_at_the_places_and_wrong_elsewhere(known):
    model, task, causal = known
    found = cm.causal.joint(model, task, causal, PLACES)
    assert list(found.sets) == ["repeated+name"] and found.accuracy.value == 1 and found.unchanged.value < 0.7
    assert found.places == PLACES and "repeated+name: IIA 1.000" in repr(found)
    elsewhere = cm.causal.joint(model, task, causal, {**PLACES, "name": "a0.h1@end"})
    assert elsewhere.accuracy.value < 0.8 and not elsewhere.holds
    with pytest.raises(InputError, match="takes two variables or more, got name"):
        cm.causal.joint(model, task, causal, {"name": "a2.h0@end"})


def test_sets_of_three_variables_are_all_pairs_and_all_of_them():
    model, task, causal = (
        cm.load("tracr-reverse"),
        cm.ground_truth.task("tracr-reverse", 40),
        cm.causal.ready("tracr-reverse"),
    )
    places = {"length": "m0@end", "opposite": "m1@end", "copied_from": "m2@end"}
    found = cm.causal.joint(model, task, causal, places)
    assert len(found.sets) == 4 and all(estimate.value == 1 for estimate in found.sets.values())


def test_a_variable_set_to_a_value_is_what_the_causal_model_says(known):
    model, task, causal = known
    place = cm.causal.whole(model, "a1.h0@end", "repeated")
    means = cm.causal.value_means(model, task, causal, place)
    right = []
    for pair in task.pairs[:12]:
        inputs = causal.inputs_of(model, pair)
        for value, to in means.items():
            if value not in (inputs["first"], inputs["second"]):
                continue
            with cm.causal.set_variable(model, place, to), torch.no_grad():
                said = model.decode([int(model.hf(torch.tensor([pair.clean])).logits[0, -1].argmax())])
            right.append(said == causal.run(inputs, set={"repeated": value})["answer"])
    assert len(right) >= 20 and all(right)


def test_a_variable_is_set_at_a_role(known):
    model, task, causal = known
    place = cm.causal.whole(model, "a0.h0@S2", "repeated")
    means = cm.causal.value_means(model, task, causal, place)
    pair = task.pairs[0]
    other = causal.inputs_of(model, pair)["first" if pair.template == "ABBA" else "second"]
    with cm.causal.set_variable(model, place, means[other], task=cm.Task("one", (pair,))), torch.no_grad():
        said = model.hf(torch.tensor([pair.clean])).logits[0, -1]
    assert model.decode([int(said.argmax())]) == model.decode(list(pair.wrongs))
    with pytest.raises(InputError, match="S2"), cm.causal.set_variable(model, place, means[other]):
        pass


def test_a_variable_is_set_while_generating():
    model, ids = tiny("llama", layers=2), torch.arange(5, 12)[None]
    place, to = cm.causal.whole(model, "x1@end", ""), [torch.randn(24, generator=torch.Generator().manual_seed(0))]
    with cm.causal.set_variable(model, place, to), torch.no_grad():
        first = int(model.hf(ids).logits[0, -1].argmax())
        made = model.hf.generate(ids, max_new_tokens=3, do_sample=False)
    assert int(made[0, 7]) == first and int(model.hf(ids).logits[0, -1].argmax()) != first
