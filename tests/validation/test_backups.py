"""Direct effects against circuit runs, and a backup head that was planted by hand."""

from itertools import product

import pytest
import torch
from families import CONFIGS, random_task, tiny

import circuitome as cm
from circuitome.engine.run_circuit import run_circuit
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.models.check import check_model
from circuitome.models.known import KnownConfig, KnownForCausalLM
from circuitome.models.model import Model
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.robustness.backup_heads import backups
from circuitome.validation.robustness.direct_effects import direct_effects, direct_effects_without
from circuitome.validation.robustness.rediscovery import rediscovery, summed_effects
from circuitome.validation.tests.hypotheses import fell

TASK = random_task(3, lengths=(5, 6))
QUICK = (("gemma2", "mean"), ("llama", "corrupted"))
MOVER = "a2.h0"


def four_layers(backup: bool) -> Model:
    """The IOI toy with a block more; with `backup`, its a3.h0 moves the name where nobody has moved it yet.

    Its query is that of the name mover, minus the slice that name movers write to. So it looks at nothing while the
    mover is on, and does the mover's work when it is off.
    """
    small = cm.load("known-ioi")
    names = [*KnownConfig.__annotations__]
    settings = {name: getattr(small.hf.config, name) for name in names}
    hf = KnownForCausalLM(KnownConfig(**{**settings, "num_hidden_layers": 4}))
    for parameter in hf.parameters():
        parameter.detach().zero_()
    hf.load_state_dict(small.hf.state_dict(), strict=False)
    if backup:
        before, after = hf.layers[2].self_attn, hf.layers[3].self_attn
        width = before.width
        for module in ("q_proj", "k_proj", "v_proj"):
            source, target = getattr(before, module), getattr(after, module)
            target.weight.detach()[:width] = source.weight[:width]
            target.bias.detach()[:width] = source.bias[:width]
        after.out_proj.weight.detach()[:, :width] = before.out_proj.weight[:, :width]
        moved = before.out_proj.weight[:, :width].detach().T  # row by row, where each name is written
        sharp = before.q_proj.weight.abs().max() / 2
        after.q_proj.weight.detach()[:8] -= sharp * (moved[:8] != 0)
    model = Model(hf.eval(), small.tokenizer, "four-layers")
    check_model(model)
    return model


@pytest.fixture(scope="module")
def task():
    return cm.ground_truth.task("known-ioi", 16)


@pytest.fixture(scope="module")
def planted():
    return four_layers(backup=True)


