"""Maps of convolution weights in the terminal and as a picture."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.cli.heatmap import SHADES
from circuitome.errors import InputError
from circuitome.report.kernel import kernel_svg
from circuitome.weights.conv import ConvNet


def layers(net: ConvNet, model: str) -> dict[str, Any]:
    """The convolutions of a network, as plain JSON values."""
    rows = []
    for name in net.layers:
        out, into, height, width = net.weight(name).shape
        stride = list(net.stages[name].stride)
        rows.append({"layer": name, "in": into, "out": out, "kernel": [height, width], "stride": stride})
    return {"kind": "conv", "model": model, "layers": rows, "note": net.note}


def expanded(net: ConvNet, model: str, source: str, target: str) -> dict[str, Any]:
    """One map of weights as plain JSON values. Raises `InputError` unless both ends are one channel."""
    found = net.expanded(source, target)
    for side, text, channels in (("--from", source, found.ins), ("--to", target, found.outs)):
        if len(channels) != 1:
            raise InputError(f"{side} {text} has {len(channels)} channels; choose one, e.g. {text}:{channels[0]}.")
    return {
        "kind": "conv",
        "model": model,
        "from": f"{found.source}:{found.ins[0]}",
        "to": f"{found.target}:{found.outs[0]}",
        "kernel": found.kernel[0, 0].tolist(),
        "stride": list(found.stride),
        "through": list(found.through),
        "pooled": list(found.pooled),
        "note": found.note,
    }


def write_picture(path: Path, found: dict[str, Any]) -> None:
    """The map as an SVG file. Raises `InputError` where it cannot be written."""
    try:
        path.write_text(kernel_svg(found["kernel"], f"{found['from']} to {found['to']}") + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def show(found: dict[str, Any]) -> None:
    """The list of layers, or one map with what it leads through."""
    console = Console(highlight=False)
    if "layers" in found:
        drawn = Table(title="Convolutions", title_justify="left", box=None, header_style="bold")
        for name in ("layer", "in", "out", "kernel", "stride"):
            drawn.add_column(name)
        for row in found["layers"]:
            sizes = (" x ".join(map(str, row[name])) for name in ("kernel", "stride"))
            drawn.add_row(Text(row["layer"]), str(row["in"]), str(row["out"]), *sizes)
        console.print(drawn)
    else:
        _map(console, found)
    if found["note"]:
        console.print(Text(found["note"]))


def _map(console: Console, found: dict[str, Any]) -> None:
    kernel = found["kernel"]
    largest = max(abs(value) for row in kernel for value in row)
    console.print(Text.assemble(("\n" + found["from"], "bold"), " to ", (found["to"], "bold")))
    if found["through"] or found["pooled"]:
        pooled = f"; {', '.join(found['pooled'])} as average" if found["pooled"] else ""
        console.print(Text(f"through {', '.join(found['through']) or 'no other layer'}{pooled}; activations left out"))
    console.print(
        f"{len(kernel)} x {len(kernel[0])} weights, in tenths of the largest {largest:.4g}; orange above 0, blue below"
    )
    for row in kernel:
        console.print(Text.assemble(*(_cell(value, largest) for value in row)), soft_wrap=True)
    if "picture" in found:
        console.print(f"Picture: {found['picture']}", soft_wrap=True)


def _cell(value: float, largest: float) -> tuple[str, str]:
    """Sign and tenths of the largest weight, coloured by strength."""
    share = abs(value) / largest if largest else 0.0
    tenths = min(10, round(10 * share))
    if not tenths:
        return "  . ", "dim"
    above, below = next((up, down) for least, up, down in SHADES if share >= least)
    return f"{'+' if value > 0 else '-'}{tenths:>2} ", above if value > 0 else below
