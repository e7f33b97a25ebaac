"""NumPy's own files: two .npy files of features and labels, or the arrays of one .npz. Nothing is ever unpickled.

Rows are read by their place in the file, never the whole array. They are not mapped into memory: a file that shrinks while it is
mapped would end the process by a signal, where a read ends it with an error.
"""

from __future__ import annotations

import io
import math
import os
import weakref
import zipfile
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.arrays import ArraysReader
from distqexp.problem.readers.base import LABEL, changed_file_error, existing_file, label_file

_MOST_IN_MEMORY = 1 << 31
"""The most bytes of an array that can't be read by rows: packed, or stored column by column."""
_LOCAL_HEADER = 30


class StoredArray:
    """An array in NumPy's format inside an open file.

    Attributes:
        shape: its shape, of one axis or more.
        dtype: its type, numbers or texts of fixed length.
    """

    def __init__(self, file: BinaryIO, path: Path, name: str, start: int, length: int) -> None:
        """Read the header at byte ``start`` of ``file``; the array and its header are ``length`` bytes long.

        Raises FileContentError for anything but a whole array of numbers or texts.
        """
        self._file, self._path = file, path
        file.seek(start)
        try:
            self.shape, columns_first, self._stored = npy_header(file)
        except Exception:  # noqa: BLE001 - numpy meets a damaged header with exceptions of every class
            raise FileContentError(
                f"{path}: {name} isn't in NumPy's format, or damaged; expected what np.save writes; save it anew"
            ) from None
        self.dtype = self._stored.newbyteorder("=")
        if self.dtype.hasobject or self.dtype.kind not in "biufSU" or self.dtype.itemsize == 0:
            raise FileContentError(
                f"{path}: {name} holds {_kind_of(self.dtype)}; expected plain numbers or texts, as pickles are never loaded; "
                "convert it by astype and save it anew"
            )
        if not self.shape or 0 in self.shape[1:]:
            raise FileContentError(f"{path}: {name} has shape {self.shape}; expected (n, ...), a row a record")
        self._start = file.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._start - start + self.shape[0] * self._row != length:
            raise FileContentError(
                f"{path}: {name} is not as long as its header says; the file is truncated or damaged: fetch it again"
            )
        self._whole: NDArray[Any] | None = None
        if columns_first and self.ndim > 1:
            if self.shape[0] * self._row > _MOST_IN_MEMORY:
                raise FileContentError(
                    f"{path}: {name} is stored column by column and larger than 2 GiB; expected rows; save np.ascontiguousarray of it"
                )
            self._whole = self._values(0, self.shape[0]).reshape(self.shape, order="F")

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def slice(self, first: int, after: int) -> NDArray[Any]:
        """Return the rows from ``first`` to before ``after``."""
        if self._whole is not None:
            return self._whole[first:after]
        return self._values(first, after).reshape(after - first, *self.shape[1:])

    def _values(self, first: int, after: int) -> NDArray[Any]:
        self._file.seek(self._start + first * self._row)
        content = self._file.read((after - first) * self._row)
        if len(content) != (after - first) * self._row:
            raise changed_file_error(self._path)
        return np.frombuffer(content, dtype=self._stored).astype(self.dtype, copy=False)


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, order and type of an array; np.load would make room for whatever shape a file declares."""
    npy = np.lib.format
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    return read(file)


class _StoredArraysReader(ArraysReader):
    """Arrays in NumPy's format, which a process finds once."""

    _found: dict[str, StoredArray] | None = None
    _streams: tuple[BinaryIO, ...] = ()

    @abstractmethod
    def _find(self) -> dict[str, StoredArray]:
        """Open the files, noted in ``_streams``, and return their arrays."""

    def file_stats(self) -> tuple[os.stat_result, ...]:
        self._arrays()
        return tuple(os.fstat(stream.fileno()) for stream in self._streams)

    def check_whole(self) -> None:
        """Do nothing: the arrays are plain bytes whose number was compared, or were unpacked."""

    def _arrays(self) -> dict[str, StoredArray]:
        if self._found is None:
            self._found = self._find()
        return self._found

    def _array_names(self) -> list[str]:
        return list(self._arrays())

    def _array(self, name: str) -> StoredArray:
        if name not in self._arrays():
            raise FileContentError(f"{self.path}: no array {name!r}; correct data.*.columns or the file")
        return self._arrays()[name]

    def _slice(self, array: Any, first: int, after: int) -> NDArray[Any]:
        values: NDArray[Any] = array.slice(first, after)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None, "_streams": ()}


