"""Masked language models: attention, heads and neurons as the model has them; the rest is refused."""

import pytest
import torch
import transformers as tf
from dynamics.test_arcs import slow, trees
from families import ENCODERS, random_task, tiny
from tokenizers import Tokenizer, models, pre_tokenizers

import circuitome as cm
from circuitome.errors import AdapterError, UnsupportedModelError
from circuitome.models import families
from circuitome.models.check import check_model
from circuitome.models.inputs import Inputs

WORDS = ("the", "cat", "dog", "sees", "sleeps", "that", "a", "b", "c", ".")
ids = torch.tensor([[3, 9, 4, 20, 7, 5], [8, 2, 30, 0, 0, 0]])
mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])


def words():
    """A tokenizer of whole words with the special tokens of a masked language model."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"<{token}>" for name, token in (("mask", "mask"), ("pad", "pad"), ("unk", "unk"))}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, **special)


def given(pad: int) -> Inputs:
    at = torch.minimum(torch.arange(6).expand(2, -1), mask.sum(1, keepdim=True) - 1)
    return Inputs(ids.where(mask.bool(), pad), mask, at, mask.sum(1) - 1)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_check_passes_and_finds_a_wrong_row(name, dtype, monkeypatch):
    model = tiny(name, dtype=dtype)
    assert not model.causal and model.masked and model.positions == 64
    block = model.blocks[0]
    swapped = (
        *model.blocks[:1],
        type(block)(**{**vars(model.blocks[1]), "sum_norms": block.sum_norms}),
        model.blocks[2],
    )
    model.blocks = swapped
    with pytest.raises(AdapterError, match=r"a1|m1|block 1"):
        check_model(model)


@pytest.mark.parametrize("name", ENCODERS)
def test_attention_and_neurons_are_the_models_own(name):
    model, patterns, values = tiny(name), [], {}
    pad = int(model.hf.config.pad_token_id)
    inputs = given(pad)
    hooks = [
        block.mlp_writer.register_forward_hook(lambda m, a, o, layer=layer: values.update({layer: a[0]}))
        for layer, block in enumerate(model.blocks)
    ]
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: patterns.append(pattern)):
        logits = model.every_logits(inputs)
    with torch.no_grad():
        model.hf.set_attn_implementation("eager")
        plain = model.hf(input_ids=inputs.ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    real = mask.bool()
    assert torch.allclose(logits[real], plain.logits[real], atol=1e-5)
    for layer, pattern in enumerate(patterns):
        assert torch.allclose(pattern[0], plain.attentions[layer][0], atol=1e-6)
        assert torch.allclose(pattern[1, :, :3, :3], plain.attentions[layer][1, :, :3, :3], atol=1e-6)
    cache = model.record(inputs)
    for layer, block in enumerate(model.blocks):
        z = cache.z[layer].unflatten(-1, (4, 6))
        middle = block.sum_norms[0](cache.resid_pre[layer] + block.join_heads(z))
        assert torch.allclose(middle, cache.resid_mid[layer], atol=1e-5)
        written = values[layer] @ block.neuron_weights() + block.mlp_bias()
        after = block.sum_norms[1](middle + written)
        assert torch.allclose(after[real], plain.hidden_states[layer + 1][real], atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_ablated_head_writes_nothing(name):
    model, inputs = tiny(name), Inputs.whole(ids[:1])
    weight = model.blocks[1].output.weight
    with torch.no_grad():
        with cm.ablate(model, ["a1.h2"]):
            ablated = model.every_logits(inputs)
        kept = weight[:, 12:18].clone()
        weight[:, 12:18] = 0
        assert torch.allclose(ablated, model.every_logits(inputs), atol=1e-5)
        weight[:, 12:18] = kept
        assert not torch.allclose(ablated, model.every_logits(inputs), atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_arcs_equal_word_by_word(name):
    model = tiny(name)
    model.tokenizer = words()
    sentences = trees()
    found = cm.dynamics.syntax(model, sentences, min_arcs=1)
    row = 0
    for number in sorted(range(len(sentences)), key=lambda i: len(model.encode(sentences[i].text))):
        right = slow(model, sentences[number], cm.dynamics.tokens_of_words(model, sentences[number])[1])
        for relation, child, _ in sentences[number].arcs():
            wanted = [[[right[relation, child, d, x, h] for h in range(4)] for x in range(3)] for d in range(2)]
            assert found.by_head[row].tolist() == wanted
            row += 1
    assert row == len(found.kind) > 0


@pytest.mark.parametrize("name", ENCODERS)
def test_pseudo_log_likelihood_equals_one_mask_after_another(name):
    model = tiny(name)
    model.tokenizer = words()
    pairs = [cm.dynamics.MinimalPair("the cat sleeps", "the cat sees a", "x")]
    scores = cm.dynamics.pair_scores(model, pairs)
    for text, score in ((pairs[0].good, scores.good[0]), (pairs[0].bad, scores.bad[0])):
        tokens, total = model.encode(text), 0.0
        for at, token in enumerate(tokens):
            hidden = torch.tensor([[4 if i == at else t for i, t in enumerate(tokens)]])
            with torch.no_grad():
                total += float(model.hf(input_ids=hidden).logits[0, at].log_softmax(-1)[token])
        assert float(score) == pytest.approx(total, rel=1e-4)


def test_what_a_masked_model_cannot_do_is_refused():
    model, task = tiny("bert"), random_task()
    model.tokenizer = words()
    for use in (
        lambda: cm.eap(model, task),
        lambda: cm.faithfulness(model, cm.Circuit.full(model.graph), task),
        lambda: cm.composition(model),
        lambda: cm.logit_lens(model, "the cat"),
        lambda: cm.copying_scores(model),
        lambda: cm.heads.induction(model),
    ):
        with pytest.raises(UnsupportedModelError, match="masked language model"):
            use()


def test_a_decoder_with_berts_layout_is_refused():
    config = ENCODERS["bert"]()
    config.is_decoder = True
    with pytest.raises(UnsupportedModelError, match="it is a decoder"):
        families.family_of(config)


@pytest.mark.parametrize("name", ENCODERS)
def test_load_from_a_folder_and_measure(name, tmp_path):
    model = tiny(name)
    model.hf.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    loaded = cm.load(tmp_path)
    assert torch.equal(loaded.every_logits(given(1)), model.every_logits(given(1)))
    atlas = cm.heads.head_atlas(loaded, n=2, period=4)
    assert "induction" in atlas.scores and "copying" not in atlas.scores
    census = cm.neurons.census(loaded, "the cat sees the dog that sleeps . " * 8, length=16)
    assert len(census.layers) == 3


@pytest.mark.parametrize("name", ENCODERS)
def test_needles_are_refused(name):
    with pytest.raises(UnsupportedModelError, match="Answering token by token"):
        cm.heads.needle_prompts(tiny(name), lengths=(30,))
