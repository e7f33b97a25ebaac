"""Arrays with roles, whatever file they lie in: one of features, images or tokens, one of targets, and perhaps one of unit ids."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.filters import parse_filter
from distqexp.problem.readers.base import PIXELS, Reader, feature_names, some
from distqexp.problem.readers.entries import decode_text, is_missing, legible_text
from distqexp.problem.readers.idx import ascending_runs

_FEATURE_NAMES = ("images", "image", "features", "inputs", "x", "X")
_TARGET_NAMES = ("labels", "label", "targets", "target", "y", "Y")
"""What the arrays are called in most files: the names that are looked for where the config gives none."""


class ArraysReader(Reader):
    """Arrays of one source with roles.

    ``columns.features`` names one array (n, ...), and may be absent when only one other is there. ``columns.target`` names an array
    (n,) or (n, o), and ``unit`` one (n,) of numbers or texts. Where no target is named, both are found by their usual names. With
    ``columns.tokens`` the features are whole numbers (n, L), and raw features are int64 (n, 2, L): the tokens, then the array
    ``columns.mask`` or else ones; a mask entry that is neither 0 nor 1 becomes -1. Images are bytes (n, h, w), (n, c, h, w) or
    (n, h, w, c), and raw features are uint8 (n, c, h, w) with the scale 1/255. The last axis is that of the channels where it is 1, 3
    or 4 long and the second one isn't.

    Attributes:
        noun: what an array of the format is called in messages.
        detects_images: whether bytes of three or four axes are images where ``columns.images`` doesn't say.
    """

    noun = "array"
    detects_images = True

    def __init__(self, path: Path, data: DataConfig) -> None:
        self.path = path
        roles = data.columns
        self._tokens, self._mask = roles.tokens, roles.mask
        self._features, self._target = self._roles(data)
        self.names = (self._features,)
        features = self._numeric(self._features)
        self.count = int(features.shape[0])
        self.shape = tuple(int(size) for size in features.shape[1:]) or (1,)
        self._channels_last = False
        if self._tokens:
            self.shape = (2, *self._token_shape(features))
        elif self._holds_images(features, roles.images):
            self.names, self.image, self.scale = (PIXELS,), True, 1.0 / 255.0
            self._channels_last, self.shape = image_shape(self.shape)
        if self._target is not None:
            target = self._numeric(self._target)
            self._require_aligned(self._target, target)
            self.target_shape = tuple(int(size) for size in target.shape[1:])

    @abstractmethod
    def _array_names(self) -> list[str]:
        """Return the names of all arrays."""

    @abstractmethod
    def _array(self, name: str) -> Any:
        """Return an array of numbers or texts with rows, which has shape, ndim and dtype; else raise FileContentError."""

    @abstractmethod
    def _slice(self, array: Any, first: int, after: int) -> NDArray[Any]:
        """Read the rows from ``first`` to before ``after``. Raises FileContentError for damage."""

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        features = self._rows(self._array(self._features), rows)
        targets = np.full(len(rows), np.nan) if self._target is None else self._rows(self._array(self._target), rows)
        if self._channels_last:
            features = np.ascontiguousarray(np.moveaxis(features, -1, 1))
        if not self._tokens:
            return features.reshape(len(rows), *self.shape), targets
        # What int64 can't hold is out of every vocabulary: it must stay so, and not wrap.
        tokens = np.minimum(features, 2**62).astype(np.int64) if features.dtype.str[1:] == "u8" else features
        mask = np.ones(tokens.shape, dtype=np.int64)
        if self._mask is not None:
            entries = self._rows(self._array(self._mask), rows)
            mask = np.where(entries == 1, 1, np.where(entries == 0, 0, -1))
        return np.stack([tokens.astype(np.int64), mask], axis=1), targets

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        values = self._vector(name)[rows]
        # A short float keeps its type: it holds fewer whole numbers exactly.
        short = values.dtype.kind == "f" and values.dtype.itemsize < 8
        ids: list[Any] = [None if _is_no_id(value) else value for value in (list(values) if short else values.tolist())]
        if not self.private and None in ids:
            raise FileContentError(
                f"{self.path}: unit {self.noun} {name!r}: an id is missing; expected an id in every row; complete it"
            )
        return ids

    def numbers(self, name: str) -> FloatArray:
        self._numeric(name)
        return self._vector(name).astype(np.float64)

    def texts(self, name: str) -> list[str | None]:
        entries = self._vector(name)
        values = [decode_text(value) if isinstance(value, bytes) else value for value in entries]
        if not all(isinstance(value, str) for value in values):
            raise FileContentError(f"{self.path}: {self.noun} {name!r} holds no text; expected text for data.where")
        return [legible_text(value) for value in values]

    def _used(self) -> tuple[str, ...]:
        """Return the names of the arrays with a role."""
        return tuple(name for name in (self._features, self._target, self._mask) if name is not None)

    def _roles(self, data: DataConfig) -> tuple[str, str | None]:
        """Return the array of the features and that of the targets: those that the config names, or that have the usual names.

        Where records have no labels, the target is None.
        """
        roles, names = data.columns, self._array_names()
        target = roles.target
        if not data.labelled:
            return (roles.features or (self._usual_name(names, _FEATURE_NAMES, "features"),))[0], None
        if target is None:
            target = self._usual_name(names, _TARGET_NAMES, "target")
            usual = [name for name in names if name in _FEATURE_NAMES]
            if roles.features is None and len(usual) == 1:
                return usual[0], target
        others = _filter_columns(data) | {self._mask}
        named = dataclasses.replace(data, columns=dataclasses.replace(roles, target=target))
        features = feature_names([name for name in names if name not in others], named, self.path)
        if len(features) != 1:
            raise FileContentError(
                f"{self.path}: {len(features)} {self.noun}s could hold the features; expected one; "
                "name it in data.*.columns.features"
            )
        return features[0], target

    def _usual_name(self, names: Sequence[str], usual: Sequence[str], role: str) -> str:
        found = [name for name in names if name in usual]
        if len(found) != 1:
            raise FileContentError(
                f"{self.path}: {len(found)} {self.noun}s could be the {role} ({some(found)}); the file has {some(names)}; "
                f"name one in data.*.columns.{role}"
            )
        return found[0]

    def _holds_images(self, features: Any, declared: bool | None) -> bool:
        fits = features.dtype == np.uint8 and features.ndim in (3, 4)
        if declared and not fits:
            raise FileContentError(
                f"{self.path}: {self.noun} {self._features!r} holds {features.dtype} in {features.ndim} dimensions; expected images: "
                "uint8 (n, h, w), (n, c, h, w) or (n, h, w, c); write it so, or set data.*.columns.images = false"
            )
        return fits and (self.detects_images if declared is None else declared)

    def _numeric(self, name: str) -> Any:
        array = self._array(name)
        if array.dtype.kind not in "biuf":
            raise FileContentError(f"{self.path}: {self.noun} {name!r} holds {array.dtype}; expected real numbers")
        return array

    def _token_shape(self, features: Any) -> tuple[int, ...]:
        if features.dtype.kind not in "iu" or features.ndim != 2:
            raise FileContentError(
                f"{self.path}: {self.noun} {self._features!r} holds {features.dtype} in {features.ndim} dimensions; expected whole "
                "numbers (n, L), token numbers; correct data.*.columns or the file"
            )
        if self._mask is not None and self._numeric(self._mask).shape != features.shape:
            raise FileContentError(
                f"{self.path}: {self.noun} {self._mask!r} has another shape than {self._features!r}; expected a mask (n, L)"
            )
        return tuple(int(size) for size in features.shape[1:])

    def _require_aligned(self, name: str, array: Any) -> None:
        if array.shape[0] != self.count:
            raise FileContentError(
                f"{self.path}: {self.noun} {name!r} has not as many rows as {self._features!r}; expected equally many"
            )

    def _vector(self, name: str) -> NDArray[Any]:
        array = self._array(name)
        self._require_aligned(name, array)
        if array.ndim != 1:
            raise FileContentError(f"{self.path}: {self.noun} {name!r} has shape (n, ...); expected one value a row")
        return self._slice(array, 0, self.count)

    def _rows(self, array: Any, rows: IntegerArray) -> NDArray[Any]:
        values = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
        for run, places in ascending_runs(rows):
            values[places] = self._slice(array, int(run[0]), int(run[-1]) + 1)
        return values


def image_shape(shape: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    """Return whether the channels of images (h, w) or of three axes come last, and their shape (c, h, w)."""
    if len(shape) == 2:
        return False, (1, *shape)
    channels = (1, 3, 4)
    last = shape[2] in channels and shape[0] not in channels
    return last, (shape[2], shape[0], shape[1]) if last else shape


def _is_no_id(value: Any) -> bool:
    text = decode_text(value) if isinstance(value, bytes) else value
    return is_missing(text) if isinstance(text, str) else bool(value != value)


def _filter_columns(data: DataConfig) -> set[str]:
    """Return the arrays that the filter names and that have no other role."""
    columns = {comparison.column for comparison in parse_filter(data.where)} if data.where else set()
    return columns - {data.columns.target, data.unit, *(data.columns.features or ())}
