"""Trainings that are watched: what is measured equals slow forms, interventions do what they say, series go on."""

import json
import math
import shutil

import pytest
import torch
from families import ENCODERS, tiny
from safetensors.torch import load_file, save_file

import circuitome as cm
from circuitome.dynamics.checkpoint_series import checkpoints, ends_then_halves
from circuitome.dynamics.development import of_rows
from circuitome.dynamics.recipes import pieces
from circuitome.errors import InputError, RunError, UnknownNameError
from circuitome.training import Rows

STEPS = [2**i for i in range(12)]


@pytest.fixture(scope="module")
def attention():
    return cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer(), width=32, seed=1)


@pytest.mark.parametrize("max_memory", [None, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", *ENCODERS])
def test_measures_equal_slow_forms(family, max_memory):
    model = tiny(family)
    ids = torch.randint(3, 60, (4, 20), generator=torch.Generator().manual_seed(0))
    rows = Rows(ids, labels=ids if model.masked else None)
    repeated = cm.heads.repeated_tokens(model, n=3, period=8)
    measured = cm.dynamics.Measures(rows, repeated, max_memory=max_memory)(model)
    with torch.no_grad():
        logs = model.hf(input_ids=ids).logits.log_softmax(-1)
        again = model.hf(input_ids=repeated.inputs.ids).logits.log_softmax(-1)
    shift = 0 if model.masked else 1
    for row in range(4):
        losses = [-float(logs[row, i, ids[row, i + shift]]) for i in range(20 - shift)]
        assert float(measured["held_out_loss"][row]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        if not model.masked:
            assert float(measured["in_context"][row]) == pytest.approx(losses[-1] - sum(losses[:2]) / 2, abs=1e-4)
    if not model.masked:
        text = repeated.inputs.ids
        late = [-float(again[0, i, text[0, i + 1]]) for i in range(8, 15)]
        assert float(measured["repeat_loss"][0]) == pytest.approx(sum(late) / len(late), rel=1e-4)
        found = cm.composition(model)
        assert float(measured["k_composition"]) == pytest.approx(float(found.k.max()) - found.baseline, abs=1e-5)
    atlas = cm.heads.head_atlas(model, n=3, period=8, random=())
    assert torch.allclose(measured["induction"], atlas["induction"].samples, atol=1e-6)
    norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.hf.parameters()))
    assert float(measured["weight_norm"]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("kind", ["attention", "masked"])
def test_attention_in_the_example_is_that_of_the_model(kind):
    model = cm.dynamics.small_model(kind, cm.dynamics.grammar_tokenizer(), width=32)
    of_trees = cm.dynamics.Measures.of(model, None, trees=cm.dynamics.grammar_trees(30))
    for measures in (of_trees, cm.dynamics.Measures.of(model, None, length=24)):
        ids = measures.example.ids
        assert measures.words(model) == [model.decode([i]) for i in ids[0].tolist()] and 8 <= ids.shape[1] <= 16
        with model.eager_attention(), torch.no_grad():
            patterns = torch.stack(model.hf(input_ids=ids, output_attentions=True).attentions)[:, 0]
        assert torch.allclose(measures(model)["attention"].float(), patterns, atol=6e-4)
    assert of_trees.words(model)[-1] == "." and not cm.dynamics.Measures(None, None).words(model)
    rows = [(step, {"weight_norm": [1.0], **({"attention": patterns.tolist()} if step else {})}) for step in (0, 1)]
    watched = of_rows("kept", rows)
    assert watched.attention[0] is None and torch.equal(watched.attention[1], patterns)
    assert len(watched.since(1).attention) == 1


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_two_nn_finds_the_dimension_of_a_flat_sheet(dimension):
    generator = torch.Generator().manual_seed(dimension)
    points = torch.rand(1500, dimension, generator=generator) @ torch.randn(dimension, 20, generator=generator)
    assert float(cm.dynamics.two_nn(points)) == pytest.approx(dimension, rel=0.12)
    assert math.isnan(cm.dynamics.two_nn(points[:2]))


def test_attention_only_models_have_mlps_that_write_nothing(attention):
    inputs = cm.heads.repeated_tokens(attention, n=1, period=5).inputs
    assert all(not bool(out.any()) for out in attention.record(inputs).mlp_out)
    learning = {name for name, p in attention.hf.named_parameters() if p.requires_grad}
    assert learning and not any("mlp" in name or "post_attention" in name for name in learning)


def test_marks_equal_a_walk_over_all_pairs():
    ids = torch.randint(4, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens = Rows(ids)
    for row in range(3):
        for q in range(9):
            for k in range(9):
                assert bool(cm.dynamics.previous_token(tokens)[row, q, k]) == (k == q - 1)
                behind = 0 < k < q and bool(ids[row, k - 1] == ids[row, q])
                assert bool(cm.dynamics.behind_copies(tokens)[row, q, k]) == behind


@pytest.mark.parametrize("kind", ["decoder", "masked"])
def test_arcs_of_the_stream_are_those_of_its_sentences(kind):
    tokenizer = cm.dynamics.grammar_tokenizer()
    model = cm.dynamics.small_model(kind, tokenizer, width=32)
    stream = cm.dynamics.GrammarStream(model)
    plain = stream.batch(5, 6, 24, 0)
    assert torch.equal(plain.ids, stream.batch(5, 6, 24, 0).ids) and not torch.equal(
        plain.ids, stream.batch(6, 6, 24, 0).ids
    )
    masked = cm.training.MaskedStream(
        stream, tokenizer.mask_token_id, len(tokenizer), kept=tuple(tokenizer.all_special_ids)
    )
    tokens = masked.batch(5, 6, 24, 0) if model.masked else plain
    marks = stream.arcs(tokens)
    trees = {tree.text: tree for tree in cm.dynamics.grammar_trees(0)}
    assert not trees and torch.equal(marks, marks.mT) == model.masked
    for row in range(6):
        ids = plain.ids[row][plain.mask[row] == 1].tolist()
        wanted = set(stream.known[tuple(ids)])
        found = {(q, k) for q, k in marks[row].nonzero().tolist() if q > k}
        assert found == wanted and all(q < len(ids) for q, _ in found)
    # a sentence whose arcs are known by hand
    tree = cm.dynamics.grammar_trees(4)[3]
    assert tree.text == "these lawyers jump ." and {(max(a), min(a)) for _, *a in tree.arcs()} == {(1, 0), (2, 1)}


@pytest.mark.slow
def test_arcs_of_short_sentences_that_come_again_are_not_forgotten(attention, monkeypatch):
    monkeypatch.setattr("circuitome.dynamics.grammar_stream.REMEMBERED", 20)
    stream = cm.dynamics.GrammarStream(attention)
    for step in range(12):
        assert bool(stream.arcs(stream.batch(step, 16, 4, 0)).any(-1).any(-1).all())
        assert len(stream.known) <= 40


@pytest.mark.parametrize("kind", ["decoder", "masked"])
def test_the_penalty_equals_a_sum_over_pairs_and_is_released(kind):
    model = cm.dynamics.small_model(kind, cm.dynamics.grammar_tokenizer(), width=32, seed=3)
    tokens = Rows(torch.randint(3, 200, (3, 10), generator=torch.Generator().manual_seed(1)), step=4)
    penalty = cm.dynamics.AttentionPenalty(cm.dynamics.previous_token, 2.0, until=5)
    loss = penalty(model, tokens)
    patterns = []
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: patterns.append(pattern)):
        model.hf(input_ids=tokens.ids)
    each = [max(float(p[row, :, q, q - 1].max()) for p in patterns) for row in range(3) for q in range(1, 10)]
    assert float(loss["attention"].detach()) == pytest.approx(2 * sum(each) / len(each), rel=1e-5)
    assert float(loss["prediction"].detach()) == pytest.approx(cm.training.next_token(model, tokens).item(), rel=1e-5)
    loss["attention"].backward()
    assert float(model.blocks[0].projections[0].weight.grad.abs().sum()) > 0
    released = penalty(model, Rows(tokens.ids, step=5))
    assert float(released["attention"]) == 0.0


def test_the_largest_weights_stay():
    model = cm.dynamics.small_model("decoder", cm.dynamics.grammar_tokenizer(), width=32)
    before = model.blocks[0].output.weight.detach().clone()
    cm.dynamics.keeping_largest(0.1)(model, 1)
    after = model.blocks[0].output.weight.detach()
    kept = after != 0
    assert int(kept.sum()) == round(0.1 * before.numel()) and torch.equal(after[kept], before[kept])
    assert float(before[kept].abs().min()) >= float(before[~kept].abs().max())
    with pytest.raises(InputError, match="above 0"):
        cm.dynamics.keeping_largest(0.0)


def test_a_watched_training_goes_on_to_the_same_curves(tmp_path):
    def ready():
        return cm.dynamics.recipe(width=16, heads=1, steps=8, batch=4, length=24, texts=["the cat sat. " * 400])

    whole = ready().develop(tmp_path / "a")
    again = ready().develop(tmp_path / "a")
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 9 and whole.steps == again.steps == (0, 1, 2, 3, 4, 5, 6, 8)
    for name in whole.values:
        assert torch.equal(whole.curve(name)[1], again.curve(name)[1]), name
    assert json.loads(lines[-1])["step"] == 8


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"data": "txt"}, "Did you mean 'text'"),
        ({"suppress": "previus"}, "Did you mean 'previous'"),
        ({"suppress": "arcs"}, "sentences of the grammar only"),
        ({"suppress": "previous", "encourage": "induction"}, "one of the two"),
        ({"repeated": 1.5}, "from 0 to 1"),
        ({"length": 3}, "at least 6 tokens"),
        ({"data": "grammar"}, "no texts are read"),
        ({"suppress": "previous", "strength": -1.0}, "strength must be above 0"),
        ({"suppress": "previous", "until": 9999}, "released after step 9999 of 2000"),
        ({"until": 5}, "Nothing is released"),
        ({"kept_weights": 1.5}, "at most 1"),
        ({"width": -8}, "width of a model must be at least 1"),
        ({"hidden": 0.0}, "above 0 and at most 1"),
        ({"width": 10, "heads": 4}, "even number"),
        ({"kind": "encoder"}, "no kind of model"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, words):
    with pytest.raises(InputError, match=words):
        cm.dynamics.recipe(texts=["the cat sat. " * 400], **choices)


