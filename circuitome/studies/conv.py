"""How a channel of a convolutional network feeds a later one: the map of weights, through all layers in between."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import Parameter
from typing_extensions import override

from circuitome.errors import InputError
from circuitome.present.blocks import Block, HeatMap, Lede, Note, table
from circuitome.studies.context import Context
from circuitome.studies.settings import Argument, Settings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.weights.conv import ConvNet

DEFAULT = "digit-network"
"""The network of the package digit-recognizer-py, where it is installed."""


@dataclass(frozen=True, kw_only=True)
class Conv(Settings):
    """How a channel of a convolutional network feeds a later one: the map of weights, through all layers in between."""

    arguments: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[str, Argument] = DEFAULT
    """A file of weights (.pt, .pth, .safetensors), or module:factory or file.py:factory, whose code runs."""
    source: Annotated[str | None, Parameter(name="--from")] = None
    """Layer and channel, e.g. conv1:3, or input:0 for the image. Without --from and --to the layers are listed."""
    target: Annotated[str | None, Parameter(name="--to")] = None
    """A later layer and channel, e.g. conv2:7."""

    @override
    def check(self) -> None:
        if (self.source is None) != (self.target is None):
            raise InputError(
                "--from and --to belong together: give both for a map of weights, none for the list of layers."
            )

    @override
    def subject(self) -> str:
        return self.model.rpartition("/")[2]


def work(settings: Conv, context: "Context") -> Work:
    """No pass of the model: products of its weights."""
    return Work(texts=1, tokens=1)


def run(settings: Conv, context: "Context") -> Findings:
    """The convolutions of a network, or one map of weights."""
    import torch

    from circuitome.weights.convnet import default_net, load_conv_net

    net = default_net() if settings.model == DEFAULT else load_conv_net(settings.model)
    if settings.source is None or settings.target is None:
        results, tensors = layers(net), {}
    else:
        results = expanded(net, settings.source, settings.target)
        tensors = {"kernel": torch.tensor(results["kernel"])}
    return Findings(
        title=f"Convolutions of {settings.model}",
        sign="A weight above 0 excites the later channel, one below 0 inhibits it; activations between are left out.",
        results=results,
        blocks=blocks(results),
        tensors=tensors,
        more={"data_hash": str(hash_of(net))},
    )


def hash_of(net: "ConvNet") -> str:
    """A hash of the network's kernels."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for name in net.layers:
        digest.update(net.weight(name).detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def layers(net: "ConvNet") -> dict[str, Any]:
    """The convolutions of a network, as plain JSON values."""
    rows = []
    for name in net.layers:
        out, into, height, width = net.weight(name).shape
        stride = list(net.stages[name].stride)
        rows.append({"layer": name, "in": into, "out": out, "kernel": [height, width], "stride": stride})
    return {"layers": rows, "note": net.note}


def expanded(net: "ConvNet", source: str, target: str) -> dict[str, Any]:
    """One map of weights as plain JSON values. Raises `InputError` unless both ends are one channel."""
    kernels = net.expanded(source, target)
    for side, text, channels in (("--from", source, kernels.ins), ("--to", target, kernels.outs)):
        if len(channels) != 1:
            raise InputError(f"{side} {text} has {len(channels)} channels; choose one, e.g. {text}:{channels[0]}.")
    return {
        "from": f"{kernels.source}:{kernels.ins[0]}",
        "to": f"{kernels.target}:{kernels.outs[0]}",
        "kernel": kernels.kernel[0, 0].tolist(),
        **{name: list(getattr(kernels, name)) for name in ("stride", "through", "pooled")},
        "note": kernels.note,
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The list of layers, or one map with what it leads through."""
    note = [Note(text=results["note"])] if results["note"] else []
    if "layers" in results:
        convolutions = results["layers"]
        columns = (("layer", "node"), ("in", "count"), ("out", "count"), "kernel", "stride")
        sizes = ([" x ".join(map(str, layer[key])) for key in ("kernel", "stride")] for layer in convolutions)
        rows = ((r["layer"], r["in"], r["out"], *size) for r, size in zip(convolutions, sizes, strict=True))
        return [Lede(text=f"{len(convolutions)} convolutions."), table("Convolutions", columns, rows), *note]
    kernel = results["kernel"]
    pooled = f"; {', '.join(results['pooled'])} as average" if results["pooled"] else ""
    passed = f"through {', '.join(results['through'])}{pooled}"
    through = passed if results["through"] or results["pooled"] else "directly"
    height, width = len(kernel), len(kernel[0])
    text = f"{results['from']} feeds {results['to']} {through} by {height} x {width} weights."
    drawn = HeatMap(
        title=f"{results['from']} to {results['to']}",
        note="Orange excites, blue inhibits; places are distances from the centre.",
        rows=tuple(f"y{_offset(y, height)}" for y in range(height)),
        columns=tuple(f"x{_offset(x, width)}" for x in range(width)),
        values=tuple(map(tuple, kernel)),
        unit="weight",
        top=0,
    )
    return [Lede(text=text), drawn, *note]


def _offset(place: int, size: int) -> str:
    """Distance from the centre, halves where there is no middle pixel."""
    return f"{place - (size - 1) / 2:+g}"


STUDY = Study("conv", Conv, run, work)
