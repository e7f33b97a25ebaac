"""The files between stages: HDF5 behind a checked label.

The first 512 bytes (HDF5's user block) hold a magic line, the length and the SHA-256 of everything after
them; they are checked before the HDF5 library sees a byte. Inside: the attributes schema_version, kind and
plan_id, a dataset ``header`` (canonical JSON, public fields only), and the arrays, each with its own digest.
The files are read and written through Python file objects, so HDF5 takes no locks, and one content has
one sequence of bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import array_digest, canonical_json, portable_type

SCHEMA_VERSION = 1
KINDS = ("plan", "sketch", "quadratic", "release")
LABEL_BYTES = 512
MAGIC = b"distqexp file\n"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredFile:
    """A file that passed every check. header is public; arrays are as private as the kind says."""

    path: Path
    kind: str
    plan_id: str
    schema_version: int
    header: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]


def write_file(
    path: Path,
    *,
    kind: str,
    plan_id: str,
    header: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    private: bool,
) -> None:
    """Write one file atomically; the same content gives the same bytes.

    header: JSON types, public fields only. arrays: booleans, integers or floats of any shape; names may
    contain "/" and may not be "header". private: mode 0600.

    Raises StorageError (disk full, folder not writable), UsageError (folder missing), ValueError or
    TypeError for a kind, a name, a header or an array type that the format does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    if "header" in {name.split("/")[0] for name in arrays}:
        raise ValueError("the array name 'header' is taken")
    text = canonical_json(dict(header))
    portable = {name: np.asarray(array, dtype=portable_type(array.dtype)) for name, array in arrays.items()}

    def fill(file: BinaryIO) -> None:
        sink = _Sink(file)
        try:
            with h5py.File(sink, "w", userblock_size=LABEL_BYTES, libver="earliest") as h5:
                h5.attrs["schema_version"] = SCHEMA_VERSION
                h5.attrs["kind"] = kind
                h5.attrs["plan_id"] = plan_id
                h5.create_dataset("header", data=np.bytes_(text), track_times=False)
                for name in sorted(portable):
                    dataset = h5.create_dataset(name, data=portable[name], track_times=False)
                    dataset.attrs["sha256"] = array_digest(portable[name])
        except (OSError, RuntimeError):
            if sink.error is None:
                raise
        if sink.error is not None:
            raise sink.error
        file.flush()
        length, digest = _measure(file)
        file.seek(0)
        file.write(_label(length, digest))

    write_atomic(path, fill, private=private)


def read_file(path: Path, *, kind: str | None = None, plan_id: str | None = None) -> StoredFile:
    """Read and check a whole file: label, schema_version, kind, plan_id, header and every array.

    Raises UsageError (no such file), StorageError (unreadable), FileContentError (anything that differs
    from what is expected, with both values).
    """
    with _opened(path, kind, plan_id) as (h5, stored, length):
        arrays: dict[str, npt.NDArray[Any]] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name != "header":
                arrays[name] = _array(path, name, item, length)

        h5.visititems(visit)
        stored.arrays.update({name: arrays[name] for name in sorted(arrays)})
    return stored


def read_header(path: Path, *, kind: str | None = None, plan_id: str | None = None) -> StoredFile:
    """As read_file (the label's checksum covers the whole file), with no array loaded."""
    with _opened(path, kind, plan_id) as (_, stored, _):
        return stored


class _Sink(io.RawIOBase):
    """A binary file for HDF5's writes that remembers the first failure and then pretends.

    The HDF5 library must not meet a failing disk: its own close would fail again and leave the file open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return len(buffer)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence) if self.error is None else offset

    def tell(self) -> int:
        return self._file.tell() if self.error is None else 0

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def flush(self) -> None:
        """Nothing: the writer flushes at its end, where an error can be raised."""


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Length and SHA-256 of everything after the label."""
    digest, length = hashlib.sha256(), 0
    file.seek(LABEL_BYTES)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return length, digest.hexdigest()


def _label(length: int, digest: str) -> bytes:
    return (MAGIC + f"length {length}\nsha256 {digest}\n".encode()).ljust(LABEL_BYTES, b"\0")


