"""Models in pieces: weights on several devices, offloaded to the CPU or to disk, or quantised.

All that is not a module computes on one device, home: that of the embeddings. Accelerate's hooks bring what a module
is given to where its weights are. Here is the rest:

- What a module gives goes back to where its input came from (`io_same_device` of those hooks), so that a module may be
  called from home.
- Hooks and replaced forwards (`circuitome.models.hooks`) see values brought home, and what they give goes back.
- Weights are read through `parameter`: at home, loaded where they are offloaded, dequantised where they are quantised.

A model in one piece, as nearly all are, passes through here untouched.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import align_module_device, find_device, has_offloaded_params, send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

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
    """Names and values of all stored tensors of a model, in the order of its `state_dict`, one by one."""
    for path, module in hf.named_modules():
        buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        for name in (*module._parameters, *buffers):
            if (value := parameter(module, name)) is not None:
                yield f"{path}.{name}" if path else name, value


def in_one_piece(hf: PreTrainedModel) -> PreTrainedModel:
    """A copy with ordinary weights of its own, all on the device of `home_device`."""
    config: Any = copy.deepcopy(hf.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    ends = hf.get_input_embeddings(), hf.get_output_embeddings()
    config.tie_word_embeddings = getattr(ends[0], "weight", None) is getattr(ends[1], "weight", 0)
    with torch.random.fork_rng(devices=[]):
        kind: Any = type(hf)
        whole = kind._from_config(config, dtype=hf.dtype).to(home_device(hf)).train(hf.training)
    values = dict(state(hf))
    for path, module in whole.named_modules():
        if isinstance(module, Conv1D) and isinstance(hf.get_submodule(path), nn.Linear):  # bitsandbytes turns them
            values[f"{path}.weight"] = values[f"{path}.weight"].T
    whole.load_state_dict(values)
    whole.generation_config = copy.deepcopy(hf.generation_config)
    return whole  # type: ignore[no-any-return]


# Projections whose weights are not there all the time


class _Thin(torch.autograd.Function):
    """A projection that keeps no weight for the backward pass: it is read again there."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        if quantised(module):
            weight = parameter(module)
            assert weight is not None
            return nn.functional.linear(x, weight, parameter(module, "bias"))
        with align_module_device(module):
            out: Tensor = type(module).forward(module, x)
        return out

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weight = parameter(ctx.module)
        assert weight is not None
        return gradients[0] @ (weight if isinstance(ctx.module, nn.Linear) else weight.T), None


def thin_forwards(hf: PreTrainedModel) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Projections whose weights are quantised or offloaded, and what they call while circuitome runs the model.

    Autograd would keep each loaded or dequantised weight until the backward pass, so all of them at once; and kernels
    for quantised weights have no gradients, or none that fit, on some machines. So weights are dequantised at each
    use, and what is computed is the model of the dequantised weights. A kernel that also rounds activations (LLM.int8)
    is replaced by one that does not.
    """
    if hf not in _HOMES:
        return
    for module in hf.modules():
        linear = isinstance(module, nn.Linear | Conv1D)
        if linear and (quantised(module) or has_offloaded_params(module)):
            yield module, partial(_thin, module)


def _thin(module: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = _Thin.apply(x, module)  # type: ignore[no-untyped-call]  # torch's own
    return out


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
        if getattr(getattr(loaded, "quant_state", None), "packing_format_for_cpu", False):
            module.state_dict()  # which undoes the packing that a pass on the CPU leaves behind
            return _plain(module, module.get_parameter("weight"), home)
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        packed: Any = loaded
        return dequantize_bnb_weight(packed, getattr(module, "state", None)).to(home.dtype)
    return loaded


def check_open(hf: PreTrainedModel, name: str, what: str) -> None:
    """Raises `InputError` where weights cannot be changed or copied: `what`, the beginning of a sentence, needs that.

    Reading them is possible everywhere.
    """
    if hf in _HOMES:
        kept = "quantised" if any(map(quantised, hf.modules())) else "spread over devices or offloaded"
        raise InputError(
            f"{what} changes weights or copies them, and those of {name} are {kept}. Use a copy with ordinary weights, "
            "model.in_one_piece(), or load the model without a device_map and unquantised."
        )
