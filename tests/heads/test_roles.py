"""Roles from features; hand-set heads get theirs with score 1, random heads none, whatever their index."""

from dataclasses import fields, replace

import hand_heads
import pytest
import torch
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.heads.roles.explanation import explain
from circuitome.heads.roles.narrative import edges_between, summary
from circuitome.heads.roles.rules import LEAST, MARGIN, ROLES, RULES, Features, Interval, Relation, role_of, title

UP, DOWN = Interval(0.3, 0.2, 0.4), Interval(-0.3, -0.4, -0.2)
"""Effects of ablation: a head that hurts, and one that helps."""
HERE, BOTH = Relation(1.0, 1.0), Relation(1.0, on_random_tokens=1.0)
IDEAL = {
    "mover": Features(answer_in_prompt=1, to_right=1, copies=1, direct=DOWN),
    "negative mover": Features(answer_in_prompt=1, to_right=1, suppresses=1, direct=UP),
    "backup mover": Features(
        answer_in_prompt=1,
        to_right_without_movers=1,
        copies_without_movers=1,
        direct=Interval(0.0, 0.0, 0.0),
        direct_change_without_movers=DOWN,
    ),
    "suppressor of the wrong answer": Features(to_wrong=1, suppresses=1, direct=DOWN),
    "mover of the wrong answer": Features(to_wrong=1, copies=1, direct=UP),
    "inhibition": Features(to_role=1, movers_attention_removed=UP),
    "answer head": Features(to_role=1, to_end=0, direct=DOWN),
    "negative answer head": Features(to_role=0, to_end=1, direct=UP),
    "previous token": Features(previous=BOTH),
    "duplicate token": Features(duplicate=HERE),
    "induction": Features(induction=HERE),
    "first token": Features(first=BOTH, to_first=1),
    "self": Features(itself=Relation(1.0), to_end=1),
}


@pytest.mark.parametrize("role", ROLES)
def test_the_textbook_head_scores_one(role):
    found = role_of(IDEAL[role])
    assert (found.role, found.score) == (role, pytest.approx(1))
    assert found.runner_up_score == 0 and set(found.scores) == set(RULES) == set(ROLES)


UNSURE = Interval(-0.3, -0.7, 0.1)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("mover", {"direct": UNSURE}),
        ("mover", {"direct": Interval(-0.001, -0.002, -0.0005)}),
        ("mover", {"answer_in_prompt": 0.5}),
        ("mover", {"copies": 0.0}),
        ("mover", {"to_right": -0.2}),
        ("negative mover", {"direct": DOWN}),
        ("backup mover", {"direct": Interval(-0.9, -1.0, -0.8)}),
        ("backup mover", {"direct_change_without_movers": UNSURE}),
        ("backup mover", {"to_right_without_movers": 0.0}),
        ("suppressor of the wrong answer", {"suppresses": 0.0}),
        ("inhibition", {"movers_attention_removed": Interval(0.3, -0.1, 0.7)}),
        ("inhibition", {"movers_attention_removed": Interval(0.01, 0.009, 0.011)}),
        ("duplicate token", {"duplicate": Relation(1.0, 0.0, 0.0)}),  # attends there, but not because it is a copy
        ("previous token", {"previous": Relation(1.0, on_random_tokens=0.0)}),
        ("first token", {"to_first": 0.0}),
        ("first token", {"direct": DOWN}),
        ("first token", {"direct": UP}),
    ],
)
def test_no_role_without_each_of_its_tests(role, change):
    assert role_of(replace(IDEAL[role], **change)).role == "unclear"


