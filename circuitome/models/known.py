"""Transformers whose circuit is known, as ordinary transformers modules: no norms, ReLU MLPs, weights in the package.

Their weights are compiled from programs (`scripts/compile_tracr.py`) or set by hand (`scripts/hand_set.py`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from circuitome.errors import InputError, unknown_name

BOS = "BOS"
"""The first token of every input, id 0."""

FOLDER = Path(__file__).parent / "weights"

KNOWN: dict[str, str] = {
    "tracr-reverse": "the sequence from its end to its beginning",
    "tracr-frac-prevs": "the share of x among the tokens so far, a number (xproportion)",
    "tracr-length": "the length of the sequence",
    "tracr-hist": "how often this token occurs",
    "tracr-count": "how often a occurs",
    "tracr-count-less-freq": "how many tokens occur at most twice",
    "tracr-sort": "the tokens in ascending order",
    "tracr-sort-unique": "the tokens, all different, in ascending order",
    "tracr-sort-freq": "the tokens, the most frequent first",
    "tracr-pair-balance": "share of ( minus share of ) among the tokens so far, a number",
    "tracr-shuffle-dyck": "whether the parentheses are balanced",
    "tracr-shift-by": "the token before",
    "tracr-detect-pattern": "whether the last three tokens are a b c",
    "known-induction": "after A B ... A, the token B (set by hand)",
    "known-ioi": "of two names, the one that was not said again (set by hand)",
    "known-equality": "of four things, whether the first two are the same just as the last two (set by hand)",
    "known-boolean": "(a and b) or not c (set by hand)",
    "known-addition": "the tens digit of the sum of two numbers of two digits (set by hand)",
}
"""Models that ship with the package: what each gives at every position."""


class KnownConfig(PreTrainedConfig):
    """Shape of a model whose circuit is known."""

    model_type = "circuitome_known"

    vocab_size: int = 8
    hidden_size: int = 16
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    head_dim: int = 8
    intermediate_size: int = 8
    max_position_embeddings: int = 6
    attention_scale: float = 1.0
    """What q . k is multiplied by before the softmax."""
    is_causal: bool = True
    """Whether no position sees a later one; compiled programs see all."""
    output_size: int = 8
    """Rows of the unembedding: the vocabulary, or 1 for a program that gives a number."""
    vocabulary: list[str] | None = None
    """The token of every id; `BOS` is 0."""
    use_cache: bool = True
    tie_word_embeddings: bool = False


class KnownAttention(nn.Module):
    """Softmax attention over all positions that the mask allows."""

    def __init__(self, config: KnownConfig, layer_idx: int) -> None:
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.layer_idx, self.width, self.scale = layer_idx, config.head_dim, config.attention_scale
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, inner)
        self.v_proj = nn.Linear(config.hidden_size, inner)
        self.out_proj = nn.Linear(inner, config.hidden_size)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        attention_mask: Bool[Tensor, "batch 1 pos total"],
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The heads' sum [batch, pos, d_model] and the pattern [batch, head, pos, total]."""
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.width)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        # A finite fill: a padded query that may see nothing gets a harmless even pattern instead of NaN.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        pattern = scores.softmax(-1)
        return self.out_proj((pattern @ v).transpose(1, 2).flatten(-2)), pattern


class KnownLayer(nn.Module):
    """Attention, then a ReLU MLP; each adds to the stream, no norm in between."""

    def __init__(self, config: KnownConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = KnownAttention(config, layer_idx)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = nn.ReLU()
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch pos d_model"],
        attention_mask: Bool[Tensor, "batch 1 pos total"],
        past_key_values: Cache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream after this block."""
        written, _ = self.self_attn(hidden_states, attention_mask=attention_mask, past_key_values=past_key_values)
        hidden_states = hidden_states + written
        return hidden_states + self.fc2(self.activation_fn(self.fc1(hidden_states)))


class NoNorm(nn.Identity):
    """Stands where other architectures have their final norm, so that methods can hook it."""

    eps = 0.0


class KnownForCausalLM(PreTrainedModel):
    """Token and position embeddings, blocks without norms, and an unembedding."""

    config_class = KnownConfig
    config: KnownConfig

    def __init__(self, config: KnownConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(KnownLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = NoNorm()
        self.lm_head = nn.Linear(config.hidden_size, config.output_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ pos"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, pos, output], of all positions or of the last `logits_to_keep`.

        `attention_mask` [batch, past + pos] is 1 at tokens that may be seen. Raises `ValueError` unless exactly one of
        `input_ids` and `inputs_embeds` is given, and for a cache in a model that is not causal: what came before would
        have to see what comes after.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if past_key_values is not None and not self.config.is_causal:
            raise ValueError("This model is not causal, so keys and values of a prefix cannot be kept.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None and self.config.is_causal:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        x = x + self.embed_positions(position_ids)
        visible = self._visible(x, past, attention_mask)
        for layer in self.layers:
            x = layer(x, attention_mask=visible, past_key_values=past_key_values)
        x = self.final_norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.lm_head(x[:, kept]), past_key_values=past_key_values)

    def _visible(self, x: Tensor, past: int, mask: Tensor | None) -> Bool[Tensor, "batch 1 pos total"]:
        """Which of the `past + pos` positions each of the new ones may see."""
        batch, pos = x.shape[:2]
        visible = torch.ones(pos, past + pos, dtype=torch.bool, device=x.device)
        if self.config.is_causal:
            visible = visible.tril(past)
        visible = visible.expand(batch, 1, -1, -1)
        return visible if mask is None else visible & mask[:, None, None].bool()


def known_file(name: str) -> Path:
    """The safetensors file of a known model. Raises `UnknownNameError`, which suggests near names."""
    if name not in KNOWN:
        raise unknown_name("known model", name, KNOWN)
    return FOLDER / f"{name}.safetensors"


def known_config(name: str) -> KnownConfig:
    """Shape and vocabulary of a known model, without its weights.

    Raises `UnknownNameError`, and `InputError` for a file that is missing or damaged.
    """
    path = known_file(name)
    try:
        with safe_open(path, "pt") as file:
            return KnownConfig(**json.loads(file.metadata()["config"]))
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The weights of {name} in {path} cannot be read: {error}. Install circuitome again."
        ) from error


def known_model(name: str) -> tuple[KnownForCausalLM, PreTrainedTokenizerFast]:
    """A known model with its weights, float32, and its tokenizer. Raises as `known_config` does."""
    config = known_config(name)
    hf = KnownForCausalLM(config)
    hf.load_state_dict(load_file(known_file(name)))
    config._name_or_path = name
    return hf.eval(), tokenizer_of(config)


def save_known(hf: KnownForCausalLM, path: Path) -> None:
    """Write weights, with the configuration as metadata, to one file."""
    names = [*KnownConfig.__annotations__]
    config = json.dumps({name: getattr(hf.config, name) for name in names})
    save_file({k: v.contiguous() for k, v in hf.state_dict().items()}, path, metadata={"config": config})


def tokenizer_of(config: KnownConfig) -> PreTrainedTokenizerFast:
    """A tokenizer that splits text at spaces and puts `BOS` in front."""
    vocabulary = {token: i for i, token in enumerate(config.vocabulary or [])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)