def _check_label(path: Path, file: BinaryIO) -> int:
    found = file.read(LABEL_BYTES)
    if len(found) < LABEL_BYTES:
        raise FileContentError(
            f"{path}: {len(found)} bytes, a label alone has {LABEL_BYTES}; the file is cut short: copy it again"
        )
    if not found.startswith(MAGIC):
        raise FileContentError(f"{path}: begins with {found[:14]!r}, not {MAGIC!r}; it is no distqexp file, or damaged")
    length, digest = _measure(file)
    lines = found[len(MAGIC) :].split(b"\n")
    if lines[0].startswith(b"length ") and lines[0][7:].isdigit() and int(lines[0][7:]) != length:
        raise FileContentError(
            f"{path}: {length} bytes after the label, the label says {int(lines[0][7:])}; "
            "the file is cut short or padded: copy it again"
        )
    if not hmac.compare_digest(found, _label(length, digest)):
        raise FileContentError(f"{path}: its checksum is not the one in its label; the file is damaged: copy it again")
    return length


@contextmanager
def _opened(path: Path, kind: str | None, plan_id: str | None) -> Iterator[tuple[h5py.File, StoredFile, int]]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, after its errors are told apart
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; give the path of an existing one") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder; expected a file") from None
    except OSError as error:
        raise StorageError(
            f"{path}: can't be read ({os.strerror(error.errno or 0)}); check its owner and mode"
        ) from error
    with file:
        try:
            length = _check_label(path, file)
            with h5py.File(file, "r") as h5:
                yield h5, _identity(path, h5, length, kind, plan_id), length
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileContentError(f"{path}: not readable as HDF5 of this format ({reason}); copy it again") from error


def _identity(path: Path, h5: h5py.File, length: int, kind: str | None, plan_id: str | None) -> StoredFile:
    version = _attribute(path, h5, "schema_version", np.integer)
    if version != SCHEMA_VERSION:
        raise FileContentError(
            f"{path}: schema_version {version}, this distqexp reads {SCHEMA_VERSION}; use the version that wrote it"
        )
    found_kind = str(_attribute(path, h5, "kind", str))
    if found_kind != (kind or found_kind) or found_kind not in KINDS:
        raise FileContentError(
            f"{path}: kind {found_kind!r}, expected {kind or ' or '.join(KINDS)!r}; give the right file"
        )
    found_plan = str(_attribute(path, h5, "plan_id", str))
    if found_plan != (plan_id or found_plan):
        raise FileContentError(f"{path}: plan_id {found_plan}, expected {plan_id}; it belongs to another plan")
    return StoredFile(path, found_kind, found_plan, int(version), _header(path, h5, length), {})


def _attribute(path: Path, h5: h5py.File, name: str, expected: type) -> Any:
    value = h5.attrs.get(name)
    if not isinstance(value, expected):
        raise FileContentError(
            f"{path}: attribute {name} is {type(value).__name__}, expected {expected.__name__}: no distqexp file"
        )
    return value


def _header(path: Path, h5: h5py.File, length: int) -> dict[str, Any]:
    dataset = h5.get("header")
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape != ()
        or dataset.dtype.kind != "S"
        or dataset.nbytes > length
    ):
        raise FileContentError(f"{path}: no readable header, expected one text of JSON; not written by distqexp")
    text = bytes(dataset[()])
    try:
        header = json.loads(text)
        canonical = canonical_json(header)
    except (ValueError, TypeError, RecursionError):
        header, canonical = None, b""
    if not isinstance(header, dict) or canonical != text:
        raise FileContentError(f"{path}: its header is not canonical JSON; not written by distqexp")
    return header


def _array(path: Path, name: str, dataset: h5py.Dataset, length: int) -> npt.NDArray[Any]:
    plain = dataset.dtype.kind in "biuf" and dataset.chunks is None and not dataset.external and not dataset.is_virtual
    if not plain or dataset.shape is None or dataset.nbytes > length:
        raise FileContentError(f"{path}: {name} is not a plain array inside the file; not written by distqexp")
    array = np.asarray(dataset[()])
    if not isinstance(digest := dataset.attrs.get("sha256"), str) or digest != array_digest(array):
        raise FileContentError(
            f"{path}: the checksum of {name} is not the one stored with it; the file is damaged: copy it again"
        )
    return array
