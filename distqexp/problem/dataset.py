"""A source of records behind its slots."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.images import Turns, Views, rotate_images, viewed
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.selection import read_blank, select_rows
from distqexp.problem.slots import SlotMap, slot_map

_ROWS_AT_ONCE = 1024


class Dataset:
    """Records of one source as tensors, by row of the file. Use open_dataset.

    ``opened`` counts the rows read so far. Can be pickled: a copy opens the files anew.
    """

    def __init__(self, data: DataConfig, schema: Schema, reader: Reader, turns: Turns | None = None) -> None:
        self.data = data
        self._turns = turns
        self.schema = schema
        self.opened = 0
        self._reader = reader
        self._blank = read_blank(data, reader.count)

    def slot_map(self) -> SlotMap:
        """The slots of the selected rows. Reads the filter and unit columns only, no features."""
        rows = select_rows(self.data, self._reader, keep_blank=True)
        return slot_map(rows, self.identifiers(rows))

    def identifiers(self, rows: NDArray[np.int64]) -> list[Any] | None:
        """The unit ids of these rows; None where a row is a unit. Private."""
        return None if self.data.unit is None else self._reader.identifiers(self.data.unit, rows)

    def read(self, rows: NDArray[np.int64] | Sequence[int], views: Views | None = None) -> Records:
        """These rows of the file, in this order, preprocessed by the schema; no other row is parsed.

        ``views``: of every image. A blank row is not looked at. FileContentError for a label that the loss doesn't allow (column and rule
        are named, never the value).
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not (wanted.min() >= 0 and wanted.max() < self._reader.count)):
            raise UsageError("rows: found rows that the file doesn't have; expected rows of the slot map")
        self.opened += len(wanted)
        live = np.flatnonzero(~self._blank[wanted])
        inputs, targets, finite = self._read_live(wanted[live])
        present = np.zeros(len(wanted), dtype=np.bool_)
        present[live] = finite
        scattered = _scatter(inputs, live, len(wanted))
        if self.schema.tokens:
            scattered[~present, 1, 0] = 1  # attention to no token at all may be 0/0
        records = Records(
            torch.from_numpy(scattered),
            torch.from_numpy(_scatter(targets, live, len(wanted))),
            torch.from_numpy(present),
        )
        return viewed(records, wanted, views) if views else records

    def fingerprint(self) -> str:
        """A hash of the sizes and times of the files: whether a checkpoint still fits them. Private, local."""
        paths = [*self._reader.files(), *([Path(self.data.blank)] if self.data.blank else [])]
        facts = [f"{stat.st_size}:{stat.st_mtime_ns}" for stat in (path.stat() for path in paths)]
        return hashlib.sha256("|".join([self.data.format, *facts]).encode()).hexdigest()

    def _read_live(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        parts = []
        for start in range(0, max(len(rows), 1), _ROWS_AT_ONCE):
            raw, labels = self._reader.read(rows[start : start + _ROWS_AT_ONCE], self.schema.names)
            values = self.schema.inputs(raw)
            if self.data.rotate or self._turns:
                own = self._turns.of_rows(rows[start : start + _ROWS_AT_ONCE]) if self._turns else 0.0
                values = rotate_images(values, self.data.rotate + own)
            if self.schema.tokens:
                self._check_tokens(values)
                narrow, missing = values, ~values[:, 1].any(axis=1)
            else:
                with np.errstate(over="ignore"):
                    narrow = values.astype(np.float32)
                missing = _any(~np.isfinite(narrow))
            numbers = np.asarray(labels, dtype=np.float64)
            self._check_labels(numbers[~_any(np.isnan(numbers))])
            absent = missing | _any(~np.isfinite(numbers))
            parts.append((narrow, self._targets(numbers), ~absent))
        inputs, targets, finite = (np.concatenate(part) for part in zip(*parts, strict=True))
        inputs[~finite] = 0
        targets[~finite] = 0
        return inputs, targets, finite

    def _check_tokens(self, values: NDArray[np.int64]) -> None:
        """``values``: (n, 2, L), tokens and mask."""
        top, columns = self.schema.vocabulary, self.data.columns
        if not bool((values[:, 1] >= 0).all()):
            column, what, rule = columns.mask, "an entry of the mask", "0 or 1"
        elif not bool(((values[:, 0] >= 0) & (values[:, 0] < (top or 2**62))).all()):
            column, what = self.schema.names[0], "a token"
            rule = f"whole numbers from 0 to {top - 1}, the model's vocabulary" if top else "whole numbers from 0 up"
        else:
            return
        raise FileContentError(
            f"{self._where()}: column {column!r}: {what} is out of range; expected {rule}; tokenise the records for this model"
        )

    def _check_labels(self, labels: NDArray[np.float64]) -> None:
        loss, classes = self.schema.loss, self.schema.classes
        if loss == "mean-squared-error":
            return
        if labels.ndim != 1:
            rule, good = f"one label a record for {loss}", False
        elif loss == "binary-cross-entropy":
            rule, good = "0 or 1 for binary-cross-entropy", bool(np.isin(labels, (0.0, 1.0)).all())
        else:
            top = f"0 to {classes - 1}" if classes is not None else "0 up"
            rule = f"whole numbers from {top} for cross-entropy"
            bound = classes if classes is not None else 2**31
            good = bool(((labels == np.floor(labels)) & (labels >= 0) & (labels < bound)).all())
        if not good:
            column = self.data.columns.target or "labels"
            raise FileContentError(
                f"{self._where()}: column {column!r}: a label is out of range; expected {rule}; "
                "recode the column, or correct model.args and model.loss"
            )

    def _targets(self, numbers: NDArray[np.float64]) -> NDArray[Any]:
        if self.schema.loss == "cross-entropy":
            return np.where(np.isfinite(numbers), numbers, 0).astype(np.int64)
        with np.errstate(over="ignore"):
            return numbers.astype(np.float32)

    def _where(self) -> str:
        return ", ".join(str(path) for path in self._reader.files()) or self.data.format


def open_dataset(data: DataConfig, schema: Schema, turns: Turns | None = None) -> Dataset:
    """Open a source and check it against the schema. No record is parsed yet. ``turns``: of images, besides the config's.

    Raises UsageError for a missing file or a config that doesn't fit the format, FileContentError for a damaged
    file or other columns than the schema's.
    """
    reader = open_reader(data)
    schema.check(reader)
    if data.rotate and not reader.image:
        raise UsageError(f"data.rotate: found {data.rotate} with format {data.format}; expected images: digits or idx")
    if turns and not reader.image:
        raise UsageError(
            f"precision.rotate: found with format {data.format}; expected images: digits or idx; leave it out"
        )
    return Dataset(data, schema, reader, turns)


def count_units(data: DataConfig) -> int:
    """How many units have a row that passes the filter and isn't blank. Private. Reads the filter and unit columns only."""
    reader = open_reader(data)
    rows = select_rows(data, reader, keep_blank=False)
    return slot_map(rows, None if data.unit is None else reader.identifiers(data.unit, rows)).units


def _scatter(values: NDArray[Any], places: NDArray[np.int64], count: int) -> NDArray[Any]:
    if len(places) == count:
        return values
    found = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    found[places] = values
    return found


def _any(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n, ...) -> (n,): whether any mark of a record is set."""
    return np.asarray(marks.any(axis=tuple(range(1, marks.ndim))), dtype=np.bool_)
