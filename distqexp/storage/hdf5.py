"""The files between stages: HDF5 after a label that is checked first.

The first 512 bytes (HDF5's user block) are the label, see ``label``. The HDF5 file has the attributes schema_version, kind,
plan_id and sha256 (over everything that the file says), a dataset ``header`` (canonical JSON of public fields only), and the
arrays, each with its own digest; of lower triangular ones a public file has what is on and below the diagonal,
and numbers that fit a narrower type it has in that. The files are
written through Python file objects, so that HDF5 takes no locks and the same content always gives the same bytes. They are
read by a process with limits, see ``confined``, unless the caller vouches for them.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt

from distqexp.errors import StorageError, UsageError
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import array_digest, canonical_json, portable_type
from distqexp.storage.confined.parent import read_confined
from distqexp.storage.content import KINDS, SCHEMA_VERSION, Request, content_digest, read_content
from distqexp.storage.label import LABEL_BYTES, check_label, write_label
from distqexp.storage.narrowing import WIDE, narrowed
from distqexp.storage.triangles import SIDE, is_lower_triangular, packed


@dataclass(frozen=True)
class StoredFile:
    """A file that passed every check.

    Attributes:
        path: The path of the file.
        kind: The kind of the file.
        plan_id: The plan that it belongs to.
        schema_version: The version of the format.
        header: The header, which is public.
        arrays: The arrays by name, which are as private as the kind says.
    """

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

    Args:
        path: The file.
        kind: The kind of the file.
        plan_id: The plan that it belongs to.
        header: Public fields only, of JSON types.
        arrays: Booleans, integers or floats of any shape, by name. A name may contain "/" and may not be "header".
        private: Whether the file has the mode 0600.

    Raises:
        StorageError: The disk is full, or the folder can't be written.
        UsageError: The folder does not exist.
        ValueError: The format does not have the kind, the name of an array or a value of the header.
        TypeError: The format does not have the type of an array or of a value of the header.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    if "header" in {name.split("/")[0] for name in arrays}:
        raise ValueError("the array name 'header' is taken")
    text = canonical_json(dict(header))
    portable = {name: np.asarray(array, dtype=portable_type(array.dtype)) for name, array in arrays.items()}
    digests = {name: array_digest(array) for name, array in portable.items()}

    def fill(file: BinaryIO) -> None:
        sink = _Sink(file)
        try:
            with h5py.File(sink, "w", userblock_size=LABEL_BYTES, libver="earliest") as h5:
                h5.attrs["schema_version"] = SCHEMA_VERSION
                h5.attrs["kind"] = kind
                h5.attrs["plan_id"] = plan_id
                h5.attrs["sha256"] = content_digest(kind, plan_id, text, digests)
                h5.create_dataset("header", data=np.bytes_(text), track_times=False)
                for name in sorted(portable):
                    array = portable[name]
                    half = not private and is_lower_triangular(
                        array
                    )  # a private file's size tells nothing of its numbers
                    held = packed(array) if half else array
                    short = held if private else narrowed(held)
                    dataset = h5.create_dataset(name, data=short, track_times=False)
                    dataset.attrs["sha256"] = digests[name]
                    if short.dtype != held.dtype:
                        dataset.attrs[WIDE] = held.dtype.str
                    if half:
                        dataset.attrs[SIDE] = array.shape[-1]
        except (OSError, RuntimeError):
            if sink.error is None:
                raise
        if sink.error is not None:
            raise sink.error
        file.flush()
        write_label(file)

    write_atomic(path, fill, private=private)


def read_file(path: Path, *, kind: str | None = None, plan_id: str | None = None, own: bool = False) -> StoredFile:
    """Read and check a whole file: its label, schema_version, kind, plan_id, header and every array.

    Args:
        path: The file.
        kind: The expected kind; None for any.
        plan_id: The expected plan; None for any.
        own: Whether this run wrote the file for itself, into a folder where nobody else writes. Such a file is read in this
            process. Any other is read by a process with limits (0.15 s for each file), so that no file can crash this one.

    Raises:
        UsageError: There is no such file.
        StorageError: The file can't be read.
        FileContentError: Something differs from what is expected; the message has both values.
    """
    return _read(path, kind, plan_id, arrays=True, own=own)


def read_header(path: Path, *, kind: str | None = None, plan_id: str | None = None) -> StoredFile:
    """Read and check a file as ``read_file`` does, without its arrays. The checksum in the label still covers the whole file."""
    return _read(path, kind, plan_id, arrays=False, own=False)


def _read(path: Path, kind: str | None, plan_id: str | None, *, arrays: bool, own: bool) -> StoredFile:
    with _open_regular(path) as file:
        request = Request(str(path), check_label(path, file), kind, plan_id, arrays)
        file.seek(0)
        with closing(read_content(file, request) if own else read_confined(file, request)) as frames:
            identity, _ = next(frames)
            content = {frame["name"]: array for frame, array in frames if array is not None}
    return StoredFile(
        path, identity["kind"], identity["plan_id"], identity["schema_version"], identity["header"], content
    )


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises UsageError when there is none, and StorageError when it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; give the path of an existing one") from None
    except OSError as error:
        raise StorageError(
            f"{path}: can't be read ({os.strerror(error.errno or 0)}); check its owner and mode"
        ) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        actual = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UsageError(f"{path}: {actual}; expected a file")
    return os.fdopen(descriptor, "rb")


class _Sink(io.RawIOBase):
    """A binary file for HDF5 to write to. It remembers the first failure and from then on pretends to succeed.

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
        """Do nothing: the writer flushes at its end, where an error can be raised."""
