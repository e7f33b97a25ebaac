"""A source of records behind its slots."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.faults import Fault, Faults, label_rule, mark, mark_labels, mark_tokens, token_rule
from distqexp.problem.images import Turns, Views, rotate_images, viewed
from distqexp.problem.network import Network
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.readers.base import facts_of
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.selection import open_blank, select_rows
from distqexp.problem.slots import NO_ROW, SlotMap, slot_map
from distqexp.problem.unit_ids import canonical_id

_ROWS_AT_ONCE = 1024
_TOKENISE = "tokenise the records for this model"
_RECODE = "recode the column, or correct model.args and model.loss"


class Dataset:
    """Records of one source as tensors, by row of the file. Use open_dataset.

    ``private``: a record that breaks a rule (problem.faults) is not present, as if it were blank, and nothing tells so. Of public
    records a label or token out of range is refused. ``opened`` counts the rows read so far. Can be pickled: a copy opens the files anew.
    """

    def __init__(self, data: DataConfig, schema: Schema, reader: Reader, turns: Turns | None = None) -> None:
        self.data = data
        self._turns = turns
        self.schema = schema
        self.opened = 0
        self._reader = reader
        self._blank, self._blank_found = open_blank(data, reader.count)

    @property
    def private(self) -> bool:
        """Whether the records are private."""
        return self._reader.private

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one record's inputs: the schema's, or the file's where that leaves it open."""
        return self.schema.input_shape or self._reader.shape

    def of_model(self, network: Network) -> Dataset:
        """This source, once its targets are known to be such as the model of ``network`` gives outputs for. No record is read.

        Raises FileContentError for targets of another width. A schema that was made without a record's shape learns the number of classes.
        """
        loss, target = self.schema.loss, self._reader.target_shape
        kind = torch.int64 if self.schema.tokens else torch.float32
        blank = torch.zeros(2, *self.input_shape, dtype=kind, device=network.device)

        def outputs() -> torch.Tensor:  # of one record
            return network.outputs(blank)[:1]

        if loss == "mean-squared-error" and (width := outputs().numel()) != math.prod(target):
            raise FileContentError(
                f"{self._where()}: targets of shape {target}; expected {width} numbers a record, as the model gives: "
                "correct the file or model.args"
            )
        if loss == "cross-entropy" and self.schema.classes is None:
            self.schema = dataclasses.replace(self.schema, classes=int(outputs().shape[1]))
        return self

    def slot_map(self) -> SlotMap:
        """The slots of the selected rows. Reads the filter and unit columns only, no features.

        A private row without an id is nobody's: its slot is a unit of its own without a row, NO_ROW.
        """
        rows = select_rows(self.data, self._reader, keep_blank=True)
        return slot_map(rows, self.identifiers(rows), f"{self._where()}: column {self.data.unit!r}")

    def identifiers(self, rows: NDArray[np.int64]) -> list[Any] | None:
        """The unit ids of these rows, None for a row that is nobody's; None where a row is a unit. Private."""
        if self.data.unit is None:
            return None
        where = f"{self._where()}: column {self.data.unit!r}"
        names = [canonical_id(name, where) for name in self._reader.identifiers(self.data.unit, rows[rows != NO_ROW])]
        if not self.private and None in names:
            raise FileContentError(
                f"{where}: an id can't be read; expected numbers, dates or texts in UTF-8; complete it"
            )
        found = iter(names)
        return [None if row == NO_ROW else next(found) for row in rows.tolist()]

    def check_whole(self) -> None:
        """Raise FileContentError now for whatever in the files could end a later read; of no record alone."""
        self._reader.check_whole()

    def read(self, rows: NDArray[np.int64] | Sequence[int], views: Views | None = None) -> Records:
        """These rows of the file, in this order, preprocessed by the schema; no other row is parsed.

        ``views``: of every image. A blank row is not looked at, and NO_ROW is absent. FileContentError for a label or token of public
        records that the model doesn't allow (column and rule are named, never the value).
        """
        wanted = self._checked(rows)
        self.opened += len(wanted)
        live = np.flatnonzero((wanted != NO_ROW) & ~self._blank[wanted])
        inputs, targets, faults = self._read_live(wanted[live])
        present = np.zeros(len(wanted), dtype=np.bool_)
        present[live] = faults == Fault.NONE
        scattered = _scatter(inputs, live, len(wanted))
        if self.schema.tokens:
            scattered[~present, 1, 0] = 1  # attention to no token at all may be 0/0
        records = Records(
            torch.from_numpy(scattered),
            torch.from_numpy(_scatter(targets, live, len(wanted))),
            torch.from_numpy(present),
        )
        return viewed(records, wanted, views) if views else records

    def faults(self, rows: NDArray[np.int64] | Sequence[int]) -> Faults:
        """(n,): which rule each of these rows breaks, Fault.NONE for those that ``read`` has present. For whoever may see the records."""
        wanted = self._checked(rows)
        found = np.where(wanted == NO_ROW, Fault.NO_UNIT, Fault.BLANK).astype(np.int8)
        live = np.flatnonzero((wanted != NO_ROW) & ~self._blank[wanted])
        found[live] = self._read_live(wanted[live])[2]
        broken = live[found[live] != Fault.NONE]
        unreadable = self._reader.unreadable(wanted[broken], self.schema.names).any(axis=1)
        found[broken[unreadable]] = Fault.UNREADABLE
        return found

    def _checked(self, rows: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not (wanted.min() >= NO_ROW and wanted.max() < self._reader.count)):
            raise UsageError("rows: found rows that the file doesn't have; expected rows of the slot map")
        return wanted

    def opened_files(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """The facts of the files that are open, in the order of ``source_files``: whatever their paths name by now."""
        return tuple(facts_of(found) for found in (*self._reader.opened(), *self._blank_found))

    def fingerprint(self) -> str:
        """A hash of the sizes and times of the files: whether a checkpoint still fits them. Private, local."""
        paths = [*self._reader.files(), *([Path(self.data.blank)] if self.data.blank else [])]
        facts = [f"{stat.st_size}:{stat.st_mtime_ns}" for stat in (path.stat() for path in paths)]
        return hashlib.sha256("|".join([self.data.format, *facts]).encode()).hexdigest()

    def _read_live(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], Faults]:
        starts = range(0, max(len(rows), 1), _ROWS_AT_ONCE)
        with np.errstate(all="ignore"):  # a warning would tell of the data
            parts = [self._prepared(rows[start : start + _ROWS_AT_ONCE]) for start in starts]
        inputs, targets, faults = (np.concatenate(part) for part in zip(*parts, strict=True))
        return inputs, targets, faults

    def _prepared(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], Faults]:
        """Inputs and targets, zeros where a record breaks a rule, and which."""
        raw, labels = self._reader.read(rows, self.schema.names)
        values, faults = self.schema.inputs(raw), np.zeros(len(rows), dtype=np.int8)
        if self.data.rotate or self._turns:
            own = self._turns.of_rows(rows) if self._turns else 0.0
            values = rotate_images(values, self.data.rotate + own)
        if self.schema.tokens:
            mark_tokens(faults, values, self.schema)
        else:
            values = values.astype(np.float32)
            mark(faults, ~np.isfinite(values), Fault.NOT_FINITE)
        numbers = np.asarray(labels, dtype=np.float64)
        mark_labels(faults, numbers, self.schema)
        if not self.private:
            self._refuse(faults)
        absent = faults != Fault.NONE
        values[absent] = 0
        # Before the cast: what a number out of range becomes is up to the machine.
        numbers = np.where(absent.reshape(-1, *[1] * (numbers.ndim - 1)), 0.0, numbers)
        return values, numbers.astype(np.int64 if self.schema.loss == "cross-entropy" else np.float32), faults

    def _refuse(self, faults: Faults) -> None:
        columns = self.data.columns
        target = columns.target or "labels"
        refused = (
            (Fault.MASK_OUT_OF_RANGE, columns.mask, "an entry of the mask", "0 or 1", _TOKENISE),
            (Fault.TOKEN_OUT_OF_RANGE, self.schema.names[0], "a token", token_rule(self.schema), _TOKENISE),
            (Fault.LABEL_OUT_OF_RANGE, target, "a label", label_rule(self.schema), _RECODE),
        )
        for fault, column, what, rule, remedy in refused:
            if (faults == fault).any():
                raise FileContentError(
                    f"{self._where()}: column {column!r}: {what} is out of range; expected {rule}; {remedy}"
                )

    def _where(self) -> str:
        return ", ".join(str(path) for path in self._reader.files()) or self.data.format


