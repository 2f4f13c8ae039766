"""A smaller model: fewer heads, neurons and blocks, in the architecture's own modules.

What is removed can leave its mean behind in a bias. Then the smaller model is the model with these parts ablated to
their mean, and without, the model with zero ablation; what stays is copied.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitome.editing.checkpoint import holds_mean, with_biases
from circuitome.errors import InputError, UnsupportedModelError
from circuitome.graph.node import Node
from circuitome.models.block import Block, as_stored, weight_of
from circuitome.models.model import Model
from circuitome.models.saving import write_checkpoint
from circuitome.models.slices import slices


@dataclass(frozen=True, eq=False)
class SmallerModel:
    """A model made of parts of a larger one."""

    model: Model
    """The smaller model."""
    before: Model
    """The model that it comes from."""

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers in the larger model's weights, and in the smaller one's."""
        large, small = (sum(p.numel() for p in model.hf.parameters()) for model in (self.before, self.model))
        return large, small

    def save(self, folder: str | Path) -> Path:
        """An ordinary Hugging Face checkpoint with the tokenizer, in `folder`, which must be new or empty."""
        return write_checkpoint(self.model, Path(folder))


@dataclass(frozen=True)
class BlockParts:
    """Parts of one block, by their numbers in the model that they come from."""

    layer: int
    """The block."""
    groups: tuple[int, ...]
    """Key/value heads, each with the query heads that read it."""
    neurons: tuple[int, ...]
    """Neurons of its MLP."""

    def heads(self, model: Model) -> list[int]:
        """The query heads."""
        each = model.heads.q // model.heads.kv
        return [group * each + i for group in self.groups for i in range(each)]

    def names(self, model: Model) -> list[str]:
        """Names of the heads and neurons."""
        heads = [Node.head(self.layer, head) for head in self.heads(model)]
        return [str(node) for node in (*heads, *(Node("neuron", self.layer, i) for i in self.neurons))]


def whole(model: Model) -> list[BlockParts]:
    """All parts of every block."""
    return [
        BlockParts(layer, tuple(range(model.heads.kv)), tuple(range(block.n_neurons)))
        for layer, block in enumerate(model.blocks)
    ]


def without(model: Model, parts: BlockParts) -> BlockParts:
    """The other heads and neurons of the block."""
    groups = set(range(model.heads.kv)) - set(parts.groups)
    neurons = set(range(model.blocks[parts.layer].n_neurons)) - set(parts.neurons)
    return BlockParts(parts.layer, tuple(sorted(groups)), tuple(sorted(neurons)))


def heads_go(model: Model) -> bool:
    """Whether the architecture can have fewer heads of the same width; else heads are set to zero, not cut."""
    return model.family.own_width


def cut(model: Model, kept: Sequence[BlockParts], means: Mapping[str, Tensor] | None = None) -> Model:
    """A copy with just the blocks and parts `kept`; removed heads and neurons leave `means` behind, 0 without.

    Means are by the part's name: [d_head] of a head's z, [] or [1] of a neuron. All blocks keep as many key/value heads
    and neurons, because configurations hold one number for all. Where an architecture cannot have fewer heads of the
    same width (GPT-2, NeoX, OPT, OLMo 2) the removed ones stay and write nothing; so does the last group, or neuron, of
    a block of which everything is removed.

    >>> model = cm.load("known-ioi")
    >>> parts = cm.applications.structure.whole(model)
    >>> cm.applications.cut(model, parts[:2]).graph.n_layers
    2

    Raises `InputError` for counts that differ between blocks, that the configuration refuses, for means of an
    architecture without a bias to hold them, and where no block is kept.
    """
    if not kept:
        raise InputError("No block would be left; keep at least one.")
    means = means or {}
    marked = _marked(model, kept, means)
    room = [_room(model, parts) for parts in kept]
    small = _empty(marked, room)
    with torch.no_grad():
        _fill(small, marked, room)
    return small


def _marked(model: Model, kept: Sequence[BlockParts], means: Mapping[str, Tensor]) -> Model:
    """A copy of whole size in which the removed parts of the kept blocks write constants alone."""
    needed: dict[str, set[int]] = {"attention": set(), "mlp": set()}
    for name in means:
        node = Node.parse(name)
        needed["attention" if node.kind == "head" else "mlp"].add(node.layer)
    for kind, layers in (("head", needed["attention"]), ("neuron", needed["mlp"])):
        if layers and not holds_mean(model, kind):
            raise InputError(
                f"The architecture of {model.name} ({model.hf.config.model_type}) has no bias that could hold the mean "
                f"of {kind}s which are removed. Remove them without means."
            )
    copied = with_biases(model, needed)
    with torch.no_grad():
        for parts in kept:
            _silence(copied, without(model, parts), means)
    return copied


def _silence(model: Model, parts: BlockParts, means: Mapping[str, Tensor]) -> None:
    """Zero the columns of some parts; their means go into the biases."""
    block, width, heads = model.blocks[parts.layer], model.heads.width, parts.heads(model)
    sides = [(block.output, [Node.head(parts.layer, head) for head in heads], width)]
    if parts.neurons:
        sides.append((block.mlp_writer, [Node("neuron", parts.layer, i) for i in parts.neurons], 1))
    for module, nodes, size in sides:
        if not nodes:
            continue
        weight: Any = weight_of(module)
        by_part = weight.unflatten(1, (-1, size))
        index = torch.tensor([node.index for node in nodes], device=weight.device)
        named = [(i, means[str(node)]) for i, node in enumerate(nodes) if str(node) in means]
        if named:
            constants = torch.stack([value.expand(size) for _, value in named]).to(weight.device)
            columns = by_part[:, index[[i for i, _ in named]]].double()
            bias: Any = module.bias
            bias.copy_(bias.double() + torch.einsum("dnw,nw->d", columns, constants.double()))
        by_part.index_fill_(1, index, 0.0)


