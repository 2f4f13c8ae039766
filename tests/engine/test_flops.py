"""Operations of each method as the dry run plans them, beside torch's own count on models without numbers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import transformers as tf
from meta_models import SHAPES, on_meta, pairs, without_numbers
from torch.utils.flop_counter import FlopCounterMode

import circuitome as cm
from circuitome.discovery.attribution import edges, nodes
from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.scores import _Flow
from circuitome.engine.backward_rules import PLAIN
from circuitome.engine.batches import make_batch
from circuitome.engine.circuit_run import Baseline, CircuitRun, baseline
from circuitome.engine.masked_run import _mask_gradient
from circuitome.engine.partial_forward import PartialForward
from circuitome.engine.setting import Setting
from circuitome.models.model import Model
from circuitome.studies.methods import METHODS
from circuitome.studies.operations import Passes, forward_operations, mixing_operations, operations
from circuitome.studies.study import Work

SLOW = pytest.mark.slow
SIZES = [("135M of 9 blocks", 1, 24), pytest.param("135M", 1, 300, marks=SLOW), pytest.param("8B", 1, 48, marks=SLOW)]
"""Shape, prompts, and tokens of each: many where attention shall count."""
QUICK = ("eap", "eap-ig", "atp")
STEPS = 2
"""Points on the path."""


def metric(logits: torch.Tensor) -> torch.Tensor:
    """A difference of two logits."""
    return logits.float()[:, 0] - logits.float()[:, 1]


def in_place(out: Any, a: Any, b: Any, **_: Any) -> int:
    """Operations of addmm_, from shapes."""
    return int(2 * a[0] * a[1] * b[1])


def counted(work: Callable[[], Any]) -> float:
    """Operations that torch counts while something is done; in-place products, which it passes over, with them."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        work()
    return float(counter.get_total_flops())


def begun(setting: Setting, *, corrupted: bool = True) -> Baseline:
    """All pairs as one batch, and its ablated run."""
    batch = make_batch(setting.model, setting.task, range(len(setting.task)), shared_prefix=False, corrupted=corrupted)
    return baseline(setting.model, setting.task, batch, setting.replacement)


def attributed(scorer: Callable[..., Any], **options: Any) -> Callable[[Setting], float]:
    """Scores of edges by one of the forms of attribution."""
    return lambda setting: counted(lambda: scorer(setting, begun(setting).batch, metric, **options))


def of_nodes(setting: Setting, *, drop: bool) -> float:
    """What `atp` does with a batch; counted in parts, since torch's count allows no second gradient of one pass."""
    runs = list[Any]()
    total = counted(lambda: runs.append(nodes._run(setting, begun(setting), PLAIN)))
    for dropped in (None, *(range(setting.model.graph.n_layers) if drop else ())):
        total += counted(partial(nodes._scores, runs[0], dropped, qk_fix=True))
    return total


def routed(setting: Setting) -> float:
    """What `route_scores` does with a batch."""
    clean = make_batch(setting.model, setting.task, range(len(setting.task)), shared_prefix=False, corrupted=False)

    def trace() -> None:
        seen = RoutePass.of(setting.model, clean.clean)
        with setting.model.eager_attention():
            _Flow(seen, "l1").run()

    return counted(trace)


POINTS = tuple((k + 0.5) / STEPS for k in range(STEPS))
ALONG = attributed(edges._along_inputs, alphas=POINTS, rules=PLAIN)
DONE: dict[str, tuple[dict[str, Any], Callable[[Setting], float]]] = {
    "eap": ({}, attributed(edges._at_clean, rules=PLAIN)),
    "eap-ig": ({"steps": STEPS}, ALONG),
    "eap-ig, conductance": (
        {"steps": STEPS, "path": "conductance"},
        attributed(edges._conductance, steps=STEPS, rules=PLAIN),
    ),
    "clean-corrupted": ({}, attributed(edges._along_inputs, alphas=(1.0, 0.0), rules=PLAIN)),
    "atp": ({}, partial(of_nodes, drop=False)),
    "routes": ({}, routed),
}
"""By method: its options, and its work on a batch."""
MANY = {
    "eap-ig-activations": ({"steps": STEPS}, attributed(edges._along_outputs, alphas=POINTS, rules=PLAIN)),
    "atp-star": ({}, partial(of_nodes, drop=True)),
}
"""Those that take passes for every block."""