class NpyReader(_StoredArraysReader):
    """Two .npy files, of features and of labels. Filters may name ``label``; for unit ids there is .npz."""

    def __init__(self, data: DataConfig) -> None:
        self._labels = existing_file(label_file(data), "data.labels") if data.labelled else None
        self.path = existing_file(data.path, "data.path")
        super().__init__(self.path, data)

    def files(self) -> tuple[Path, ...]:
        return (self.path, *([self._labels] if self._labels is not None else []))

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        raise UsageError(
            f"data.unit: found {name!r}, but npy has no arrays of ids; save features, labels and ids with np.savez, and use npz"
        )

    def _roles(self, data: DataConfig) -> tuple[str, str | None]:
        return "features", LABEL if data.labelled else None

    def _find(self) -> dict[str, StoredArray]:
        paths = dict(zip(("features", LABEL), self.files(), strict=False))
        self._streams = tuple(path.open("rb") for path in paths.values())
        for stream in self._streams:
            weakref.finalize(self, stream.close)
        sizes = [os.fstat(stream.fileno()).st_size for stream in self._streams]
        return {
            name: StoredArray(stream, path, "it", 0, size)
            for (name, path), stream, size in zip(paths.items(), self._streams, sizes, strict=True)
        }


class NpzReader(_StoredArraysReader):
    """The arrays of one .npz file with roles. Packed arrays are unpacked into memory, plain ones are read by rows."""

    def __init__(self, data: DataConfig) -> None:
        self.path = existing_file(data.path, "data.path")
        super().__init__(self.path, data)

    def check_whole(self) -> None:
        """Unpack what is packed, which compares its checksum."""
        for name in self._used():
            self._array(name)

    def _find(self) -> dict[str, StoredArray]:
        stream = self.path.open("rb")
        weakref.finalize(self, stream.close)
        self._streams = (stream,)
        try:
            with zipfile.ZipFile(stream) as archive:
                self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, UnicodeDecodeError):
            raise FileContentError(
                f"{self.path}: not a whole .npz file; expected what np.savez writes; fetch it again or correct data.*.format"
            ) from None
        return {}

    def _array_names(self) -> list[str]:
        self._arrays()
        return list(self._members)

    def _array(self, name: str) -> StoredArray:
        found = self._arrays()
        if name not in self._members:
            raise FileContentError(f"{self.path}: no array {name!r}; correct data.*.columns or the file")
        if name not in found:
            found[name] = self._member(name, self._members[name])
        return found[name]

    def _member(self, name: str, info: zipfile.ZipInfo) -> StoredArray:
        (stream,) = self._streams
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            stream.seek(info.header_offset)
            header = stream.read(_LOCAL_HEADER)
            if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise changed_file_error(self.path)
            start = info.header_offset + _LOCAL_HEADER + sum(np.frombuffer(header[26:30], dtype="<u2").tolist())
            return StoredArray(stream, self.path, f"array {name!r}", start, info.file_size)
        if info.file_size > _MOST_IN_MEMORY:
            raise FileContentError(
                f"{self.path}: array {name!r} unpacks to more than 2 GiB; expected a plain one; write it with np.savez"
            )
        try:
            with zipfile.ZipFile(stream) as archive, archive.open(info) as member:
                content = member.read(info.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
            raise FileContentError(
                f"{self.path}: array {name!r} can't be unpacked: damaged, or locked by a password; save it anew with np.savez"
            ) from None
        return StoredArray(io.BytesIO(content), self.path, f"array {name!r}", 0, len(content))


def _kind_of(dtype: np.dtype[Any]) -> str:
    return "Python objects" if dtype.hasobject else "records of several fields" if dtype.fields else str(dtype)
