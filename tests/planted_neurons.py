"""A one-layer model whose neurons are set by hand, number by number, plain (ReLU) or gated (SiLU), and texts for it.

The stream is [token | token before | token two before | position], all one-hot: two heads with a query for the
position before, or two before, copy tokens. So the input of each neuron is a sum over what it looks for.
"""

import torch
from torch import nn

from circuitome.models.known import KnownConfig, KnownForCausalLM, tokenizer_of
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows, packed

VOCABULARY, LENGTH = 24, 64
SHARP = 60.0
TOKEN, BIGRAM, TRIGRAM = (5,), (7, 8), (10, 11, 12)
BROAD = range(12, 24)
PLANTED = ("dead", "token", "bigram", "trigram", "oscillating", "threshold", "broad", "broad before", "always")


class Gate(nn.Module):
    """SiLU(gate) * up of a fused projection."""

    def forward(self, x):
        gate, up = x.chunk(2, -1)
        return nn.functional.silu(gate) * up


def readers():
    """By planted neuron: what it adds up over the stream, and what is added to that."""
    place = torch.arange(LENGTH)
    wave = torch.where((place // 8) % 2 == 0, 1.0, -1.0)
    late = torch.where(place >= LENGTH // 2, 1.0, -1.0)
    rows = {name: torch.zeros(4, LENGTH) for name in PLANTED}
    for name, gram in (("token", TOKEN), ("bigram", BIGRAM), ("trigram", TRIGRAM)):
        for back, token in enumerate(reversed(gram)):
            rows[name][back, token] = 1.0
    rows["broad"][0, list(BROAD)] = 1.0
    rows["broad before"][1, list(BROAD)] = 1.0
    rows["oscillating"][3], rows["threshold"][3] = wave, late
    bias = {"dead": -1.0, "token": -0.5, "bigram": -1.5, "trigram": -2.5, "broad": -0.5, "broad before": -0.5}
    return [(_stream(row), bias.get(name, 1.0 if name == "always" else 0.0)) for name, row in rows.items()]


def _stream(row):
    return torch.cat([row[0, :VOCABULARY], row[1, :VOCABULARY], row[2, :VOCABULARY], row[3]])


def planted_model(*, gated: bool) -> Model:
    """The model; its neurons are `PLANTED`, in their order. Each writes one coordinate of the unembedding's."""
    width, neurons = 3 * VOCABULARY + LENGTH, len(PLANTED)
    sizes = {"hidden_size": width, "intermediate_size": neurons, "head_dim": LENGTH, "num_attention_heads": 2}
    config = KnownConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, output_size=VOCABULARY, **sizes)
    hf = KnownForCausalLM(config)
    layer = hf.layers[0]
    if gated:
        layer.fc1, layer.activation_fn = nn.Linear(width, 2 * neurons), Gate()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.embed_tokens.weight[:, :VOCABULARY] = torch.eye(VOCABULARY)
        hf.embed_positions.weight[:, 3 * VOCABULARY :] = torch.eye(LENGTH)
        for head in range(2):
            rows, back = slice(head * LENGTH, (head + 1) * LENGTH), head + 1
            attention = layer.self_attn
            attention.q_proj.weight[rows, 3 * VOCABULARY :] = SHARP * torch.eye(LENGTH).roll(-back, 0)
            attention.k_proj.weight[rows, 3 * VOCABULARY :] = torch.eye(LENGTH)
            attention.v_proj.weight[head * LENGTH : head * LENGTH + VOCABULARY, :VOCABULARY] = torch.eye(VOCABULARY)
            target = slice(back * VOCABULARY, (back + 1) * VOCABULARY)
            attention.out_proj.weight[target, head * LENGTH : head * LENGTH + VOCABULARY] = torch.eye(VOCABULARY)
        for i, (weight, bias) in enumerate(readers()):
            layer.fc1.weight[i], layer.fc1.bias[i] = weight, bias
            if gated:
                layer.fc1.bias[neurons + i] = -1.0 if i % 2 else 1.0
        hf.lm_head.weight[:, :VOCABULARY] = torch.eye(VOCABULARY)
        token = PLANTED.index("token")
        layer.fc2.weight[TOKEN[0], token] = 1.0 if gated else -1.0  # the gated one's activations are negative
    return Model(hf.eval(), None, f"planted-{'gated' if gated else 'relu'}")


def planted_windows(count: int = 60, *, length: int = LENGTH, seed: int = 0) -> Windows:
    """Random tokens in which the planted bigram and trigram stand often, and parts of them elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (count, length), generator=generator)
    for grams in (BIGRAM, TRIGRAM, TRIGRAM[1:]):
        at = torch.randint(1, length - 3, (count,), generator=generator)
        for i, start in enumerate(at.tolist()):
            rows[i, start : start + len(grams)] = torch.tensor(grams)
    return packed(rows.tolist())


LANGUAGES = {"a": range(1, 12), "b": range(12, 23)}
SPOKEN = {"a": (0, 1, 2), "b": (3, 4, 5)}


def languages_model() -> Model:
    """Two disjoint languages: three neurons fire on all tokens of each and raise its logits; fourteen know nothing."""
    words = ["BOS", *(f"{name}{i}" for name, tokens in LANGUAGES.items() for i in range(len(tokens)))]
    size, neurons = len(words), 20
    sizes = {"hidden_size": size, "intermediate_size": neurons, "head_dim": 4, "num_attention_heads": 1}
    config = KnownConfig(vocab_size=size, max_position_embeddings=LENGTH, output_size=size, vocabulary=words, **sizes)
    hf = KnownForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        hf.embed_tokens.weight.copy_(torch.eye(size))
        hf.lm_head.weight.copy_(torch.eye(size))
        layer = hf.layers[0]
        layer.fc1.weight.copy_((torch.rand(neurons, size, generator=generator) < 0.5).float())
        layer.fc1.bias.fill_(-0.5)
        for name, some in SPOKEN.items():
            for neuron in some:
                layer.fc1.weight[neuron] = 0.0
                layer.fc1.weight[neuron, list(LANGUAGES[name])] = 1.0
                layer.fc2.weight[list(LANGUAGES[name]), neuron] = 1.0
    return Model(hf.eval(), tokenizer_of(config), "two-languages")


def language_texts(count: int = 12, *, length: int = 32, seed: int = 0) -> dict[str, Windows]:
    """Random tokens of each language behind BOS."""
    generator = torch.Generator().manual_seed(seed)
    texts = {}
    for name, tokens in LANGUAGES.items():
        rows = torch.randint(tokens.start, tokens.stop, (count, length), generator=generator)
        rows[:, 0] = 0
        texts[name] = packed(rows.tolist())
    return texts