def test_split_evidence_is_unclear_and_names_the_runner_up():
    both = role_of(Features(duplicate=HERE, induction=Relation(0.95, 1.0)))
    assert both.role == "unclear" and both.best == "duplicate token" and both.runner_up == "induction"
    assert both.score - both.runner_up_score < MARGIN
    led = role_of(Features(duplicate=HERE, induction=Relation(0.7, 1.0)))
    assert led.role == "duplicate token" and led.runner_up == "induction"
    assert role_of(Features()).role == "unclear"
    weak = role_of(Features(duplicate=Relation(0.9 * LEAST, 0.9 * LEAST)))
    assert (weak.role, weak.best) == ("unclear", "duplicate token")


def test_resting_gives_way_to_a_role_that_is_half_there():
    resting = {"first": BOTH, "to_first": 1.0}
    assert role_of(Features(**resting, duplicate=Relation(0.1, 0.1))).role == "first token"
    assert role_of(Features(**resting, duplicate=Relation(0.3, 0.3))).role == "unclear"
    assert role_of(Features(**resting, duplicate=Relation(0.6, 0.6))).role == "duplicate token"


def test_induction_explains_an_answer_that_it_finds():
    features = Features(answer_in_prompt=1, to_right=1, copies=1, direct=DOWN, induction=HERE, answer_behind_copy=1)
    assert role_of(features).role == "induction"
    assert role_of(replace(features, answer_behind_copy=0)).role == "unclear"


def test_names_of_roles_by_task():
    assert title("mover", ["IO", "S1", "S2", "end"]) == "name mover"
    assert title("inhibition", ["IO", "S1", "S2"]) == "S-inhibition"
    assert title("mover", ["A_def", "end"]) == "mover" and title("induction", ["IO", "S1", "S2"]) == "induction"


def test_features_are_numbers_that_name_no_place():
    for field in fields(Features):
        assert field.type in (float, Relation, Interval)
    assert not {"layer", "head", "index", "name"} & {field.name for field in fields(Features)}


@pytest.fixture(scope="module")
def played():
    model, task = hand_heads.cast(), cm.ground_truth.task("known-ioi", 8)
    return model, task, explain(model, Circuit.full(model.graph), task)


def test_every_hand_set_head_gets_its_role_with_score_one(played):
    _, _, found = played
    for head, role in hand_heads.CAST.items():
        assert (found[head].role, found[head].score) == (role, pytest.approx(1, abs=1e-3)), head
    for head in set(found.heads) - set(hand_heads.CAST):
        assert found[head].role == "unclear" and found[head].score == 0


@pytest.mark.slow
def test_the_shipped_models():
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 8)
    truth = Circuit.of(model.graph, ["a0.h0->a1.h0.v", "a1.h0->a2.h0.q", "a2.h0->logits", "a2.h1->logits"])
    roles = {head: (one.role, round(one.score, 3)) for head, one in _roles(model, truth, task).items()}
    assert roles == {
        "a0.h0": ("duplicate token", 1),
        "a1.h0": ("inhibition", 1),
        "a2.h0": ("mover", 1),
        "a2.h1": ("negative mover", 1),
    }
    model, task = cm.load("known-induction"), cm.ground_truth.task("known-induction", 3)
    truth = Circuit.of(model.graph, ["a0.h0->a1.h0.k", "a1.h0->logits"])
    roles = {head: (one.role, round(one.score, 3)) for head, one in _roles(model, truth, task).items()}
    assert roles == {"a0.h0": ("previous token", 1), "a1.h0": ("induction", 1)}


def _roles(model, circuit, task):
    found = explain(model, circuit, task)
    return dict(zip(found.heads, found.verdicts, strict=True))


@pytest.mark.slow
def test_a_head_keeps_its_role_wherever_it_stands(played):
    _, task, found = played
    order = [2, 0, 3, 1]
    moved = hand_heads.cast()
    for block in moved.hf.layers:
        attention, heads = block.self_attn, len(order)
        for module in (attention.q_proj, attention.k_proj, attention.v_proj):
            for weight in (module.weight, module.bias):
                weight.data = weight.data.unflatten(0, (heads, -1))[order].flatten(0, 1)
        out = attention.out_proj.weight
        out.data = out.data.unflatten(1, (heads, -1))[:, order].flatten(1)
    other = explain(moved, Circuit.full(moved.graph), task)
    for layer in range(4):
        for new, old in enumerate(order):
            assert other[f"a{layer}.h{new}"].role == found[f"a{layer}.h{old}"].role
            assert other[f"a{layer}.h{new}"].score == pytest.approx(found[f"a{layer}.h{old}"].score, abs=1e-4)


