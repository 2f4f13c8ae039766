"""Everything that is measured about heads, against slow runs of whole prompts one by one."""

from dataclasses import replace

import hand_heads
import pytest
import torch
from families import random_task, tiny
from referee import inputs_of, masked_logits, writer_outputs

import circuitome as cm
from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, NumericsError, TaskError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.heads.atlas.relations import RELATIONS, broken, even, per_query, relations
from circuitome.heads.roles.ablations import ablate_heads
from circuitome.heads.roles.context import HeadContext
from circuitome.heads.roles.explanation import explain
from circuitome.heads.roles.features import intervals
from circuitome.heads.roles.measure import measure
from circuitome.heads.roles.positions import places
from circuitome.heads.roles.rules import helps
from circuitome.heads.roles.unembedding import Unembedding, copied
from circuitome.models.loading import load
from circuitome.tasks.task import Pair, Task

FAMILIES = [
    "gemma2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("neox-parallel", "gpt2", "qwen2", "olmo2", "opt")),
]


def task_of(n=4):
    """Pairs of several lengths whose answers stand in the prompt."""
    plain = random_task(n)
    pairs = [replace(p, answers=(p.clean[1],), wrongs=(p.clean[2],), roles={"A": 1, "B": 2}) for p in plain.pairs]
    return replace(plain, pairs=tuple(pairs))


@pytest.fixture(scope="module", params=FAMILIES)
def measured(request):
    model, task = tiny(request.param), task_of(2)
    context = HeadContext(Setting(model, task), [(0, 1), (1, 0), (1, 2), (2, 3)])
    measurements, batches = measure(context)
    return (
        context,
        measurements,
        ablate_heads(context, measurements, batches, {2: (measurements.target("answer"), 1.0)}, [1, 2]),
    )


def patterns_of(model, ids):
    found = {}
    with torch.no_grad(), model.watching_attention(found.__setitem__):
        model.record(inputs_of(model, ids))
    return found


def test_relations_by_hand():
    ids = torch.tensor([7, 5, 8, 5, 7])
    before, same, behind, first, itself = relations(ids)
    pairs = {name: marks.nonzero().tolist() for name, marks in zip(RELATIONS, relations(ids), strict=True)}
    assert pairs["previous"] == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert pairs["duplicate"] == [[3, 1], [4, 0]] and pairs["induction"] == [[3, 2], [4, 1]]
    assert pairs["first"] == [[i, 0] for i in range(1, 5)] and pairs["self"] == [[i, i] for i in range(1, 5)]
    assert relations(torch.tensor([5, 5]))[2].sum() == 0  # what stands behind the copy is the token itself
    other = torch.tensor([7, 5, 8, 9, 7])
    assert broken(ids, other)[1].nonzero().tolist() == [[3, 1]]
    assert broken(ids, other[:4]).sum() == 0
    assert float((per_query(same) * same).sum()) == 1 and bool(per_query(torch.zeros(3, 3)).isnan().all())
    torch.testing.assert_close(even(5).sum(-1), torch.ones(5))
    assert before.sum() == 4 and behind.sum() == 2 and first.sum() == itself.sum() == 4


def test_places_and_the_role_of_what_differs():
    pairs = (Pair((1, 4, 5, 6), (1, 4, 9, 6), (4,), (5,)), Pair((1, 5, 4, 6), (1, 7, 4, 6), (4,), (3,)))
    found = places(Task("t", pairs))
    assert found.names == ("first", "changed", "end") and found.targets[-2:] == ("answer", "wrong")
    assert found.at.tolist() == [[0, 2, 3], [0, 1, 3]]
    assert found.right == ((1,), (2,)) and found.wrong == ((2,), ()) and found.answer_behind_copy == (False, False)
    named = Task("t", (replace(pairs[0], roles={"A": 1, "end": 3}), pairs[1]))
    assert places(named).names == ("first", "A", "changed", "end")
    assert places(named).at.tolist() == [[0, 1, -1, 3], [0, -1, 1, 3]]
    late = replace(pairs[0], answer_position=1, roles={"A": 3})
    assert places(Task("t", (late,))).names == ("first", "end")  # what comes later is not looked at


def test_attention_is_that_of_the_prompts_one_by_one(measured):
    context, measurements, _ = measured
    for row, pair in enumerate(context.task.pairs):
        for side, found in (
            (pair.clean, measurements.attention_from_end),
            (pair.corrupted, measurements.corrupted_from_end),
        ):
            layers = patterns_of(context.model, side)
            for i, (layer, head) in enumerate(measurements.heads):
                looks = layers[layer][0, head, -1]
                for target, where in (
                    ("A", [1]),
                    ("B", [2]),
                    ("end", [len(side) - 1]),
                    ("answer", context.places.right[row]),
                ):
                    expected = sum((looks[place] for place in where), torch.tensor(0.0))
                    torch.testing.assert_close(
                        found[row, i, measurements.target(target)], expected, atol=1e-5, rtol=1e-4
                    )
        layers = patterns_of(context.model, pair.clean)
        for i, (layer, head) in enumerate(measurements.heads):
            diagonal = layers[layer][0, head].diagonal(-1).mean()
            torch.testing.assert_close(measurements.by_relation[row, i, 0], diagonal, atol=1e-5, rtol=1e-4)
    assert bool((measurements.attention_by_role[:, measurements.target("A"), 0] > 0).all())


