"""A source of records, read by row behind its map of slots."""

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

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.faults import Fault, Faults, checked_inputs, label_rule, mark_labels, token_rule
from distqexp.problem.fitted_codings import refuse_other_codings
from distqexp.problem.images import Turns, Views, rotate_images, with_views
from distqexp.problem.network import Network
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.readers.base import facts_of
from distqexp.problem.readers.dialect import refuse_unlike_dialect
from distqexp.problem.readers.folders import path_facts
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.selection import open_blank, select_rows
from distqexp.problem.slots import NO_ROW, SlotMap, slot_map
from distqexp.problem.unit_ids import canonical_id

_ROWS_AT_ONCE = 1024
_TOKENISE = "tokenise the records for this model"
_RECODE = "recode the column, or correct model.args and model.loss"


class Dataset:
    """The records of one source, read as tensors by their row in the file. Use open_dataset to make one.

    Where ``private`` is true, a record that breaks a rule (problem.faults) is absent, as if it were blank, and nothing reveals it. In
    public records a label or token out of range is refused. A dataset can be pickled: the copy opens its files anew.
    """

    def __init__(self, data: DataConfig, schema: Schema, reader: Reader, turns: Turns | None = None) -> None:
        self.data = data
        self._turns = turns
        self.schema = schema
        self._reader = reader.coded(schema.codings)
        self._reader.follow(schema.shape, schema.class_names)
        self._blank, self._blank_stats = open_blank(data, reader.count)

    @property
    def reader(self) -> Reader:
        """The reader of the records, which gives the numbers of the schema's codings."""
        return self._reader

    @property
    def private(self) -> bool:
        """Whether the records are private."""
        return self._reader.private

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one record's inputs: the schema's, or the file's where the schema leaves it open."""
        return self.schema.input_shape or self._reader.shape

    def of_model(self, network: Network) -> Dataset:
        """Check that the targets fit the outputs of ``network``, and return this dataset. No record is read.

        A schema that was made without a record's shape learns the number of classes from the outputs. Raises FileContentError for
        targets of another width than the outputs.
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
        """Return the slots of the selected rows. Only the filter and unit columns are read, no features.

        A private row without an id belongs to nobody: its slot is a unit of its own and holds NO_ROW instead of a row.
        """
        rows = select_rows(self.data, self._reader, keep_blank=True)
        return slot_map(rows, self.identifiers(rows), f"{self._where()}: column {self.data.unit!r}")

    def identifiers(self, rows: IntegerArray) -> list[Any] | None:
        """Return the unit id of each of these rows, None for a row that belongs to nobody. Private.

        Where a row is a unit, there are no ids, and the result is None. Raises FileContentError for an unreadable id of public records.
        """
        if self.data.unit is None:
            return None
        where = f"{self._where()}: column {self.data.unit!r}"
        names = [canonical_id(name, where) for name in self._reader.identifiers(self.data.unit, rows[rows != NO_ROW])]
        if not self.private and None in names:
            raise FileContentError(
                f"{where}: an id can't be read; expected numbers, dates or texts in UTF-8; complete it"
            )
        remaining = iter(names)
        return [None if row == NO_ROW else next(remaining) for row in rows.tolist()]

    def live(self, rows: IntegerArray) -> IntegerArray:
        """Return those of these rows that belong to somebody and aren't blank. Private."""
        rows = rows[rows != NO_ROW]
        return rows[~self._blank[rows]]

    def check_whole(self) -> None:
        """Raise FileContentError now for any damage of the files that could end a later read, but never for a single record."""
        self._reader.check_whole()

    def read(self, rows: IntegerArray | Sequence[int], views: Views | None = None) -> Records:
        """Read these rows of the file, in this order, preprocessed by the schema. No other row is parsed.

        A blank row is not looked at, and NO_ROW becomes an absent record.

        Args:
            rows: row numbers, as in the slot map.
            views: the random views that are made of every image, if any.

        Raises:
            FileContentError: a label or token of public records is one that the model doesn't allow. The message names the column and
                the rule, never the value.
            UsageError: a row number is not one of the file's.
        """
        numbers = self._row_numbers(rows)
        live = np.flatnonzero((numbers != NO_ROW) & ~self._blank[numbers])
        inputs, targets, faults = self._read_live(numbers[live])
        present = np.zeros(len(numbers), dtype=np.bool_)
        present[live] = faults == Fault.NONE
        all_inputs = _scatter(inputs, live, len(numbers))
        if self.schema.tokens:
            all_inputs[~present, 1, 0] = 1  # attention to no token at all may be 0/0
        records = Records(
            torch.from_numpy(all_inputs),
            torch.from_numpy(_scatter(targets, live, len(numbers))),
            torch.from_numpy(present),
        )
        return with_views(records, numbers, views) if views else records

    def inputs(self, rows: IntegerArray | Sequence[int]) -> tuple[torch.Tensor, BoolArray]:
        """Read the inputs of these rows, whatever their targets: (n, ...), and bool (n,), which of them can be used.

        An unusable record's inputs are zeros.
        """
        numbers = self._row_numbers(rows)
        values, faults = self._checked_inputs(numbers, self._reader.read(numbers, self.schema.names)[0])
        usable = faults == Fault.NONE
        return usable_inputs(values, usable, self.schema), usable

    def input_faults(self, rows: IntegerArray | Sequence[int]) -> Faults:
        """Return int8 (n,): the rule that the inputs of these rows break, whatever their targets; only for who may see the records."""
        numbers = self._row_numbers(rows)
        return self._checked_inputs(numbers, self._reader.read(numbers, self.schema.names)[0])[1]

    def faults(self, rows: IntegerArray | Sequence[int]) -> Faults:
        """Return int8 (n,): the rule that each of these rows breaks, Fault.NONE for a row that ``read`` has present.

        The result is only for people who may see the records.
        """
        numbers = self._row_numbers(rows)
        faults = np.where(numbers == NO_ROW, Fault.NO_UNIT, Fault.BLANK).astype(np.int8)
        live = np.flatnonzero((numbers != NO_ROW) & ~self._blank[numbers])
        faults[live] = self._read_live(numbers[live])[2]
        faulty = live[faults[live] != Fault.NONE]
        unreadable = self._reader.unreadable(numbers[faulty], self.schema.names).any(axis=1)
        faults[faulty[unreadable]] = Fault.UNREADABLE
        return faults

    def _row_numbers(self, rows: IntegerArray | Sequence[int]) -> IntegerArray:
        numbers = np.asarray(rows, dtype=np.int64)
        if numbers.ndim != 1 or (len(numbers) and not (numbers.min() >= NO_ROW and numbers.max() < self._reader.count)):
            raise UsageError("rows: found rows that the file doesn't have; expected rows of the slot map")
        return numbers

    def opened_files(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Return the facts of the open files, in the order of ``source_files``, whatever their paths name by now."""
        return (*self._reader.facts(), *map(facts_of, self._blank_stats))

    def fingerprint(self) -> str:
        """Return a hash of the files' sizes and times, which shows whether a checkpoint still fits them. Private, local."""
        paths = [*self._reader.files(), *([Path(self.data.blank)] if self.data.blank else [])]
        facts = [f"{size}:{time}" for size, time, *_ in map(path_facts, paths)]
        return hashlib.sha256("|".join([self.data.format, *facts]).encode()).hexdigest()

    def _read_live(self, rows: IntegerArray) -> tuple[NDArray[Any], NDArray[Any], Faults]:
        """Do what ``_preprocess`` does, some rows at a time."""
        starts = range(0, max(len(rows), 1), _ROWS_AT_ONCE)
        with np.errstate(all="ignore"):  # a warning would reveal something about the data
            parts = [self._preprocess(rows[start : start + _ROWS_AT_ONCE]) for start in starts]
        inputs, targets, faults = (np.concatenate(part) for part in zip(*parts, strict=True))
        return inputs, targets, faults

    def _preprocess(self, rows: IntegerArray) -> tuple[NDArray[Any], NDArray[Any], Faults]:
        """Read and preprocess these rows: inputs and targets, zeros where a record breaks a rule, and the rule it breaks."""
        raw, labels = self._reader.read(rows, self.schema.names)
        values, faults = self._checked_inputs(rows, raw)
        numbers = np.asarray(labels, dtype=np.float64)
        if self.schema.loss in ("cross-entropy", "binary-cross-entropy"):
            numbers = numbers.reshape(len(rows))  # labels of shape (n, 1) are one label a record
        mark_labels(faults, numbers, self.schema)
        if not self.private:
            self._refuse(faults)
        absent = faults != Fault.NONE
        values[absent] = 0
        # Zeros are set before the cast: what a number out of range would become is up to the machine.
        numbers = np.where(absent.reshape(-1, *[1] * (numbers.ndim - 1)), 0.0, self.schema.targets(numbers))
        return values, numbers.astype(np.int64 if self.schema.loss == "cross-entropy" else np.float32), faults

    def _checked_inputs(self, rows: IntegerArray, raw: NDArray[Any]) -> tuple[NDArray[Any], Faults]:
        values = self.schema.inputs(raw)
        if self.data.rotate or self._turns:
            angles = self._turns.of_rows(rows) if self._turns else 0.0
            values = rotate_images(values, self.data.rotate + angles)
        return checked_inputs(values, self.schema)

    def _refuse(self, faults: Faults) -> None:
        columns = self.data.columns
        target = columns.target or "labels"
        rules = (
            (Fault.MASK_OUT_OF_RANGE, columns.mask, "an entry of the mask", "0 or 1", _TOKENISE),
            (Fault.TOKEN_OUT_OF_RANGE, self.schema.names[0], "a token", token_rule(self.schema), _TOKENISE),
            (Fault.LABEL_OUT_OF_RANGE, target, "a label", label_rule(self.schema), _RECODE),
        )
        for fault, column, what, rule, remedy in rules:
            if (faults == fault).any():
                raise FileContentError(
                    f"{self._where()}: column {column!r}: {what} is out of range; expected {rule}; {remedy}"
                )

    def _where(self) -> str:
        return ", ".join(str(path) for path in self._reader.files()) or self.data.format


def open_dataset(
    data: DataConfig, schema: Schema, turns: Turns | None = None, *, private: bool = False, reader: Reader | None = None
) -> Dataset:
    """Open a source and check it against the schema. No record is parsed yet.

    Args:
        data: the source.
        schema: the preprocessing, which the file must fit.
        turns: random angles of images, besides the config's fixed one.
        private: whether the records play a private role, see Dataset.
        reader: a reader of the source, where one is open already.

    Raises:
        UsageError: a file is missing, or the config doesn't fit the format.
        FileContentError: a file is damaged, or has other columns than the schema.
    """
    reader = open_reader(data, private) if reader is None else reader
    reader.follow(schema.shape, schema.class_names)
    schema.check(reader)
    refuse_other_codings(data, schema.codings)
    if reader.dialect is not None and private:
        refuse_unlike_dialect(reader.files()[0], data, reader.dialect, schema.dialect)
    if data.rotate and not reader.image:
        raise UsageError(f"data.rotate: found {data.rotate} with format {data.format}; expected images")
    if turns and not reader.image:
        raise UsageError(f"precision.rotate: found with format {data.format}; expected images; leave it out")
    return Dataset(data, schema, reader, turns)


def count_units(data: DataConfig) -> int:
    """Count the units with a row that passes the filter and isn't blank, whatever else is in the row. Private.

    A row without an id belongs to nobody and doesn't count. Only the filter and unit columns are read.
    """
    reader = open_reader(data, private=True)
    if reader.dialect is not None and data.where is not None:
        refuse_unlike_dialect(reader.files()[0], data, reader.dialect, None)
    rows = select_rows(data, reader, keep_blank=False)
    if data.unit is None:
        return len(rows)
    slots = slot_map(rows, reader.identifiers(data.unit, rows))
    return len(np.unique(slots.unit[slots.rows != NO_ROW]))


def usable_inputs(values: NDArray[Any], usable: BoolArray, schema: Schema) -> torch.Tensor:
    """Return inputs (n, ...) with zeros in the place of records that can't be used; of tokens, the mask begins with a 1."""
    values = np.where(usable.reshape(-1, *[1] * (values.ndim - 1)), values, 0).astype(values.dtype, order="C")
    if schema.tokens:
        values[~usable, 1, 0] = 1
    return torch.from_numpy(values)


def _scatter(values: NDArray[Any], places: IntegerArray, count: int) -> NDArray[Any]:
    if len(places) == count:
        return values
    whole = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    whole[places] = values
    return whole
