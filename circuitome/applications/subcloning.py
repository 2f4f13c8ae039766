"""Weight subcloning: a smaller model that begins with parts of a larger one (Samragh et al. 2023, arXiv:2312.09299).

What is kept is chosen by a number for every coordinate of the stream, key/value head with its query heads, and neuron;
blocks go from the middle, where each changes the stream least. Everything is then scaled (`narrowing`), and trained.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.applications.gates import Parts, swapped, text_gates
from circuitome.applications.narrowing import Kept, fan_in, measured, narrowed, tempered
from circuitome.applications.rankings import Measured, check_ranking, ranked_parts
from circuitome.applications.structure import BlockParts, SmallerModel
from circuitome.editing.steering import neutral_windows
from circuitome.engine.batches import memory_budget
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.neurons.text_loss import COPIES
from circuitome.neurons.text_windows import Windows

SELECTIONS = {
    "importance": "what the part does to predictions on texts, in nats a token",
    "circuit": "that and what the part does to a task, in equal parts",
    "magnitude": "the mean size of its activation on texts, as in weight subcloning",
    "uniform": "equal distances",
    "random": "a random number",
}
"""By name: what decides which parts are kept."""

SCALES = ("fitted", "fan-in", "none")
"""How weights are multiplied for what was cut; see `narrowing`."""


@dataclass(frozen=True, eq=False)
class Subclone(SmallerModel):
    """A smaller model, not yet trained, and what of the larger one is in it."""

    kept: Kept
    """Coordinates, blocks, heads and neurons of the larger model."""
    by: str
    """What decided."""

    def __repr__(self) -> str:
        small, parts = self.model, self.kept.blocks[0]
        return (
            f"Subclone({small.name} by {self.by}: {len(small.blocks)} blocks of width {small.d_model}, "
            f"{len(parts.heads(self.before))} heads, {len(parts.neurons):,} neurons)"
        )


@method
def subclone(
    setting: Setting,
    texts: str | Sequence[str] | Windows,
    *,
    layers: int | None = None,
    width: int | None = None,
    neurons: int | None = None,
    heads: int | None = None,
    by: str = "magnitude",
    scale: str = "fitted",
) -> Subclone:
    """A smaller model whose weights are parts of the model's, as a beginning for training.

    Counts are of the smaller model: blocks, coordinates of the stream, neurons and query heads of a block; None leaves
    what is there. `by` is a name in `SELECTIONS`; circuit needs the prompts of a task. `scale` is fitted, fan-in (see
    `narrowing`) or none. `texts` are those on which all that is measured. With nothing cut it is a copy.
    Costs two passes over the texts; by importance two forward-backward passes too, by circuit also over the prompts.

    >>> model = cm.load("known-ioi")
    >>> texts = cm.neurons.packed([model.encode("Ann and Bob met then Bob gave to")] * 4)
    >>> cm.applications.subclone(model, texts, layers=2, neurons=3)
    Subclone(known-ioi by magnitude: 2 blocks of width 64, 3 heads, 3 neurons)

    Raises `InputError` for sizes larger than the model's, heads that are not whole groups of a key/value head, and
    widths that the architecture cannot have; `UnknownNameError` for another selection.
    """
    if by not in SELECTIONS:
        raise unknown_name("selection of parts", by, SELECTIONS)
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    if by == "circuit":
        check_ranking(by, setting.prompts)
    model = setting.model
    cut = texts if isinstance(texts, Windows) else neutral_windows(model, texts, setting.seed)
    sizes = _sizes(model, layers, width, neurons, heads)
    kept = _chosen(setting, cut, by, sizes)
    factors = {} if scale == "none" else measured(setting, cut, kept, projections=scale == "fitted")
    if scale == "fan-in":
        factors |= fan_in(model, kept)
    small = narrowed(model, kept, factors)
    if scale == "fitted" and sizes != _sizes(model, None, None, None, None):
        _scale_logits(small, tempered(setting.but(model=small), cut))
    return Subclone(small, model, kept, by)


@torch.no_grad()
def _scale_logits(model: Model, factor: float) -> None:
    """Multiply what the final norm gives."""
    norm, module = model.final_norm, cast(Any, model.final_norm.module)
    if hasattr(module, "weight"):
        module.weight.copy_((module.weight + norm.gain_offset) * factor - norm.gain_offset)
        if getattr(module, "bias", None) is not None:
            module.bias.mul_(factor)


@dataclass(frozen=True)
class Sizes:
    """What the smaller model has."""

    layers: int
    """Blocks."""
    width: int
    """Coordinates of the stream."""
    neurons: int
    """Neurons of a block."""
    groups: int
    """Key/value heads of a block."""


def _sizes(model: Model, layers: int | None, width: int | None, neurons: int | None, heads: int | None) -> Sizes:
    """The sizes, those that are not given as they are. Raises `InputError`."""
    whole = {
        "layers": len(model.blocks),
        "width": model.d_model,
        "neurons": model.blocks[0].n_neurons,
        "heads": model.heads.q,
    }
    given = {"layers": layers, "width": width, "neurons": neurons, "heads": heads}
    for name, number in given.items():
        if number is not None and not 1 <= number <= whole[name]:
            raise InputError(f"{name} must be from 1 to {whole[name]}, which {model.name} has; got {number}.")
    size = {name: whole[name] if number is None else number for name, number in given.items()}
    each = model.heads.q // model.heads.kv
    if size["heads"] % each:
        raise InputError(
            f"{each} heads of {model.name} share a key/value head and stay together, so that their number must be a "
            f"multiple of {each}; got {heads}."
        )
    return Sizes(size["layers"], size["width"], size["neurons"], size["heads"] // each)


def middle_removed(layers: int, count: int) -> list[int]:
    """Which of `layers` blocks stay when those in the middle go; the one more stays at the beginning.

    >>> cm.applications.subcloning.middle_removed(6, 3)
    [0, 1, 5]
    """
    first = -(-count // 2)
    return [*range(first), *range(layers - (count - first), layers)]


def _chosen(setting: Setting, texts: Windows, by: str, sizes: Sizes) -> Kept:
    """What is kept, in its order in the model."""
    model = setting.model
    whole = (model.d_model, model.heads.kv, model.blocks[0].n_neurons)
    wanted = (sizes.width, sizes.groups, sizes.neurons)
    if by == "uniform" or wanted == whole:
        stream, groups, neurons = (_evenly(n, count) for n, count in zip(whole, wanted, strict=True))
        every = [(groups, neurons)] * len(model.blocks)
    else:
        of_stream, of_parts = numbers(setting, texts, by)
        stream = _largest(of_stream, sizes.width)
        every = [
            (_largest(of_parts.heads[i], sizes.groups), _largest(of_parts.neurons[i], sizes.neurons))
            for i in range(len(model.blocks))
        ]
    layers = middle_removed(len(model.blocks), sizes.layers)
    return Kept(torch.tensor(stream), tuple(BlockParts(i, tuple(every[i][0]), tuple(every[i][1])) for i in layers))


def _evenly(whole: int, count: int) -> list[int]:
    return [i * whole // count for i in range(count)]


def _largest(values: Tensor, count: int) -> list[int]:
    return sorted(values.sort(descending=True, stable=True).indices[:count].tolist())


def numbers(setting: Setting, texts: Windows, by: str) -> tuple[Float[Tensor, " d_model"], Parts]:
    """A number for every coordinate, and for key/value heads [layer, group] and neurons [layer, neuron]."""
    model = setting.model
    if by == "random":
        generator = torch.Generator().manual_seed(setting.seed)
        shapes = ((model.d_model,), (len(model.blocks), model.heads.kv), (len(model.blocks), model.blocks[0].n_neurons))
        stream, heads, neurons = (torch.rand(shape, generator=generator) for shape in shapes)
        return stream, Parts(heads, neurons)
    if by == "magnitude":
        return _magnitudes(setting, texts)
    gates, _ = text_gates(setting, texts)
    parts = ranked_parts(Measured(setting, texts, gates, None), by, setting.seed)
    stream = _on_texts(setting, texts).square().mean(0)
    if by == "circuit":
        effect = _on_task(setting).abs()
        stream = stream / stream.sum() + effect / effect.sum().clamp(min=torch.finfo(effect.dtype).tiny)
    return stream, parts


@torch.no_grad()
def _magnitudes(setting: Setting, texts: Windows) -> tuple[Float[Tensor, " d_model"], Parts]:
    """Means over tokens: |x| over all blocks and the end; the norm of a group's z times its weights; |activation|."""
    model = setting.model
    sums: dict[tuple[str, int], Tensor] = {}

    def look(what: str, layer: int, real: Tensor, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["hidden_states"]).float()
        size = _group_sizes(model, layer, x) if what == "heads" else x.abs()
        total = (size.reshape(*real.shape, -1) * real[..., None]).sum((0, 1)).cpu()
        sums[what, layer] = sums.get((what, layer), 0) + total

    ends: list[tuple[Any, str, int]] = [(model.final_norm.module, "stream", len(model.blocks))]
    for i, block in enumerate(model.blocks):
        ends += [(block.layer, "stream", i), (block.output, "heads", i), (block.mlp_writer, "neurons", i)]
    for inputs in _inputs(setting, texts, gradients=False):
        with ExitStack() as stack:
            for module, what, layer in ends:
                hook = partial(look, what, layer, inputs.real())
                stack.enter_context(hooked(module.register_forward_pre_hook, hook, with_kwargs=True))
            model.every_logits(inputs)
    heads, neurons = (torch.stack([sums[what, i] for i in range(len(model.blocks))]) for what in ("heads", "neurons"))
    stream = torch.stack([value for (what, _), value in sums.items() if what == "stream"]).sum(0)
    return stream, Parts(heads, neurons)


