"""Models in pieces: weights on several devices, offloaded to the CPU or to disk, or quantised.

All that is not a module computes on one device, home: that of the embeddings. Accelerate's hooks bring what a module
is given to where its weights are. Here is the rest:

- What a module gives goes back to where its input came from (`io_same_device` of those hooks), so that a module may be
  called from home.
- Hooks and replaced forwards (`circuitome.models.hooks`) see values brought home, and what they give goes back.
- Weights are read through `parameter`: at home, loaded where they are offloaded, dequantised where they are quantised.

A model in one piece, as nearly all are, passes through here untouched.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import align_module_device, find_device, has_offloaded_params, send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitome.errors import InputError

CACHES = ("past_key_values", "past_key_value")
"""Arguments that stay where they are: each block's keys and values live with it."""


@dataclass(frozen=True)
class Home:
    """Where the modules of a model in pieces are read from."""

    device: torch.device
    """The device on which all that is no module computes."""
    dtype: torch.dtype
    """What quantised weights are read in: the model's dtype."""


_HOMES: "WeakKeyDictionary[nn.Module, Home]" = WeakKeyDictionary()
"""Of modules that belong to a model in pieces."""


def home_device(hf: PreTrainedModel) -> torch.device:
    """The device where a model's inputs go, and where what is recorded of it and read of its weights comes to."""
    embedding = hf.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None:
        return torch.device(hook.execution_device)
    return next(embedding.parameters()).device


def settle(hf: PreTrainedModel, name: str) -> None:
    """Have every value of a model in pieces come home; a model in one piece is left as it is.

    Raises `InputError` for weights that are elsewhere without one of accelerate's hooks, which their inputs need.
    """
    home = home_device(hf)
    astray = sorted(path for path, module in hf.named_modules() if _astray(module, home))
    if astray:
        shown = ", ".join(astray[:6]) + (f" and {len(astray) - 6} more" if len(astray) > 6 else "")
        raise InputError(
            f"The weights of {name} lie on {', '.join(_places(hf))}, and nothing brings inputs to those of {shown}. "
            'Load it with device_map="auto", or with a map that names every module, or on one device without a map.'
        )
    hooks = [hook for module in hf.modules() if isinstance(hook := getattr(module, "_hf_hook", None), AlignDevicesHook)]
    if hooks or any(map(quantised, hf.modules())):
        for hook in hooks:
            hook.io_same_device = True
        for module in hf.modules():
            _HOMES[module] = Home(home, hf.dtype)


def _places(hf: PreTrainedModel) -> list[str]:
    return sorted({str(parameter.device) for parameter in hf.parameters()})


def _astray(module: nn.Module, home: torch.device) -> bool:
    """Whether a module has weights away from home and no hook of accelerate's."""
    away = any(parameter.device != home for parameter in module.parameters(False))
    return away and not isinstance(getattr(module, "_hf_hook", None), AlignDevicesHook)


def parameter(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A parameter of a module where circuitome computes with it; None where the module has none of that name.

    Of a model in one piece it is the parameter itself, within reach of gradients. Else it is brought home, loaded from
    where it was offloaded, and dequantised: what the module multiplies by, up to what its kernel rounds.
    """
    home = _HOMES.get(module)
    if home is None:
        stored: Tensor | None = getattr(module, name, None)
        return stored
    if has_offloaded_params(module):
        with align_module_device(module):
            loaded: Tensor | None = getattr(module, name, None)
    else:
        loaded = getattr(module, name, None)
    return None if loaded is None else _plain(module, loaded, home).to(home.device)


def state(hf: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all stored tensors of a model, one module's at a time, those that are offloaded included."""
    for name, tensor in hf.state_dict().items():
        if tensor.device.type == "meta":
            path, _, own = name.rpartition(".")
            loaded = parameter(hf.get_submodule(path), own)
            assert loaded is not None
            tensor = loaded
        yield name, tensor


# Values on their way


def at_home(module: nn.Module, function: Callable[..., Any], *, output: bool = False) -> Callable[..., Any]:
    """A hook or forward of `module` that is given its values at home; what it gives goes to where they came from.

    `output` says that the last of the values is what the module gave. Where a hook changes nothing, the value at home
    still takes its place under gradients, so that a gradient can be taken with respect to it.
    """
    home = _HOMES.get(module)
    return function if home is None else lambda *values, **named: _run(function, values, named, home.device, output)


def _run(
    function: Callable[..., Any], values: tuple[Any, ...], named: dict[str, Any], home: torch.device, output: bool
) -> Any:
    hooked = isinstance(values[0] if values else None, nn.Module)
    given = values[1:] if hooked else values
    device = find_device([given[-1:] if output else given, named])
    if device is None or device == home:
        return function(*values, **named)
    here, named = send_to_device((given, named), home, skip_keys=CACHES)
    result = function(*values[:1], *here, **named) if hooked else function(*here, **named)
    if result is None and hooked and torch.is_grad_enabled():
        result = here[-1] if output else here[0] if len(here) == 1 else here
    return send_to_device(result, device, skip_keys=CACHES)


# Quantised weights


def quantised(module: nn.Module) -> bool:
    """Whether a module keeps a quantised weight."""
    weight = module._parameters.get("weight")
    return weight is not None and (hasattr(weight, "quant_state") or hasattr(weight, "SCB") or _of_torchao(weight))


def _of_torchao(weight: Tensor) -> bool:
    return type(weight).__module__.startswith("torchao.") and hasattr(weight, "dequantize")


def _plain(module: nn.Module, loaded: Tensor, home: Home) -> Tensor:
    """A parameter as ordinary numbers."""
    if _of_torchao(loaded):
        return loaded.dequantize().to(home.dtype)
    if hasattr(loaded, "quant_state") or hasattr(loaded, "SCB"):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(loaded, getattr(module, "state", None)).to(home.dtype)
    return loaded


def check_open(hf: PreTrainedModel, name: str, what: str) -> None:
    """Raises `InputError` where weights cannot be changed: `what`, the beginning of a sentence, needs that they can."""
    if any(map(quantised, hf.modules())):
        raise InputError(
            f"{what} changes weights or copies them, and those of {name} are quantised. Use the model before it was "
            "quantised, or numbers again in place of it: cm.load(model.hf.dequantize(), tokenizer=model.tokenizer)."
        )
    if any(module in _HOMES for module in hf.modules()):
        raise InputError(
            f"{what} changes weights or copies them, and those of {name} are in pieces ({', '.join(_places(hf))}; meta "
            "stands for offloaded). Load the model on one device, without a device_map."
        )
