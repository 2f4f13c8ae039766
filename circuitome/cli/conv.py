"""The command that shows circuits of convolutional networks: conv."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from circuitome.cli.app import Json, app


@app.command
def conv(
    model: str,
    *,
    source: Annotated[str | None, Parameter(name="--from")] = None,
    target: Annotated[str | None, Parameter(name="--to")] = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """How a channel of a convolutional network feeds a later one: the map of weights, through all layers in between.

    Parameters
    ----------
    model
        A file of weights (.pt, .pth, .safetensors), or module:factory or file.py:factory, whose code runs.
    source
        Layer and channel, e.g. conv1:3, or input:0 for the image. Without --from and --to the layers are listed.
    target
        A later layer and channel, e.g. conv2:7.
    out
        An SVG file for the picture.
    as_json
        Print JSON in place of tables.

    """
    from circuitome.cli import conv_view
    from circuitome.errors import InputError
    from circuitome.runs.store import to_json
    from circuitome.weights.convnet import load_conv_net

    if (source is None) != (target is None):
        raise InputError(
            "--from and --to belong together: give both for a map of weights, none for the list of layers."
        )
    if out is not None and (source is None or out.suffix != ".svg"):
        raise InputError(f"--out {out} takes the picture of a map as .svg; it needs --from and --to.")
    net = load_conv_net(model)
    found: dict[str, Any]
    if source is None or target is None:
        found = conv_view.layers(net, model)
    else:
        found = conv_view.expanded(net, model, source, target)
    if out is not None:
        conv_view.write_picture(out, found)
        found["picture"] = str(out)
    print(to_json(found)) if as_json else conv_view.show(found)
