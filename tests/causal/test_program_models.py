"""Compiled programs and networks set by hand: every variable is at its place, with 1.000, and at chance elsewhere."""

import pytest
import torch

import circuitome as cm
from circuitome.causal.program_models import PROGRAM_MODELS
from circuitome.errors import InputError
from circuitome.validation.ground_truth.programs import PROGRAMS

PLACES = {
    "tracr-reverse": {"length": "m0@end", "opposite": "m1@end", "copied_from": "m2@end"},
    "tracr-frac-prevs": {"is_x": "m0@all", "share": "a1.h0@end"},
    "tracr-length": {"length": "m0@end"},
    "tracr-hist": {"count": "m0@end"},
    "tracr-count": {"count": "m0@end"},
    "tracr-count-less-freq": {"hist": "m0@all", "rare": "m1@end"},
    "tracr-sort": {"keys": "m0@all", "target": "m1@all"},
    "tracr-sort-unique": {"target": "m0@all"},
    "tracr-sort-freq": {"hist": "m0@all", "negative": "m1@all", "keys": "m2@all", "target": "m3@all"},
    "tracr-pair-balance": {
        "opening": "m0>a1.h0@all",
        "closing": "m0>a1.h1@all",
        "opens": "a1.h0@end",
        "closes": "a1.h1@end",
        "balance": "m1@end",
    },
    "tracr-shuffle-dyck": {
        "opening": "m0>a1.h0@all",
        "closing": "m0>a1.h1@all",
        "opens": "a1.h0@all",
        "closes": "a1.h1@all",
        "balance": "m2@all",
        "negative": "m3>a4.h1@all",
        "zero": "m3>a4.h0@all",
        "ends_even": "a4.h0@end",
        "dips": "a4.h1@end",
        "never_dips": "m4@end",
    },
    "tracr-shift-by": {"before": "a0.h0@end"},
    "tracr-detect-pattern": {
        "is_a": "m0>a1.h0@all",
        "is_b": "m0>a1.h1@all",
        "two_back": "a1.h0@end",
        "one_back": "a1.h1@end",
        "begins": "m1@end",
    },
}
"""Where the compiler puts each variable (the labels of its residual stream); m0>a1.h0: neurons of m0 that a1.h0 reads.
The one that is missing, is_c of detect-pattern, is read by an MLP; see its own test."""


EQUIVALENT = {
    "tracr-shuffle-dyck": {
        "opening": ["a1.h1"],
        "opens": ["a1.h1"],
        "closing": ["a1.h0"],
        "closes": ["a1.h0"],
        "balance": ["m5"],
    }
}
"""Places at which an interchange has to do what one of the variable does: either share of brackets moves their
difference in the same way, and m5 writes the answer, which the balance decides."""


def place_of(model, text):
    """A place; neurons that write what a head's values read are found in the weights."""
    if ">" not in text:
        return text
    (mlp, head), role = text.split("@")[0].split(">"), text.split("@")[1]
    layer, (reader_layer, number) = int(mlp[1:]), (int(n) for n in head[1:].split(".h"))
    width = model.heads.width
    reads = (
        model.hf.layers[reader_layer].self_attn.v_proj.weight[number * width : (number + 1) * width].abs().sum(0) > 0
    )
    writes = model.hf.layers[layer].fc2.weight[reads].abs().sum(0) > 0
    return f"{mlp}.{','.join(f'n{i}' for i in writes.nonzero()[:, 0].tolist())}@{role}"


