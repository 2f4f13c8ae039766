"""Smaller models that begin with parts of larger ones: identities on every family, selections, scales, bad input."""

import gc
import weakref

import pytest
import torch
from families import CONFIGS, random_task, tiny

import circuitome as cm
from circuitome.applications import narrowing, structure, subcloning
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError
from circuitome.models.block import weight_of
from circuitome.models.check import check_model

RMS = [
    *("llama", "llama-bias", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "phi3"),
]
"""Families whose norms have no mean, which dead coordinates would change."""
IDS = torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(0))


def texts(n=12, length=10):
    generator = torch.Generator().manual_seed(1)
    return cm.neurons.packed([torch.randint(3, 61, (length,), generator=generator).tolist() for _ in range(n)])


def logits(model):
    with torch.no_grad():
        return model.hf(IDS).logits


def everything(model):
    return narrowing.Kept(torch.arange(model.d_model), tuple(structure.whole(model)))


@pytest.mark.parametrize("family", CONFIGS)
def test_nothing_cut_is_a_copy(family):
    model = tiny(family)
    copied = cm.applications.subclone(model, texts(), by="magnitude")
    assert torch.equal(logits(copied.model), logits(model))
    assert copied.model.hf is not model.hf and copied.parameters[0] == copied.parameters[1]


@pytest.mark.parametrize("family", CONFIGS)
def test_another_order_of_all_parts_leaves_the_logits(family):
    model = tiny(family)
    generator = torch.Generator().manual_seed(2)
    stream = torch.randperm(model.d_model, generator=generator)
    blocks = []
    for parts in structure.whole(model):
        groups = torch.randperm(model.heads.kv, generator=generator).tolist()
        neurons = torch.randperm(len(parts.neurons), generator=generator).tolist()
        blocks.append(structure.BlockParts(parts.layer, tuple(groups), tuple(neurons)))
    turned = narrowing.narrowed(model, narrowing.Kept(stream, tuple(blocks)))
    check_model(turned)
    torch.testing.assert_close(logits(turned), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.equal(turned.hf.get_input_embeddings().weight, model.hf.get_input_embeddings().weight)


@pytest.mark.parametrize("family", RMS)
@pytest.mark.parametrize("scale", ["fitted"])
def test_what_did_nothing_can_be_cut(family, scale):
    """Coordinates, heads and neurons that write nothing: the smaller model gives the same logits."""
    model = tiny(family)
    dead, heads = [*range(1, 24, 3)], family != "olmo2"  # one norm over all heads' queries is another with fewer
    with torch.no_grad():
        for module in model.hf.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight[:, dead] = 0
        for block in model.blocks:
            for writer in (block.output, block.mlp_writer):
                weight_of(writer)[dead] = 0
                if writer.bias is not None:
                    writer.bias[dead] = 0
            weight_of(block.mlp_writer)[:, ::2] = 0
            if heads:
                each = model.heads.q // model.heads.kv * model.heads.width
                weight_of(block.output)[:, each:] = 0
    stream = torch.tensor([i for i in range(24) if i not in dead])
    groups = (0,) if heads else tuple(range(model.heads.kv))
    kept = narrowing.Kept(
        stream, tuple(structure.BlockParts(layer, groups, tuple(range(1, 40, 2))) for layer in range(3))
    )
    factors = narrowing.measured(Setting(model), texts(), kept, projections=True)
    projections = {module: factors.pop(module) for module, _, _ in kept.projections(model)}
    assert all(abs(value - 1) < 1e-4 for value in projections.values())
    small = narrowing.narrowed(model, kept, factors)
    check_model(small)
    assert small.d_model == 16 and small.blocks[0].n_neurons == 20
    torch.testing.assert_close(logits(small), logits(model), rtol=1e-3, atol=1e-3)


QUICK = ("gemma3", "gpt2", "llama-bias")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def test_every_selection_gives_a_model_that_transformers_loads(family, tmp_path):
    import transformers as tf

    model, task = tiny(family), random_task()
    tied = family in ("gpt2", "neox-parallel", "neox-sequential", "opt")
    heads = model.heads.q // 2
    size = {"layers": 2, "width": heads * model.heads.width if tied else 10, "neurons": 7, "heads": heads}
    for by in cm.applications.SELECTIONS:
        made = cm.applications.subclone(model, task, texts(), **size, by=by, seed=1)
        small = made.model
        assert (len(small.blocks), small.d_model, small.blocks[0].n_neurons, small.heads.q) == tuple(
            size[name] for name in ("layers", "width", "neurons", "heads")
        )
        assert [parts.layer for parts in made.kept.blocks] == [0, 2]
        check_model(small)
    made.save(tmp_path / "small")
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, logits(small))


