"""One row of data per architecture: where q, k, v, o, MLP and norms are, and which layouts are fused.

Paths are attribute names: `layers` and `final_norm` from the language model, all others from one block.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from circuitome.errors import UnsupportedModelError, unknown_name

Config = Any
"""A transformers configuration; its fields differ by architecture."""


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its parts."""

    model_types: tuple[str, ...]
    """`config.model_type` values that this row describes."""
    layers: str
    """The list of blocks."""
    final_norm: str
    """The norm before the unembedding; in a masked language model its head, which is more than a norm."""
    attention: str
    """The attention module of a block."""
    projections: tuple[str, ...]
    """Below `attention`: the q, k and v projections, or the one fused projection."""
    output: str
    """Below `attention`: the output projection."""
    mlp: tuple[str, ...]
    """The modules of a block that turn the MLP's normed input into its output, in order."""
    attention_norm: str | None
    """The norm in front of the attention; None where the attention reads the residual itself (OLMo 2)."""
    mlp_norm: str | None
    """The norm in front of the MLP; None as above."""
    attention_post_norm: str | None = None
    """The norm on the attention's output, before it is added to the residual (Gemma 2/3, OLMo 2)."""
    mlp_post_norm: str | None = None
    """The norm on the MLP's output, as above."""
    qk_norms: tuple[str, ...] = ()
    """Below `attention`: the norms on queries and keys (Qwen 3, Gemma 3, OLMo 2)."""
    activation: str = "mlp.act_fn"
    """The activation function of the MLP."""
    gated: bool = True
    """Whether the MLP's neurons are activation(gate) * up, both linear in its input; else activation(linear)."""
    fused: Literal["", "blocks", "interleaved"] = ""
    """How a fused projection lays out its outputs: all q, all k, all v; or q, k, v head by head (NeoX)."""
    gain_offset: float = 0.0
    """Added to a norm's weight before use: 1 for Gemma."""
    own_width: bool = False
    """Whether heads have a width of their own in the configuration, so that there can be fewer of the same width."""
    parallel: Callable[[Config], bool] = lambda config: False
    """Whether attention and MLP of a block read the same residual."""
    refusal: Callable[[Config], str] = lambda config: ""
    """Why a model of this architecture cannot be used, or an empty string."""
    sum_norms: tuple[str, str] | None = None
    """The norms on the stream itself, after the attention and after the MLP are added to it (BERT, RoBERTa)."""
    masked: bool = False
    """Whether it is a masked language model: every position sees all others, and a hidden token is predicted."""
    first_position: Callable[[Config], int] = lambda config: 0
    """The number of the first position: RoBERTa counts from behind that of padding."""


def _opt_refusal(config: Config) -> str:
    if not config.do_layer_norm_before:
        return "its blocks normalise the residual stream after each sum (do_layer_norm_before=False, as in OPT-350M)"
    if config.word_embed_proj_dim != config.hidden_size:
        return "its embeddings have another width than its residual stream (word_embed_proj_dim)"
    return ""


def _encoder_refusal(config: Config) -> str:
    return "it is a decoder (is_decoder=True), and only its masked language models are supported" * config.is_decoder


def _post_norm_refusal(config: Config) -> str:
    return "its attention output has a bias under a post-norm" if getattr(config, "attention_bias", False) else ""


_LLAMA = Family(
    model_types=("llama", "mistral", "qwen2"),
    layers="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    output="o_proj",
    mlp=("mlp",),
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    own_width=True,
)
_POST_NORMS = replace(
    _LLAMA,
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    refusal=_post_norm_refusal,
)
_GEMMA = replace(_POST_NORMS, model_types=("gemma2",), mlp_norm="pre_feedforward_layernorm", gain_offset=1.0)
_QK_NORMS = ("q_norm", "k_norm")
_OPT = Family(
    model_types=("opt",),
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    output="out_proj",
    mlp=("fc1", "activation_fn", "fc2"),
    activation="activation_fn",
    gated=False,
    attention_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    refusal=_opt_refusal,
)
_BERT = Family(
    model_types=("bert",),
    layers="bert.encoder.layer",
    final_norm="cls.predictions.transform",
    attention="attention",
    projections=("self.query", "self.key", "self.value"),
    output="output.dense",
    mlp=("intermediate", "output.dense"),
    activation="intermediate.intermediate_act_fn",
    gated=False,
    attention_norm=None,
    mlp_norm=None,
    sum_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    masked=True,
    refusal=_encoder_refusal,
)

FAMILIES: tuple[Family, ...] = (
    _LLAMA,
    replace(_LLAMA, model_types=("qwen3",), qk_norms=_QK_NORMS),
    replace(_LLAMA, model_types=("phi3",), projections=("qkv_proj",), fused="blocks", activation="mlp.activation_fn"),
    _GEMMA,
    replace(_GEMMA, model_types=("gemma3_text",), qk_norms=_QK_NORMS),
    # One norm over all heads' queries: with fewer heads its divisor is another.
    replace(
        _POST_NORMS, model_types=("olmo2",), attention_norm=None, mlp_norm=None, qk_norms=_QK_NORMS, own_width=False
    ),
    Family(
        model_types=("gpt2",),
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        projections=("c_attn",),
        fused="blocks",
        output="c_proj",
        mlp=("mlp",),
        activation="mlp.act",
        gated=False,
        attention_norm="ln_1",
        mlp_norm="ln_2",
        refusal=lambda config: "it has cross-attention" if config.add_cross_attention else "",
    ),
    Family(
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        projections=("query_key_value",),
        fused="interleaved",
        output="dense",
        mlp=("mlp",),
        activation="mlp.act",
        gated=False,
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        parallel=lambda config: bool(config.use_parallel_residual),
    ),
    _OPT,
    _BERT,
    replace(
        _BERT,
        model_types=("roberta",),
        layers="roberta.encoder.layer",
        final_norm="lm_head",
        first_position=lambda config: int(config.pad_token_id) + 1,
    ),
    replace(
        _OPT,
        model_types=("circuitome_known",),
        layers="layers",
        final_norm="final_norm",
        attention_norm=None,
        mlp_norm=None,
        own_width=True,
        refusal=lambda config: "",
    ),
)


def supported() -> tuple[str, ...]:
    """The `model_type` of every supported architecture."""
    return tuple(name for family in FAMILIES for name in family.model_types)


def family_of(config: Config) -> Family:
    """The row for a model's configuration. Raises `UnsupportedModelError`, which lists what is supported."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            if reason := family.refusal(config):
                raise UnsupportedModelError(f"This {config.model_type} model cannot be used: {reason}.")
            return family
    near = unknown_name("supported architecture", config.model_type, supported())
    raise UnsupportedModelError(f"{near} A row in circuitome/models/families.py would add it.")
