"""The values of many tensors, kept and compared at little cost: small ones by their bits, large ones by torch's counters of changes."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

SMALL_PARAMETER = 1 << 12
SMALL = 1 << 16
"""Parameters, and other tensors, of so many entries are compared bit by bit. Larger ones are compared by version and place in memory,
which a write through ``.data`` or a NumPy view leaves as they are."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Origin(NamedTuple):
    """Where the values of a tensor are found as long as it has this version."""

    version: int
    values: Any


class _Place(NamedTuple):
    """A tensor, its version and place, the memory behind it, and its values: a copy, or where they came from."""

    tensor: torch.Tensor
    version: int
    pointer: int
    alias: torch.Tensor
    values: Any


class TensorStates:
    """The values of tensors at one moment.

    Args:
        origins: Of some tensors by ``id``, where their values came from.
        earlier: An earlier one, whose copies of large tensors that have not changed since are used again.
    """

    def __init__(self, origins: dict[int, Origin], earlier: TensorStates | None = None) -> None:
        self._origins = origins
        self._earlier = {} if earlier is None else {id(place.tensor): place for place in earlier._places}
        self._places: list[_Place] = []
        self._groups: list[tuple[list[torch.Tensor], torch.Tensor]] = []

    def add(self, tensor: torch.Tensor) -> None:
        """Take in one more tensor; ``copy`` must be called after the last."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return  # what is left of a pass under torch.func has no values of its own
        version, pointer = _version(tensor), _pointer(tensor)
        self._places.append(_Place(tensor, version, pointer, tensor.detach(), self._values(tensor, version, pointer)))

    def _values(self, tensor: torch.Tensor, version: int, pointer: int) -> Any:
        if not _is_small(tensor):
            origin = self._origins.get(id(tensor))
            if origin is not None and origin.version == version:
                return origin.values
            before = self._earlier.get(id(tensor))
            if (
                before is not None
                and before.tensor is tensor
                and (before.version, before.pointer) == (version, pointer)
            ):
                return before.values
        return tensor.detach().clone()

    def copy(self) -> None:
        """Lay the bits of small tensors side by side, so that one comparison serves them all."""
        self._earlier = {}
        groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for place in self._places:
            bits = _bits(place.alias) if _is_small(place.tensor) else None
            if bits is not None:
                groups.setdefault((bits.device, bits.dtype), []).append(bits)
        self._groups = [(views, _side_by_side(views)) for views in groups.values()]

    def unchanged(self, bits: bool = True) -> bool:
        """Return whether every tensor is as it was; without ``bits`` as far as torch's counters of changes tell."""
        for tensor, version, pointer, _, _ in self._places:
            if version < 0 or pointer < 0:
                if _version(tensor) != version or _pointer(tensor) != pointer:
                    return False
            elif tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return not bits or all(torch.equal(_side_by_side(views), kept) for views, kept in self._groups)

    def restore(self) -> None:
        """Put back what has changed."""
        if self.unchanged():
            return
        with torch.no_grad():
            for number, place in enumerate(self._places):
                tensor, version, pointer, alias, values = place
                same_place = _pointer(tensor) == pointer and tensor.shape == alias.shape
                if same_place and _version(tensor) == version and not (_is_small(tensor) and _differ(alias, values)):
                    continue
                if not same_place:
                    tensor.data = alias
                alias.copy_(torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values))
                self._places[number] = place._replace(version=_version(tensor), pointer=_pointer(tensor))


def _is_small(tensor: torch.Tensor) -> bool:
    return tensor.numel() <= (SMALL_PARAMETER if isinstance(tensor, nn.Parameter) else SMALL)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = _bits(one), _bits(other)
    return bits[0] is not None and bits[1] is not None and not torch.equal(bits[0], bits[1])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are known to be of one type and shape, and equal to the last bit."""
    ones, others = _bits(one.detach()), _bits(other.detach())
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and ones is not None and others is not None and torch.equal(ones, others)


def fingerprint(tensor: torch.Tensor) -> bytes:
    """Return a SHA-256 of a tensor's bits, which takes no copy of a large one."""
    bits = _bits(tensor.detach())
    if bits is None:  # sparse or quantised, which has no bits to look at in place
        return hashlib.sha256(pickle.dumps(tensor.detach())).digest()
    return hashlib.sha256(bits.cpu().contiguous().numpy().data.cast("B")).digest()


def _side_by_side(views: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([view if view.ndim == 1 else view.reshape(-1) for view in views])


def _bits(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the bits of a tensor as whole numbers in the same memory; None where that can't be done."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.numel() == 0:
        return None
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    whole = real.reshape(1) if real.ndim == 0 else real
    whole = whole.view(_BITS[whole.element_size()])
    return whole.view(-1) if whole.is_contiguous() else whole


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else -1
