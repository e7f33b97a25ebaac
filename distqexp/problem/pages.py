"""Memory that a model's large tensors share with the arrays that they were loaded from, until something writes to them. Public.

The numbers lie once, in an anonymous file. Whoever reads the arrays sees it through one mapping; a module has a private one, of which
the operating system copies a page when something writes to it. So the arrays stay what they were, whatever a module does to itself, and a
frozen tensor takes its memory once. Only Linux has such files. Elsewhere, and for small arrays, arrays are copies of their own.
"""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

LARGE = 1 << 20
"""The bytes from which on an array lies in shared pages."""

_ALONE = 2
"""The uses of a storage that one tensor alone has: the tensor's and that of whoever asks."""


class _Region(mmap.mmap):
    """The mapping through which arrays are read; they keep it alive, and it keeps the file."""

    file: int

    @property
    def start(self) -> int:
        """The address of the first byte."""
        return int(np.frombuffer(self, np.uint8, 1).__array_interface__["data"][0])


_regions: weakref.WeakSet[_Region] = weakref.WeakSet()


def in_pages(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return copies of arrays, in C order, large ones in pages that modules can share; those that are there already as they are.

    ``arrays`` is emptied on the way, so that memory holds few arrays twice. Callers must not write into the copies once a module was
    given them.
    """
    offsets, size = {}, 0
    for name, array in arrays.items():
        if array.nbytes >= LARGE and _region_of(array) is None:
            offsets[name] = size
            size += -(-array.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    region = _new_region(size) if offsets else None
    copies: dict[str, NDArray[Any]] = {}
    for name in list(arrays):
        array = arrays.pop(name)
        if region is not None and name in offsets:
            there = np.frombuffer(region, array.dtype, array.size, offsets[name]).reshape(array.shape)
            there[...] = array
            region.madvise(mmap.MADV_DONTNEED)  # of this mapping alone: the numbers stay in the file
            copies[name] = there
        else:
            copies[name] = array if _region_of(array) is not None else np.array(array, order="C")
    return copies


def _new_region(size: int) -> _Region | None:
    """Return a mapping of a new anonymous file of so many bytes; None where the system has none."""
    if not (hasattr(os, "memfd_create") and hasattr(mmap, "MADV_DONTNEED")):
        return None
    file = os.memfd_create("distqexp", os.MFD_CLOEXEC)
    try:
        os.truncate(file, size)
        region = _Region(file, size)
    except OSError:  # a limit on such memory
        os.close(file)
        return None
    region.file = file
    weakref.finalize(region, os.close, file)
    _regions.add(region)
    return region


class PrivatePages:
    """The private mappings of one module: its tensors have the pages of arrays, and keep what they write to themselves."""

    def __init__(self) -> None:
        self._mappings: list[tuple[_Region, mmap.mmap]] = []

    def give(self, tensor: torch.Tensor, values: Any) -> bool:
        """Give a module's tensor the pages of an array, and return whether that could be done; else the tensor is as it was.

        Not done for a tensor of another type, shape or device than the array's, or of which something else holds a view, which would
        go on with the old numbers.
        """
        if not isinstance(values, np.ndarray) or values.nbytes < LARGE or not _is_plain(tensor):
            return False
        region = _region_of(values)
        if region is None:
            return False
        mapping = self._mapping(region)
        offset = int(values.__array_interface__["data"][0]) - region.start
        there = torch.from_numpy(np.frombuffer(mapping, values.dtype, values.size, offset).reshape(values.shape))
        if there.dtype != tensor.dtype or there.shape != tensor.shape or not values.flags.c_contiguous:
            return False
        if _uses(tensor) != _ALONE:
            return False
        tensor.data = there
        return True

    def _mapping(self, region: _Region) -> mmap.mmap:
        for known, mapping in self._mappings:
            if known is region:
                return mapping
        access = mmap.PROT_READ | mmap.PROT_WRITE
        self._mappings.append((region, mmap.mmap(region.file, len(region), flags=mmap.MAP_PRIVATE, prot=access)))
        return self._mappings[-1][1]


def _region_of(array: NDArray[Any]) -> _Region | None:
    address = int(array.__array_interface__["data"][0])
    return next((one for one in list(_regions) if 0 <= address - one.start < len(one)), None)


def _is_plain(tensor: torch.Tensor) -> bool:
    known = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_inference()
    return known and tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()


def _uses(tensor: torch.Tensor) -> int | None:
    """Return how many hold the memory of a tensor, the caller among them; None where torch doesn't tell."""
    with suppress(AttributeError):
        return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))
    return None