def test_direct_effects_are_those_of_one_edge(measured):
    context, measurements, _ = measured
    graph = context.model.graph
    for row, pair in enumerate(context.task.pairs):
        ablated = writer_outputs(context.model, pair.corrupted)
        for i, (layer, head) in enumerate(measurements.heads):
            keep = graph.mask.float()
            keep[graph.row(f"a{layer}.h{head}"), -1] = 0
            with torch.no_grad():
                without = context.task.score(masked_logits(context.model, pair, ablated, keep), [row])[0]
            torch.testing.assert_close(
                measurements.direct[row, i], without - measurements.metric[row], atol=2e-4, rtol=1e-3
            )


def rerun(model, pair, layer, change, look=None):
    """The whole prompt again, with `change` [pos, d_model] added to what a block's attention adds to the stream."""
    block = model.blocks[layer]
    module = block.attention_post.module if block.attention_post else block.output
    handle = module.register_forward_hook(lambda module, args, out: out + change.view_as(out))
    try:
        with torch.no_grad():
            return model.record(inputs_of(model, pair.clean)).logits, patterns_of(model, pair.clean)
    finally:
        handle.remove()


@pytest.mark.slow
def test_ablating_a_head_at_the_last_position_is_a_change_of_one_position(measured):
    context, measurements, ablations = measured
    graph, answer = context.model.graph, measurements.target("answer")
    for row, pair in enumerate(context.task.pairs):
        clean, ablated = (writer_outputs(context.model, side) for side in (pair.clean, pair.corrupted))
        for i, (layer, head) in enumerate(measurements.heads):
            writer = graph.row(f"a{layer}.h{head}")
            change = torch.zeros_like(clean[writer])
            change[-1] = (ablated[writer] - clean[writer])[-1]
            logits, patterns = rerun(context.model, pair, layer, change)
            effect = context.task.score(logits, [row])[0] - measurements.metric[row]
            torch.testing.assert_close(ablations.last_position[row, i], effect, atol=2e-4, rtol=1e-3)
            looks = patterns[1][0, 2, -1]  # the mover is the third head
            now = looks[list(context.places.right[row])].sum() / (1 - looks[-1])
            before = measurements.attention_from_end[row, 2, answer] / (
                1 - measurements.attention_from_end[row, 2, measurements.target("end")]
            )
            share = ablations.movers_attention_removed[row, i] * _whole(measurements, answer)
            torch.testing.assert_close(share, before - now, atol=1e-4, rtol=1e-3)
    assert ablations.movers_attention_removed[:, 3].abs().max() == 0  # later heads cannot move earlier ones


def _whole(measurements, answer):
    end = measurements.target("end")
    shares = [
        t[:, 2, answer] / (1 - t[:, 2, end]) for t in (measurements.attention_from_end, measurements.corrupted_from_end)
    ]
    return max(float((shares[0] - shares[1]).mean()), 0.1)


def test_ablating_a_head_at_all_positions_is_a_knock_out(measured):
    context, measurements, ablations = measured
    model, task = context.model, context.task
    sets = torch.zeros(len(measurements.heads), len(model.graph.writers), dtype=torch.bool)
    for i, (layer, head) in enumerate(measurements.heads):
        sets[i, model.graph.row(f"a{layer}.h{head}")] = True
    replacement = AblationValues.of(model, task, "corrupted")
    for batch in batches(model, task):
        rows = list(batch.rows)
        with torch.no_grad():
            final = KnockOut(model, baseline(model, task, batch, replacement)).final(sets)
        for i, one in enumerate(final):
            effect = task.score(model.unembed(one), rows) - measurements.metric[rows]
            torch.testing.assert_close(ablations.all_positions[rows, i], effect, atol=2e-4, rtol=1e-3)


def test_direct_effects_without_the_movers(measured):
    _, measurements, ablations = measured
    assert bool(ablations.direct_without_movers[:, [1, 2]].isnan().all())
    # The first head is before the movers, so it writes what it wrote; but the norm behind all of them differs.
    assert not torch.allclose(ablations.direct_without_movers[:, 0], measurements.direct[:, 0])
    assert bool(ablations.direct_without_movers[:, [0, 3]].isfinite().all())


