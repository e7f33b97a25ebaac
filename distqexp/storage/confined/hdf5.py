"""HDF5 files of records: is the structure one that can be read without harm? Runs in a process with limits.

Looked at are all datasets, links and chunk indices; of the data only what the library could come to grief on: texts of
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
"""Bytes of one chunk, unpacked."""
LARGEST_UNSEEN = 1 << 20
"""Compressed chunks of more bytes are unpacked here; what is smaller can't become more than 1,032 times as much."""
DEFLATE_RATIO = 1032
_ROWS = 1 << 16


def check_structure(file: BinaryIO, request: Request) -> None:
    """Refuse, with FileContentError, an HDF5 file that is damaged or reaches outside itself. length: of the whole file."""
    try:
        with h5py.File(file, "r") as h5:
            # What these callbacks return ends the walk; an exception in one would come out as another.
            outside = h5.visititems_links(lambda name, link: name if isinstance(link, h5py.ExternalLink) else None)
            if outside is not None:
                raise _refused(request, outside, "leads to another file", "all data inside this one: copy them into it")
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
        raise _refused(request, name, "keeps its data in another file", "all data inside this one: copy them into it")
    if node.nbytes > DEFLATE_RATIO * request.length:
        raise _refused(request, name, "declares more data than the file can hold", "a whole file: fetch it again")
    if node.chunks is not None:
        _check_chunks(request, name, node)
    else:
        offset = node.id.get_offset()
        allocated = offset is not None and offset + node.nbytes <= request.length
        if node.nbytes and not allocated and node.id.get_create_plist().get_layout() != h5py.h5d.COMPACT:
            raise _refused(request, name, "declares more data than the file holds", "a whole file: fetch it again")
    if h5py.check_string_dtype(node.dtype) is not None and node.dtype.kind == "O":
        for first in range(0, node.shape[0], _ROWS):
            node[first : first + _ROWS]


def _check_chunks(request: Request, name: str, node: Any) -> None:
    layout = node.id.get_create_plist()
    filters = [int(layout.get_filter(number)[0]) for number in range(layout.get_nfilters())]
    if unknown := [number for number in filters if number not in KNOWN_FILTERS]:
        raise _refused(
            request, name, f"needs HDF5 filter {unknown[0]}", f"{', '.join(KNOWN_FILTERS.values())}: pack it anew"
        )
    if math.prod(node.chunks) * node.dtype.itemsize > LARGEST_CHUNK:
        raise _refused(request, name, "has chunks of more than 256 MiB", "smaller ones: pack it anew")
    chunks: list[Any] = []
    node.id.chunk_iter(chunks.append)
    if any(chunk.byte_offset is None or chunk.byte_offset + chunk.size > request.length for chunk in chunks):
        raise _refused(request, name, "has a chunk outside the file", "a whole file: fetch it again")
    large = [chunk.chunk_offset for chunk in chunks if filters and chunk.size > LARGEST_UNSEEN]
    for corner in large:
        node[tuple(slice(first, first + size) for first, size in zip(corner, node.chunks, strict=True))]


def _refused(request: Request, name: str, what: str, expected: str) -> FileContentError:
    return FileContentError(f"{request.path}: dataset {name!r} {what}; expected {expected}")
