"""Edits written into weights: an ordinary Hugging Face checkpoint that behaves as the edited model does.

A part's output is linear in its last weights, so zeros and factors go into columns of these, constants and added
vectors into their bias, and a removed direction r into W - r (r . W) of all that writes, embeddings included. Biases
that an architecture can have and this model has not (Llama's `attention_bias`, `mlp_bias`) are switched on.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitome.editing.changes import Added, Change, Removed, Replaced, Scaled
from circuitome.editing.edit import Edit
from circuitome.engine.interventions.replace_parts import part_groups
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.block import Block, weight_of
from circuitome.models.model import Model
from circuitome.models.saving import check_empty, write_checkpoint

PROBE = 24
"""Tokens of the prompt on which the checkpoint is compared with the edited model."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest difference of logits, as a share of the largest logit; .05 in half precision."""
SWITCHES = {"attention": "attention_bias", "mlp": "mlp_bias"}
"""Options of a configuration that give the last projection of a part a bias."""


def save_edited(edit: Edit, model: Model, folder: Path) -> Path:
    """`Edit.save`: writes the checkpoint and gives its folder.

    Exact for parts scaled or replaced by constants, vectors added to the stream behind a block, and directions removed,
    all at every position. Heads in front of a post-norm and directions under post-norms cannot be: there the divisor
    depends on the rest.
    """
    check_empty(folder)
    return write_checkpoint(written_into(edit, model), folder)


def written_into(edit: Edit, model: Model) -> Model:
    """A copy of the model whose weights are those of the edited one. Raises as `Edit.save`."""
    for change in edit.changes:
        _check(change, model)
    copied = with_biases(model, _biases(edit, model))
    with torch.no_grad():
        for change in edit.changes:
            _write(change, copied)
    _compare(edit, model, copied)
    return copied


def _check(change: Change, model: Model) -> None:
    """Raises `InputError` for what no weight can hold."""
    if not isinstance(change, Replaced | Scaled | Added | Removed):
        raise InputError(
            f"{change}: that depends on the activations, so no weights can hold it. Use model.edited(edit)."
        )
    if change.at != "all":
        raise InputError(f"{change}, at {change.at!r}: weights act at every position. Make the edit with at='all'.")
    block = model.blocks[0]
    if isinstance(change, Removed | Added) and (block.attention_post or block.mlp_post):
        raise InputError(
            f"{change}: behind the post-norms of {model.name} no weights write that. Use model.edited(edit)."
        )
    heads = isinstance(change, Replaced | Scaled) and any(node.kind == "head" for node, _ in _parts(change, model))
    if heads and block.attention_post:
        raise InputError(
            f"{change}: the post-norm of {model.name} divides all heads of a block together, so no weights change one "
            "alone. Use model.edited(edit)."
        )


def _parts(change: Replaced | Scaled, model: Model) -> Iterator[tuple[Node, Tensor | float]]:
    """The parts, each with its constant or factor."""
    values = change.values if isinstance(change, Replaced) else dict.fromkeys(change.parts, change.factor)
    for name, value in values.items():
        yield part_groups(model, name)[0][0], value


def _biases(edit: Edit, model: Model) -> dict[str, set[int]]:
    """Blocks whose attention or MLP must have a bias."""
    needed: dict[str, set[int]] = {"attention": set(), "mlp": set()}
    for change in edit.changes:
        if isinstance(change, Added):
            kind, layer = _writer_before(model, change.site)
            needed[kind].add(layer)
        if isinstance(change, Replaced):
            for node, value in _parts(change, model):
                if isinstance(value, Tensor) and bool(value.any()):
                    needed["attention" if node.kind == "head" else "mlp"].add(node.layer)
    return needed


def _writer_before(model: Model, site: str) -> tuple[str, int]:
    """Which projection's bias is added to the stream at a site, after which nothing else is until there."""
    if site == "embed":
        raise InputError("A vector added in front of block 0 has no bias to go into. Add it at a0.resid_post or later.")
    part, _, what = site.rpartition(".")
    layer = len(model.blocks) - 1 if site == "final" else Node.parse(part).layer
    if what == "resid_pre":
        layer -= 1
    if layer < 0:
        return _writer_before(model, "embed")
    if what == "resid_mid" or not model.graph.mlps:
        return "attention", layer
    return "mlp", layer


def holds_mean(model: Model, kind: str) -> bool:
    """Whether a bias can hold what heads or neurons write in the mean: `kind` is head or neuron.

    Behind a post-norm it cannot: the norm divides what is written by what all write together.
    """
    part, block = ("attention" if kind == "head" else "mlp"), model.blocks[0]
    if (block.attention_post if kind == "head" else block.mlp_post) is not None:
        return False
    return _last(block, part).bias is not None or getattr(model.hf.config, SWITCHES[part], None) is False


