"""Compile programs of tracr's library and write them as circuitome models: python scripts/compile_tracr.py

Needs scripts/requirements.txt, and circuitome itself. tracr (Lindner et al. 2023, arXiv:2301.05062; Apache-2.0) is
used as it comes; its compiled matrices are copied into `KnownForCausalLM`, whose outputs are then compared with
tracr's on every input, or on 300 drawn ones where there are more. Nothing is written unless they agree.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from tracr.compiler import compiling, lib
from tracr.compiler.assemble import AssembledTransformerModel
from tracr.rasp import rasp

from circuitome.models.known import BOS, FOLDER, KnownConfig, KnownForCausalLM, save_known

TOKENS = rasp.tokens
LENGTH = 5
"""Longest input: the length of the published reverse and xproportion models (Conmy et al. 2023)."""
TOLERANCE = 1e-4
AT_MOST = 300
"""Inputs that one model is compared on."""


@dataclass(frozen=True)
class Program:
    """A program and what it is compiled for."""

    build: Callable[[], rasp.SOp]
    """Makes the program; tracr's graphs are changed while they are compiled, so each needs a new one."""
    tokens: tuple[object, ...]
    """Its input tokens."""


PROGRAMS = {
    "tracr-reverse": Program(lambda: lib.make_reverse(TOKENS), (1, 2, 3)),
    "tracr-frac-prevs": Program(lambda: lib.make_frac_prevs((TOKENS == "x").named("is_x")), tuple("wxyz")),
    "tracr-length": Program(lib.make_length, tuple("abc")),
    "tracr-hist": Program(lib.make_hist, tuple("abc")),
    "tracr-count": Program(lambda: lib.make_count(TOKENS, "a"), tuple("abc")),
    "tracr-count-less-freq": Program(lambda: lib.make_count_less_freq(2), tuple("abc")),
    "tracr-sort": Program(lambda: lib.make_sort(TOKENS, TOKENS, max_seq_len=LENGTH, min_key=1), (1, 2, 3)),
    "tracr-sort-unique": Program(lambda: lib.make_sort_unique(TOKENS, TOKENS), (1, 2, 3, 4, 5)),
    "tracr-sort-freq": Program(lambda: lib.make_sort_freq(LENGTH), (1, 2, 3)),
    "tracr-pair-balance": Program(lambda: lib.make_pair_balance(TOKENS, "(", ")"), tuple("()a")),
    "tracr-shuffle-dyck": Program(lambda: lib.make_shuffle_dyck(["()"]), tuple("()")),
    "tracr-shift-by": Program(lambda: lib.shift_by(1, TOKENS), tuple("abc")),
    "tracr-detect-pattern": Program(lambda: lib.detect_pattern(TOKENS, "abc"), tuple("abc")),
}


def compiled(program: Program) -> AssembledTransformerModel:
    """Tracr's own model of a program."""
    return compiling.compile_rasp_to_model(
        program.build(), set(program.tokens), LENGTH, causal=False, compiler_bos=BOS, mlp_exactness=100
    )


def vocabulary_of(model: AssembledTransformerModel, program: Program) -> list[str]:
    """BOS, the input tokens, and the outputs that are no inputs."""
    names = [BOS, *map(str, program.tokens)]
    return list(dict.fromkeys([*names, *map(str, outputs_of(model))]))


def outputs_of(model: AssembledTransformerModel) -> list[object]:
    """Output values in the order of tracr's unembedding; none for a program that gives a number."""
    codes = getattr(model.output_encoder, "encoding_map", {})
    return sorted(codes, key=codes.__getitem__)


