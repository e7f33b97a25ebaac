"""Records that are ICU stays: a clinical database's folder, read as a whole, or the file that was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import existing_file, existing_folder
from distqexp.problem.readers.clinical.catalogue import COLUMNS, IDS, LABELS, UNITS, chosen, definition
from distqexp.problem.readers.clinical.lenient import NO_ID
from distqexp.problem.readers.clinical.meds import read_meds
from distqexp.problem.readers.clinical.mimic import read_mimic
from distqexp.problem.readers.clinical.stored import read_stays
from distqexp.problem.readers.clinical.streams import Progress
from distqexp.problem.readers.clinical.table import StayTable
from distqexp.problem.readers.folders import Facts, path_facts
from distqexp.problem.readers.table import TableReader


class ClinicalReader(TableReader):
    """The table of stays, which is held in memory: some 600 bytes a stay."""

    def __init__(self, data: DataConfig) -> None:
        is_folder = Path(data.path or "").is_dir()
        self._source = existing_folder(data.path, "data.path") if is_folder else existing_file(data.path, "data.path")
        self._format = data.format
        self._loaded: StayTable | None = None
        roles = data.columns
        if data.labelled and roles.target not in LABELS:
            raise UsageError(f"data.*.columns.target: {roles.target!r}; expected {', '.join(LABELS)}")
        if data.unit not in (None, *IDS):
            raise UsageError(f"data.*.unit: {data.unit!r}; expected subject_id, the patient")
        features = chosen(roles.features, roles.exclude)
        super().__init__(self._source, COLUMNS, replace(data, columns=replace(roles, features=features)))
        self.count = len(self._table())
        self.definition = definition()

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        columns = [self._table().column(name)[rows] for name in (*names, *self.labels)]
        values = np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))
        return self._parted(values, names)

    def entries(self, names: Sequence[str], rows: IntegerArray) -> list[list[Any]]:
        return [
            [self._table().units[name][row] for row in rows.tolist()]
            if name in UNITS
            else self._table().column(name)[rows].tolist()
            for name in names
        ]

    def dirt(self) -> dict[str, int]:
        return self._table().dirt

    def facts(self) -> tuple[Facts, ...]:
        return (self._table().facts,)

    def check_whole(self) -> None:
        """Do nothing: all of it was read when it was opened."""

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        ids = [None if number == NO_ID else number for number in self._table().ids[name][rows].tolist()]
        if not self.private and None in ids:
            raise self._missing_id(name)
        return ids

    def numbers(self, name: str) -> FloatArray:
        self._need(name, "data.where")
        if name in UNITS:
            raise FileContentError(f"{self.path}: column {name!r} holds texts; expected a quoted text for data.where")
        return self._table().column(name)

    def texts(self, name: str) -> list[str | None]:
        self._need(name, "data.where")
        if name not in UNITS:
            raise FileContentError(f"{self.path}: column {name!r} holds numbers; expected a number for data.where")
        return self._table().units[name]

    def _table(self) -> StayTable:
        if self._loaded is None:
            self._loaded = _read_once(self._source.absolute(), self._format, path_facts(self._source))
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def read_table(path: Path, format: str, progress: Progress | None = None) -> StayTable:
    """Read a database's folder, or the file that was made of one.

    Args:
        path: the folder or file.
        format: "mimic-iv" or "meds".
        progress: is told the share of the work that is done.

    Raises:
        FileContentError: Something is missing or damaged.
    """
    if not path.is_dir():
        return read_stays(path)
    return (read_mimic if format == "mimic-iv" else read_meds)(path, progress)


@lru_cache(maxsize=2)
def _read_once(path: Path, format: str, facts: Facts) -> StayTable:
    """Read a source once for all the shards that it has, as long as its files stay as they are."""
    return read_table(path, format)
