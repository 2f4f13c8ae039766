"""A narrower and shallower model whose weights are a larger one's, cut along all axes, scaled for what was cut.

The residual stream has one set of coordinates, so the same are kept everywhere. A projection that has lost inputs is
multiplied by one number, and so is a norm's gain, since a norm divides by a size that other coordinates decided too:

    fan-in   a projection by sqrt(inputs before / inputs after), which keeps the spread of what it gives as far as
             inputs are alike and independent (Samragh et al. 2023, arXiv:2312.09299); a norm by what gives the kept
             coordinates behind it their size on texts
    fitted   norms likewise; a projection by what brings its kept outputs on texts nearest to those before, < y, y' > /
             < y', y' > with y' what the kept inputs alone give; at last the final norm by what gives the smaller model
             the least loss on texts, since what is left of a model is surer of itself than it should be
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from circuitome.applications.structure import BlockParts, smaller_config, unset
from circuitome.engine.batches import memory_budget, tokens_within
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.models.block import Block, weight_of
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.models.norms import Norm
from circuitome.models.slices import slices
from circuitome.neurons.text_windows import Windows

Factors = Mapping[nn.Module, float]
"""By projection or norm of the larger model, what its kept weights are multiplied by; others stay."""
NORMS = ("attention_norm", "attention_post", "mlp_norm", "mlp_post")
"""A block's norms on the residual stream."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What of a model goes into a smaller one; indices are those of the larger model, in the order of the smaller."""

    stream: Int[Tensor, " width"]
    """Coordinates of the residual stream."""
    blocks: tuple[BlockParts, ...]
    """Blocks, each with its key/value heads and neurons."""

    def projections(self, model: Model) -> list[tuple[nn.Module, Tensor | None, Tensor]]:
        """Every projection of the kept blocks, and the unembedding, with its kept rows (None: all) and columns."""
        cut: list[tuple[nn.Module, Tensor | None, Tensor]] = [(model.unembedding, None, self.stream)]
        for parts in self.blocks:
            for part in slices(model.blocks[parts.layer], parts.heads(model), parts.groups, parts.neurons):
                ends = (part.index, self.stream) if part.rows else (self.stream, part.index)
                cut.append((part.module, *ends))
        return cut

    def norms(self, model: Model) -> list[Norm]:
        """Every norm of the stream that has weights, in the kept blocks and at the end."""
        every = [getattr(model.blocks[parts.layer], name) for parts in self.blocks for name in NORMS]
        return [norm for norm in (*every, model.final_norm) if norm is not None and hasattr(norm.module, "weight")]


def fan_in(model: Model, kept: Kept) -> dict[nn.Module, float]:
    """By projection, the root of its inputs before over those after."""
    return {
        module: (weight_of(module).shape[1] / len(columns)) ** 0.5 for module, _, columns in kept.projections(model)
    }