def test_every_program_has_a_causal_model_that_gives_its_outputs():
    assert set(PROGRAM_MODELS) == set(PROGRAMS) == set(PLACES) and len(PROGRAMS) == 13
    for name, program in PROGRAMS.items():
        causal = cm.causal.ready(name)
        for row in program.inputs()[::7]:
            for at, expected in enumerate(program.meaning(row), start=1):
                answer = causal.run({"tokens": row, "at": at})[causal.output]
                same = answer == expected if isinstance(expected, str | None) else answer == pytest.approx(expected)
                assert same, (name, row, at)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_variables_of_compiled_programs_are_where_the_compiler_put_them_and_at_chance_elsewhere(name):
    model, causal = cm.load(name), cm.causal.ready(name)
    task = cm.ground_truth.task(name, 40)
    for variable, text in PLACES[name].items():
        found = cm.causal.interchange(model, task, causal, place_of(model, text), variables=[variable])
        assert found[variable].value == 1, (variable, text)
    related = {
        v: {v, *ancestors(causal, v), *(w for w in causal.order if v in ancestors(causal, w))} for v in PLACES[name]
    }
    for kind in ("heads", "mlps"):
        for variable in PLACES[name]:
            accuracy = cm.causal.align(model, task, causal, variables=[variable], kind=kind)[variable]
            own = {PLACES[name][other].split("@")[0] for other in related[variable] if other in PLACES[name]}
            own |= set(EQUIVALENT.get(name, {}).get(variable, ()))
            own |= {part for place in own for part in place.split(">")} | {f"a{p[1:]}.h0" for p in own if p[0] == "m"}
            others = [accuracy.mean[row].max() for row, site in enumerate(accuracy.axes[0]) if site not in own]
            assert not others or float(max(others)) <= accuracy.chance + 0.1, (variable, kind, own)


def ancestors(causal, variable):
    """The variables that one is computed from."""
    direct = {parent for parent in causal.parents[variable] if parent in causal.parents}
    return direct | {name for parent in direct for name in ancestors(causal, parent)}


def test_the_last_letter_of_a_pattern_is_in_the_neurons_that_the_last_mlp_reads():
    model, causal = cm.load("tracr-detect-pattern"), cm.causal.ready("tracr-detect-pattern")
    reads = model.hf.layers[2].fc1.weight.abs().sum(0) > 0
    writes = model.hf.layers[0].fc2.weight[reads].abs().sum(0) > 0
    place = f"m0.{','.join(f'n{i}' for i in writes.nonzero()[:, 0].tolist())}@all"
    found = cm.causal.interchange(model, cm.ground_truth.task(model.name, 40), causal, place, variables=["is_c"])
    assert found["is_c"].value == 1


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("known-equality", {"left": "m1.n0@end", "right": "m1.n1@end"}),
        ("known-boolean", {"both": "m0.n0@end"}),
        ("known-addition", {"carry": "m0.n0,n1@end", "tens": "m0.n2@end"}),
    ],
)
def test_variables_of_networks_set_by_hand_are_in_their_neurons(name, places):
    model, task, causal = cm.load(name), cm.ground_truth.task(name, 64), cm.causal.ready(name)
    with torch.no_grad():
        logits = model.hf(torch.tensor([pair.clean for pair in task.pairs])).logits[:, -1]
    assert logits.argmax(1).tolist() == [pair.answers[0] for pair in task.pairs]
    for pair in task.pairs:
        assert causal.run(causal.inputs_of(model, pair))["answer"] == model.decode([pair.answers[0]])
    for variable, place in places.items():
        found = cm.causal.interchange(model, task, causal, place)
        assert found[variable].value == 1
        assert all(estimate.value <= 0.65 for other, estimate in found.items() if other != variable)
    if len(places) > 1:
        assert cm.causal.joint(model, task, causal, places).accuracy.value == 1


@pytest.mark.parametrize(
    ("formula", "message"),
    [("a and", "cannot be read"), ("a + b", "holds BinOp"), ("len(a)", "holds Call"), ("a.b", "holds Attribute")],
)
def test_what_is_no_boolean_formula_is_refused(formula, message):
    with pytest.raises(InputError, match=message):
        cm.causal.boolean(answer=formula)


def test_boolean_formulas_are_those_of_python():
    causal = cm.causal.boolean("yes", "no", same="a == b", answer="not same or (a and c)")
    for a in (True, False):
        for b in (True, False):
            for c in (True, False):
                given = {name: "yes" if value else "no" for name, value in (("a", a), ("b", b), ("c", c))}
                assert causal.run(given)["answer"] == ("yes" if a != b or (a and c) else "no")
