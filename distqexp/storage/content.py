"""Reading what follows the label with the HDF5 library: the identity, the header and the arrays. All of it is checked.

The library can crash or loop on bytes that are crafted for that purpose, so for files from elsewhere this runs in a process
of its own, see ``confined``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError
from distqexp.storage.canonical import array_digest, canonical_json, portable_type
from distqexp.storage.narrowing import WIDE, widened
from distqexp.storage.triangles import SIDE, unpacked

SCHEMA_VERSION = 5
KINDS = ("plan", "sketch", "quadratic", "release", "void")

Frame = tuple[dict[str, Any], npt.NDArray[Any] | None]
"""One part of a file: a JSON object, and an array where the object describes one."""


@dataclass(frozen=True)
class Request:
    """A request to read or check a file.

    Attributes:
        path: The path of the file, for messages.
        length: The number of bytes after the label, or of the whole file where it has no label.
        kind: The expected kind; None for any.
        plan_id: The expected plan; None for any.
        arrays: Whether the arrays are read.
        columns: The columns of a table whose texts are checked.
    """

    path: str
    length: int
    kind: str | None = None
    plan_id: str | None = None
    arrays: bool = True
    columns: tuple[str, ...] = ()


def content_digest(kind: str, plan_id: str, header: bytes, arrays: Mapping[str, str]) -> str:
    """Return the hexadecimal SHA-256 over everything that a file says. It is as sensitive as the arrays.

    Args:
        kind: The kind of the file.
        plan_id: The plan that it belongs to.
        header: The text of the header.
        arrays: The digest of each array.
    """
    fields = [SCHEMA_VERSION, kind, plan_id, hashlib.sha256(header).hexdigest(), dict(arrays)]
    return hashlib.sha256(canonical_json(fields)).hexdigest()


def read_content(file: BinaryIO, request: Request) -> Generator[Frame, None, None]:
    """Yield kind, plan_id, schema_version and header as the first frame, then each array with its name, type and shape.

    The arrays are in the order of their names. Raises FileContentError for whatever is not as distqexp writes it.
    """
    try:
        with h5py.File(file, "r") as h5:
            identity = _identity(h5, request)
            header, text = _header(h5, request)
            digests = _digests(h5, request)
            whole = content_digest(identity["kind"], identity["plan_id"], text, digests)
            if _text(h5.attrs.get("sha256")) != whole:
                raise FileContentError(f"{request.path}: its parts don't belong together; damaged: copy it again")
            yield identity | {"header": header}, None
            for name in sorted(digests) if request.arrays else ():
                array = _array(h5[name], name, digests[name], request)
                yield {"name": name, "type": array.dtype.str, "shape": list(array.shape)}, array
    except (FileContentError, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        is_from_library = isinstance(error, OSError | RuntimeError) and str(error)
        reason = str(error).splitlines()[0] if is_from_library else type(error).__name__
        raise FileContentError(
            f"{request.path}: not readable as HDF5 of this format ({reason}); copy it again"
        ) from error


def _identity(h5: h5py.File, request: Request) -> dict[str, Any]:
    """Return kind, plan_id and schema_version. Raises FileContentError unless they are those of the request."""
    path = request.path
    version = _attribute(path, h5, "schema_version", np.integer)
    if version != SCHEMA_VERSION:
        remedy = (
            "made by an older distqexp: plan again" if version < SCHEMA_VERSION else "use the version that wrote it"
        )
        raise FileContentError(f"{path}: schema_version {version}, this distqexp reads {SCHEMA_VERSION}; {remedy}")
    kind = str(_attribute(path, h5, "kind", str))
    if kind != (request.kind or kind) or kind not in KINDS:
        raise FileContentError(
            f"{path}: kind {kind[:40]!r}, expected {request.kind or ' or '.join(KINDS)!r}; give the right file"
        )
    plan_id = str(_attribute(path, h5, "plan_id", str))
    if plan_id != (request.plan_id or plan_id) or not plan_id.isprintable():
        text = plan_id[:64] if plan_id.isprintable() else "of unprintable text"
        raise FileContentError(
            f"{path}: plan_id {text}, expected {request.plan_id or 'one in hexadecimal digits'}; it belongs to another plan"
        )
    return {"kind": kind, "plan_id": plan_id, "schema_version": int(version)}


def _attribute(path: str, h5: h5py.File, name: str, expected: type) -> Any:
    value = h5.attrs.get(name)
    if not isinstance(value, expected):
        raise FileContentError(
            f"{path}: attribute {name} is {type(value).__name__}, expected {expected.__name__}: no distqexp file"
        )
    return value


def _header(h5: h5py.File, request: Request) -> tuple[dict[str, Any], bytes]:
    """Return the header and its text. Raises FileContentError unless it is canonical JSON."""
    dataset = h5.get("header")
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape != ()
        or dataset.dtype.kind != "S"
        or dataset.nbytes > request.length
    ):
        raise FileContentError(
            f"{request.path}: no readable header, expected one text of JSON; not written by distqexp"
        )
    text = bytes(dataset[()])
    try:
        header = json.loads(text)
        canonical = canonical_json(header)
    except (ValueError, TypeError, RecursionError):
        header, canonical = None, b""
    if not isinstance(header, dict) or canonical != text:
        raise FileContentError(f"{request.path}: its header is not canonical JSON; not written by distqexp")
    return header, text


def _digests(h5: h5py.File, request: Request) -> dict[str, str]:
    """Return the digest that is stored with each array, without reading an array.

    Raises FileContentError for an array that is not plain, and when the arrays declare more bytes than the file has.
    """
    digests: dict[str, str] = {}
    total = 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        if not isinstance(item, h5py.Dataset) or name == "header":
            return
        plain = item.dtype.kind in "biuf" and item.chunks is None and not item.external and not item.is_virtual
        total += item.nbytes if plain and item.shape is not None else 0
        if not plain or item.shape is None or total > request.length:
            raise FileContentError(
                f"{request.path}: {name} is not a plain array inside the file; not written by distqexp"
            )
        if not (digest := _text(item.attrs.get("sha256"))):
            raise _damage_error(name, request)
        digests[name] = digest

    h5.visititems(visit)
    return digests


def _array(dataset: h5py.Dataset, name: str, digest: str, request: Request) -> npt.NDArray[Any]:
    content = np.asarray(dataset[()])
    array = np.asarray(content, dtype=portable_type(content.dtype))
    if WIDE in dataset.attrs:
        array = widened(array, dataset.attrs[WIDE])
    if SIDE in dataset.attrs:
        array = unpacked(array, dataset.attrs[SIDE])
    if digest != array_digest(array):
        raise _damage_error(name, request)
    return array


def _damage_error(name: str, request: Request) -> FileContentError:
    return FileContentError(
        f"{request.path}: the checksum of {name} is not the one stored with it; the file is damaged: copy it again"
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