def test_pieces_of_texts_have_the_tokens_of_the_whole():
    texts = ["One two. \n", " \n three", "four\u00a0\n\n five six", "", "seven"]
    whole = "\n\n".join(texts)
    assert "".join(pieces(texts)) == whole and len(list(pieces(texts))) > 3
    made = cm.dynamics.recipe(texts=texts * 40, length=12, repeated=0.5, steps=1)
    joined = "\n\n".join(texts * 40)
    stream = made.data.parts[1][0]
    plain = cm.training.text_stream(made.model, joined[: round(len(joined) * 0.95)])
    assert torch.equal(stream.ids, plain.ids)


def test_a_training_that_was_watched_without_a_task_does_not_go_on_with_it(tmp_path):
    def ready(*tasks):
        return cm.dynamics.recipe(width=16, heads=1, steps=1, batch=4, texts=["the cat sat. " * 400], tasks=tasks)

    ready().develop(tmp_path / "a")
    with pytest.raises(RunError, match="another training"):
        ready("induction").develop(tmp_path / "a")


def planted() -> cm.dynamics.Development:
    """Curves with a step behind 16 in one head and behind 256 in the loss, and a smooth one."""
    rows = []
    for i, step in enumerate(STEPS):
        heads = torch.full((4, 2, 2), 0.05)
        heads[:, 1, 0] += 0.8 * (i > 4) + 0.01 * torch.arange(4) / (1 + i)
        loss = torch.full((5,), 5.0 - 4.0 * (i > 8)) + 0.01 * torch.arange(5)
        rows.append((step, {"induction": heads, "held_out_loss": loss.tolist(), "weight_norm": [1.0 + i], "rate": 3.0}))
    return of_rows("planted", rows)


