"""Small random models of every supported architecture, made from their own configuration classes."""

from collections.abc import Callable

import torch
import transformers as tf

from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task

SIZE = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
GQA = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "gpt2": lambda: tf.GPT2Config(vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=64),
    "neox-parallel": lambda: tf.GPTNeoXConfig(**SIZE, intermediate_size=40, use_parallel_residual=True),
    "neox-sequential": lambda: tf.GPTNeoXConfig(**SIZE, intermediate_size=40, use_parallel_residual=False),
    "llama": lambda: tf.LlamaConfig(**GQA),
    "llama-bias": lambda: tf.LlamaConfig(**GQA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral-window": lambda: tf.MistralConfig(**GQA, sliding_window=3),
    "qwen2": lambda: tf.Qwen2Config(**GQA, use_sliding_window=True, sliding_window=3, layer_types=SLIDING),
    "qwen3": lambda: tf.Qwen3Config(**GQA, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(
        **GQA,
        head_dim=8,
        sliding_window=3,
        layer_types=SLIDING,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(**GQA, head_dim=8, sliding_window=3, layer_types=SLIDING),
    "olmo2": lambda: tf.Olmo2Config(**GQA),
    "phi3": lambda: tf.Phi3Config(**GQA, pad_token_id=0),
    "opt": lambda: tf.OPTConfig(**SIZE, ffn_dim=40, max_position_embeddings=64, word_embed_proj_dim=24),
}

ENCODERS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "bert": lambda: tf.BertConfig(**SIZE, intermediate_size=40, max_position_embeddings=64),
    "roberta": lambda: tf.RobertaConfig(**SIZE, intermediate_size=40, max_position_embeddings=66, pad_token_id=1),
}
"""Masked language models: only what reads attention and neurons runs on them."""

CHECKED = set[tuple[str, int, torch.dtype, int]]()
"""Models that were checked by this process."""


def tiny(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, layers: int = 3) -> Model:
    """A checked random model: weights large enough for peaked attention, gains and biases away from 1 and 0."""
    torch.manual_seed(seed)
    config = {**CONFIGS, **ENCODERS}[name]()
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    hf = (tf.AutoModelForMaskedLM if name in ENCODERS else tf.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.3 * noise if parameter.ndim > 1 else parameter + 0.3 * noise)
    from circuitome.models.check import check_model

    model = Model(hf.to(dtype).eval(), None, f"tiny-{name}")
    if (made := (name, seed, dtype, layers)) not in CHECKED:  # the same model, to the bit, passes again
        check_model(model)
        CHECKED.add(made)
    return model


def random_task(n: int = 5, *, seed: int = 0, lengths: tuple[int, ...] = (7, 9, 6), vocab: int = 61) -> Task:
    """Pairs of several lengths whose first difference lies at several places; some differ in two tokens."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(n):
        length = lengths[i % len(lengths)]
        clean = torch.randint(3, vocab, (length,), generator=generator).tolist()
        corrupted = list(clean)
        for at in {1 + i % (length - 1), length - 2}:
            corrupted[at] = 3 + (corrupted[at] + 5 - 3) % (vocab - 3)
        pairs.append(Pair(tuple(clean), tuple(corrupted), (3 + i,), (20 + i,)))
    return Task("random", tuple(pairs))