def test_answer_heads_where_no_prompt_holds_the_answer():
    model, task = hand_heads.capitals()
    found = explain(model, Circuit.full(model.graph), task)
    assert [one.role for one in found.verdicts] == ["answer head", "negative answer head", "unclear"]
    assert found["a0.h0"].score == pytest.approx(1, abs=1e-3)
    assert found.label(0) == "answer head that reads the place token" and found.attends_to[0] == "place"
    assert "Answer head (a0.h0): attention from the end goes to the place token, which is no answer; " in summary(found)


def test_the_summary_says_what_was_found_and_nothing_else(played):
    model, task, found = played
    words = summary(found, "names")
    assert words.startswith("Of 16 heads explained in the circuit of")
    for role, heads in found.by_role.items():
        if role not in ("unclear", "first token", "self"):
            name = found.title(role)
            assert f"{name[0].upper()}{name[1:]} ({', '.join(heads)})" in words
    assert "8 have an active role" in words and "2 heads mostly attend to the first token or themselves" in words
    assert "6 heads have no clear role" in words
    bare = explain(model, Circuit.of(model.graph, ["embed->a2.h0.q", "a2.h0->logits"]), task)
    assert "inhibition" not in summary(bare) and "Name mover (a2.h0)" in summary(bare)


def test_an_effect_is_the_change_under_ablation_and_negative_where_a_head_helps(played):
    _, _, found = played
    helping, hurting = (found.place(found.by_role[role][0]) for role in ("mover", "negative mover"))
    for samples in found.effects.values():
        assert bool((samples[:, helping] < 0).all()) and bool((samples[:, hurting] > 0).all())
    told = found.to_dict()["heads"][found.ranked.index(helping)]["effects"]
    assert all(effect["low"] <= effect["value"] <= effect["high"] < 0 for effect in told.values())


def test_edges_between_roles(played):
    model, task, _ = played
    circuit = Circuit.of(model.graph, ["a0.h0->a1.h0.v", "a1.h0->a2.h0.q", "a1.h0->a3.h0.q", "a2.h0->logits"])
    found = explain(model, circuit, task)
    expected = {("duplicate token", "v", "inhibition"): 1, ("inhibition", "q", "mover"): 1}
    expected |= {("inhibition", "q", "backup mover"): 1, ("mover", "logits", "logits"): 1}
    assert edges_between(found) == expected
    assert found.feeds("a1.h0") == {"q": ("a2.h0", "a3.h0")} and found.feeds("a2.h0") == {"logits": ("logits",)}