def converted(model: AssembledTransformerModel, program: Program) -> KnownForCausalLM:
    """The same transformer as a circuitome model.

    Token rows are put in the order of our vocabulary (tracr's padding token goes: masks do its work), and the
    unembedding, which tracr keeps as a projection on the directions named after the output, becomes a matrix.
    """
    shape, params, outputs = model.model_config, model.params, outputs_of(model)
    vocabulary = vocabulary_of(model, program)
    positions = np.asarray(params["pos_embed"]["embeddings"])
    config = KnownConfig(
        vocab_size=len(vocabulary),
        hidden_size=positions.shape[1],
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        head_dim=shape.key_size,
        intermediate_size=shape.mlp_hidden_size,
        max_position_embeddings=len(positions),
        attention_scale=shape.key_size**-0.5,
        is_causal=False,
        output_size=len(vocabulary) if outputs else 1,
        vocabulary=vocabulary,
    )
    hf = KnownForCausalLM(config).eval()
    state = {name: torch.zeros_like(tensor) for name, tensor in hf.state_dict().items()}
    rows = np.asarray(params["token_embed"]["embeddings"])
    codes = model.input_encoder.encoding_map
    for token in (BOS, *program.tokens):
        state["embed_tokens.weight"][vocabulary.index(str(token))] = torch.tensor(rows[codes[token]])
    state["embed_positions.weight"] = torch.tensor(positions)
    for layer in range(shape.num_layers):
        for ours, theirs in {
            "self_attn.q_proj": "attn/query",
            "self_attn.k_proj": "attn/key",
            "self_attn.v_proj": "attn/value",
            "self_attn.out_proj": "attn/linear",
            "fc1": "mlp/linear_1",
            "fc2": "mlp/linear_2",
        }.items():
            matrix = params[f"transformer/layer_{layer}/{theirs}"]
            state[f"layers.{layer}.{ours}.weight"] = torch.tensor(np.asarray(matrix["w"])).T
            state[f"layers.{layer}.{ours}.bias"] = torch.tensor(np.asarray(matrix["b"]))
    projection = torch.tensor(unembedding(model, positions.shape[1]))
    for column, output in enumerate(outputs or [0]):
        state["lm_head.weight"][vocabulary.index(str(output)) if outputs else 0] = projection[:, column]
    hf.load_state_dict(state)
    return hf


def unembedding(model: AssembledTransformerModel, d_model: int) -> np.ndarray:
    """Tracr's unembedding [d_model, outputs], read off by unembedding each direction of the stream."""
    import haiku as hk

    def read_off(x: jnp.ndarray) -> jnp.ndarray:
        return model.get_compiled_model().unembed(x, use_unembed_argmax=False)

    apply = hk.without_apply_rng(hk.transform(read_off)).apply
    matrix = np.asarray(apply({}, jnp.eye(d_model)[None]))[0]
    return matrix if matrix.ndim == 2 else matrix[:, None]


def inputs_of(program: Program) -> list[tuple[object, ...]]:
    """Inputs of every length; drawn where there are many."""
    every = [row for length in range(1, LENGTH + 1) for row in product(program.tokens, repeat=length)]
    return random.Random(0).sample(every, min(AT_MOST, len(every)))


def worst_difference(model: AssembledTransformerModel, hf: KnownForCausalLM, program: Program) -> float:
    """Largest difference between our logits and tracr's unembedded stream, over all positions but BOS."""
    project, vocabulary, outputs = unembedding(model, hf.config.hidden_size), hf.config.vocabulary, outputs_of(model)
    rows = [vocabulary.index(str(output)) for output in outputs] or [0]
    worst = 0.0
    for tokens in inputs_of(program):
        theirs = np.asarray(model.apply([BOS, *tokens]).transformer_output)[0] @ project
        with torch.no_grad():
            ids = torch.tensor([[0, *(vocabulary.index(str(token)) for token in tokens)]])
            ours = hf(input_ids=ids).logits[0][:, rows].numpy()
        worst = max(worst, float(np.abs(ours - theirs)[1:].max()))
    return worst


def main() -> None:
    """Compile, compare, write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", default=list(PROGRAMS), help="models to make; all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    arguments = parser.parse_args()
    for name in arguments.names:
        model = compiled(PROGRAMS[name])
        hf = converted(model, PROGRAMS[name])
        worst = worst_difference(model, hf, PROGRAMS[name])
        if worst > TOLERANCE:
            raise SystemExit(f"{name}: outputs differ from tracr's by {worst:.1e}; nothing was written.")
        path = arguments.folder / f"{name}.safetensors"
        save_known(hf, path)
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB, within {worst:.1e} of tracr")


if __name__ == "__main__":
    main()