def metric_of(model, circuit, ablation):
    return TASK.score(run_circuit(model, TASK, circuit, ablation=ablation), range(len(TASK)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ablation"),
    [
        one if one in QUICK else pytest.param(*one, marks=pytest.mark.slow)
        for one in product(CONFIGS, ("corrupted", "mean"))
    ],
)
def test_direct_effects_are_single_edges_into_the_logits(name, ablation):
    model = tiny(name)
    graph, full = model.graph, Circuit.full(model.graph)
    out = [graph.row(one) for one in ("a0.h1", "a1.h3")]
    evaluator = Evaluator(Setting(model, TASK, ablation))
    before, without = direct_effects(evaluator), direct_effects_without(evaluator, out)

    frozen, gone = full.mask.clone(), full.mask.clone()
    frozen[out, -1] = False
    gone[out] = False
    for found, mask in ((before, full.mask), (without.frozen, frozen), (without.after, gone)):
        whole = metric_of(model, Circuit(graph, mask), ablation)
        torch.testing.assert_close(found.metric, whole, atol=5e-5, rtol=1e-4)
        for row in (graph.row("m1"), graph.row("a2.h2")):
            cut = mask.clone()
            cut[row, -1] = False
            alone = metric_of(model, Circuit(graph, cut), ablation) - whole
            torch.testing.assert_close(found.samples[:, row], alone, atol=5e-5, rtol=1e-4)
    assert without.after.samples[:, out].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_a_planted_backup_is_found(planted, task, ablation):
    found = backups(planted, task, ablation=ablation)
    assert found.ablated == (MOVER,)
    assert [part.name for part in found.backups] == ["a3.h0"]
    own = found["a3.h0"]
    assert own.before.value == pytest.approx(0, abs=0.05) and own.after.value < -5  # negative helps
    assert own.p_value < 0.001
    # Alone it is nothing, beside the mover it is all that is left.
    assert own.total_before.value == pytest.approx(0, abs=0.05)
    assert own.total_after.value == pytest.approx(own.after.value, rel=0.01)
    assert found.repaired.value == pytest.approx(own.before.value - own.after.value, rel=0.01)
    assert found.effect.value == pytest.approx(found.left.value - found.intact.value, abs=1e-4)
    assert found.direct.value < -5  # all of which the backup gives back
    assert found.direct.value == pytest.approx(found.effect.value - found.repaired.value, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [False, True])
def test_a_model_without_backups_has_none(task, extra):
    model = four_layers(backup=False) if extra else cm.load("known-ioi")
    found = backups(model, task)
    assert found.ablated == (MOVER,) and not found.backups and not found.relieved
    assert found.repaired.value == pytest.approx(0, abs=1e-4)


def test_what_the_final_norm_does_is_no_backup():
    """In random models with norms direct effects grow when others go, by the norm alone where nothing reacts."""
    model, task = tiny("llama"), random_task(12)
    last = ["a2.h1", "a2.h3"]
    evaluator = Evaluator(Setting(model, task))
    without = direct_effects_without(evaluator, [model.graph.row(name) for name in last])
    before = direct_effects(evaluator)
    earlier = slice(0, model.graph.head_rows(2).start)
    change = (without.after.samples - without.frozen.samples)[:, earlier]
    by_norm = (without.after.samples - before.samples)[:, earlier]
    # Only m2 can react; all others differ from before, but not from the frozen run, except through m2's output.
    assert by_norm.abs().max() > 1e-3
    assert change.abs().mean() < by_norm.abs().mean()


@pytest.mark.slow
def test_searching_again_finds_the_planted_backup(planted, task):
    found = rediscovery(planted, task, [MOVER], edges=8, knock_out="zero")
    assert [one.name for one in found.risen if one.joined] == ["a3.h0"]
    own = next(one for one in found.rises if one.name == "a3.h0")
    assert own.before.value == pytest.approx(0, abs=1e-6) and own.after.value == pytest.approx(-10, abs=0.1)
    old, new = found.circuits
    assert "a2.h0->logits" in old and "a2.h0->logits" not in new and "a3.h0->logits" in new
    assert found.after.values[planted.graph.row(MOVER)].abs().max() == 0
    told = found.to_dict()
    assert told["kept"] + len(told["gained"]) == 8 and told["gained"][0]["edge"] == "a3.h0->logits"
    again = rediscovery(planted, task, [MOVER], edges=8, knock_out="zero", before=found.before)
    assert torch.equal(again.after.values, found.after.values)


def test_summed_effects_are_the_scores_of_the_edges_that_leave():
    scores = cm.eap(tiny("llama"), TASK)
    torch.testing.assert_close(summed_effects(scores).mean(0), scores.values.sum(1), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_test_of_a_fall():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 12, generator=generator)
    rate = sum(fell(row) < 0.05 for row in draws) / len(draws)
    assert 0.03 < rate < 0.07
    assert fell(-torch.ones(9)) == 0.0 and fell(torch.ones(9)) == 1.0 and fell(torch.zeros(9)) == 1.0


def test_results_as_data(planted, task):
    found = backups(planted, task, [MOVER, MOVER], top=1)
    told = found.to_dict()
    assert told["backups"] == ["a3.h0"] and told["ablated"] == [MOVER]
    assert [one["total_after"] is None for one in told["reactions"]] == [False] + [True] * (len(told["reactions"]) - 1)


@pytest.mark.slow
def test_bad_input(planted, task):
    with pytest.raises(UnknownNameError, match=r"no writer 'a2.h9'. Did you mean"):
        backups(planted, task, ["a2.h9"])
    with pytest.raises(InputError, match=r"leaves nothing that could take over"):
        backups(planted, task, [name for name in planted.graph.writers if name != "embed"])
    with pytest.raises(InputError, match=r"m3 leaves nothing.*before the last block"):
        backups(planted, task, ["m3"])
    with pytest.raises(InputError, match=r"at least 8; known-ioi has 4"):
        backups(planted, cm.ground_truth.task("known-ioi", 4))
    with pytest.raises(InputError, match=r"at least 8; known-ioi has 4"):
        rediscovery(planted, cm.ground_truth.task("known-ioi", 4), [MOVER], edges=4)
    with pytest.raises(InputError, match=r"hold no per-prompt samples"):
        rediscovery(planted, task, [MOVER], edges=4, before=cm.magnitude(planted, task))
    with pytest.raises(InputError, match=r"cannot be held"):
        rediscovery(planted, task, [MOVER], edges=4, knock_out="corrupted")
    with pytest.raises(InputError, match=r"a0.h0 cannot react to ablating a2.h0"):
        backups(planted, task, [MOVER], top=0)["a0.h0"]
    swapped = cm.Task("swapped", tuple(cm.tasks.Pair(p.corrupted, p.clean, p.answers, p.wrongs) for p in task.pairs))
    with pytest.raises(InputError, match=r"does not do the task swapped"):
        backups(planted, swapped)
