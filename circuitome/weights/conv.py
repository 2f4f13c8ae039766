"""Circuits of convolutional networks: the map of weights from a channel to a later one, through all between."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, unknown_name

INPUT = "input"
"""The name of the image."""


@dataclass(frozen=True)
class Stage:
    """One step of a network: a convolution, a pooling, a scale for each channel, or what is passed over."""

    before: tuple[str, ...]
    """Names of the stages whose outputs it reads."""
    weight: Float[Tensor, "out in height width"] | None = None
    """Of a convolution: its kernel, groups and dilation written out, the batch norm behind it folded in; float32."""
    pool: tuple[int, int] | None = None
    """Of a pooling: height and width of its window."""
    scale: Float[Tensor, " channel"] | None = None
    """Of a batch norm that follows no convolution: what it multiplies each channel by."""
    stride: tuple[int, int] = (1, 1)
    """Step down and across."""
    stop: str = ""
    """Why no kernel leads through here; empty where one does."""


@dataclass(frozen=True)
class Expanded:
    """The linear map from channels of one layer to channels of a later one, as kernels."""

    source: str
    """The earlier layer, `input` for the image."""
    target: str
    """The later layer."""
    kernel: Float[Tensor, "out in height width"]
    """Weight from a pixel of the source to one of the target, by offset; positive excites."""
    outs: tuple[int, ...]
    """Channels of the target along `out`."""
    ins: tuple[int, ...]
    """Channels of the source along `in`."""
    stride: tuple[int, int]
    """How many pixels of the source one pixel of the target is, down and across."""
    through: tuple[str, ...]
    """Convolutions in between, the earliest first."""
    pooled: tuple[str, ...]
    """Poolings in between, each taken as an average."""
    note: str
    """What else is assumed."""

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the middle of the kernel; between two where its side is even."""
        height, width = self.kernel.shape[-2:]
        return (height - 1) / 2, (width - 1) / 2


@dataclass(frozen=True)
class ConvNet:
    """A convolutional network as far as its kernels go."""

    stages: Mapping[str, Stage]
    """By name, in the order in which they run."""
    note: str = ""
    """What is assumed about the order, strides and poolings."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions, in order."""
        return tuple(name for name, stage in self.stages.items() if stage.weight is not None)

    def weight(self, layer: str) -> Float[Tensor, "out in height width"]:
        """Kernels of a layer, groups and dilation written out, batch norm folded in. Raises `UnknownNameError`."""
        stage = self.stages.get(layer)
        if stage is None or stage.weight is None:
            raise unknown_name("convolution", layer, self.layers)
        return stage.weight

    def expanded(self, source: str, target: str) -> Expanded:
        """Weights from `source` to `target`, each a layer or one channel, `conv1` or `conv1:3`, or `input`.

        W2 o W1 [o, i] = sum over c of conv_full(W2[o, c], W1[c, i]), of size k1 + s1 (k2 - 1), and so on through every
        layer in between: what the network would do to pixels away from the border if it were linear. Activations are
        left out, poolings average, batch norms are folded in with their running statistics, biases play no part.

        Raises `UnknownNameError` for a layer that does not exist, `InputError` for a channel that does not, for a
        target that does not come after the source, and where branches join in between.
        Source: Olah et al. 2020, "Zoom In"; Voss et al. 2021, "Visualizing Weights", expanded weights.
        """
        (first, i), (last, o) = self._channel(source, "from"), self._channel(target, "to")
        if last == INPUT:
            raise InputError("The image is the beginning: it can be the source, not the target.")
        outs = range(len(self.weight(last))) if o is None else [o]
        kernel, stride = self.weight(last)[list(outs)], self.stages[last].stride
        through: list[str] = []
        pooled: list[str] = []
        name = self._before(last, first, last)
        while name != first:
            stage = self.stages[name]
            if stage.weight is not None:
                kernel, through = _compose(kernel, stage.weight, stage.stride), [name, *through]
            elif stage.pool is not None:
                kernel, pooled = _average(kernel, stage.pool, stage.stride), [name, *pooled]
            elif stage.scale is not None:
                kernel = kernel * stage.scale[:, None, None]
            stride = (stride[0] * stage.stride[0], stride[1] * stage.stride[1])
            name = self._before(name, first, last)
        count = kernel.shape[1]
        if i is not None and i >= count:
            raise InputError(f"{first} has channels 0 to {count - 1}, not {i}.")
        ins = range(count) if i is None else [i]
        kernel = kernel[:, list(ins)]
        return Expanded(first, last, kernel, tuple(outs), tuple(ins), stride, tuple(through), tuple(pooled), self.note)

    def _channel(self, text: str, side: str) -> tuple[str, int | None]:
        """Layer and channel of `conv1:3`; None for all channels."""
        name, colon, number = text.rpartition(":") if ":" in text else (text, "", "")
        if name != INPUT and name not in self.layers:
            raise unknown_name("convolution", name, [INPUT, *self.layers])
        if not colon:
            return name, None
        if not number.isdigit():
            raise InputError(f"--{side} {text!r} is no channel; write it like {name}:3.")
        if name != INPUT and int(number) >= len(self.weight(name)):
            raise InputError(f"{name} has channels 0 to {len(self.weight(name)) - 1}, not {number}.")
        return name, int(number)

    def _before(self, name: str, source: str, target: str) -> str:
        """The one stage that `name` reads, on the way back from `target` to `source`."""
        before = self.stages[name].before
        if self.stages[name].stop:
            raise InputError(f"No kernel leads from {source} to {target}: {self.stages[name].stop} at {name}.")
        if not before:
            order = ", ".join([INPUT, *self.layers])
            raise InputError(f"{source} does not lead to {target}. The convolutions in order: {order}.")
        if len(before) > 1:
            raise InputError(
                f"Several branches join at {name} ({', '.join(before)}), between {source} and {target}. Only chains "
                f"are expanded; choose a source behind {name}, or the layers of one branch."
            )
        return before[0]