def false_roles(models, n):
    """Roles given to the heads of random models, and the number of heads."""
    given, heads = [], 0
    for i in range(models):
        name = list(CONFIGS)[i % len(CONFIGS)]
        model = tiny(name, seed=i // len(CONFIGS))
        found = explain(model, Circuit.full(model.graph), hand_heads.ioi_like(n, seed=i))
        given += [one.role for one in found.verdicts if one.role != "unclear"]
        heads += len(found.heads)
    return given, heads


def test_random_models_have_no_roles():
    given, heads = false_roles(1, 12)
    assert not given and heads == 12


@pytest.mark.slow
def test_false_role_rate_over_random_models_of_every_family():
    given, heads = false_roles(3 * len(CONFIGS), 16)  # .5 % of the heads of a hundred
    assert heads == 36 * len(CONFIGS)
    assert len(given) <= 0.02 * heads, given


@pytest.mark.slow
def test_ioi_in_smollm2(smollm2):
    """What this model does with names, by role; and that the named movers matter more than other heads."""
    from circuitome.engine.ablation import AblationValues
    from circuitome.engine.batches import batches
    from circuitome.engine.circuit_run import baseline
    from circuitome.engine.knock_out import KnockOut

    task = cm.tasks.ioi(smollm2, n=24, seed=0)
    heads = ["a23.h0", "a23.h1", "a23.h2", "a23.h7", "a24.h4", "a20.h0", "a19.h2", "a17.h4", "a8.h1", "a1.h2", "a23.h3"]
    others = ["a21.h5", "a15.h7", "a22.h7", "a16.h1", "a11.h8", "a18.h2", "a12.h3", "a26.h0"]
    mask = torch.zeros_like(smollm2.graph.mask)
    mask[[smollm2.graph.row(head) for head in heads + others], -1] = True
    found = explain(smollm2, Circuit(smollm2.graph, mask), task)
    assert found.by_role["mover"] == ("a23.h0", "a23.h2", "a23.h1", "a23.h7")
    assert found["a24.h4"].role == "negative mover" and found["a20.h0"].role == "inhibition"
    assert found["a17.h4"].role == "induction" and found["a8.h1"].role == "duplicate token"
    assert found["a1.h2"].role == "previous token"
    removed = found.features[found.place("a20.h0")].movers_attention_removed
    assert 0.4 < removed.low < removed.value < 0.9  # published size is none; measured here first: 0.61

    (batch,) = batches(smollm2, task)
    base = baseline(smollm2, task, batch, AblationValues.of(smollm2, task, "corrupted"))
    sets = torch.zeros(3, len(smollm2.graph.writers), dtype=torch.bool)
    for row, names in enumerate((found.by_role["mover"], others[:4], others[4:])):
        sets[row, [smollm2.graph.row(name) for name in names]] = True
    with torch.no_grad():
        final = KnockOut(smollm2, base).final(torch.cat([torch.zeros_like(sets[:1]), sets]))
        clean, movers, *drawn = (task.score(smollm2.unembed(one), batch.rows).mean() for one in final)
    assert clean - movers > max(clean - one for one in drawn)


PUBLISHED = {
    "mover": ("a9.h9", "a9.h6", "a10.h0"),
    "negative mover": ("a10.h7", "a11.h10"),
    "backup mover": ("a9.h0", "a9.h7", "a10.h1", "a10.h2", "a10.h6", "a10.h10", "a11.h2", "a11.h9"),
    "inhibition": ("a7.h3", "a7.h9", "a8.h6", "a8.h10"),
    "induction": ("a5.h5", "a5.h8", "a5.h9", "a6.h9"),
    "duplicate token": ("a0.h1", "a0.h10", "a3.h0"),
    "previous token": ("a2.h2", "a4.h11"),
}
"""The 26 heads of GPT-2 small (Wang et al. 2022, arXiv:2211.00593, figure 2)."""


@pytest.mark.slow
def test_the_published_heads_of_gpt2():
    try:
        model = cm.load("gpt2")
    except InputError:
        pytest.skip("the weights of gpt2 are not here")
    names = [name for heads in PUBLISHED.values() for name in heads]
    assert len(names) == 26
    circuit = Circuit.of(model.graph, [f"{name}->logits" for name in names])
    found = explain(model, circuit, cm.tasks.ioi(model, n=64, seed=0))
    for role in ("mover", "negative mover"):
        assert all(found[name].role == role for name in PUBLISHED[role])
    named = [(role, found[name].role) for role, heads in PUBLISHED.items() for name in heads]
    given = [(role, own) for role, own in named if own != "unclear"]
    moving = {"mover", "backup mover"}  # with another ablation a backup may be active already
    assert sum(role == own or {role, own} <= moving for role, own in given) >= 0.8 * len(given) >= 0.5 * len(named)