def open_dataset(
    data: DataConfig, schema: Schema, turns: Turns | None = None, *, private: bool = False, reader: Reader | None = None
) -> Dataset:
    """Open a source and check it against the schema. No record is parsed yet. ``turns``: of images, besides the config's.

    ``private``: whether the records play a private role, see Dataset. ``reader``: of the source, where one is open.

    Raises UsageError for a missing file or a config that doesn't fit the format, FileContentError for a damaged
    file or other columns than the schema's.
    """
    reader = open_reader(data, private) if reader is None else reader
    schema.check(reader)
    if data.rotate and not reader.image:
        raise UsageError(f"data.rotate: found {data.rotate} with format {data.format}; expected images: digits or idx")
    if turns and not reader.image:
        raise UsageError(
            f"precision.rotate: found with format {data.format}; expected images: digits or idx; leave it out"
        )
    return Dataset(data, schema, reader, turns)


def count_units(data: DataConfig) -> int:
    """How many units have a row that passes the filter and isn't blank, whatever else is in it; a row without an id is nobody's.

    Private. Reads the filter and unit columns only.
    """
    reader = open_reader(data, private=True)
    rows = select_rows(data, reader, keep_blank=False)
    if data.unit is None:
        return len(rows)
    slots = slot_map(rows, reader.identifiers(data.unit, rows))
    return len(np.unique(slots.unit[slots.rows != NO_ROW]))


def _scatter(values: NDArray[Any], places: NDArray[np.int64], count: int) -> NDArray[Any]:
    if len(places) == count:
        return values
    found = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    found[places] = values
    return found
