"""What methods would take on models of 8B and 70B: tensors counted on the meta device, beside what is planned."""

from typing import Any

import pytest
import torch
from meta_models import Peak, on_meta, pairs, without_numbers
from torch.utils.flop_counter import FlopCounterMode

import circuitome as cm
from circuitome.discovery.attribution import edges
from circuitome.discovery.attribution.contraction import CONTRACTION_NUMBERS, contract
from circuitome.discovery.routes import proximity
from circuitome.discovery.routes.forward import RoutePass, route_bytes
from circuitome.engine.backward_rules import PLAIN
from circuitome.engine.batches import make_batch
from circuitome.engine.setting import Setting
from circuitome.neurons import factors
from circuitome.neurons.neuron_scores import _scores_at

PROMPTS, TOKENS = 4, 48
SLOW = pytest.mark.slow
CASES = [
    *((name, dtype, 0) for name in ("135M", "8B") for dtype in (torch.float32, torch.bfloat16)),
    ("70B", torch.bfloat16, 0),
    ("135M", torch.float32, 5),
    ("8B", torch.bfloat16, 5),
]
"""Shape, dtype, and points of the path: none for EAP."""


def eap_peak(model: cm.Model, points: int) -> int:
    """The most bytes that tensors take at once in EAP on one batch, or in EAP-IG with so many points one by one."""
    budget = PROMPTS * TOKENS * model.bytes_per_token(gradients=True)
    setting = Setting(model, pairs(PROMPTS, TOKENS), max_memory=budget)
    with Peak() as memory, model.reserved():
        batch = make_batch(model, setting.task, range(PROMPTS), shared_prefix=False, corrupted=True)
        metric = lambda logits: logits.float()[:, 0] - logits.float()[:, 1]  # noqa: E731
        if points:
            alphas = [(k + 0.5) / points for k in range(points)]
            edges._along_inputs(setting, batch, metric, alphas, PLAIN)
        else:
            edges._at_clean(setting, batch, metric, PLAIN)
    return memory.peak


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "points"), CASES)
def test_attribution_takes_what_is_planned(
    name: str, dtype: torch.dtype, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_meta(name, dtype)
    monkeypatch.setattr(edges, "contract", lambda *_: torch.zeros(()))  # which has a bound of its own, below
    with without_numbers(monkeypatch):
        found = eap_peak(model, points) / (PROMPTS * TOKENS)
    assert model.bytes_per_token(gradients=True, points=points) == pytest.approx(found, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("135M", torch.float32), ("135M", torch.bfloat16), ("8B", torch.bfloat16)])
def test_neurons_take_what_is_planned(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with several points, since each is gone before the next one is made."""
    model = on_meta(name, dtype)
    monkeypatch.setattr(factors, "check_numbers", lambda *_: None)
    setting = Setting(model, pairs(PROMPTS, TOKENS), max_memory=10**12)
    with without_numbers(monkeypatch), Peak() as memory, model.reserved():
        batch = make_batch(model, setting.task, range(PROMPTS), shared_prefix=False, corrupted=True)
        clean, ablated, points = factors.path_points(setting, batch, 2)
        for point in points:
            _scores_at(point, clean, ablated)
            del point
    planned = PROMPTS * TOKENS * factors.bytes_per_token(model)
    assert memory.peak == pytest.approx(planned, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "tokens"), [("135M", torch.float32, 2000), ("8B", torch.bfloat16, 8000)])
def test_routes_take_what_is_planned(
    name: str, dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pass showed, and what is made of one block; on the meta device, attention itself is made in the open."""
    model = on_meta(name, dtype)
    monkeypatch.setattr(proximity, "_pieces", lambda pattern, d_model: [([0], slice(0, 1))])
    with without_numbers(monkeypatch), model.reserved(), Peak() as shown:
        inputs = make_batch(model, pairs(1, tokens), [0], shared_prefix=False, corrupted=False).clean
        seen = RoutePass.of(model, inputs)
    with Peak() as made:
        pattern = torch.ones(1, model.heads.q, tokens, device="meta")
        values, weights = seen.values(3), model.blocks[3].head_weights()
        proximity.attention_proximity(pattern, values[0], weights, seen.mid(3)[0, :1])
    assert shown.now + made.peak == pytest.approx(route_bytes(model, tokens), rel=0.1)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [pytest.param("135M", 200, marks=SLOW), pytest.param("8B", 16, marks=SLOW), pytest.param("70B", 4, marks=SLOW)],
)
def test_the_contraction_holds_little_at_once(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside writers' changes and gradients: some vectors, the folded weights of some blocks, and the scores."""
    model = on_meta(name, torch.bfloat16)
    setting, told = Setting(model, pairs(2, tokens), max_memory=10**12), list[int]()

    def contracted(*given: Any) -> torch.Tensor:
        with Peak() as memory:
            scores = contract(*given)
        told.append(memory.peak)
        return scores

    monkeypatch.setattr(edges, "contract", contracted)
    with without_numbers(monkeypatch), model.reserved():
        batch = make_batch(model, setting.task, range(2), shared_prefix=False, corrupted=True)
        edges._at_clean(setting, batch, lambda logits: logits.float()[:, 0], PLAIN)
    graph, readers = model.graph, model.heads.readers * model.heads.width * model.d_model
    scores = 2 * len(graph.writers) * len(graph.readers)
    assert told[0] < 4 * (2 * scores + 1.1 * CONTRACTION_NUMBERS + 5 * max(CONTRACTION_NUMBERS, readers))


@pytest.mark.parametrize("name", ["8B", pytest.param("70B", marks=SLOW)])
def test_passes_cost_what_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass costs 2 operations a weight and token, and those of attention; one backward to activations as much."""
    model = on_meta(name, torch.bfloat16)
    task = pairs(PROMPTS, TOKENS)
    with without_numbers(monkeypatch), torch.no_grad():
        batch = make_batch(model, task, range(PROMPTS), shared_prefix=False, corrupted=False)
        with FlopCounterMode(display=False) as counted:
            model.record(batch.clean, logits=False)
    inside = sum(p.numel() for block in model.blocks for p in block.layer.parameters())
    attention = 4 * TOKENS * model.heads.q * model.heads.width * len(model.blocks)
    assert counted.get_total_flops() == pytest.approx(PROMPTS * TOKENS * (2 * inside + attention), rel=0.1)


def test_peak_counts_what_is_alive_at_once() -> None:
    with Peak() as memory:
        a = torch.zeros(1000, device="meta")
        b = a.view(10, 100) + 1
        del a
        c = b * 2
        del b, c
        torch.zeros(500, device="meta")
    assert (memory.peak, memory.now) == (8000, 0)
