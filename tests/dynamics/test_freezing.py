"""Heads that are frozen in training: their weights keep every byte, others learn, and a resumed training knows them."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.dynamics import Freezing
from circuitome.errors import InputError, RunError, UnknownNameError
from circuitome.graph.node import Node
from circuitome.training import Schedule, loop

FAMILIES = ["llama-bias", "gpt2", "neox-parallel", "phi3", "qwen3", "opt", "bert"]
"""Shared key/value heads, biases, all layouts of fused projections, norms on queries and keys, an encoder."""


def rows(step, generator):
    return torch.randint(3, 60, (4, 12), generator=generator)


def weights_of(model, name):
    """All that belongs to a head, and to its key/value head, read as the analyses do; and the same of other heads."""
    node, heads = Node.parse(name), model.heads
    block = model.blocks[node.layer]
    group = node.index // (heads.q // heads.kv)
    mine = [node.index, heads.q + group, heads.q + heads.kv + group]
    others = [i for i in range(heads.readers) if i not in mine]
    other_heads = [head for head in range(heads.q) if head != node.index]
    return [
        [block.reader_weights(some).clone(), block.reader_biases()[some].clone(), block.head_weights(output).clone()]
        for some, output in ((mine, [node.index]), (others, other_heads))
    ]


def trained(model, freezing, steps=6, **options):
    schedule = Schedule(steps=steps, batch=4, length=12, learning_rate=1e-2, weight_decay=0.3)
    hooks = {"before_step": [freezing.before], "after_step": [freezing.after]} if freezing else {}
    return cm.training.train(model, rows, schedule, **hooks, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_head_keeps_its_bytes_and_others_learn(family):
    model, at_step = tiny(family, layers=2), {}

    def watch(live):
        at_step[len(at_step)] = weights_of(live, "a1.h1")
        return {}

    trained(model, Freezing(("a1.h1",), at=3), watch=[watch], at=range(7))
    for step in range(1, 7):
        (mine, theirs), (mine_before, theirs_before) = at_step[step], at_step[step - 1]
        frozen = [torch.equal(a, b) for a, b in zip(mine, mine_before, strict=True)]
        assert frozen[0] == frozen[2] == (step > 3) and (frozen[1] or step <= 3)
        assert not torch.equal(theirs[0], theirs_before[0]) and not torch.equal(theirs[2], theirs_before[2])


def test_gradients_of_frozen_heads_count_in_no_norm():
    model, norms = tiny("llama", layers=1), {}
    for what in (("a0.h0",), ("a0.h0", "a0.h1", "a0.h2", "a0.h3")):
        model = tiny("llama", layers=1)
        freezing = Freezing(what, at=0)
        seen = []

        def after(live, step, freezing=freezing, seen=seen):
            block = live.blocks[0]
            seen.append(sum(float(p.grad.square().sum()) for p in (*block.attention.parameters(),)))

        schedule = Schedule(steps=1, batch=4, length=12, clip=1e9)
        cm.training.train(model, rows, schedule, before_step=[freezing.before], after_step=[after])
        norms[len(what)] = seen[0]
    assert norms[4] == 0 and norms[1] > 0


def stopped_and_resumed(folder, ready, monkeypatch, after):
    """A training that stops after some steps, and goes on."""
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARE", 0)

    def progress(what, done, total):
        if done == after:
            raise KeyboardInterrupt

    model, freezing = ready()
    with pytest.raises(KeyboardInterrupt):
        trained(model, freezing, folder=folder, progress=progress)
    model, freezing = ready()
    return trained(model, freezing, folder=folder)


@pytest.mark.parametrize("after", [2, 3, 5])
def test_a_resumed_training_goes_on_with_the_heads_that_were_chosen(tmp_path, monkeypatch, after):
    def ready():
        model = tiny("llama", layers=2)
        return model, Freezing(("previous", "induction"), 3, repeated=cm.heads.repeated_tokens(model, n=4, period=6))

    whole = trained(*ready())
    again = stopped_and_resumed(tmp_path, ready, monkeypatch, after)
    assert again.history == whole.history
    chosen = [row["frozen"] for row in again.history if "frozen" in row]
    assert len(chosen) == 1 and again.history[4]["frozen"] == chosen[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.hf.parameters(), again.model.hf.parameters(), strict=True))


def test_kinds_are_the_first_head_or_all_above_a_score():
    model = cm.load("known-induction")
    repeated = cm.heads.repeated_tokens(model, n=8, period=8)
    scores = {
        name: cm.heads.head_atlas(model, n=8, period=8, random=())[name].mean for name in ("previous", "induction")
    }
    for kind, mean in scores.items():
        best = divmod(int(mean.argmax()), mean.shape[1])
        assert Freezing((kind,), 0, repeated=repeated).chosen(model) == [best]
    assert Freezing(("induction", "a0.h0"), 0, repeated=repeated).chosen(model)[0] == (0, 0)
    above = float(scores["previous"].flatten().median())
    chosen = Freezing(("previous",), 0, above, repeated).chosen(model)
    assert len(chosen) == int((scores["previous"] >= above).sum())
    with pytest.raises(InputError, match="No head has a score of 2"):
        Freezing(("previous",), 0, 2.0, repeated).chosen(model)
    with pytest.raises(InputError, match=r"has no head a9\.h0"):
        Freezing(("a9.h0",), 0).chosen(model)
    with pytest.raises(UnknownNameError, match="Did you mean 'previous'"):
        Freezing(("previus",), 0)
    with pytest.raises(InputError, match="from 0 on"):
        Freezing(("previous",), -1)


def test_a_training_with_other_interventions_is_no_continuation(tmp_path):
    trained(tiny("llama", layers=1), Freezing(("a0.h1",), at=1), steps=2, folder=tmp_path)
    with pytest.raises(RunError, match="another"):
        trained(tiny("llama", layers=1), Freezing(("a0.h2",), at=1), steps=2, folder=tmp_path)
    with pytest.raises(RunError, match="another"):
        trained(tiny("llama", layers=1), None, steps=2, folder=tmp_path)
