"""Places: names of them, several at once and neurons against hooks pair by pair, and what cannot be."""

from contextlib import ExitStack

import pytest
import torch
from families import tiny
from random_words import numbers, random_words
from referee import inputs_of

import circuitome as cm
from circuitome.causal.interchanges import answers_at, bases_from, logits_at
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import directions
from circuitome.causal.trials import trials
from circuitome.causal.variable_setting import set_variable, whole
from circuitome.engine.setting import Setting
from circuitome.errors import InputError

PLACES = (
    "x1@late",
    "x2@end",
    "mid1@early",
    "a0.h1@early+a1.h*@end",
    "a1.h3.q@late",
    "a0.kv1.k@early+a1.kv0.v@late",
    "m0@early+m1@late",
    "m0.n3,n5@late+m1.n*@end",
    "x1@early+m1.n0@end",
    "a1.h0@late+x2@end",
)
FAMILIES = ["llama", "gpt2", "gemma3", "olmo2", "neox-sequential", "opt", "phi3"]


@pytest.fixture(scope="module")
def setting():
    return Setting(cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 24))


def test_names_are_read_and_written_alike():
    model = tiny("llama", layers=2)
    for text in PLACES:
        place = Place.parse(text, model)
        if "*" not in text or "n*" in text:
            assert str(place) == text
    assert str(Place.parse("m0.n5,3@late", model)) == "m0.n3,n5@late"
    assert len(Place.parse("a1.h*@end", model).parts) == 4
    assert len(Place.parse("m1.n*@end", model).parts[0].site.neurons) == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a1.h9@end", "no a1.h9 in a model of 2 blocks with 4 heads and 2 key/value heads"),
        ("a1.h0.k@end", "is no place"),
        ("a1.kv2.k@end", "no a1.kv2.k"),
        ("m0.n40@end", "m0 has neurons 0 to 39"),
        ("x1", "is no place"),
        ("x1@end+x1@end", "names a site twice"),
        ("m0@end+m0.n3@late", "names an MLP and neurons of it"),
    ],
)
def test_places_that_do_not_exist_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        Place.parse(text, tiny("llama", layers=2))


@pytest.mark.parametrize(
    "family", [name if name in ("llama", "gemma3") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_several_sites_and_neurons_equal_the_model_with_hooks(family):
    """The public interventions are the referee: every part set to the source's value, in the model's own pass."""
    model = tiny(family, layers=2)
    model.tokenizer = numbers()
    task, causal = random_words(model)
    pairs, every = trials(Setting(model, task), causal), None
    every = torch.arange(len(pairs.base))
    heads = model.heads.kv
    for number, text in enumerate(PLACES):
        if "kv1" in text and heads < 2:
            continue
        place, pair = Place.parse(text, model), number % len(pairs.base)
        with torch.no_grad():
            logits = logits_at(pairs, bases_from(pairs, [place], every), place, every)[pair]
        base, source = (int(which[pair]) for which in (pairs.base, pairs.source))
        to = [values[source, 0] for values in pairs.values_of(place)]
        expected = set_part_by_part(model, task.pairs[base], place, to)[list(pairs.tokens)]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4, msg=lambda m, text=text: f"{text}: {m}")
        assert int(answers_at(pairs, place)[pair]) == int(expected.argmax())


def set_part_by_part(model, pair, place, to):
    """Logits at the end with each part of a place set, by `set_variable`, which works on the model's own modules."""
    with ExitStack() as stack:
        for part, value in zip(place.parts, to, strict=True):
            where = str(part)
            stack.enter_context(set_variable(model, whole(model, where, ""), [value], at=pair.roles[part.role]))
        with torch.no_grad():
            return model.hf(torch.tensor([pair.clean])).logits[0, -1]


def test_a_head_that_is_set_by_the_model_s_hooks_says_the_same_as_cm_hook():
    model = tiny("llama", layers=2)
    ids, value = torch.arange(5, 12)[None], torch.randn(6, generator=torch.Generator().manual_seed(0))
    for text, site in (("a1.h2@end", "a1.h2.z"), ("a0.kv1.v@end", "a0.kv1.v")):
        with set_variable(model, whole(model, text, ""), [value]), torch.no_grad():
            one = model.hf(ids).logits
        with cm.hook(model, site, lambda x: value.expand_as(x), at="end"), torch.no_grad():
            torch.testing.assert_close(model.hf(ids).logits, one)


def test_a_subspace_leaves_the_rest_of_the_value():
    model = tiny("gpt2", layers=2)
    basis, to = directions(24, 3, 0), torch.tensor([1.0, -2.0, 0.5])
    seen, ids = [], torch.arange(5, 12)[None]
    with torch.no_grad():
        before = model.record(inputs_of(model, tuple(ids[0].tolist()))).resid_pre[1][0, -1]
        subspace = cm.causal.Subspace("x1@end", "", (basis,))
        with set_variable(model, subspace, [to]), cm.hook(model, "a1.resid_pre", lambda x: seen.append(x[0, -1])):
            model.hf(ids)
    torch.testing.assert_close(seen[0] @ basis, to, atol=1e-5, rtol=1e-5)
    outside = torch.eye(24) - basis @ basis.T
    torch.testing.assert_close(seen[0] @ outside, before @ outside, atol=1e-5, rtol=1e-5)
    with (
        pytest.raises(InputError, match=r"takes coordinates \[3\] by part, got \[2\]"),
        set_variable(model, subspace, [to[:2]]),
    ):
        pass


def test_places_in_front_of_a_variable_s_inputs_are_refused(setting):
    causal = cm.causal.ready("known-ioi")
    task = setting.task
    for call in (
        lambda: cm.causal.interchange(setting, causal, "x1@first", variables=["repeated"]),
        lambda: cm.causal.das(setting, causal, "x1@first", variable="repeated"),
        lambda: cm.causal.locate(setting, causal, "x1@first", task, variable="repeated", sizes=()),
        lambda: cm.causal.align(setting, causal, at=["first"]),
    ):
        with pytest.raises(InputError, match=r"cannot be at x\d@first: first stands in front of .* \(S2\)"):
            call()
    assert cm.causal.align(setting, causal)["name"].axes[1] == ("S2", "end")


def test_only_some_parts_are_looked_at(setting):
    causal = cm.causal.ready("known-ioi")
    found = cm.causal.align(setting, causal, kind="heads", only=["a0.h0", "m1"])["repeated"]
    every = cm.causal.align(setting, causal, kind="heads")["repeated"]
    assert found.axes[0] == ("a0.h0",) and torch.equal(found.samples[:, 0], every.samples[:, 0])
    keys = cm.causal.align(setting, causal, kind="k", only=["a2.h1"])
    assert keys["repeated"].axes[0] == ("a2.kv1.k",)
    with pytest.raises(InputError, match=r"None of m1 has a site of the kind heads"):
        cm.causal.align(setting, causal, kind="heads", only=["m1"])
