"""The census: planted neurons are found and nothing else, and it equals counts made from two dense arrays."""

from collections import Counter
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from families import tiny
from planted_neurons import BIGRAM, LENGTH, PLANTED, TOKEN, TRIGRAM, planted_model, planted_windows

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, MemoryBudgetError, NumericsError
from circuitome.neurons import counting, ngrams, text_windows
from circuitome.neurons.layer_counts import _hash, in_units, of_units
from circuitome.neurons.positional import KINDS

QUICK = ("llama", "opt", "phi3")
FOUND = {"token": TOKEN, "bigram": BIGRAM, "trigram": TRIGRAM}


def named(flags):
    return {name for name, flag in zip(PLANTED, flags[0].tolist(), strict=True) if flag}


def random_windows(lengths=(12, 12, 9, 12, 2, 12, 12), vocab=61, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return cm.neurons.packed([torch.randint(1, vocab, (n,), generator=generator).tolist() for n in lengths])


@pytest.mark.parametrize("gated", [False, True])
def test_planted_neurons_are_found_and_nothing_else(gated):
    model = planted_model(gated=gated)
    found = cm.neurons.census(model, planted_windows())
    assert named(found.dead) == {"dead"}
    assert {name: int(found.detector[0, PLANTED.index(name)]) for name in named(found.detector > 0)} == {
        "token": 1,
        "bigram": 2,
        "trigram": 3,
    }
    for name, gram in FOUND.items():
        assert found.detected(f"m0.n{PLANTED.index(name)}") == [gram]
    assert {name: KINDS[found.kind[0, PLANTED.index(name)]] for name in named(found.positional)} == {
        "oscillating": "oscillating",
        "threshold": "threshold",
    }
    assert named(found.strong) == {"oscillating", "threshold"}
    assert found.certain.all()
    broad = PLANTED.index("broad")
    assert found.coverage[0, :, broad].tolist() == [12, ngrams.MOST + 1, ngrams.MOST + 1]
    assert found.active[0, PLANTED.index("always")] == found.tokens == 60 * (LENGTH - 1)
    threshold = PLANTED.index("threshold")
    assert float(found.information[0, threshold]) == pytest.approx(0.693, abs=0.02)
    assert abs(float(found.shuffled[0, threshold])) < 0.03


def test_an_input_of_exactly_zero_is_not_active():
    model = planted_model(gated=True)
    with torch.no_grad():
        model.hf.layers[0].fc1.bias[PLANTED.index("dead")] = 0.0
    assert named(cm.neurons.census(model, planted_windows(4)).dead) >= {"dead"}


def test_weights_of_noise_hold_no_such_neuron():
    model = tiny("llama")
    found = cm.neurons.census(model, random_windows([32] * 120))
    assert not (found.detector > 0).any() and not found.positional.any()
    assert abs(float(found.information.mean())) < 0.002  # 0.004 is the bias of 120 windows


def dense(model, windows):
    """Two arrays [window, pos, layer, neuron]: what goes into the activation function, and what is written."""
    given, written, handles = [], [], []
    for block in model.blocks:
        width = block.mlp_writer.weight.T.shape[0] if block.mlp_writer.weight.shape[1] == model.d_model else None
        handles.append(block.mlp_writer.register_forward_pre_hook(lambda m, args: written[-1].append(args[0])))
        handles.append(block.mlp_readers[0].register_forward_hook(lambda m, a, out: given[-1].append(out)))
        assert width is None or width > 0
    shape = (*windows.ids.shape, len(model.blocks), 40)
    arrays = torch.zeros(2, *shape)
    for row, length in enumerate(windows.lengths.tolist()):
        given.append([])
        written.append([])
        with torch.no_grad():
            model.hf(windows.ids[row : row + 1, :length].long())
        for layer, block in enumerate(model.blocks):
            gate = block.split_inputs(given[-1][layer : layer + 1])[0]
            arrays[0, row, :length, layer] = gate.reshape(length, -1)
            arrays[1, row, :length, layer] = written[-1][layer].reshape(length, -1)
    for handle in handles:
        handle.remove()
    return arrays


def coverage_of(counts):
    total, covered = sum(counts.values()), 0
    for i, count in enumerate(sorted(counts.values(), reverse=True), 1):
        covered += count
        if covered >= 0.95 * total:
            return min(i, ngrams.MOST + 1)
    return 0


def check_examples(found, written, layer, neuron):
    """The activations around the largest ones are those of the dense array; first tokens of windows are not counted."""
    windows = found.windows
    tops, places = found.top[layer, :, neuron].tolist(), found.places[layer, :, neuron].tolist()
    for example, top, place in zip(found.examples(f"m{layer}.n{neuron}"), tops, places, strict=False):
        row, at = divmod(place, windows.length)
        part = range(max(0, at - 20), min(int(windows.lengths[row]), at + 7))
        assert example.ids == windows.ids[row, part.start : part.stop].tolist()
        assert example.context == windows.ids[row, : at + 1].tolist() and example.at == at - part.start
        expected = [float("nan") if i == 0 else float(written[row, i]) for i in part]
        assert example.values == pytest.approx(expected, rel=1e-3, abs=1e-6, nan_ok=True)
        assert example.values[example.at] == pytest.approx(top, rel=1e-3, abs=1e-6)


def check_against_dense(found, model, windows):
    given, written = dense(model, windows)
    places = [(row, pos) for row, length in enumerate(windows.lengths.tolist()) for pos in range(1, length)]
    full = [row for row, length in enumerate(windows.lengths.tolist()) if length == windows.length]
    assert found.tokens == len(places) and found.full == len(full)
    ids = windows.ids.tolist()
    for layer in range(len(model.blocks)):
        for neuron in range(0, 40, 3):
            fires = [(r, p) for r, p in places if given[r, p, layer, neuron] > 0]
            values = torch.stack([written[r, p, layer, neuron] for r, p in places])
            assert found.active[layer, neuron] == len(fires)
            assert float(found.mean[layer, neuron]) == pytest.approx(float(values.mean()), abs=1e-5)
            expected = float(values.std(correction=0))
            assert float(found.deviation[layer, neuron]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert found.histogram[layer, :, neuron].sum() == len(places)
            for i, n in enumerate((1, 2, 3)):
                counts = Counter(tuple(ids[r][p - n + 1 : p + 1]) for r, p in fires if p >= n - 1)
                assert found.events[layer, i, neuron] == sum(counts.values())
                assert found.certain[layer, i, neuron]
                assert found.coverage[layer, i, neuron] == coverage_of(counts)
                numbers = [g for g in found.grams[layer, i, :, neuron].tolist() if g >= 0]
                shown = {
                    found.gram(n, number): count
                    for number, count in zip(numbers, found.gram_counts[layer, i, :, neuron].tolist(), strict=False)
                }
                assert all(counts[gram] == count for gram, count in shown.items())
                if numbers:
                    assert sorted(shown.values(), reverse=True) == sorted(counts.values(), reverse=True)[:5]
            largest = sorted(
                (max(((abs(float(written[r, p, layer, neuron])), -p) for p in range(1, n)), default=(0, 0)), r)
                for r, n in enumerate(windows.lengths.tolist())
            )[::-1][: found.top.shape[1]]
            largest = [entry for entry in largest if entry[0][0] > 0]
            sizes = torch.tensor([size for (size, _), _ in largest])
            torch.testing.assert_close(found.top[layer, : len(sizes), neuron].abs(), sizes, rtol=1e-4, atol=1e-6)
            for value, place in zip(found.top[layer, :, neuron], found.places[layer, :, neuron].tolist(), strict=True):
                if value:
                    here = written[place // windows.length, place % windows.length, layer, neuron]
                    torch.testing.assert_close(value, here, rtol=1e-4, atol=1e-6)
            check_examples(found, written[:, :, layer, neuron], layer, neuron)
            rate = [
                sum(bool(given[r, p, layer, neuron] > 0) for r in full) / len(full) for p in range(1, windows.length)
            ]
            torch.testing.assert_close(found.curve[layer, :, neuron], torch.tensor(rate))


@pytest.mark.parametrize(
    "family",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
        for n in ("llama", "opt", "phi3", "neox-parallel", "gemma2", "olmo2", "qwen3")
    ],
)
def test_it_equals_what_two_dense_arrays_say(family):
    model, windows = tiny(family), random_windows()
    check_against_dense(cm.neurons.census(model, windows, keep=4), model, windows)


def same(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(
                x, y, equal_nan=True, rtol=1e-5, atol=1e-3 if field.name == "deviation" else 1e-6
            )


def test_neither_batches_nor_padding_matter(monkeypatch):
    model, windows = planted_model(gated=True), planted_windows(70)
    whole = cm.neurons.census(model, windows)
    budget = 4 * windows.length * model.bytes_per_token(gradients=False)
    same(whole, cm.neurons.census(model, windows, max_memory=budget))
    short = cm.neurons.packed([row[:n] for row, n in zip(windows.ids.tolist(), [64, 30, 2, 64, 9] * 14, strict=True)])
    whole = cm.neurons.census(model, short)
    same(whole, cm.neurons.census(model, short, max_memory=2 * windows.length * model.bytes_per_token(gradients=False)))


def test_a_stopped_census_goes_on_to_the_same_result(monkeypatch, tmp_path):
    monkeypatch.setattr(counting, "SECONDS", 0.0)
    monkeypatch.setattr(text_windows, "BLOCK", 256)
    monkeypatch.setattr(ngrams, "PENDING", 50)
    model, windows = planted_model(gated=False), planted_windows(40)
    whole = cm.neurons.census(model, windows)
    file = tmp_path / "census.safetensors"

    def stop(what, done, total):
        if done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cm.neurons.census(model, windows, checkpoint=file, progress=stop)
    assert file.exists()
    starts = []
    again = cm.neurons.census(model, windows, checkpoint=file, progress=lambda what, done, total: starts.append(done))
    assert starts[0] > 4
    same(whole, again)
    with pytest.raises(cm.errors.RunError, match="another census run"):
        cm.neurons.census(model, planted_windows(41), checkpoint=file)


def ended(counts):
    """What totals say of one segment."""
    totals = ngrams.GramTotals(counts.cells.shape[-1])
    totals.end(0, counts)
    return totals.result()


def equal(a, b):
    """Two censuses, to the byte."""
    for name, values in a.tensors().items():
        assert torch.equal(values.nan_to_num(), b.tensors()[name].nan_to_num()), name
    assert a.facts() == b.facts()


def in_shards(model, windows, of, **options):
    """The census made of so many shards, the last one counted first."""
    shards = [counting.Counting(Setting(model), windows, shard=(i, of), **options) for i in range(of)]
    for shard in reversed(shards):
        shard.run()
    for shard in shards[1:]:
        shards[0].add(shard)
    return shards[0].census()


@pytest.mark.slow
def test_shards_give_what_one_pass_gives(monkeypatch):
    monkeypatch.setattr(text_windows, "BLOCK", 24)
    monkeypatch.setattr(counting, "SEGMENT", 2)
    monkeypatch.setattr(ngrams, "PENDING", 300)
    monkeypatch.setattr(ngrams, "KEPT", 20)
    model, windows = tiny("llama"), random_windows([12, 12, 9, 12, 2, 12, 12] * 4, vocab=9)
    whole = cm.neurons.census(model, windows, keep=3)
    assert not whole.certain.all() and whole.certain.any()
    for of in (2, 3, 7, 40):
        equal(whole, in_shards(model, windows, of, keep=3))


def test_what_shards_cannot_be(monkeypatch):
    monkeypatch.setattr(text_windows, "BLOCK", 24)
    monkeypatch.setattr(counting, "SEGMENT", 1)
    model, windows = tiny("llama"), random_windows()
    with pytest.raises(InputError, match="no shard 2 of 2"):
        counting.Counting(Setting(model), windows, shard=(2, 2))
    first = counting.Counting(Setting(model), windows, shard=(0, 2))
    with pytest.raises(InputError, match="that comes behind"):
        first.add(first)


def test_sums_do_not_depend_on_the_order():
    numbers = torch.randn(999, generator=torch.Generator().manual_seed(0)).double() * 10.0 ** torch.arange(
        999
    ).remainder(20)
    parts = in_units(numbers)
    assert torch.equal(of_units(parts), numbers) and torch.equal(parts.sum(1), parts.flip(1).sum(1))
    for bad in (float("nan"), float("inf"), 1e30):
        with pytest.raises(NumericsError):
            in_units(torch.tensor([bad]))


def test_counters_are_dropped_shortened_and_taken_up_again(monkeypatch):
    """A neuron that at first fires on everything and then on one token is counted exactly from then on, and said so."""
    counts = ngrams.GramCounts(2)
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(2000, (1, 2000), generator=generator) for _ in range(2)] + [torch.full((1, 100_000), 7)]
    for i, ids in enumerate(tokens):
        grams = ngrams.gram_ids(ids, 2000)[:, 0]
        block = tuple(ngrams.BlockGrams.of(grams[n]) for n in range(3))
        counts.add(block, torch.ones(ids.shape[1], 2), check=True)
        if i == 1:
            assert not counts.watched.any()
            result = ended(counts)
            assert result.number.eq(ngrams.MOST + 1).all() and result.certain.all()
    result = ended(counts)
    assert counts.watched[0].all() and result.number[0].tolist() == [1, 1]
    assert result.counts[0, 0].tolist() == [100_000, 100_000] and int(counts.short[0, 0]) == 4000
    monkeypatch.setattr(ngrams, "KEPT", 3)
    counters = ngrams.Counters()
    for start in (0, 2):
        grams = torch.arange(start, start + 5)
        counters.add(torch.zeros(5).numpy(), grams.numpy(), (grams + 1).numpy())
    left = counters.shorten(torch.tensor([True]).numpy())
    assert counters.held[1].tolist() == [4, 3, 6] and counters.held[2].tolist() == [10, 8, 7] and not counters.filled
    assert sorted(left[1].tolist()) == [1, 2, 6, 6]


def test_grams_are_numbers_and_back():
    ids = torch.randint(2**17, (3, 6), generator=torch.Generator().manual_seed(0))
    grams = ngrams.gram_ids(ids, 2**17)
    for n in (1, 2, 3):
        assert (grams[n - 1, :, : n - 1] == -1).all()
        for start in range(6 - n + 1):
            number = int(grams[n - 1, 1, start + n - 1])
            assert ngrams.spelled(number, n, 2**17) == tuple(ids[1, start : start + n].tolist())


def test_windows_start_as_the_tokenizer_starts_and_can_be_cut_short():
    model = cm.load("known-ioi")
    text = "Ann and Bob met then Bob gave to"
    cut = cm.neurons.windows(model, [text, "Ann", ""], length=4)
    assert sorted(cut.lengths.tolist()) == [2, 3, 4, 4]
    assert (cut.ids[:, 0] == 0).all() and cut.tokens == 13
    assert len(cm.neurons.windows(model, [text] * 9, length=4, tokens=8)) in (2, 3)
    for bad, options in (("", {}), (text, {"length": 1}), (text, {"length": 99}), (text, {"tokens": 0})):
        with pytest.raises(InputError):
            cm.neurons.windows(model, bad, **options)


def test_the_quantile_rule_counts_that_share_as_active():
    model, windows = tiny("llama"), random_windows([32] * 60)
    found = cm.neurons.census(model, windows, quantile=0.9)
    assert found.active.sum() / found.active.numel() / found.tokens == pytest.approx(0.1, abs=0.005)
    assert "0.9 quantile" in found.rule and "gate above 0" in cm.neurons.census(model, windows).rule
    assert "activation above 0" in cm.neurons.census(tiny("opt"), windows).rule


def test_some_layers_alone_give_the_same():
    model, windows = tiny("llama"), random_windows()
    whole, part = cm.neurons.census(model, windows), cm.neurons.census(model, windows, layers=[2])
    torch.testing.assert_close(whole.active[2:], part.active)
    assert part.at("m2.n5") == (0, 5) and whole.at("m2.n5") == (2, 5)
    assert not torch.isfinite(part.information).any()
    for neuron in ("m1.n0", "m2.n40", "a1.h0", "m9.n0"):
        with pytest.raises(InputError):
            part.at(neuron)


def test_bad_input():
    model = tiny("llama")
    for options in ({"quantile": 1.0}, {"layers": [3]}, {"keep": 0}):
        with pytest.raises(InputError):
            cm.neurons.census(model, random_windows(), **options)
    with pytest.raises(MemoryBudgetError, match="One window of 12 tokens"):
        cm.neurons.census(model, random_windows(), max_memory=1000)


def test_the_shift_of_windows_is_spread_out():
    shifts = (_hash(torch.arange(1000)) % 63).bincount(minlength=63)
    assert shifts.min() > 3 and shifts.max() < 35
    assert all(a != b for a, b in pairwise(_hash(torch.arange(50)).tolist()))
