"""Interventions against raw torch hooks written here, on modules named here: what is tested makes no answer."""

import contextlib
import re
import threading
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from by_hand import PROMPTS, close, padded, run
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.engine.interventions.sites import site
from circuitome.engine.interventions.transformer_lens import TABLE
from circuitome.errors import InputError, NumericsError, UnknownNameError
from circuitome.tasks.task import Pair, Task

QUICK = ["gemma2"]
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in QUICK)]

LLAMA = {"layers": "model.layers", "out": "self_attn.o_proj", "mlp": "mlp"}
POST = {"post": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
MODULES = {
    "gpt2": {"layers": "transformer.h", "out": "attn.c_proj", "mlp": "mlp"},
    "gpt_neox": {"layers": "gpt_neox.layers", "out": "attention.dense", "mlp": "mlp"},
    "opt": {"layers": "model.decoder.layers", "out": "self_attn.out_proj", "mlp": "fc2"},
    "gemma2": {**LLAMA, **POST},
    "gemma3_text": {**LLAMA, **POST},
    "olmo2": {**LLAMA, **POST},
}


def module(model, layer, name):
    names = MODULES.get(model.hf.config.model_type, LLAMA)
    block = attrgetter(names["layers"])(model.hf)[layer]
    return attrgetter(names[name])(block) if name in names else None


def cells(inputs, picked):
    """True [batch, pos] at positions of each prompt."""
    mask = inputs["attention_mask"]
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    for i, row in enumerate(mask):
        columns = row.nonzero().flatten().tolist()
        for position in range(len(columns)) if picked == "all" else picked[i]:
            chosen[i, columns[position]] = True
    return chosen


@contextlib.contextmanager
def raw_head(model, layer, head, edit, chosen):
    """`edit` of one head's z (over the post-norm's divisor, where there is one), at `chosen` cells, by raw hooks."""
    out, post, width = module(model, layer, "out"), module(model, layer, "post"), model.heads.width
    columns = slice(head * width, (head + 1) * width)
    seen = {}

    def before(_, args):
        z = args[0].clone()
        z[..., columns] = torch.where(chosen[..., None], edit(z[..., columns]), z[..., columns])
        return (z,)

    def note(_, args, output):
        seen["z"], seen["out"] = args[0], output

    def behind(_, args, output):
        root = (seen["out"].square().mean(-1, keepdim=True) + model.blocks[layer].attention_post.eps).sqrt()
        z = seen["z"][..., columns] / root
        gain = post.weight + (1 if model.hf.config.model_type.startswith("gemma") else 0)
        moved = (edit(z) - z) @ out.weight[:, columns].T * gain
        return output + torch.where(chosen[..., None], moved, 0)

    handles = [out.register_forward_pre_hook(before)] if post is None else []
    if post is not None:
        handles = [out.register_forward_hook(note), post.register_forward_hook(behind)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def raw_mlp(model, layer, edit, chosen):
    def behind(_, args, output):
        flat = chosen.reshape(output.shape[:-1])[..., None]
        return torch.where(flat, edit(output), output)

    handle = module(model, layer, "mlp").register_forward_hook(behind)
    try:
        yield
    finally:
        handle.remove()


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.hf.modules()
    )


AT = {
    "all": ("all", "all"),
    "end": ("end", [[6], [3], [5]]),
    "two": ([1, -2], [[1, 5], [1, 2], [1, 4]]),
    "ragged": ([[0], [1, 2], []], [[0], [1, 2], []]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("name", ALL)
def test_zero_and_scale_equal_raw_hooks(name, at, side):
    model, inputs, (given, picked) = tiny(name), padded(side), AT[at]
    chosen = cells(inputs, picked)
    with torch.no_grad():
        plain = run(model, inputs)
        for factor in (0.0, 2.5):
            with cm.scale(model, ["a1.h2", "m0"], factor, at=given):
                found = run(model, inputs)
            with raw_head(model, 1, 2, lambda z: factor * z, chosen), raw_mlp(model, 0, lambda x: factor * x, chosen):  # noqa: B023
                close(found, run(model, inputs))
            assert float((found - plain).abs().max()) > 1e-2
        with cm.ablate(model, ["a1.h2", "m0"], at=given):
            zeroed = run(model, inputs)
        with cm.scale(model, ["a1.h2", "m0"], 0.0, at=given):
            close(zeroed, run(model, inputs))
        assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize("name", ALL)
def test_nested_interventions_act_one_after_another(name):
    model, inputs = tiny(name), padded("left")
    end, everywhere = cells(inputs, AT["end"][1]), cells(inputs, "all")
    with torch.no_grad():
        with cm.scale(model, "a1.h2", 3.0), cm.hook(model, "m1.out", lambda x: x + 1), cm.ablate(model, "a0.h0"):
            half = torch.full((model.heads.width,), 0.5)
            with cm.ablate(model, "a1.h2", value=half, at="end"), cm.scale(model, ["a1.h2", "m1"], 2.0):
                inner = run(model, inputs)
            outer = run(model, inputs)
        with (
            raw_mlp(model, 1, lambda x: 2 * (x + 1), everywhere),
            raw_head(model, 0, 0, torch.zeros_like, everywhere),
            raw_head(model, 1, 2, lambda z: torch.where(end[..., None], torch.ones_like(z), 6 * z), everywhere),
        ):
            close(inner, run(model, inputs))
        with (
            raw_mlp(model, 1, lambda x: x + 1, everywhere),
            raw_head(model, 0, 0, torch.zeros_like, everywhere),
            raw_head(model, 1, 2, lambda z: 3 * z, everywhere),
        ):
            close(outer, run(model, inputs))


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_those_through_raw_hooks(name):
    model, inputs = tiny(name), padded("right")
    chosen = cells(inputs, AT["two"][1])

    def gradients():
        model.hf.zero_grad()
        run(model, inputs).square().mean().backward()
        return [p.grad.clone() for p in model.hf.parameters() if p.grad is not None]

    with cm.scale(model, ["a1.h2", "m0"], 0.3, at=[1, -2]):
        found = gradients()
    with raw_head(model, 1, 2, lambda z: 0.3 * z, chosen), raw_mlp(model, 0, lambda x: 0.3 * x, chosen):
        expected = gradients()
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6 * float(other.abs().max()) + 1e-9, rtol=0)


def steps(model, inputs, n):
    """Greedy tokens by whole passes without a cache."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(n):
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model.hf(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("name", ALL)
def test_generate_equals_recomputing_every_step(name):
    model, inputs = tiny(name), padded("left")
    model.hf.generation_config.eos_token_id = None
    model.hf.generation_config.pad_token_id = 0
    cases = [
        lambda: cm.ablate(model, ["a0.h1", "m1"]),
        lambda: cm.scale(model, ["a1.h2", "m0"], -2.0, at=[0, 3]),
        lambda: cm.patch_in(model, ["a1", "m0"], [11, 12, 13, 14], at=[1, 2]),
        lambda: cm.hook(model, "a1.kv1.v", lambda v: -v),
        lambda: cm.hook(model, "m1.resid_mid" if not model.graph.parallel else "m1.resid_pre", torch.neg, at=1),
    ]
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        plain = model.hf.generate(**inputs, **options).sequences
        changed = 0
        for case in cases:
            with case():
                found = model.hf.generate(**inputs, **options)
                expected = steps(model, inputs, 6)
            assert torch.equal(found.sequences, expected)
            changed += not torch.equal(expected, plain)
        assert changed >= 3
        assert torch.equal(model.hf.generate(**inputs, **options).sequences, plain)


@pytest.mark.parametrize("name", ALL)
def test_nothing_stays_behind(name):
    model, inputs = tiny(name), padded("right")
    task = paired()
    model.hf.train()
    model.hf.get_submodule(next(n for n, _ in model.hf.named_modules() if n)).eval()
    modes, before = [m.training for m in model.hf.modules()], hooks(model)
    attention = model.hf.config._attn_implementation
    model.hf.eval()
    with torch.no_grad():
        plain = run(model, inputs)
    for m, mode in zip(model.hf.modules(), modes, strict=True):
        m.training = mode

    def everything(fail):
        with (
            cm.ablate(model, ["a0", "m1"], value="mean", task=task),
            cm.scale(model, "a1.h0", 2.0, at="end"),
            cm.patch_in(model, ["embed", "m2"], PROMPTS[0], at=0),
            cm.hook(model, "a1.h0.pattern", lambda p: None),
            cm.hook(model, "a1.h0.out", lambda v: v),
            cm.hook(model, "m2.hidden", lambda v: v.sum() if fail else v),
        ):
            run(model, inputs)

    everything(False)
    with pytest.raises(InputError, match=r"m2\.hidden gave shape \[\]"):
        everything(True)
    with pytest.raises(ZeroDivisionError), cm.ablate(model, "a0.h0"):
        raise ZeroDivisionError
    with pytest.raises(UnknownNameError), cm.ablate(model, "a0.h0"), cm.ablate(model, "a0.h9"):
        pass
    assert [m.training for m in model.hf.modules()] == modes
    assert hooks(model) == before == 0 and not any(model.held.values()) and model.rows is None
    assert model.hf.config._attn_implementation == attention
    model.hf.eval()
    with torch.no_grad():
        assert torch.equal(run(model, inputs), plain)


def paired():
    swapped = [[t + 1 for t in row] for row in PROMPTS]
    roles = [{"S": 1, "end": len(row) - 1} for row in PROMPTS]
    return Task(
        "three",
        tuple(Pair(tuple(a), tuple(b), (5,), (6,), roles=r) for a, b, r in zip(PROMPTS, swapped, roles, strict=True)),
    )


def alone(model, prompts, look):
    """What `look` returns in a plain pass over each prompt."""
    found = []
    for prompt in prompts:
        with torch.no_grad():
            found.append(look(model, torch.tensor([list(prompt)])))
    return found


def raw_values(model, ids):
    """By hand: z of a1.h2 over any post-norm's divisor [pos, d_head], and what m0 adds [pos, d_model]."""
    kept, width = {}, model.heads.width
    out, post = module(model, 1, "out"), module(model, 1, "post")
    handles = [
        out.register_forward_hook(lambda _, args, output: kept.update(z=args[0], out=output)),
        module(model, 0, "mlp").register_forward_hook(lambda _, args, output: kept.update(mlp=output)),
    ]
    model.hf(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    z = kept["z"][0][:, 2 * width : 3 * width]
    if post is not None:
        z = z / (kept["out"][0].square().mean(-1, keepdim=True) + model.blocks[1].attention_post.eps).sqrt()
    return z, kept["mlp"].reshape(ids.shape[1], -1)


@pytest.mark.parametrize("name", ALL)
def test_mean_and_corrupted_values_are_those_of_the_prompts(name):
    model, inputs, task = tiny(name), padded("right"), paired()
    everywhere = cells(inputs, "all")
    corrupted = alone(model, [pair.corrupted for pair in task.pairs], raw_values)
    means = [torch.cat([values[i] for values in corrupted]).mean(0) for i in (0, 1)]
    width = inputs["input_ids"].shape[1]
    by_place = [
        torch.stack([torch.nn.functional.pad(v[i], (0, 0, 0, width - len(v[i]))) for v in corrupted]) for i in (0, 1)
    ]
    with torch.no_grad():
        for value, (z, mlp) in {"mean": means, "corrupted": by_place}.items():
            with cm.ablate(model, ["a1.h2", "m0"], value=value, task=task):
                found = run(model, inputs)
            with (
                raw_head(model, 1, 2, lambda x: z.expand_as(x), everywhere),  # noqa: B023
                raw_mlp(model, 0, lambda x: mlp.expand(3, width, -1).reshape(x.shape), everywhere),  # noqa: B023
            ):
                close(found, run(model, inputs), 2e-6)
        with cm.ablate(model, ["a1.h2", "m0"], value="mean", prompts=[pair.corrupted for pair in task.pairs]):
            found = run(model, inputs)
        with cm.ablate(model, ["a1.h2", "m0"], value="mean", task=task):
            close(found, run(model, inputs))
        role = cells(inputs, [[1], [1], [1]])
        with cm.ablate(model, "a1.h2", value="corrupted", task=task, at="S"):
            found = run(model, inputs)
        with raw_head(model, 1, 2, lambda x: by_place[0], role):
            close(found, run(model, inputs), 2e-6)


@pytest.mark.parametrize("name", ALL)
def test_values_of_a_source_are_put_at_the_positions_asked_for(name):
    model, inputs = tiny(name), padded("left")
    source = [11, 12, 13, 14, 15]
    z, mlp = raw_values(model, torch.tensor([source]))
    placed = [torch.zeros(3, 7, value.shape[-1]) for value in (z, mlp)]
    chosen = cells(inputs, AT["two"][1])
    for row, prompt in enumerate(PROMPTS):
        start = 7 - len(prompt)
        for at, source_at in zip((1, len(prompt) - 2), (3, 0), strict=True):
            for target, value in zip(placed, (z, mlp), strict=True):
                target[row, start + at] = value[source_at].detach()
    with torch.no_grad():
        with cm.patch_in(model, ["a1.h2", "m0"], source, at=[1, -2], source_at=[3, 0]):
            found = run(model, inputs)
        with (
            raw_head(model, 1, 2, lambda x: placed[0], chosen),
            raw_mlp(model, 0, lambda x: placed[1].reshape(x.shape), chosen),
        ):
            close(found, run(model, inputs), 2e-6)
        whole = {name: t.flip(0) for name, t in padded("right").items()}
        equal = padded("right", [PROMPTS[0], PROMPTS[0][::-1]])
        with cm.patch_in(model, "embed", [PROMPTS[0][::-1], PROMPTS[0]]):
            swapped = model.hf(**equal).logits
        close(swapped, model.hf(**equal).logits.flip(0))
        assert whole["input_ids"].shape == (3, 7)


def test_one_query_head_of_a_group_is_zeroed_at_the_end():
    model, inputs = tiny("llama"), padded("right")
    ends = (inputs["attention_mask"].sum(1) - 1).tolist()
    seen = {}

    def by_hand(_, args):
        z = args[0].clone()
        for row, end in enumerate(ends):
            z[row, end, 6:12] = 0  # head 1 of 4, 6 wide; it shares its keys with head 0
        return (z,)

    with torch.no_grad():
        with cm.ablate(model, "a1.h1", at="end"):
            handle = model.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
                lambda _, args: seen.update(z=args[0])
            )
            found = run(model, inputs)
            handle.remove()
        handle = model.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(by_hand)
        expected = run(model, inputs)
        handle.remove()
    assert torch.equal(found, expected)
    at_end = seen["z"][torch.arange(3), ends].unflatten(-1, (4, 6))
    assert (at_end[:, 1] == 0).all() and (at_end[:, [0, 2, 3]] != 0).all()
    assert (seen["z"][0, :-1] != 0).all()


@pytest.mark.parametrize("name", ALL)
def test_bfloat16(name):
    model, inputs = tiny(name, dtype=torch.bfloat16), padded("left")
    chosen = cells(inputs, "all")
    with torch.no_grad():
        with cm.ablate(model, ["a1.h2", "m0"]):
            found = run(model, inputs)
            values = cm.activations(model, PROMPTS, ["a1.h2.z", "m0.out"])
        with raw_head(model, 1, 2, torch.zeros_like, chosen), raw_mlp(model, 0, torch.zeros_like, chosen):
            expected = run(model, inputs)
        with cm.ablate(model, "a1.h2", value=torch.ones(model.heads.width)), cm.hook(model, "m1.out", torch.neg):
            run(model, inputs)
    assert found.dtype == torch.bfloat16
    close(found.float(), expected.float(), 3e-2 if model.blocks[0].attention_post else 1e-6)
    for value in values.values():
        assert value.dtype == torch.bfloat16 and (value.nan_to_num() == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_training_mode_keeps_its_dropout_and_values_are_replaced_exactly(name):
    model, inputs = tiny(name), padded("right")
    for field in ("attention_dropout", "dropout", "attn_pdrop", "resid_pdrop", "hidden_dropout"):
        if hasattr(model.hf.config, field):
            setattr(model.hf.config, field, 0.4)
    for part in model.hf.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.4
        for field in ("attention_dropout", "dropout"):
            if isinstance(getattr(part, field, None), float):
                setattr(part, field, 0.4)
    model.hf.train()
    value = torch.arange(model.heads.width) / 7
    chosen, seen = cells(inputs, AT["two"][1]), []

    def drawn():
        torch.manual_seed(3)
        with torch.no_grad():
            return run(model, inputs)

    with cm.ablate(model, "a1.h2", value=value, at=[1, -2]), cm.ablate(model, "m0", at=[1, -2]):
        assert model.hf.training
        with cm.hook(model, "m0.out", seen.append, at=[1, -2]):
            found = drawn()
    with raw_head(model, 1, 2, lambda z: value.expand_as(z), chosen), raw_mlp(model, 0, torch.zeros_like, chosen):
        close(found, drawn())
    assert len(seen) == 1 and seen[0].shape[:2] == (3, 2) and (seen[0] == 0).all()
    assert float((drawn() - found).abs().max()) > 1e-3
    torch.manual_seed(4)
    assert not torch.equal(run(model, inputs), drawn()), "no dropout was drawn"


@pytest.mark.parametrize("name", ALL)
def test_sites_are_the_places_that_they_name(name):
    """Each against the module's own values: what is seen, and that a change there has the effect of that change."""
    model, ids = tiny(name), torch.tensor([PROMPTS[0]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    block, width = attrgetter(MODULES.get(model.hf.config.model_type, LLAMA)["layers"])(model.hf)[1], model.heads.width
    kept = {}
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: kept.update(pre=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        ),
        block.register_forward_hook(lambda _, args, output: kept.update(post=output)),
        module(model, 1, "out").register_forward_hook(lambda _, args, output: kept.update(z=args[0], out=output)),
        module(model, 1, "mlp").register_forward_hook(lambda _, args, output: kept.update(mlp=output)),
    ]
    if (post := module(model, 1, "post")) is not None:
        handles.append(post.register_forward_hook(lambda _, args, output: kept.update(out=output)))
    with torch.no_grad():
        hidden = model.hf(**inputs, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    mid = kept["pre"] if model.graph.parallel else kept["pre"] + kept["out"]
    expected = {
        "m1.resid_pre": kept["pre"],
        "a1.resid_post": kept["post"],
        "a1.h2.z": kept["z"][..., 2 * width : 3 * width],
        "a1.out": kept["out"],
        "m1.out": kept["mlp"].view_as(mid),
        "embed": hidden[0],
    }
    expected |= {} if model.graph.parallel else {"a1.resid_mid": mid}
    found = cm.activations(model, ids.tolist(), [*expected, "a1.h0.out", "a1.h1.out", "a1.h2.out", "a1.h3.out"])
    for where, value in expected.items():
        close(found[where], value, 2e-6)
    bias = getattr(module(model, 1, "out"), "bias", None)
    heads = sum(found[f"a1.h{head}.out"] for head in range(4))
    close(heads if bias is None else heads + bias.detach(), kept["out"], 2e-6)
    with torch.no_grad():
        if not model.graph.parallel:  # what is added between attention and MLP goes on behind the MLP too
            step = torch.linspace(-1, 1, model.d_model)
            handle = (post or module(model, 1, "out")).register_forward_hook(lambda _, args, output: output + step)
            moved = run(model, inputs)
            handle.remove()
            with cm.hook(model, "m1.resid_mid", lambda v: v + step):
                close(run(model, inputs), moved, 2e-6)
        for where in ("a1.h2.out", "m1.out"):  # a part with nothing to say is an ablated part
            with cm.hook(model, where, torch.zeros_like, at=[1, 3]):
                changed = run(model, inputs)
            with cm.ablate(model, where[: -len(".out")], at=[1, 3]):
                close(changed, run(model, inputs), 2e-6)


@pytest.mark.parametrize("name", ALL)
def test_readers_change_what_they_name_and_nothing_else(name):
    """Keys and values of a key/value head act on its group of query heads; a query on its own head."""
    model = tiny(name)
    group = model.heads.q // model.heads.kv
    sites = [f"a1.h{head}.z" for head in range(4)]
    plain = cm.activations(model, PROMPTS, sites)
    shared = list(range(group, 2 * group))
    for where, expected in {"a1.h2.q": [2], "a1.kv1.k": shared, "a1.kv1.v": shared}.items():
        if name == "olmo2" and not where.endswith("v"):
            expected = list(range(4))  # its norms of q and k are of all heads together
        with cm.hook(model, where, lambda v: v.roll(1, -1) + 1):
            found = cm.activations(model, PROMPTS, sites)
        moved = [
            head for head in range(4) if not torch.allclose(found[sites[head]], plain[sites[head]], equal_nan=True)
        ]
        assert moved == list(expected), where
    if group == 1:
        with cm.hook(model, "a1.h1.k", torch.neg):
            assert not torch.allclose(cm.activations(model, PROMPTS, "a1.h1.z")["a1.h1.z"], plain["a1.h1.z"])


@pytest.mark.parametrize("name", ALL)
def test_attention_is_the_models_own_and_shows_changes(name):
    model = tiny(name)
    patterns = cm.attention(model, PROMPTS, ["a2.h3", "a1"], max_memory=12 * model.bytes_per_token(gradients=False))
    assert patterns.heads == ("a2.h3", "a1.h0", "a1.h1", "a1.h2", "a1.h3") and patterns.pattern.shape == (3, 5, 7, 7)
    assert patterns.tokens[1] == tuple(map(str, PROMPTS[1])) and "3 prompts of up to 7 tokens" in repr(patterns)
    with torch.no_grad(), model.eager_attention():
        for row, prompt in enumerate(PROMPTS):
            own = model.hf(input_ids=torch.tensor([prompt]), output_attentions=True).attentions
            close(patterns["a2.h3"][row, : len(prompt), : len(prompt)], own[2][0, 3])
            assert patterns.pattern[row, :, len(prompt) :].isnan().all()
    with cm.ablate(model, "a0", at="end"):
        changed = cm.attention(model, PROMPTS, "a2.h3")
        shown = cm.activations(model, PROMPTS, ["a0.h1.z", "a0.h1.out", "m2.out"])
    assert float((changed["a2.h3"] - patterns["a2.h3"]).nan_to_num().abs().max()) > 1e-4
    for row, prompt in enumerate(PROMPTS):
        for part in ("a0.h1.z", "a0.h1.out"):
            assert float(shown[part][row, len(prompt) - 1].abs().max()) < 1e-5
            assert float(shown[part][row, 0].abs().max()) > 1e-2
    assert list(shown) == ["a0.h1.z", "a0.h1.out", "m2.out"] and "m2.out" in repr(shown)


def test_what_belongs_to_single_prompts_finds_them_in_any_batch():
    model, task = tiny("gpt2"), paired()
    small = 9 * model.bytes_per_token(gradients=False)
    with cm.ablate(model, ["a1.h2"], value="corrupted", task=task), cm.scale(model, "m0", 0.0, at="S", task=task):
        together, apart = (cm.activations(model, task, ["a1.h2.z", "m0.out"], max_memory=m) for m in (None, small))
    corrupted = cm.activations(model, [pair.corrupted for pair in task.pairs], "a1.h2.z")
    for name in together:
        torch.testing.assert_close(together[name], apart[name], equal_nan=True)
    assert (apart["m0.out"][:, 1] == 0).all() and (apart["m0.out"][:, 0] != 0).all()
    with cm.ablate(model, ["a1.h2"], value="corrupted", task=task):
        shown = cm.activations(model, task, "a1.h2.z")
    torch.testing.assert_close(shown["a1.h2.z"], corrupted["a1.h2.z"], equal_nan=True)


@pytest.mark.slow
def test_circuitomes_methods_see_the_changed_model():
    """Where the change holds for every token; what they cannot place they refuse."""
    for name in QUICK:
        model, task = tiny(name), paired()
        plain = cm.eap(model, task).values
        with cm.ablate(model, "a1.h2"):
            inside = cm.eap(model, task).values
        row = model.graph.row("a1.h2")
        assert not torch.allclose(plain, inside) and float(inside[row].abs().max()) < 1e-6 < float(
            plain[row].abs().max()
        )
        shared = tuple(replace(pair, corrupted=(*pair.clean[:-2], 4, 5)) for pair in task.pairs)
        with cm.ablate(model, "a1.h2", at="end"), pytest.raises(InputError, match="shared_prefix=False"):
            cm.eap(model, replace(task, pairs=shared))
        with cm.ablate(model, "a1.h2", at=[[0], [1], [2]]), pytest.raises(InputError, match="order of their own"):
            cm.eap(model, task)


def test_another_thread_waits():
    model, done = tiny("gpt2"), []
    other = threading.Thread(target=lambda: done.append(cm.activations(model, PROMPTS, "m0.out")))
    with cm.ablate(model, "m0"):
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join()
    assert float(done[0]["m0.out"][0].abs().max()) > 0.01


WRONG = [
    (lambda m: cm.ablate(m, "a0.h7"), UnknownNameError, r"'a0\.h7'\. Did you mean"),
    (lambda m: cm.ablate(m, "logits"), UnknownNameError, "no writer 'logits'"),
    (lambda m: cm.ablate(m, []), InputError, "no part"),
    (lambda m: cm.ablate(m, "blocks.1.attn.hook_z"), UnknownNameError, r"circuitome calls .* of head 3 `a1\.h3\.z`"),
    (lambda m: cm.ablate(m, "a0.h0", at="S"), InputError, "give task|Give task"),
    (lambda m: cm.ablate(m, "a0.h0", at="S2", task=paired()), UnknownNameError, "no role of task three 'S2'. Did you"),
    (lambda m: cm.ablate(m, "a0.h0", at=True), InputError, r"at=True is no position"),
    (lambda m: cm.ablate(m, "a0.h0", at=[]), InputError, r"at=\[\] is no position"),
    (lambda m: cm.ablate(m, "a0.h0", value="corrupted"), InputError, "give task"),
    (lambda m: cm.ablate(m, "a0.h0", value="mean"), InputError, r"give prompts=\.\.\."),
    (lambda m: cm.ablate(m, "a0.h0", value="meen"), UnknownNameError, "Did you mean 'mean'"),
    (lambda m: cm.ablate(m, "a0.h0", value=torch.ones(7)), InputError, r"a0\.h0 has shape \[7\].*positions, 6\]"),
    (lambda m: cm.ablate(m, "m0", value=torch.full((24,), torch.nan)), NumericsError, "m0 holds NaN"),
    (lambda m: cm.scale(m, "m0", float("inf")), NumericsError, "scaled by inf"),
    (lambda m: cm.patch_in(m, "m0", []), InputError, "no prompts"),
    (lambda m: cm.patch_in(m, "m0", [99]), InputError, "token id 99"),
    (lambda m: cm.patch_in(m, "m0", "text"), InputError, "without a tokenizer"),
    (lambda m: cm.patch_in(m, "m0", [5, 6], source_at=4), InputError, "Position 4 lies outside of source prompt 0"),
    (lambda m: cm.hook(m, "a1.h9.z", print), UnknownNameError, r"no site 'a1\.h9\.z'\. Did you mean"),
    (lambda m: cm.hook(m, "m1.z", print), UnknownNameError, r"no site 'm1\.z'"),
    (lambda m: cm.hook(m, "blocks.1.hook_resid_pre", print), UnknownNameError, r"calls .* `a1\.resid_pre`"),
    (lambda m: cm.hook(m, "blocks.1.attn.hook_rot_q", print), UnknownNameError, "has no site for"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "error", "match"), WRONG)
def test_errors_on_entering(make, error, match):
    model = tiny("gpt2")
    with pytest.raises(error, match=match), make(model):
        pass
    assert hooks(model) == 0


IN_THE_PASS = [
    (lambda m: cm.ablate(m, "a0.h0", at=5), InputError, "Position 5 lies outside of prompt 1, which has 4 tokens"),
    (lambda m: cm.ablate(m, "a0.h0", at=-5), InputError, "Position -5 lies outside of prompt 1"),
    (lambda m: cm.ablate(m, "a0.h0", at=[[0], [0]]), InputError, "positions are of 2 prompts, and 3 run"),
    (lambda m: cm.ablate(m, "m0", value=torch.ones(2, 7, 24)), InputError, r"\[2, 7, 24\], which does not broadcast"),
    (lambda m: cm.ablate(m, "m0", value=torch.ones(2, 24), at=[[0], [1, 2], [0]]), InputError, "different numbers"),
    (lambda m: cm.patch_in(m, "m0", [5, 6]), InputError, "at 2 positions, and prompt 0 has 7 tokens"),
    (lambda m: cm.patch_in(m, "m0", [5, 6], at=3), InputError, "position 3 asks for number 3"),
    (lambda m: cm.patch_in(m, "m0", [[5, 6], [7, 8]], at=0), InputError, "are of 2 prompts, and 3 run"),
    (lambda m: cm.hook(m, "m0.out", lambda v: v[:1]), InputError, r"m0\.out gave shape \[1, 7, 24\].*\[3, 7, 24\]"),
    (lambda m: cm.hook(m, "m0.out", lambda v: 3), InputError, "gave a int"),
    (lambda m: cm.hook(m, "m0.out", lambda v: v * 1j), InputError, "gave torch.complex64"),
    (lambda m: cm.hook(m, "m0.out", lambda v: v / 0), NumericsError, r"m0\.out gave holds NaN"),
    (lambda m: cm.hook(m, "m0.out", lambda v: v, at=[[0], [1, 2], [0]]), InputError, "different numbers"),
    (lambda m: cm.hook(m, "a0.h0.pattern", lambda p: p), InputError, r"a0\.h0\.pattern can only be looked at"),
    (lambda m: cm.ablate(m, "a0.h0", value="corrupted", task=other()), InputError, "is not prompt 0 of task other"),
    (
        lambda m: cm.ablate(m, "a0.h0", at="end_role", task=other(2)),
        InputError,
        "task other are of 2 prompts, and 3 run",
    ),
]


def other(n=3):
    return Task("other", tuple(Pair((9,) * 7, (8,) * 7, (5,), (6,), roles={"end_role": 6}) for _ in range(n)))


@pytest.mark.parametrize(("make", "error", "match"), IN_THE_PASS)
def test_errors_in_the_pass(make, error, match):
    model = tiny("gpt2")
    with pytest.raises(error, match=match), make(model):
        run(model, padded("right"))
    assert hooks(model) == 0


def test_shared_keys_and_parallel_blocks_are_explained():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'a1\.kv1\.k'"), cm.hook(tiny("llama"), "a1.h2.k", print):
        pass
    with pytest.raises(UnknownNameError, match=r"Use m1\.resid_pre"):
        cm.activations(tiny("neox-parallel"), PROMPTS, "m1.resid_mid")


def test_positions_without_a_mask_of_tokens_are_refused():
    model, ids = tiny("gpt2"), torch.tensor([PROMPTS[0]])
    mask = torch.zeros(1, 1, 7, 7)
    with torch.no_grad(), cm.ablate(model, "m0"):
        model.hf(input_ids=ids, attention_mask=mask)
    with cm.ablate(model, "m0", at="end"), pytest.raises(InputError, match=r"not \[batch, tokens\]"):
        model.hf(input_ids=ids, attention_mask=mask)


def test_the_page_lists_the_table():
    page = (Path(__file__).parents[2] / "docs/interventions.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    listed = {
        (name, ours) for row in rows for name in re.findall("`(.*?)`", row[2]) for ours in row[1].split("`")[1::2]
    }
    assert set(TABLE.items()) <= listed


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_every_hook_of_transformer_lens_in_the_table_is_a_site(name):
    model = tiny("gpt2")
    ours = TABLE[name].replace("L", "1").replace("H", "3").replace("K", "3")
    assert site(model, ours).name == ours
    with pytest.raises(UnknownNameError, match=f"`{ours}`".replace(".", r"\.")):
        site(model, name.replace("L", "1"))