def _compose(later: Tensor, earlier: Tensor, stride: tuple[int, int]) -> Float[Tensor, "out in height width"]:
    """The kernel of `earlier`, which steps by `stride`, and then `later`: entry s u + v sums later[u] earlier[v]."""
    if later.shape[1] != len(earlier):
        raise InputError(f"A layer that reads {later.shape[1]} channels cannot follow one that gives {len(earlier)}.")
    return F.conv_transpose2d(later, earlier, stride=stride)


def _average(later: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Float[Tensor, "out in height width"]:
    """The same with an average over `window` of each channel in place of the earlier layer."""
    mean = torch.full((1, 1, *window), 1 / (window[0] * window[1]), device=later.device)
    spread = F.conv_transpose2d(later.flatten(0, 1)[:, None], mean, stride=stride)
    return spread[:, 0].unflatten(0, later.shape[:2])


def dense(
    weight: Float[Tensor, "out part height width"], groups: int = 1, dilation: tuple[int, int] = (1, 1)
) -> Float[Tensor, "out in spread_height spread_width"]:
    """A kernel with groups as zeros between channels and dilation as zeros between entries; float32."""
    weight = weight.detach().float()
    out, part, height, width = weight.shape
    whole = weight.new_zeros(groups, out // groups, groups, part, height, width)
    each = torch.arange(groups)
    whole[each, :, each] = weight.unflatten(0, (groups, out // groups))
    whole = whole.flatten(2, 3).flatten(0, 1)
    spread = whole.new_zeros(out, groups * part, dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1)
    spread[..., :: dilation[0], :: dilation[1]] = whole
    return spread


def net_of_weights(weights: Mapping[str, Any]) -> ConvNet:
    """The convolutions of a state dict: tensors of four axes in their order, each taken to follow the one before.

    A batch norm (`running_var`) is folded into the convolution before it, groups are those that make the channels fit.
    Strides, dilation and poolings stand in no state dict: strides are taken as 1 and poolings as none.
    Raises `InputError` where there is no convolution, and for one whose channels do not fit the one before.

    >>> weights = {"first.weight": torch.ones(8, 1, 3, 3), "second.weight": torch.ones(4, 8, 3, 3)}
    >>> cm.weights.net_of_weights(weights).expanded("input:0", "second:1").kernel.shape
    torch.Size([1, 1, 5, 5])
    """
    stages: dict[str, Stage] = {INPUT: Stage(())}
    last, given = INPUT, 0
    for key, tensor in weights.items():
        name, _, what = key.rpartition(".")
        if what == "weight" and getattr(tensor, "ndim", 0) == 4:
            groups = given // tensor.shape[1] if last != INPUT else 1
            if not groups or (last != INPUT and groups * tensor.shape[1] != given) or tensor.shape[0] % groups:
                raise InputError(
                    f"{name} reads {tensor.shape[1]} channels, but {last}, the convolution before it, gives {given}: "
                    "they do not follow each other. Give the network itself, as module:factory."
                )
            stages[name] = Stage((last,), dense(tensor, groups))
            last, given = name, tensor.shape[0]
        elif what == "running_var" and last != INPUT and len(tensor) == given:
            gain = weights.get(f"{name}.weight")
            scale = (1.0 if gain is None else gain.float()) / (tensor.float() + 1e-5).sqrt()
            weight = stages[last].weight
            assert weight is not None
            stages[last] = replace(stages[last], weight=weight * scale[:, None, None, None])
    if len(stages) == 1:
        raise InputError("There is no convolution in these weights: no tensor NAME.weight has four axes.")
    note = "from weights alone: layers in the order of the file, strides taken as 1, poolings unknown and left out"
    return ConvNet(stages, note)