@pytest.fixture(autouse=True)
def nothing_looks_at_numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Metrics and shares are not there."""
    monkeypatch.setattr(nodes, "check_numbers", lambda *_: None)
    # Proximities are no matrix products, and by which biases there are shares would be decided.
    monkeypatch.setattr(_Flow, "_shares", lambda self, stream, count, *_: stream.new_zeros(count, *stream.shape[:2]))
    with without_numbers(monkeypatch):
        yield


def setting_of(name: str, prompts: int, tokens: int) -> Setting:
    """A model of a shape with prompts of so many tokens."""
    return Setting(on_meta(name, torch.bfloat16), pairs(prompts, tokens), max_memory=10**13)


def planned(setting: Setting, passes: Passes) -> float:
    """What the dry run would say."""
    return operations(setting.model, Work.over(setting.task, **vars(passes)))


def each_size() -> Iterator[Any]:
    """Every method on a small shape, and those that differ most in what they compute on large ones."""
    for method in DONE:  # what routes do once, not planned, weighs more among few blocks
        name = "135M of 15 blocks" if method == "routes" else "135M of 9 blocks"
        yield pytest.param(method, name, 1, 24, marks=() if method in QUICK else SLOW)
    for method in ("eap", "atp", "routes"):
        yield pytest.param(method, "135M", 1, 300, marks=SLOW)
    for method in ("eap-ig", "atp", "routes"):
        yield pytest.param(method, "8B", 1, 48, marks=SLOW)
    for method in ("eap", "eap-ig"):
        yield pytest.param(method, "70B", 1, 8, marks=SLOW)


@pytest.mark.parametrize(("method", "name", "prompts", "tokens"), list(each_size()))
def test_methods_compute_what_is_planned(method: str, name: str, prompts: int, tokens: int) -> None:
    setting = setting_of(name, prompts, tokens)
    options, work = DONE[method]
    passes = METHODS[method.partition(",")[0]].passes(options, setting.model.graph, prompts)
    with setting.model.reserved():
        assert planned(setting, passes) == pytest.approx(work(setting), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", MANY)
def test_methods_with_passes_for_every_block_compute_what_is_planned(method: str) -> None:
    setting = setting_of("135M of 9 blocks", 1, 40)
    options, work = MANY[method]
    passes = METHODS[method].passes(options, setting.model.graph, 2)
    with setting.model.reserved():
        assert planned(setting, passes) == pytest.approx(work(setting), rel=0.1)


@pytest.mark.parametrize(("name", "prompts", "tokens"), SIZES)
def test_a_circuit_of_all_edges_computes_a_pass_and_all_sums(name: str, prompts: int, tokens: int) -> None:
    """And its backward pass, from which masks are learned, as much again and each sum twice."""
    setting = setting_of(name, prompts, tokens)
    model = setting.model
    with model.reserved(), model.frozen_parameters():
        run = CircuitRun(model, begun(setting), model.graph.mask.float())
        ends = list[torch.Tensor]()
        forward = counted(lambda: ends.append(run.final(keep=True)))
        backward = counted(lambda: _mask_gradient(run, ends[0]))
    assert planned(setting, Passes()) == 0
    one = operations(model, Work.over(setting.task, circuit=1.0))
    assert forward == pytest.approx(one, rel=0.1)
    assert backward == pytest.approx(one + prompts * tokens * mixing_operations(model), rel=0.1)


@pytest.mark.slow
def test_exact_patching_computes_what_lies_behind_each_edge() -> None:
    setting = setting_of("135M of 9 blocks", 1, 40)
    model, graph, total = setting.model, setting.model.graph, 0.0
    with model.reserved(), torch.no_grad():
        clean = begun(setting).batch.clean
        rest = PartialForward(model, clean, model.record(clean, logits=False))
        seen = torch.zeros(1, clean.ids.numel(), model.d_model, device="meta")
        for layer in range(graph.n_layers):
            span, mlp = graph.attention_columns(layer), graph.mlp_column(layer)
            for columns in (range(span.start, span.stop), [mlp]):  # all heads of a block cost the same
                edges_into = int(graph.mask[:, list(columns)].sum())
                patched = partial(rest.seen, {columns[0]: seen}, {columns[0]: slice(None)})
                total += edges_into * counted(patched)
    planned_passes = METHODS["exact"].passes({}, graph, 1)
    assert planned(setting, planned_passes) == pytest.approx(total, rel=0.1)


def test_every_method_is_counted_or_known_to_depend_on_numbers() -> None:
    """Learned masks and ACDC run circuits whose size numbers decide; of these a whole circuit is counted."""
    learned = {"smallest", "mattr", "edge-pruning", "subnetwork-probing", "acdc"}
    without_passes = {"random", "magnitude"}
    assert {name.partition(",")[0] for name in (*DONE, *MANY)} | {"exact"} | learned | without_passes == set(METHODS)
    graph = cm.load("known-ioi").graph
    assert {METHODS[name].passes({}, graph, 8) for name in without_passes} == {Passes()}


def test_attention_counts_all_pairs_of_tokens() -> None:
    model = on_meta("135M of 9 blocks", torch.bfloat16)
    z, layers = model.heads.q * model.heads.width, len(model.blocks)
    assert forward_operations(model, 1000) - forward_operations(model, 0) == 4 * 1000 * z * layers


@pytest.mark.parametrize(("function", "study"), [(cm.route_importance, "routes"), (cm.neurons.census, "neurons")])
def test_texts_compute_what_is_planned(function: Any, study: str) -> None:
    """A model that is small, but whose weights outweigh the attention and the unembedding, as those of large ones."""
    torch.manual_seed(0)
    shape = SHAPES["135M"] | {"num_hidden_layers": 6, "vocab_size": 500}
    model = Model(tf.LlamaForCausalLM(tf.LlamaConfig(**shape)).eval(), None, "Llama of 6 blocks")
    ids = torch.randint(5, 500, (2, 48)).tolist()
    given = cm.neurons.packed(ids) if study == "neurons" else ids
    passes = 1.2 if study == "routes" else 1.0
    count = counted(lambda: function(model, given))
    whole = 2 * 96 * 3 * model.d_model * model.blocks[-1].n_neurons
    assert operations(model, Work(texts=2, tokens=48, forward=passes)) + whole == pytest.approx(count, rel=0.1)