def test_onsets_and_order_of_planted_changes():
    watched = planted()
    assert list(watched.values) == ["held_out_loss", "induction", "weight_norm"]
    assert watched.best_head("induction") == (1, 0) and watched.title("induction") == "prefix matching a1.h0"
    assert watched.onsets["induction"].step == 16 and watched.onsets["held_out_loss"].step == 256
    assert watched.onsets["induction"].sudden and watched.onsets["held_out_loss"].sudden
    assert not watched.onsets["weight_norm"].sudden
    assert watched.order() == [("induction", "held_out_loss", 1.0)]
    later = watched.since(16)
    assert later.steps[0] == 16 and later.onsets["held_out_loss"].step == 256
    with pytest.raises(InputError, match="no step from 9999"):
        watched.since(9999)
    with pytest.raises(UnknownNameError, match="induction"):
        watched.curve("inductions")


def test_ends_come_first_and_each_once():
    for count in range(1, 40):
        order = ends_then_halves(count)
        assert sorted(order) == list(range(count)) and order[0] == 0 and (count == 1 or order[1] == count - 1)


def spoiled(source, folder, change):
    """A checkpoint in which one weight is not there, has another shape, or is not a number."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = tensors.pop(name)
    if change != "missing":
        tensors[name] = weight[:4].clone() if change == "shape" else weight * math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_series_names_what_it_passes_over_and_goes_on(tmp_path, attention):
    tokenizer, folder = cm.dynamics.grammar_tokenizer(), tmp_path / "runs"
    for step in (1, 2, 4, 8):
        model = cm.dynamics.small_model("attention", tokenizer, width=32 if step != 4 else 64, seed=step)
        model.hf.save_pretrained(folder / f"step-{step:08d}")
        tokenizer.save_pretrained(folder / f"step-{step:08d}")
    (folder / "step-00000002" / "model.safetensors").write_bytes(b"damaged")
    for number, change in ((5, "missing"), (6, "shape"), (7, "nan")):
        spoiled(folder / "step-00000008", folder / f"step-0000000{number}", change)
    calls = []

    def measures(model):
        calls.append(model.name)
        return cm.dynamics.Measures.of(model, None)

    watched, passed_over = cm.dynamics.series(folder, measures, keep=tmp_path / "kept.json")
    assert watched.steps == (1, 8) and len(calls) == 1
    assert set(passed_over) == {f"step-0000000{step}" for step in (2, 4, 5, 6, 7)}
    for number, words in ((5, "q_proj.weight is missing"), (6, "is (4, 32), not (32, 32)"), (7, "NaN or infinity")):
        assert words in passed_over[f"step-0000000{number}"]
    assert "hidden_size is 64, not 32" in passed_over["step-00000004"]
    kept = json.loads((tmp_path / "kept.json").read_text())
    del kept["rows"]["8"]
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    again, _ = cm.dynamics.series(folder, measures, keep=tmp_path / "kept.json")
    assert all(torch.equal(again.curve(name)[1], watched.curve(name)[1]) for name in watched.values)
    with pytest.raises(InputError, match="no folders with a step"):
        checkpoints(tmp_path / "runs" / "step-00000001")
