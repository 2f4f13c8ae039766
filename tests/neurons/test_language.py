"""Language neurons: planted ones are found exactly; switching them off is diagonal; they choose the language."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from families import tiny
from planted_neurons import SPOKEN, language_texts, languages_model

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError
from circuitome.neurons.language import _paper, lape
from circuitome.neurons.language_effect import identifier

CHOICE = {"share": 0.3, "quantile": 0.8}
EXPECTED = {name: [f"m0.n{i}" for i in some] for name, some in SPOKEN.items()}


@pytest.mark.parametrize("selection", ["balanced", "paper"])
def test_planted_neurons_are_found_exactly(selection):
    found = cm.neurons.language_neurons(languages_model(), language_texts(), selection=selection, **CHOICE)
    assert {name: found.of(name) for name in found.languages} == EXPECTED
    assert found.by_layer() == {"a": [3], "b": [3]} and found.tokens == (12 * 31,) * 2
    assert found.entropy[0, :6].abs().max() < 1e-6
    assert found.means("b") == dict.fromkeys(EXPECTED["b"], 0.5)
    other = found.reselected("paper" if selection == "balanced" else "balanced", **CHOICE)
    assert {name: other.of(name) for name in other.languages} == EXPECTED


def test_the_published_rule_by_hand():
    """Four neurons, two languages: the rank is taken over all entries, ties at it do not count as above it."""
    active = torch.tensor([[[0.9, 0.5, 0.0, 0.3]], [[0.1, 0.5, 0.0, 0.8]]])
    entropy, selected = _paper(active, 0.25, 0.5)
    expected = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(entropy[0, 0]) == pytest.approx(expected) and entropy[0, 2] == torch.inf
    assert selected[:, 0].tolist() == [[True, False, False, False], [False, False, False, False]]
    assert lape(active)[0, 1] == pytest.approx(math.log(2)) and lape(active)[0, 2] == torch.inf


def test_a_language_that_is_more_active_gets_no_more_neurons_when_balanced():
    active = torch.rand(2, 4, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.9, 0.3])[:, None, None]
    from circuitome.neurons.language import _balanced

    paper, even = _paper(active, 0.1, 0.9)[1], _balanced(active, 0.1, 0.9)[1]
    assert paper[0].sum() > 5 * paper[1].sum()
    assert even[0].sum() == even[1].sum() == 10


def test_the_deactivation_matrix_is_diagonal_and_random_neurons_do_nothing():
    model = languages_model()
    found = cm.neurons.language_neurons(model, language_texts(), **CHOICE)
    matrix = cm.neurons.deactivation(model, found, language_texts(seed=1), draws=2)
    for i in range(2):
        for j in range(2):
            change = matrix.change[i][j]
            assert change.low > 0.3 if i == j else change.value == pytest.approx(0.0, abs=1e-6)
        assert abs(matrix.random[i][i].value) < 1e-6  # elsewhere, the other language's may be among them
    perplexity = matrix.perplexity()
    assert (perplexity.diag() > 1).all() and perplexity[0, 1].abs() < 1e-4
    expected = math.exp(matrix.plain[0].value + matrix.change[0][0].value) - math.exp(matrix.plain[0].value)
    assert float(perplexity[0, 0]) == pytest.approx(expected, rel=1e-4)


def test_held_neurons_and_a_direction_choose_the_language_and_random_neurons_do_not():
    model = languages_model()
    found = cm.neurons.language_neurons(model, language_texts(), **CHOICE)
    spoken = cm.neurons.output_language(
        model, found, ["a1 a2", "a5 a3"], "a", "b", tell=lambda text: text[0], layer=0, new=4
    )
    assert spoken.mean.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert spoken.axes == (("plain", "neurons", "random", "direction"),)
    assert (spoken["plain"].low, spoken["neurons"].high) == (0.0, 1.0)
    assert spoken["plain"].high == pytest.approx(0.6576, abs=1e-4)  # Wilson: z^2 / (n + z^2) of none of two
    assert spoken.to_dict()["low"][1] == pytest.approx(1 - 0.6576, abs=1e-4)
    assert all(word.startswith("b") for word in spoken.examples[1].split()) and len(spoken.examples[1].split()) == 4
    plain, held = spoken.losses[0], spoken.losses[1]
    assert plain.value < held.value
    with pytest.raises(UnknownNameError, match="language 'c'"):
        cm.neurons.output_language(model, found, ["a1"], "a", "c", tell=str)
    with pytest.raises(InputError, match="no prompts"):
        cm.neurons.output_language(model, found, [], "a", "b", tell=str)


def test_a_language_with_less_text_counts_as_much():
    texts = language_texts(30)
    uneven = {"a": texts["a"], "b": texts["b"].chosen(range(3))}
    model = languages_model()
    even = cm.neurons.language_neurons(model, uneven, **CHOICE)
    assert even.tokens == (93, 93)
    assert {name: even.of(name) for name in even.languages} == EXPECTED
    assert cm.neurons.language_neurons(model, uneven, selection="paper", **CHOICE).tokens == (930, 93)


def test_rates_are_those_of_the_census():
    model = tiny("gemma2")
    generator = torch.Generator().manual_seed(0)
    texts = {name: cm.neurons.packed(torch.randint(1, 61, (9, 7), generator=generator).tolist()) for name in ("x", "y")}
    found = cm.neurons.language_neurons(model, texts, max_memory=10 * 7 * model.bytes_per_token(gradients=False))
    for row, part in enumerate(texts.values()):
        census = cm.neurons.census(model, part)
        torch.testing.assert_close(found.active[row], (census.active / census.tokens).float())
        torch.testing.assert_close(found.mean[row], census.mean, rtol=1e-4, atol=1e-5)
    stream = [[] for _ in model.blocks]
    for i, block in enumerate(model.blocks):
        block.layer.register_forward_hook(
            lambda m, a, out, i=i: stream[i].append((out[0] if isinstance(out, tuple) else out)[:, 1:].reshape(-1, 24))
        )
    with torch.no_grad():
        model.hf(texts["x"].ids.long())
    expected = torch.stack([torch.cat(parts).mean(0) for parts in stream])
    torch.testing.assert_close(found.stream[0], expected, rtol=1e-4, atol=1e-5)


def test_bad_input():
    model, texts = languages_model(), language_texts()
    with pytest.raises(InputError, match="at least two"):
        cm.neurons.language_neurons(model, {"a": texts["a"]})
    for options in ({"share": 0.0}, {"quantile": 1.0}):
        with pytest.raises(InputError):
            cm.neurons.language_neurons(model, texts, **options)
    found = cm.neurons.language_neurons(model, texts, **CHOICE)
    with pytest.raises(InputError, match="Give the same"):
        cm.neurons.deactivation(model, found, {"a": texts["a"]})
    with pytest.raises(UnknownNameError):
        found.of("c")


def test_the_identifier_is_asked_for_codes_and_missed_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(InputError, match=r"pip install 'circuitome\[languages\]'"):
        identifier(["en", "de"])
    asked = []
    known = SimpleNamespace(
        labels=["de", "en", "zh"],
        set_languages=asked.append,
        classify=lambda text: ("zh" if "好" in text else "en", 0.0),
    )
    module = ModuleType("py3langid.langid")
    module.MODEL_FILE, module.LanguageIdentifier = "", SimpleNamespace(from_model_file=lambda file: known)
    monkeypatch.setitem(sys.modules, "py3langid.langid", module)
    tell = identifier(["zh-cn", "en-us"])
    assert asked == [["en", "zh"]] and (tell("你好"), tell("hello")) == ("zh-cn", "en-us")
    with pytest.raises(InputError, match="does not know 'xx'"):
        identifier(["xx", "en"])
