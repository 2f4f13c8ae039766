"""Distillation: a copy loses nothing, matched heads are the right ones, CKA, and what cannot be."""

import copy

import pytest
import torch
from families import CONFIGS, random_task, tiny

import circuitome as cm
from circuitome.applications import narrowing, structure
from circuitome.errors import InputError
from circuitome.models.model import Model

STREAM = cm.training.RepeatedStream(torch.arange(3, 61), begin=(1,))
SCHEDULE = cm.training.Schedule(steps=3, batch=4, length=9, learning_rate=1e-4, weight_decay=0.0)


def copied(model):
    return Model(copy.deepcopy(model.hf), None, model.name)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_copy_loses_nothing(family):
    teacher = tiny(family)
    student = copied(teacher)
    for module in student.hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    pairs = [cm.applications.HeadPair(f"a1.h{i}", f"a1.h{i}", 1.0) for i in range(teacher.heads.q)]
    before = {name: p.clone() for name, p in teacher.hf.named_parameters()}
    schedule = cm.training.Schedule(steps=1, batch=4, length=9, learning_rate=1e-9)
    row = cm.applications.distil(teacher, student, STREAM, schedule, align=pairs).history[-1]
    assert abs(row["kl"]) < 1e-6 and abs(row["alignment"]) < 1e-5
    assert all(torch.equal(p, before[name]) for name, p in teacher.hf.named_parameters())


def test_against_the_formula():
    teacher, student = tiny("llama"), tiny("llama", seed=1)
    tokens = STREAM.batch(0, 4, 9, 0)
    tokens = cm.training.Rows(tokens.ids, mask=(torch.arange(9) < torch.tensor([[9], [5], [9], [3]])).long())
    objective = cm.applications.Distillation(teacher, temperature=3.0, text=0.5)
    parts = objective(student, tokens)
    total, count = 0.0, 0
    for row, length in enumerate((9, 5, 9, 3)):
        ids = tokens.ids[row : row + 1, :length]
        with torch.no_grad():
            p, q = ((m.hf(ids).logits[0, :-1] / 3).softmax(-1) for m in (teacher, student))
        total += float((p * (p / q).log()).sum())
        count += length - 1
    assert parts["kl"].item() == pytest.approx(9 * total / count, rel=1e-4)
    assert parts["text"].item() == pytest.approx(0.5 * cm.training.next_token(student, tokens).item(), rel=1e-5)


def test_linear_cka_against_kernels():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, generator=generator), torch.randn(30, 7, generator=generator)
    centre = torch.eye(30) - 1 / 30
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(cm.applications.linear_cka(x, y), expected, rtol=1e-4, atol=1e-5)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    assert cm.applications.linear_cka(x, 2 * x @ turn).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox-parallel", "gpt2"])
def test_permuted_heads_are_found(family):
    """A student whose key/value heads stand in another order: each head is matched with where it went."""
    teacher, task = tiny(family), random_task(12)
    order = list(reversed(range(teacher.heads.kv)))
    blocks = tuple(structure.BlockParts(parts.layer, tuple(order), parts.neurons) for parts in structure.whole(teacher))
    student = narrowing.narrowed(teacher, narrowing.Kept(torch.arange(teacher.d_model), blocks))
    each = teacher.heads.q // teacher.heads.kv
    where = {g * each + i: order.index(g) * each + i for g in order for i in range(each)}
    for pair in cm.applications.matched_heads(teacher, student, task, pairs=6):
        layer, head = pair.teacher.split(".h")
        assert pair.student == f"{layer}.h{where[int(head)]}" and pair.similarity > 0.9999
    assert cm.applications.resemblance(teacher, student, task) == pytest.approx(1.0, abs=1e-4)
    other = cm.applications.resemblance(teacher, tiny(family, seed=5), task)
    assert other < 0.99


def test_a_student_learns_and_heads_get_more_alike():
    teacher, task = tiny("llama"), random_task(8)
    schedule = cm.training.Schedule(steps=40, batch=8, length=12, learning_rate=3e-3)
    student = tiny("llama", seed=3)
    rows = cm.applications.distil(teacher, student, STREAM, schedule, align=task, weight=5.0).history
    assert rows[-1]["kl"] < 0.8 * rows[1]["kl"] and rows[-1]["alignment"] < rows[1]["alignment"]


def test_bad_input():
    small = cm.training.untrained(CONFIGS["opt"]())
    config = CONFIGS["llama"]()
    config.hidden_size, config.head_dim = 48, 6
    wide = cm.training.untrained(config)
    with pytest.raises(InputError, match="at most as wide as its teacher"):
        cm.applications.distil(small, wide, STREAM, SCHEDULE)
    config = CONFIGS["llama"]()
    config.vocab_size = 70
    with pytest.raises(InputError, match="not the same"):
        cm.applications.distil(tiny("llama"), cm.training.untrained(config), STREAM, SCHEDULE)
    with pytest.raises(InputError, match="temperature"):
        cm.applications.distil(tiny("llama"), tiny("llama"), STREAM, SCHEDULE, temperature=0.0)