def test_fan_in_is_the_root_of_the_ratio():
    model = tiny("llama")
    size = {"width": 6, "neurons": 10, "heads": 2}
    plain, scaled = (
        cm.applications.subclone(model, texts(), **size, by="uniform", scale=scale).model
        for scale in ("none", "fan-in")
    )
    for name, factor in (("q_proj", 2.0), ("v_proj", 2.0), ("o_proj", 2**0.5)):
        a, b = (getattr(m.hf.model.layers[1].self_attn, name).weight for m in (plain, scaled))
        torch.testing.assert_close(b, factor * a)
    for name, factor in (("gate_proj", 2.0), ("up_proj", 2.0), ("down_proj", 2.0)):
        a, b = (getattr(m.hf.model.layers[1].mlp, name).weight for m in (plain, scaled))
        torch.testing.assert_close(b, factor * a)
    torch.testing.assert_close(scaled.hf.lm_head.weight, 2 * plain.hf.lm_head.weight)
    torch.testing.assert_close(scaled.hf.model.embed_tokens.weight, model.hf.model.embed_tokens.weight[:, ::4])


def test_magnitudes_against_hidden_states():
    model, cut = tiny("llama"), texts()
    stream, parts = subcloning.numbers(Setting(model), cut, "magnitude")
    seen = {}
    for i, block in enumerate(model.blocks):
        block.mlp_writer.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0].detach()}))
    with torch.no_grad():
        states = model.hf(cut.ids.long(), output_hidden_states=True).hidden_states
    before = [state.abs().sum((0, 1)) for state in states[:-1]]
    after = states[-2] + 0  # what the last block reads; its output is seen by the final norm alone
    assert after.shape == states[-2].shape
    last = {}
    model.final_norm.module.register_forward_pre_hook(lambda m, args: last.update(x=args[0].detach()))
    with torch.no_grad():
        model.hf(cut.ids.long())
    expected = torch.stack([*before, last["x"].abs().sum((0, 1))]).sum(0)
    torch.testing.assert_close(stream, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.neurons[1], seen[1].abs().sum((0, 1)), rtol=1e-4, atol=1e-4)


def test_slopes_of_coordinates_against_scaled_norms():
    """A gate behind every norm is a factor of every norm's gain."""
    model = tiny("llama", dtype=torch.float64)
    inputs = texts().inputs(model, range(3))

    def number():
        return model.logits(inputs)[:, 7].sum()

    found = subcloning.coordinate_slopes(model, inputs, lambda: model.logits(inputs)[:, 7].sum()).sum(0)
    norms = [norm.module for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)]
    for j in (0, 5, 23):
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                for norm in (*norms, model.final_norm.module):
                    norm.weight[j] *= 1 + step
                values.append(float(number()))
                for norm in (*norms, model.final_norm.module):
                    norm.weight[j] /= 1 + step
        assert float(found[j]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-3, abs=1e-3)


def test_bad_input():
    model = tiny("llama")
    for wrong, said in (
        ({"width": 25}, "width must be from 1 to 24"),
        ({"heads": 3}, "multiple of 2"),
        ({"layers": 0}, "layers must be from 1 to 3"),
        ({"by": "circuit"}, "needs a task"),
    ):
        with pytest.raises(InputError, match=said):
            cm.applications.subclone(model, texts(), **wrong)
    for wrong in ({"by": "luck"}, {"scale": "twice"}):
        with pytest.raises(UnknownNameError):
            cm.applications.subclone(model, texts(), **wrong)
    with pytest.raises(InputError, match="the number of heads times 6"):
        cm.applications.subclone(tiny("gpt2"), texts(), width=12, heads=4)
    with pytest.raises(InputError, match="cannot have a width of 13"):
        cm.applications.subclone(tiny("gpt2"), texts(), width=13)


def test_curves_say_who_is_where_first():
    values = {"slow": torch.tensor([[4.0, 3.0, 2.0], [4.0, 3.0, 2.5]]), "fast": torch.tensor([[3.0, 1.0, 0.5]] * 2)}
    found = cm.applications.Curves((0, 10, 20), values, (0, 1), "held_out")
    assert found.steps_to("fast", "slow").tolist() == [5.0, 2.5]
    assert found.share_of_steps("fast", "slow").value == pytest.approx(0.1875)
    assert found.steps_to("slow", "fast").isnan().all() and found.share_of_steps("slow", "fast").n == 0
    assert found.difference("fast", "slow").value == pytest.approx(-1.75)
    with pytest.raises(UnknownNameError):
        found["other"]


def test_a_models_weights_go_before_the_next_is_trained():
    stream = cm.training.text_stream(cm.load("known-ioi"), "Ann and Bob met then Bob gave to")
    schedule = cm.training.Schedule(steps=3, batch=2, length=8)
    made = list[weakref.ref]()

    def trained(seed):
        gc.collect()
        assert not [one for one in made if one() is not None]
        model = cm.training.untrained(cm.load("known-ioi"), seed=seed)
        made.append(weakref.ref(model.hf))
        return cm.training.train(model, stream, schedule)

    found = cm.applications.compare_curves({"a": trained, "b": trained}, [0, 1], ["loss", "norm"])
    assert len(made) == 4 and set(found) == {"loss", "norm"} and found["norm"].name == "norm"
    assert torch.equal(found["loss"].values["a"], found["loss"].values["b"])
    assert torch.equal(
        cm.applications.compare_trainings({"a": trained}, [0, 1], "loss").values["a"], found["loss"].values["a"]
    )
