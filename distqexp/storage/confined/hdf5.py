"""Checks, in a process with limits, that the structure of an HDF5 file of records can be read without harm.

All datasets, links and chunk indices are checked. Of the data, only what could make the library fail is read: texts of
variable length, and compressed chunks large enough to unpack to more than about a GiB.
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import h5py

from distqexp.errors import FileContentError
from distqexp.storage.content import Request

KNOWN_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
LARGEST_CHUNK = 1 << 28
"""The most bytes of one chunk, unpacked."""
_LARGEST_UNREAD = 1 << 20
"""Compressed chunks of more bytes are unpacked here; smaller ones can't unpack to more than 1,032 times as many."""
DEFLATE_RATIO = 1032
"""The most bytes that one byte can unpack to."""
_ROWS = 1 << 16


def check_structure(file: BinaryIO, request: Request) -> None:
    """Raise FileContentError for an HDF5 file, of ``request.length`` bytes, that is damaged or refers to another file."""
    try:
        with h5py.File(file, "r") as h5:
            # A value that a callback returns ends the walk; an exception in a callback would come out as another one.
            link_name = h5.visititems_links(lambda name, link: name if isinstance(link, h5py.ExternalLink) else None)
            if link_name is not None:
                raise _refusal(
                    request, link_name, "leads to another file", "all data inside this one: copy them into it"
                )
            datasets: list[tuple[str, Any]] = []
            h5.visititems(lambda name, node: datasets.append((name, node)) if isinstance(node, h5py.Dataset) else None)
            for name, node in datasets:
                _check_dataset(request, name, node)
    except (FileContentError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - h5py meets damage with exceptions of every class; their texts may hold data
        raise FileContentError(
            f"{request.path}: not a whole HDF5 file; expected HDF5; fetch it again or correct data.*.format"
        ) from None


def _check_dataset(request: Request, name: str, node: Any) -> None:
    if not node.shape:
        return
    if node.external or node.is_virtual:
        raise _refusal(request, name, "keeps its data in another file", "all data inside this one: copy them into it")
    if node.nbytes > DEFLATE_RATIO * request.length:
        raise _refusal(request, name, "declares more data than the file can hold", "a whole file: fetch it again")
    if node.chunks is not None:
        _check_chunks(request, name, node)
    else:
        offset = node.id.get_offset()
        allocated = offset is not None and offset + node.nbytes <= request.length
        if node.nbytes and not allocated and node.id.get_create_plist().get_layout() != h5py.h5d.COMPACT:
            raise _refusal(request, name, "declares more data than the file holds", "a whole file: fetch it again")
    if h5py.check_string_dtype(node.dtype) is not None and node.dtype.kind == "O":
        for first in range(0, node.shape[0], _ROWS):
            node[first : first + _ROWS]


def _check_chunks(request: Request, name: str, node: Any) -> None:
    layout = node.id.get_create_plist()
    filters = [int(layout.get_filter(number)[0]) for number in range(layout.get_nfilters())]
    if unknown_filters := [number for number in filters if number not in KNOWN_FILTERS]:
        raise _refusal(
            request,
            name,
            f"needs HDF5 filter {unknown_filters[0]}",
            f"{', '.join(KNOWN_FILTERS.values())}: pack it anew",
        )
    if math.prod(node.chunks) * node.dtype.itemsize > LARGEST_CHUNK:
        raise _refusal(request, name, "has chunks of more than 256 MiB", "smaller ones: pack it anew")
    chunks: list[Any] = []
    node.id.chunk_iter(chunks.append)
    if any(chunk.byte_offset is None or chunk.byte_offset + chunk.size > request.length for chunk in chunks):
        raise _refusal(request, name, "has a chunk outside the file", "a whole file: fetch it again")
    corners = [chunk.chunk_offset for chunk in chunks if filters and chunk.size > _LARGEST_UNREAD]
    for corner in corners:
        node[tuple(slice(first, first + size) for first, size in zip(corner, node.chunks, strict=True))]


def _refusal(request: Request, name: str, what: str, expected: str) -> FileContentError:
    return FileContentError(f"{request.path}: dataset {name!r} {what}; expected {expected}")
