"""Tensors of many blocks that wait on the CPU or on disk, so that the device holds those of one block at a time.

What one long prompt leaves behind in a large model, activations, gradients and what autograd keeps for the backward
pass, is many times what computing one block takes. Numbers are stored in the precision that they have, so results
are the same, but for the rounding of sums over tensors that were parts of larger ones and now lie by themselves.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor
from typing_extensions import override

from circuitome.errors import MemoryBudgetError, unknown_name

Place = Literal["device", "cpu", "disk"]
"""Where recorded activations wait: with the model, in the memory of the CPU, or in files of the temporary folder."""
PLACES: tuple[str, ...] = get_args(Place)
SMALL = 100_000
"""Bytes of a tensor that stays where it is: it would cost more time than it frees memory."""
Cut = tuple[slice, ...]
"""A part of each tensor, along its first axes."""


def check_place(place: str) -> None:
    """Raises `UnknownNameError` unless `place` is one of `PLACES`."""
    if place not in PLACES:
        raise unknown_name("place for activations", place, PLACES)


@dataclass
class _File:
    """A tensor in a file that goes when nobody asks for it any more.

    Its axes keep their order in memory, since kernels sum in another order where numbers lie otherwise.
    """

    path: str
    shape: torch.Size
    dtype: torch.dtype
    axes: tuple[int, ...]
    """Where each axis of the tensor is among those of the file."""

    @classmethod
    def of(cls, tensor: Tensor) -> "_File":
        """Raises `MemoryBudgetError` where the disk is full."""
        order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
        written = tensor.detach().permute(order).cpu().contiguous()
        descriptor, path = tempfile.mkstemp(prefix="circuitome-activations-")
        kept = cls(path, written.shape, tensor.dtype, tuple(order.index(axis) for axis in range(tensor.ndim)))
        weakref.finalize(kept, _remove, path)
        try:
            with open(descriptor, "wb") as file:
                file.write(written.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise MemoryBudgetError(
                f"Activations wait in files of {os.path.dirname(path)}, and one of {tensor.nbytes / 1e6:,.0f} MB could "
                f"not be written ({error.strerror}). Make room there, or set TMPDIR to a folder on a larger disk."
            ) from error
        return kept

    def read(self, cut: Cut) -> Tensor:
        """A part of it; only that is read from the disk."""
        whole = torch.from_file(self.path, shared=False, size=self.shape.numel(), dtype=self.dtype).view(self.shape)
        return whole.permute(self.axes)[cut].clone()


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


Stored = Tensor | _File


def _store(tensor: Tensor, place: str) -> Stored:
    if place == "disk" and tensor.numel():
        return _File.of(tensor)
    return tensor.detach() if place == "device" else tensor.detach().cpu()


class Parked(MutableSequence[Tensor]):
    """A list of tensors that wait elsewhere: what is asked for is on the device, out of reach of gradients.

    Where a tensor that is put in has a gradient and `with_gradients` is set, its gradient is parked as well as soon
    as a backward pass has it; see `gradients`.
    """

    def __init__(self, place: str, device: torch.device, *, with_gradients: bool = False) -> None:
        self.place, self.device, self.with_gradients = place, device, with_gradients
        self._items: list[Stored] = []
        self._cuts: tuple[Cut, ...] = ()
        self._gradients: dict[int, Stored] = {}

    def empty(self) -> "Parked":
        """A list of the same sort without tensors."""
        return Parked(self.place, self.device, with_gradients=self.with_gradients)

    def cut(self, *cut: slice) -> "Parked":
        """A part of each, read no sooner than it is asked for."""
        view = Parked(self.place, self.device)
        view._items, view._cuts = self._items, (*self._cuts, cut)
        return view

    def gradients(self) -> "Parked":
        """The gradient of each, behind a backward pass; zeros where there was none."""
        found = Parked(self.place, self.device)
        for i in range(len(self)):
            gradient = self._gradients.pop(i, None)
            if gradient is None:
                found.append(torch.zeros_like(self[i]))
            else:
                found._items.append(gradient)
        return found

    def _read(self, item: Stored) -> Tensor:
        cuts = self._cuts
        if isinstance(item, _File):
            item, cuts = item.read(cuts[0] if cuts else ()), cuts[1:]
        for cut in cuts:
            item = item[cut]
        return item.to(self.device)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> "Parked": ...
    @override
    def __getitem__(self, index: int | slice) -> "Tensor | Parked":
        if isinstance(index, int):
            return self._read(self._items[index])
        view = Parked(self.place, self.device)
        view._items, view._cuts = self._items[index], self._cuts
        return view

    @override
    def __setitem__(self, index: Any, value: Any) -> None:
        self._items[index] = _store(value, self.place)

    @override
    def __delitem__(self, index: Any) -> None:
        del self._items[index]

    @override
    def __len__(self) -> int:
        return len(self._items)

    @override
    def insert(self, index: int, value: Tensor) -> None:
        if self.with_gradients and value.requires_grad:
            value.register_hook(lambda gradient: self._gradients.__setitem__(index, _store(gradient, self.place)))
        self._items.insert(index, _store(value, self.place))


Tensors = list[Tensor] | Parked
"""Tensors of many blocks, at hand or parked."""


def like(tensors: Tensors, values: Iterable[Tensor] = ()) -> Tensors:
    """Other values, kept where `tensors` are."""
    new: Tensors = tensors.empty() if isinstance(tensors, Parked) else []
    new.extend(values)
    return new


def part_of(tensors: Tensors, index: int, cut: Cut) -> Tensor:
    """A part of one of them."""
    return tensors.cut(*cut)[index] if isinstance(tensors, Parked) else tensors[index][cut]


@contextmanager
def saved_elsewhere(place: str, weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, what autograd keeps for a backward pass is parked, but for weights and what is small.

    A tensor that several operations keep, such as a mask, is parked once.
    """
    stay = {weight.untyped_storage()._cdata for weight in weights}
    known: weakref.WeakKeyDictionary[Any, dict[Any, Stored]] = weakref.WeakKeyDictionary()

    def pack(tensor: Tensor) -> tuple[torch.device, Stored, int]:
        storage = tensor.untyped_storage()
        if tensor.nbytes < SMALL or storage._cdata in stay:
            kept: Stored = tensor.detach()  # itself it would hold the operation that made it, and that the tensor
        else:
            views = known.setdefault(storage, {})
            key = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version
            if key not in views:
                views[key] = _store(tensor, place)
            kept = views[key]
        return tensor.device, kept, 0 if isinstance(kept, _File) else kept._version

    def unpack(packed: tuple[torch.device, Stored, int]) -> Tensor:
        device, kept, version = packed
        if isinstance(kept, _File):
            return kept.read(()).to(device)
        if kept._version != version:  # torch looks only where it keeps tensors itself
            raise RuntimeError("A tensor that the backward pass needs was changed in place behind the operation.")
        return kept.to(device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