def test_writes_add_up_to_the_logits():
    model, task = tiny("gpt2"), task_of(3)
    context = HeadContext(Setting(model, task), [(0, 0), (2, 1)])
    measurements, _ = measure(context)
    column = measurements.places.names.index("B")
    for row, pair in enumerate(task.pairs):
        with torch.no_grad():
            activations = model.record(inputs_of(model, pair.clean))
            outs = writer_outputs(model, pair.clean)
        sigma = model.final_norm.sigma(activations.final[0, -1])
        for i, name in enumerate(("a0.h0", "a2.h1")):
            x = model.final_norm.centre(outs[model.graph.row(name)][-1]) / sigma * model.final_norm.gain
            logits = model.unembedding.weight @ x
            expected = logits[pair.clean[2]] - logits.mean()
            torch.testing.assert_close(measurements.role_logits[row, i, column], expected, atol=1e-4, rtol=1e-3)


def test_copying_counts_the_top_and_the_bottom():
    model = tiny("llama")
    step = Unembedding(model)
    assert step.top == 3 and step.chance == pytest.approx(3 / 61)
    tokens = torch.arange(5, 11)[None]
    rows = torch.linalg.pinv(model.unembedding.weight.detach() * model.final_norm.gain)  # d_model, vocab
    wanted = rows[:, tokens[0]].T[None]
    near = torch.einsum("bhd,vd->bhv", step.direction(wanted), step.weight)
    up, down = copied(step, wanted, tokens)
    ranks = (near >= near.gather(2, tokens[..., None])).sum(-1)
    assert torch.equal(up, (ranks <= 3).float()) and up.mean() > 0.5
    assert torch.equal(copied(step, -wanted, tokens)[1], up) and down.sum() == 0
    assert copied(step, torch.zeros_like(wanted), tokens)[0].sum() == 0


def test_intervals():
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    one, flat = intervals(values)
    assert one.value == pytest.approx(2) and one.low == pytest.approx(2 - 9.9248 / 3**0.5, abs=1e-3)
    assert (flat.low, flat.high) == (0, 0)
    few = intervals(values[:2])[0]
    assert few.value == 1.5 and few.low != few.low and not helps(few)


def test_zero_ablation_needs_no_aligned_pairs():
    model, task = tiny("gemma2"), task_of(4)
    longer = replace(task, pairs=tuple(replace(p, corrupted=(*p.corrupted, 4)) for p in task.pairs))
    with pytest.raises(TaskError, match="not aligned"):
        explain(model, Circuit.full(model.graph), longer)
    found = explain(model, Circuit.full(model.graph), longer, ablation="zero")
    assert bool(found.measurements.corrupted_from_end.isnan().all()) and bool(
        found.measurements.direct.isfinite().all()
    )
    whole = found.measurements.ablated_metric
    logits = model.unembed(torch.zeros(1, model.d_model) + sum_of_biases(model))
    torch.testing.assert_close(whole, longer.score(logits.expand(4, -1), range(4)), atol=1e-4, rtol=1e-3)


def sum_of_biases(model):
    return sum((bias for block in model.blocks if (bias := block.output_bias()) is not None), torch.zeros(1))


@pytest.mark.slow
def test_what_cannot_be_explained_says_so():
    model, task = tiny("llama"), task_of(3)
    full = Circuit.full(model.graph)
    headless = Circuit.of(model.graph, ["embed->logits", "m0->logits"])
    with pytest.raises(InputError, match="holds no heads"):
        explain(model, headless, task)
    with pytest.raises(UnknownNameError, match=r"no head of the circuit 'a1\.h9'\. Did you mean 'a1\.h"):
        explain(model, full, task, heads=["a1.h9"])
    with pytest.raises(InputError, match="another model"):
        explain(tiny("gpt2"), full, task)
    named = explain(model, full, task, heads=["a1.h2", "a0.h1"])
    assert named.heads == ("a0.h1", "a1.h2") and set(named.ranked) == {0, 1}
    with pytest.raises(UnknownNameError, match="explained head"):
        named["a0.h0"]
    tracr = load("tracr-reverse")
    with pytest.raises(InputError, match="is not causal"):
        explain(tracr, Circuit.full(tracr.graph), cm.ground_truth.task("tracr-reverse", 2))
    model.unembedding.weight.data[3] = torch.nan
    with pytest.raises(
        NumericsError, match=r"metric of tiny-llama on .* is not finite in 3 of 3 numbers, first on prompt \d"
    ):
        explain(model, full, replace(task, pairs=tuple(replace(p, answers=(3,)) for p in task.pairs)))


def test_one_prompt_has_no_intervals_and_so_few_roles():
    model, task = hand_heads.cast(), cm.ground_truth.task("known-ioi", 1)
    found = explain(model, Circuit.full(model.graph), task)
    assert found["a0.h0"].role == "duplicate token" and found["a2.h0"].role == "unclear"
    assert found.to_dict()["heads"][0]["effects"]["direct"]["low"] != 0