def with_biases(model: Model, needed: dict[str, set[int]]) -> Model:
    """A copy of the model whose projections have the biases that are needed, 0 where they are new."""
    missing = _without_bias(model, needed)
    if not missing:
        return model.copied("An edited checkpoint")
    model.check_open("An edited checkpoint")
    config: Any = copy.deepcopy(model.hf.config)
    for kind in missing:
        setattr(config, SWITCHES[kind], True)
    architecture: Any = type(model.hf)
    hf = architecture._from_config(config, dtype=model.hf.dtype)  # .to(dtype) would round rotary frequencies too
    hf = hf.to(model.device).train(model.hf.training)
    hf.generation_config = copy.deepcopy(model.hf.generation_config)
    copied = Model(hf, model.tokenizer, model.name)
    if lacking := _without_bias(copied, needed):
        raise InputError(
            f"The architecture of {model.name} ({config.model_type}) has no bias behind its {lacking[0]} in which a "
            "constant could be written. Use value='zero', or model.edited(edit)."
        )
    with torch.no_grad():
        for key in hf.load_state_dict(model.hf.state_dict(), strict=False).missing_keys:
            hf.get_parameter(key).zero_()  # the new biases
    return copied


def _without_bias(model: Model, needed: dict[str, set[int]]) -> list[str]:
    """The kinds of parts that lack a bias which is needed."""
    return [kind for kind, layers in needed.items() if any(_last(model.blocks[i], kind).bias is None for i in layers)]


def _last(block: Block, kind: str) -> Any:
    """The projection that writes to the stream."""
    return block.output if kind == "attention" else block.mlp_writer


def _write(change: Change, model: Model) -> None:
    """Change the weights of `model`."""
    if isinstance(change, Removed):
        _remove(change.direction / change.direction.norm(), model)
    elif isinstance(change, Added):
        kind, layer = _writer_before(model, change.site)
        bias = _last(model.blocks[layer], kind).bias
        bias += change.vector.to(bias)
    elif isinstance(change, Replaced | Scaled):
        for node, value in _parts(change, model):
            factor, constant = (0.0, value) if isinstance(value, Tensor) else (value, None)
            _part(model.blocks[node.layer], node, factor, constant)


def _part(block: Block, node: Node, factor: float, constant: Tensor | None) -> None:
    """One part times a factor, plus a constant."""
    if node.kind == "embed":
        raise InputError("What the embedding writes is read by the unembedding as well. Use model.edited(edit).")
    if node.kind == "mlp":
        _whole_mlp(block, factor, constant)
        return
    projection = _last(block, "attention" if node.kind == "head" else "mlp")
    width = block.heads.width if node.kind == "head" else 1
    columns = weight_of(projection)[:, node.index * width : (node.index + 1) * width]
    if constant is not None and bool(constant.any()):
        projection.bias += columns @ constant.to(columns).expand(width)
    columns *= factor


def _whole_mlp(block: Block, factor: float, constant: Tensor | None) -> None:
    """All that an MLP adds to the stream, times a factor, plus a constant; behind a post-norm by its gain."""
    shifted = constant is not None and bool(constant.any())
    if block.mlp_post is not None:
        if shifted:
            raise InputError("Behind a post-norm no weights add a constant to an MLP. Use model.edited(edit).")
        gain: Any = block.mlp_post.module.weight
        gain.copy_(factor * (gain + block.mlp_post.gain_offset) - block.mlp_post.gain_offset)
        return
    weight_of(block.mlp_writer).mul_(factor)
    bias: Any = block.mlp_writer.bias
    if bias is not None:
        bias *= factor
    if shifted and constant is not None:
        bias += constant.to(bias)


def _remove(unit: Tensor, model: Model) -> None:
    """Project a direction out of everything that writes to the stream; the unembedding keeps its weights."""
    hf: Any = model.hf
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        hf.config.tie_word_embeddings = False
        head.weight = nn.Parameter(embedding.weight.detach().clone())
    for module in hf.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.d_model:
            _project(module.weight, unit, rows=True)
    for block in model.blocks:
        for kind in ("attention", "mlp") if model.graph.mlps else ("attention",):
            projection = _last(block, kind)
            _project(weight_of(projection), unit, rows=False)
            if projection.bias is not None:
                _project(projection.bias[None], unit, rows=True)


def _project(weight: Tensor, unit: Tensor, *, rows: bool) -> None:
    """Take a direction out of a weight's rows, or columns, in double precision."""
    exact, r = weight.double(), unit.to(weight.device).double()
    weight.copy_(exact - (exact @ r)[:, None] * r if rows else exact - r[:, None] * (r @ exact))


def _compare(edit: Edit, model: Model, copied: Model) -> None:
    """Raises `InputError` unless the copy gives the edited model's logits."""
    size = model.hf.config.vocab_size
    ids = torch.randint(size, (1, PROBE), generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        with edit.applied(model):
            expected = model.hf(ids).logits.float()
        found = copied.hf(ids).logits.float()
    apart = float((found - expected).abs().max() / expected.abs().max())
    if not math.isfinite(apart) or apart > TOLERANCE.get(model.dtype, 0.05):
        raise InputError(
            f"Written into weights, these changes give other logits than in force (by {apart:.1e} of the largest): "
            f"{edit}. Changes of one part after another may not go into weights; make one of them."
        )