def _room(model: Model, parts: BlockParts) -> BlockParts:
    """What has a place in the smaller model: the kept parts, and those that cannot go."""
    groups = parts.groups if heads_go(model) else tuple(range(model.heads.kv))
    return replace(parts, groups=groups or (0,), neurons=parts.neurons or (0,))


def smaller_config(model: Model, blocks: Sequence[int], groups: int, neurons: int, width: int | None = None) -> Any:
    """The model's configuration with fewer blocks, key/value heads and neurons, and a narrower stream.

    Raises what the architecture raises.
    """
    config: Any = model.hf.config
    own = {field.name for field in fields(config)}
    values = {name: v for name, v in config.to_dict().items() if name in own or name in vars(config)}
    if len(blocks) != config.num_hidden_layers:
        values[own_name(config, "num_hidden_layers")] = len(blocks)
        if (types := getattr(config, "layer_types", None)) is not None:
            values["layer_types"] = [types[i] for i in blocks]
    if groups != model.heads.kv:
        values[own_name(config, "num_attention_heads")] = groups * (model.heads.q // model.heads.kv)
        values["head_dim"] = model.heads.width
        if getattr(config, "num_key_value_heads", None) is not None:
            values["num_key_value_heads"] = groups
    if neurons != model.blocks[0].n_neurons:
        name = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(config.model_type, "intermediate_size")
        values[name] = neurons
    if width is not None and width != model.d_model:
        values[own_name(config, "hidden_size")] = width
        values["head_dim"] = model.heads.width
        if config.model_type == "opt":
            values["word_embed_proj_dim"] = width
    made = type(config)(**{name: value for name, value in values.items() if name in own})
    for name in values.keys() - own:
        if not name.startswith("_") and name != "transformers_version":
            setattr(made, name, values[name])
    return made


def own_name(config: Any, name: str) -> str:
    """What the architecture itself calls an option."""
    return str(getattr(config, "attribute_map", {}).get(name, name))


def groups_allowed(model: Model, groups: int) -> bool:
    """Whether the architecture's configuration takes so many key/value heads."""
    try:
        smaller_config(model, range(len(model.blocks)), groups, model.blocks[0].n_neurons)
    except ValueError:
        return False
    return True


def _empty(model: Model, room: Sequence[BlockParts]) -> Model:
    """A model of the smaller shape, its weights not yet set."""
    sizes = {(len(parts.groups), len(parts.neurons)) for parts in room}
    if len(sizes) > 1:
        shown = ", ".join(f"{groups} and {neurons}" for groups, neurons in sorted(sizes))
        raise InputError(
            f"A configuration of {model.hf.config.model_type} holds one number of key/value heads and one of neurons "
            f"for all blocks; these would be {shown}. Remove as many of each block."
        )
    layers = [parts.layer for parts in room]
    if len(layers) < len(model.blocks) and getattr(model.hf.config, "scale_attn_by_inverse_layer_idx", False):
        raise UnsupportedModelError(f"{model.name} divides attention by the block's number, so no block can go.")
    groups, neurons = sizes.pop()
    try:
        config = smaller_config(model, layers, groups, neurons)
    except ValueError as error:
        raise InputError(f"{model.name} cannot have {groups} key/value heads a block: {error}") from error
    return unset(model, config)


def unset(model: Model, config: Any) -> Model:
    """A model of another configuration, its weights still to be set; dtype, device, mode and tokenizer stay."""
    model.check_open("Making a smaller model of it")
    with torch.random.fork_rng(devices=[]):
        kind: Any = type(model.hf)
        hf = kind._from_config(config, dtype=model.dtype)  # .to(dtype) would round rotary frequencies too
    hf = hf.to(model.device).train(model.hf.training)
    if hasattr(model.hf, "generation_config"):
        hf.generation_config = copy.deepcopy(model.hf.generation_config)
    if getattr(config, "_attn_implementation", None) != model.hf.config._attn_implementation:
        hf.set_attn_implementation(model.hf.config._attn_implementation)
    return Model(hf, model.tokenizer, model.name)


def _fill(small: Model, model: Model, room: Sequence[BlockParts]) -> None:
    """Copy all weights, of projections those of the parts that have a place."""
    names = {module: name for name, module in small.hf.named_modules()}
    state, blocks = dict[str, Tensor](), {}
    for new, parts in zip(small.blocks, room, strict=True):
        blocks[names[new.layer]] = model.blocks[parts.layer]
        state |= _of_block(names[new.layer], model.blocks[parts.layer], parts, parts.heads(model))
    inside = tuple(f"{name}." for name in (_path(model, block) for block in model.blocks))
    outside = {name: value for name, value in model.hf.state_dict().items() if not name.startswith(inside)}
    small.hf.load_state_dict({**outside, **state})


def _path(model: Model, block: Block) -> str:
    return next(name for name, module in model.hf.named_modules() if module is block.layer)


def _of_block(path: str, block: Block, parts: BlockParts, heads: Sequence[int]) -> dict[str, Tensor]:
    """Weights of a block in the smaller model, by their names there."""
    state = dict(block.layer.state_dict())
    names = {module: name for name, module in block.layer.named_modules()}
    for part in slices(block, heads, parts.groups, parts.neurons):
        name, weight = names[part.module], weight_of(part.module).detach()
        index = part.index.to(weight.device)
        state[f"{name}.weight"] = as_stored(part.module, weight.index_select(0 if part.rows else 1, index))
        if part.rows and f"{name}.bias" in state:
            state[f"{name}.bias"] = state[f"{name}.bias"][index]
    return {f"{path}.{name}": value for name, value in state.items()}