@torch.no_grad()
def measured(setting: Setting, texts: Windows, kept: Kept, *, projections: bool) -> dict[nn.Module, float]:
    """By norm, and with `projections` by projection as well, the number on texts that the module's docstring says."""
    model, sums = setting.model, dict[nn.Module, Tensor]()

    def add(module: nn.Module, whole: Tensor, alone: Tensor, real: Tensor, fit: bool) -> None:
        """Upper and lower part of the factor's formula, or of its square."""
        upper = whole * (alone if fit else whole)
        both = torch.stack([(values * real.view(-1, 1)).sum() for values in (upper, alone * alone)]).double().cpu()
        sums[module] = sums.get(module, 0) + both

    def of_norm(norm: Norm, real: Tensor, module: nn.Module, args: tuple[Any, ...]) -> None:
        x, index = args[0].flatten(0, -2), kept.stream.to(args[0].device)
        gain = norm.gain.to(x.device)
        whole = (norm.centre(x) / norm.sigma(x) * gain)[:, index]
        add(module, whole, norm.centre(x[:, index]) / norm.sigma(x[:, index]) * gain[index], real, False)

    def of_projection(rows: Tensor, columns: Tensor, real: Tensor, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2)
        weight = weight_of(module)[rows.to(x.device)]
        index = columns.to(x.device)
        add(module, (x @ weight.T).float(), (x[:, index] @ weight[:, index].T).float(), real, True)

    some = max(1, tokens_within(model, setting.max_memory, gradients=False) // texts.length)
    for start in range(0, len(texts), some):
        inputs = texts.inputs(model, range(start, min(start + some, len(texts))))
        hooks: list[tuple[Any, Any]] = [
            (norm.module, partial(of_norm, norm, inputs.real())) for norm in kept.norms(model)
        ]
        for module, rows, columns in kept.projections(model) if projections else ():
            if rows is None:  # of the unembedding, some tokens stand for all
                rows = torch.arange(0, len(weight_of(module)), max(1, len(weight_of(module)) // 1024))
            hooks.append((module, partial(of_projection, rows, columns, inputs.real())))
        with ExitStack() as stack:
            for module, look in hooks:
                stack.enter_context(hooked(module.register_forward_pre_hook, look))
            model.every_logits(inputs)
        setting.progress("sizes behind what is cut", min(start + some, len(texts)), len(texts))
    norms = {norm.module for norm in kept.norms(model)}
    return {
        module: float((upper / lower).sqrt() if module in norms else upper / lower)
        for module, (upper, lower) in sums.items()
        if lower > 0
    }


TEMPERATURES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08)
"""What logits may be multiplied by."""


@torch.no_grad()
def tempered(setting: Setting, texts: Windows) -> float:
    """The number of `TEMPERATURES` that gives the model the least loss on texts as a factor of its logits."""
    model, sums = setting.model, torch.zeros(len(TEMPERATURES), dtype=torch.double)
    each = texts.length * (16 * int(model.hf.config.vocab_size) + model.bytes_per_token(gradients=False))
    some = max(1, memory_budget(setting.model, setting.max_memory) // each)
    for start in range(0, len(texts), some):
        inputs = texts.inputs(model, range(start, min(start + some, len(texts))))
        logits, real = model.every_logits(inputs)[:, :-1].float(), inputs.real()[:, 1:]
        for i, factor in enumerate(TEMPERATURES):
            flat = cross_entropy((factor * logits).flatten(0, 1), inputs.ids[:, 1:].flatten(), reduction="none")
            sums[i] += float((flat * real.flatten()).sum())
    return TEMPERATURES[int(sums.argmin())]


def narrowed(model: Model, kept: Kept, factors: Factors | None = None) -> Model:
    """A model of the smaller shape that holds the kept weights times `factors`; with everything kept it is a copy.

    Raises `InputError` for a width that the architecture cannot have with these heads.
    """
    small = _empty(model, kept)
    with torch.no_grad():
        _fill(small, model, kept, factors or {})
    return small


def _empty(model: Model, kept: Kept) -> Model:
    """A model of the smaller shape, its weights not yet set."""
    parts, width = kept.blocks[0], len(kept.stream)
    layers, heads = [block.layer for block in kept.blocks], len(parts.heads(model))
    said = f"{model.name} cannot have a width of {width} with {heads} heads"
    try:
        config = smaller_config(model, layers, len(parts.groups), len(parts.neurons), width)
        small = unset(model, config)
    except ValueError as error:
        raise InputError(f"{said}: {error}") from error
    if weight_of(small.blocks[0].output).shape[1] != heads * model.heads.width:
        raise InputError(
            f"{said}: in this architecture ({model.hf.config.model_type}) the width is the number of heads times "
            f"{model.heads.width}, what each has. Choose {heads * model.heads.width}, or other heads."
        )
    return small


def _fill(small: Model, model: Model, kept: Kept, factors: Factors) -> None:
    """Set all weights of the smaller model."""
    embedding, head = model.hf.get_input_embeddings(), model.unembedding
    # Gemma multiplies embeddings by the root of the width, so that a narrower one needs larger ones.
    at_embedding = (model.d_model / len(kept.stream)) ** 0.5 if hasattr(embedding, "embed_scale") else 1.0
    for name, module in model.hf.named_modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.d_model:
            factor = at_embedding if module is embedding else 1.0
            _cut(small.hf.get_submodule(name), module, None, kept.stream, factor)
    at_end = factors.get(head, 1.0)
    if head.weight is embedding.weight:  # what the unembedding is multiplied by goes into the norm in front of it
        at_end = at_end / at_embedding
    else:
        _cut(small.unembedding, head, None, kept.stream, at_end)
        at_end = 1.0
    _norm(small.final_norm, model.final_norm, kept.stream, factors.get(model.final_norm.module, 1.0) * at_end, at_end)
    for new, parts in zip(small.blocks, kept.blocks, strict=True):
        _block(new, model.blocks[parts.layer], parts, parts.heads(model), kept.stream, factors)


def _block(new: Block, old: Block, parts: BlockParts, heads: Sequence[int], stream: Tensor, factors: Factors) -> None:
    """Set the weights of one block."""
    modules = dict(zip(old.layer.modules(), new.layer.modules(), strict=True))
    for part in slices(old, heads, parts.groups, parts.neurons):
        rows, columns = (part.index, stream) if part.rows else (stream, part.index)
        _cut(modules[part.module], part.module, rows, columns, factors.get(part.module, 1.0))
    for name in NORMS:
        if (norm := getattr(old, name)) is not None:
            _norm(getattr(new, name), norm, stream, factors.get(norm.module, 1.0))
    width = old.heads.width
    for norm, other, kept in zip(old.qk_norms, new.qk_norms, (heads, parts.groups), strict=False):
        weight: Any = norm.module.weight
        whole = len(weight) == width  # one gain for all heads, or one for each
        index = [*range(width)] if whole else [i * width + j for i in kept for j in range(width)]
        _norm(other, norm, torch.tensor(index), 1.0)


def _norm(new: Norm, old: Norm, index: Tensor, factor: float, of_bias: float = 1.0) -> None:
    """Set a norm's gain, times a factor, and its bias."""
    target: Any = new.module
    if not hasattr(target, "weight"):
        return
    weight: Any = old.module.weight
    target.weight.copy_((weight[index.to(weight.device)] + old.gain_offset) * factor - old.gain_offset)
    if (bias := getattr(old.module, "bias", None)) is not None:
        target.bias.copy_(bias[index.to(bias.device)] * of_bias)


def _cut(new: Any, old: Any, rows: Tensor | None, columns: Tensor, factor: float) -> None:
    """Set a projection's weight to some rows and columns of another times a factor, and its bias to these rows."""
    weight = weight_of(old)
    chosen = weight if rows is None else weight[rows.to(weight.device)]
    weight_of(new).copy_(chosen[:, columns.to(weight.device)] * factor)
    if (bias := getattr(old, "bias", None)) is not None:
        new.bias.copy_(bias if rows is None else bias[rows.to(bias.device)])
