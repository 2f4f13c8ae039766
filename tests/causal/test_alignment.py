"""Interchange accuracy: known places of known models, equality with hooks pair by pair, and what is refused."""

from dataclasses import replace

import pytest
import torch
from families import tiny
from random_words import numbers, random_words
from referee import heads_out, inputs_of

import circuitome as cm
from circuitome.causal.alignment import align_trials, answers
from circuitome.causal.interchanges import bases_from, logits_at
from circuitome.causal.sites import Part, Place, sites
from circuitome.causal.trials import trials
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError

PLACES = {
    ("known-ioi", "resid", "repeated"): {"x2@end"},
    ("known-ioi", "mid", "repeated"): {"mid1@end"},
    ("known-ioi", "heads", "repeated"): {"a0.h0@S2", "a1.h0@end"},
    ("known-ioi", "resid", "name"): {"x3@end"},
    ("known-ioi", "heads", "name"): {"a2.h0@end"},
    ("known-ioi", "mlps", "name"): set(),
    ("known-induction", "heads", "next"): {"a1.h0@end"},
    ("known-induction", "resid", "next"): {"x2@end"},
}
"""Where known models hold variables, by how their weights were set."""


@pytest.mark.parametrize(("name", "kind", "variable"), PLACES, ids=str)
def test_variables_of_known_models_are_at_their_places_and_nowhere_else(name, kind, variable):
    model, task = cm.load(name), cm.ground_truth.task(name, 40 if name == "known-ioi" else 10)
    found = cm.causal.align(model, task, cm.causal.ready(name), kind=kind)
    accuracy = found[variable]
    exact = {accuracy.label(*cell) for cell in (accuracy.mean == 1).nonzero().tolist()}
    assert exact == PLACES[name, kind, variable]
    others = accuracy.mean[accuracy.mean < 1]
    assert float(others.max()) <= 0.8 and float(others.median()) <= accuracy.chance + 0.01
    assert 0.4 <= accuracy.changed <= 0.6 and found.base_accuracy.value == 1


def by_hooks(model, base, source, role, site):
    """Logits at the end of the base when one site is replaced, with the modules' own hooks, one pair at a time."""
    block = model.blocks[min(site.layer, len(model.blocks) - 1)]
    where, theirs = base.roles[role], source.roles[role]
    with torch.no_grad():
        first, second = (model.record(inputs_of(model, pair.clean)) for pair in (base, source))
        if site.kind == "resid":
            new = second.resid_post(site.layer - 1) if site.layer else second.resid_pre[0]
            last = site.layer == len(model.blocks)
            module = model.final_norm.module if last else block.layer
        elif site.kind == "mid":
            difference, module = second.resid_mid[site.layer][0, theirs] - first.resid_mid[site.layer][0, where], None
        elif site.kind in "qkv":
            start = {"q": 0, "k": model.heads.q, "v": model.heads.q + model.heads.kv}[site.kind] + site.head
            shown = [block.split(run.projected[site.layer])[0][:, start] for run in (first, second)]
            return by_projections(model, base, block, site, where, shown[1][theirs])
        elif site.kind == "mlps":
            new, module = second.mlp_out[site.layer], block.mlp_ends[1]
        else:
            change = [heads_out(block, run.z[site.layer][0], model.heads.q)[site.head] for run in (first, second)]
            difference, module = change[1][theirs] - change[0][where], None
        module = block.attention_end if module is None else module

        def put(x):
            x = x.clone()
            rows = x if x.ndim == 2 else x[0]
            rows[where] = rows[where] + difference if site.kind in ("heads", "mid") else new[0, theirs]
            return x

        def before(module, args, kwargs):
            return (
                ((put(args[0]), *args[1:]), kwargs) if args else ((), {"hidden_states": put(kwargs["hidden_states"])})
            )

        if site.kind != "resid":
            handle = module.register_forward_hook(lambda module, args, output: put(output))
        else:
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            return model.hf(torch.tensor([base.clean])).logits[0, -1]
        finally:
            handle.remove()


def by_projections(model, base, block, site, where, new):
    """Logits at the end of the base when one reader's value at a position is replaced where the projections give it."""
    kind, heads = "qkv".index(site.kind), model.heads

    def put(module, args, output):
        if block.fused:
            values = block.split([output], copy=True)
            values[0, where, (0, heads.q, heads.q + heads.kv)[kind] + site.head] = new
            return block.merge(values)[0].contiguous()
        output = output.clone()
        output[0, where].view(-1, heads.width)[site.head] = new
        return output

    handle = block.projections[0 if block.fused else kind].register_forward_hook(put)
    try:
        return model.hf(torch.tensor([base.clean])).logits[0, -1]
    finally:
        handle.remove()


FAMILIES = ["gpt2", "llama", "gemma3", "olmo2", "neox-parallel", "mistral-window", "opt"]