def _group_sizes(model: Model, layer: int, z: Float[Tensor, "... z"]) -> Float[Tensor, "... group"]:
    """The norm of what each key/value head's query heads write together."""
    kv, weight = model.heads.kv, model.blocks[layer].head_weights()
    by_group = weight.flatten(0, 1).unflatten(0, (kv, -1)).to(z.device)
    return torch.einsum("...gw,gwd->...gd", z.unflatten(-1, (kv, -1)), by_group).norm(dim=-1)


def _inputs(setting: Setting, texts: Windows, *, gradients: bool) -> Any:
    """The windows in batches that fit the budget."""
    model = setting.model
    logits = int(model.hf.config.vocab_size) * 4 * COPIES * (1 + gradients)
    each = texts.length * (logits + model.bytes_per_token(gradients=gradients))
    size = max(1, memory_budget(setting.model, setting.max_memory) // each)
    for start in range(0, len(texts), size):
        yield texts.inputs(model, range(start, min(start + size, len(texts))))
        setting.progress("sizes of activations", min(start + size, len(texts)), len(texts))


def coordinate_slopes(model: Model, inputs: Inputs, number: Callable[[], Tensor]) -> Float[Tensor, "row d_model"]:
    """By row, the slope of a sum of rows' numbers in a gate of each coordinate of the stream, at every reader at once.

    Sum over tokens and readers (q, k, v, MLPs, unembedding) of what the reader gets in the coordinate behind its norm,
    times the gradient there.
    """
    rows = len(inputs.ids)
    with model.frozen_parameters(), torch.enable_grad(), ExitStack() as stack:
        gate = torch.ones(rows, 1, model.d_model, device=model.device, requires_grad=True)

        def pass_gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            return ((x.reshape(rows, -1, model.d_model) * gate.to(x.dtype)).view_as(x), *args[1:])

        readers = [module for block in model.blocks for module in (*block.projections, *block.mlp_readers)]
        for module in (*readers, model.unembedding):
            stack.enter_context(hooked(module.register_forward_pre_hook, pass_gate))
        (slope,) = torch.autograd.grad(number(), [gate])
    return slope[:, 0].float().cpu()


def _on_texts(setting: Setting, texts: Windows) -> Float[Tensor, "window d_model"]:
    """Slopes of the log-likelihood of next tokens that the model draws itself; their squares: Fisher information."""
    model, found = setting.model, list[Tensor]()
    generator = torch.Generator(model.device).manual_seed(setting.seed)
    for inputs in _inputs(setting, texts, gradients=True):

        def likelihood(inputs: Inputs = inputs) -> Tensor:
            logs = model.every_logits(inputs)[:, :-1].float().log_softmax(-1)
            with torch.no_grad():
                drawn = torch.multinomial(logs.exp().flatten(0, 1), 1, generator=generator).view(*logs.shape[:2], 1)
            return (logs.gather(-1, drawn)[..., 0] * inputs.real()[:, 1:]).sum()

        found.append(coordinate_slopes(model, inputs, likelihood))
    return torch.cat(found)


def _on_task(setting: Setting) -> Float[Tensor, " d_model"]:
    """Mean slope of the metric of clean prompts minus that of corrupted ones."""
    model, sides = setting.model, list[Tensor]()
    for task in (setting.task, swapped(setting.task)):
        total = torch.zeros(model.d_model)
        for batch in setting.but(prompts=task, ablation="zero").batches(gradients=True):
            number = lambda batch=batch, task=task: task.score(model.logits(batch.clean), batch.rows).sum()  # noqa: E731
            total += coordinate_slopes(model, batch.clean, number).sum(0)
        sides.append(total / len(task))
    return sides[0] - sides[1]
