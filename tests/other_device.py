"""A device that is not the CPU, without one: tensors that hold real numbers and say that they are on another device.

What CUDA refuses is refused here: operations on tensors of two devices unless one is a CPU scalar, and writing into the
other device. So a tensor made on the wrong device is found on any machine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

from circuitome.models.model import Model

DEVICE = torch.device("meta")
"""What the tensors say; no device of this name is needed to make them."""
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default, aten.set_.source_Tensor}
"""What takes tensors of two devices."""
INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""What moves indices from the CPU to where the values are."""


class Elsewhere(torch.Tensor):
    """A tensor of the other device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Any = Elsewhere(self.held.detach().clone()).requires_grad_(self.requires_grad)
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied
        return copied

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _indices(args[1]), *args[2:])  # else lists become tensors of the device without numbers
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """In force, tensors are made on the other device where it is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FromData(TorchFunctionMode):
    """In force, tensors that are made of Python's numbers go to the other device, which dispatching does not see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            dtype = kwargs.pop("dtype", args[0].dtype)
            return Elsewhere(torch.tensor(*args[1:], **{**kwargs, "dtype": dtype, "device": "cpu"}))
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == DEVICE.type:
            if args and isinstance(args[0], torch.Tensor):
                return args[0].to(device)
            return Elsewhere(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def _indices(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return (torch.tensor(index) if index else torch.empty(0, dtype=torch.long)) if isinstance(index, list) else index


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    there: list[Any] = []
    held = _held(args, there), _held(kwargs, there)  # by hand, since pytree's walks take most of a test's time
    device = kwargs.get("device")
    if there and func not in MOVES:
        _refuse_two_devices(func, args, kwargs)
    if device is not None:
        held[1]["device"] = torch.device("cpu")
    out = func(*held[0], **held[1])
    if func is aten.copy_.default:
        return args[0]
    if not (bool(there) if device is None else torch.device(device).type == DEVICE.type):
        return out
    wrapped = _wrapped(out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there and _gives_views(func) else wrapped


def _held(value: Any, there: list[Any]) -> Any:
    """Arguments with the numbers of tensors of the other device in their place; these are noted."""
    if isinstance(value, Elsewhere):
        there.append(value)
        return value.held
    if isinstance(value, tuple | list):
        return type(value)([_held(part, there) for part in value])
    if isinstance(value, dict):
        return {name: _held(part, there) for name, part in value.items()}
    assert not (isinstance(value, torch.Tensor) and value.is_meta), "a tensor without numbers"
    return value


def _wrapped(out: Any) -> Any:
    """What an operation gave, on the other device."""
    if isinstance(out, tuple | list):
        return type(out)([_wrapped(part) for part in out])
    return Elsewhere(out) if isinstance(out, torch.Tensor) else out


@cache
def _gives_views(func: Any) -> bool:
    """Whether what an operation gives shares memory with what it is given."""
    return any(given.alias_info is not None for given in func._schema.returns)


def _refuse_two_devices(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    for place, value in enumerate((*args, *kwargs.values())):
        if func in INDEXES and place == 1:
            continue
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Elsewhere):
                writes = place == 0 and func._schema.name.endswith("_")
                if tensor.dim() or writes:
                    raise RuntimeError(
                        f"Expected all tensors to be on the same device, but {func} was given one on the CPU, "
                        f"of shape {tuple(tensor.shape)}."
                    )


def to_other_device(module: torch.nn.Module, *, whole: bool = True) -> None:
    """Moves parameters and buffers, those of its parts too if `whole`."""
    for part in module.modules() if whole else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, Elsewhere):
                part._parameters[name] = torch.nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, Elsewhere):
                part._buffers[name] = Elsewhere(buffer)


def moved(model: Model) -> Model:
    """The model on the other device, weights shared; tied weights stay tied."""
    before = {id(p): p for p in model.hf.parameters()}
    assert before
    to_other_device(model.hf)
    model.hf.tie_weights()
    model.hf.register_forward_pre_hook(_ids_moved, with_kwargs=True)
    return Model(model.hf, model.tokenizer, model.name)


def _ids_moved(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Examples give ids as they are written, on the CPU."""
    ids = torch.long
    return tree_map(lambda t: t.to(DEVICE) if isinstance(t, torch.Tensor) and t.dtype == ids else t, (args, kwargs))


class _IsGenerator(type):
    """Generators that were made before count, too: types are checked while tests run."""

    def __instancecheck__(cls, value: Any) -> bool:
        return type(value).__name__ == "Generator"


class OnCpu(metaclass=_IsGenerator):
    """In place of `torch.Generator`: generators are made here whatever the device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return torch._C.Generator("cpu")


@contextmanager
def other_device(load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, `cm.load` gives models on the other device, and generators asked for there are made here."""
    import circuitome as cm

    monkeypatch.setattr(torch, "Generator", OnCpu)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which wrapped tensors do not know
    monkeypatch.setattr(torch.autograd, "has_torch_function", lambda _: False)  # so that backward passes see indices
    for optimiser in (torch.optim.Adam, torch.optim.AdamW):
        _without_fusing(optimiser, monkeypatch)
    monkeypatch.setattr(cm, "load", lambda *a, **k: moved(load(*a, **k)), raising=False)
    with FromData(), OtherDevice():
        yield


def _without_fusing(optimiser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused steps are for devices that torch knows."""
    made = optimiser.__init__
    monkeypatch.setattr(optimiser, "__init__", lambda self, *a, **k: made(self, *a, **k | {"fused": None}))