@pytest.mark.parametrize(
    "family", [name if name in ("llama", "gemma3") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_it_equals_hooks_pair_by_pair(family):
    model = tiny(family, layers=2)
    model.tokenizer = numbers()
    task, causal = random_words(model)
    pairs = trials(Setting(model, task), causal)
    every = torch.arange(len(pairs.base))
    for kind in ("resid", "heads", "mlps", "q", "k", "v", *(() if model.graph.parallel else ("mid",))):
        said = answers(pairs, sites(model.graph, kind), range(len(pairs.roles)))
        for number, site in enumerate(sites(model.graph, kind)):
            column, pair = number % len(pairs.roles), number % len(pairs.base)
            place = Place((Part(site, pairs.roles[column]),))
            base, source = (task.pairs[int(which[pair])] for which in (pairs.base, pairs.source))
            with torch.no_grad():
                logits = logits_at(pairs, bases_from(pairs, [place], every), place, every)
            expected = by_hooks(model, base, source, pairs.roles[column], site)[list(pairs.tokens)]
            torch.testing.assert_close(logits[pair], expected, atol=2e-4, rtol=1e-4)
            assert torch.equal(said[:, number, column], logits.argmax(1)), str(place)


def test_small_batches_and_copies_change_nothing():
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 24)
    setting = Setting(model, task)
    pairs = trials(setting, cm.causal.ready("known-ioi"))
    small = trials(setting.but(max_memory=40 * model.bytes_per_token(gradients=False)), cm.causal.ready("known-ioi"))
    whole, parts = (align_trials(each, "heads") for each in (pairs, small))
    for variable in pairs.variables:
        assert torch.equal(whole[variable].samples, parts[variable].samples)


def test_prompts_that_the_model_gets_wrong_are_left_out_and_too_many_refused():
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 24)
    bad = {pair.clean for pair in task.pairs[:6]}
    right = cm.causal.ready("known-ioi")
    causal = cm.causal.model(name=lambda names, odd: names[0] if odd else names[1], answer=lambda name: name).reading(
        lambda tokens, pair: {
            "names": tuple(tokens.decode(list(ids)) for ids in (pair.wrongs, pair.answers)),
            "odd": pair.clean in bad,
        },
        right.roles,
    )
    found = cm.causal.align(model, task, causal)
    good = sum(pair.clean not in bad for pair in task.pairs)
    assert found.pairs == good < 24 == found.prompts and found.base_accuracy.value == pytest.approx(good / 24)
    bad |= {pair.clean for pair in task.pairs[:13]}
    good = sum(pair.clean not in bad for pair in task.pairs)
    with pytest.raises(
        InputError, match=rf"answers {good} of 24 prompts of known-ioi as the causal model does, .* 50%"
    ):
        cm.causal.align(model, task, causal)
    fewer = cm.causal.align(model, task, causal, least=0.3)
    assert fewer.pairs == good and fewer.base_accuracy.value == pytest.approx(good / 24)
    with pytest.raises(InputError, match=r"least is a share of the prompts, above 0 and at most 1; got 0"):
        cm.causal.align(model, task, causal, least=0)


def test_answers_that_several_values_share_are_told_apart_by_what_the_model_says():
    """As in Greater-Than, where 9 is right after every start year: it is the model's own answer that must change."""
    model, task, known = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 24), cm.causal.ready("known-ioi")
    names = sorted(
        {causal_name for pair in task.pairs for causal_name in map(model.decode, ([*pair.answers], [*pair.wrongs]))}
    )
    behind = dict(zip(names, [*names[1:], names[0]], strict=True))
    several = replace(known, functions={**known.functions, "answer": lambda name: (name, behind[name])})
    one, other = (cm.causal.align(model, task, causal, kind="heads") for causal in (known, several))
    for variable in known.variables:
        assert other.best[variable] == one.best[variable] and other.best[variable][1].value == 1
        assert other[variable].unchanged.value == pytest.approx(1 - other[variable].changed)
        assert 0.4 <= other[variable].changed <= 0.6
    every = replace(known, functions={**known.functions, "answer": lambda name: (name, "to")})
    with pytest.raises(InputError, match=r"'to' is a right answer in all 24 pairs, whatever .* Let 'answer' allow"):
        cm.causal.align(model, task, every)


def test_bad_input_is_refused():
    model, task, causal = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16), cm.causal.ready("known-ioi")
    with pytest.raises(UnknownNameError, match=r"no variable 'repeat'. Did you mean 'repeated'"):
        cm.causal.align(model, task, causal, variables=["repeat"])
    with pytest.raises(UnknownNameError, match=r"no kind of sites 'head'. Did you mean 'heads'"):
        cm.causal.align(model, task, causal, kind="head")
    with pytest.raises(UnknownNameError, match=r"no position 'S9'"):
        cm.causal.align(model, task, causal, at=["S9"])
    for place, message in (("x2", "is no place"), ("x4@end", "no x4 in a model of 3 blocks"), ("a0.h3@end", "3 heads")):
        with pytest.raises(InputError, match=message):
            cm.causal.interchange(model, task, causal, place)
    with pytest.raises(InputError, match=r"there is none between them"):
        sites(tiny("neox-parallel").graph, "mid")
    number = cm.causal.model(answer=lambda S2: 3)
    with pytest.raises(InputError, match=r"'answer' must be a text, or several .* it is 3 for S2='...'"):
        cm.causal.align(model, task, number)
    silent = cm.causal.model(answer=lambda S2: None)
    with pytest.raises(InputError, match=r"'answer' is None on all 16 prompts of known-ioi: the causal model has no"):
        cm.causal.align(model, task, silent)
    same = cm.causal.model(constant=lambda S2: 1, answer=lambda constant, IO: IO)
    with pytest.raises(InputError, match=r"'constant' from another prompt changes the answer .* on none of the 16"):
        cm.causal.align(model, task, same)
    other = tiny("llama", layers=1)
    other.tokenizer = numbers()
    prompts, several = random_words(other)
    several = replace(several, functions={**several.functions, "answer": lambda word: f" {word} 7"})
    with pytest.raises(
        InputError,
        match=r"cannot say ' \d+ 7', the value of 'answer' for .*, in one token: its tokenizer makes 2 tokens of it",
    ):
        cm.causal.align(other, prompts, several)
