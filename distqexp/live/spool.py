"""The scratch files of a script's records: what the stages read by row. They have mode 0600; ``scratch`` has their folder."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.live.batches import Batch, Roles, batches_of, codes_of
from distqexp.problem.readers.base import note_own_file, some
from distqexp.problem.readers.codings import suggestion
from distqexp.problem.readers.entries import number_of
from distqexp.storage.atomic import storage_error

_CHUNK = 2**18
"""About so many bytes of a dataset make a chunk."""

_ROW_GROUP = 2**16
_FEATURES, _TARGET, _MASK = "features", "target", "mask"


@dataclass(frozen=True)
class Spooled:
    """A source of records as a scratch file.

    Attributes:
        path: The file.
        tree: The config's table of the source, without its role.
        units: The number of units. Private under add-remove, public under the other adjacencies.
        shape: The shape of a record's features; None for a table.
        features: The feature columns of a table; empty for arrays.
        whole: Whether the targets are of an integer type or, of public records, are whole numbers.
        coded: Of a public table, the feature columns that aren't numbers, with what they are meant as: levels, boolean, or days.
        types: What each column of a table holds by its type: numbers, texts, dates, or nothing where it is empty.
        targets: The shape of a record's targets.
    """

    path: Path
    tree: dict[str, Any]
    units: int
    shape: tuple[int, ...] | None
    features: tuple[str, ...]
    whole: bool
    coded: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[int, ...] = ()

    def form(self) -> int:
        """Return a number below 2^48 for shape, columns and their kinds, that other forms don't share."""
        kinds = sorted((name, kind) for name, kind in self.types.items() if kind != "nothing")
        text = repr((self.shape, self.targets, kinds, sorted(self.tree["columns"])))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def spool(data: Any, path: Path, roles: Roles, target: str | None) -> Spooled:
    """Write records to a new scratch file, batch by batch.

    Args:
        data: The records in one of the forms of ``batches_of``, or a DataFrame.
        path: The file, without a suffix.
        roles: What the parts of a batch are for.
        target: The column of the label, of a DataFrame.

    Raises:
        UsageError: The records are of no known form, or there are none.
        StorageError: The file can't be written.
    """
    frame = _frame_of(data, target, roles.where)
    try:
        if frame is not None:
            table, column = frame
            spooled = _spool_frame(table, path.with_suffix(".parquet"), roles, column)
        else:
            spooled = _spool_arrays(data, path.with_suffix(".h5"), roles)
        note_own_file(spooled.path)
        return spooled
    except OSError as error:
        raise storage_error(path, error) from None


def is_frame(data: Any) -> bool:
    """Return whether this is a DataFrame of pandas, which isn't imported for it."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def _frame_of(data: Any, target: str | None, where: str) -> tuple[Any, str] | None:
    """Return a DataFrame and the name of its target, None where ``data`` is no DataFrame, by itself or with a column of targets."""
    if isinstance(data, tuple | list) and len(data) == 2 and is_frame(data[0]):
        name = target if target is not None else getattr(data[1], "name", None) or _TARGET
        if name in data[0].columns:
            raise UsageError(f"target: {name!r} stands among the features; expected another name: target='...'")
        values = data[1].to_numpy() if hasattr(data[1], "to_numpy") else np.asarray(data[1])
        return data[0].assign(**{str(name): values}), str(name)
    if not is_frame(data):
        return None
    if target is None:
        raise UsageError("target: not given; with a DataFrame expected the column of the label: target='died'")
    if target not in data.columns:
        raise UsageError(f"target: no column {target!r} in {where}; correct the name")
    return data, target


def _spool_frame(frame: Any, path: Path, roles: Roles, target: str) -> Spooled:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [str(name) for name in frame.columns]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(f"{roles.where}: column {some(twice, 20)} stands there twice; expected each name once")
    frame = _plain_columns(frame.set_axis(columns, axis=1), roles.where)
    target = str(target)
    if roles.classes is not None:
        frame = frame.assign(**{target: codes_of(frame[target].tolist(), roles.classes)})
    elif roles.labelled and any(isinstance(label, str) for label in frame[target]):
        raise UsageError(
            f"{roles.where}: targets are texts; expected numbers, or the labels declared: classes=['no', 'yes']"
        )
    frame, unit = _with_ids(frame, roles, columns)
    if len(frame) == 0:
        raise UsageError(f"{roles.where}: no record; expected at least one")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError):
        mixed = [name for name in columns if not _is_of_one_type(frame[name])]
        raise UsageError(
            f"{roles.where}: column {some(mixed, 20)} holds values of several types, or of one that is no number, text or date; expected "
            "one type a column: convert it"
        ) from None
    types = {name: _kind_of(table.schema.field(name).type) for name in columns}
    odd = [name for name, kind in types.items() if kind == ""]
    if odd:
        raise UsageError(
            f"{roles.where}: column {some(odd, 20)} holds {table.schema.field(odd[0]).type}; expected one number, text or date a row"
        )
    with _new_file(path) as file:
        pq.write_table(table, file, row_group_size=_ROW_GROUP)
    tree: dict[str, Any] = {"format": "parquet", "path": str(path), "columns": {"target": target}}
    units = len(frame)
    if unit is not None:
        tree["unit"] = unit
        units = int(frame[unit].nunique() + frame[unit].isna().sum())
    labels = frame[target]
    whole = labels.dtype.kind in "iub" or roles.classes is not None
    if not roles.private and labels.dtype.kind == "f":
        whole = _are_whole(labels.to_numpy())
    features = tuple(name for name in columns if name not in (target, unit))
    coded = {} if roles.private else _coded(frame, features)
    return Spooled(path, tree, units, None, features, bool(whole), coded, types)


def _is_of_one_type(column: Any) -> bool:
    import pyarrow as pa

    try:
        pa.Array.from_pandas(column)
    except (pa.ArrowException, TypeError, ValueError):
        return False
    return True


def _kind_of(kind: Any) -> str:
    """Return what a column of an Arrow type holds, in a word; nothing where it can be no feature."""
    from pyarrow import types

    if types.is_null(kind):
        return "nothing"
    if types.is_string(kind) or types.is_large_string(kind):
        return "texts"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "dates"
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    return "numbers" if number else ""


def _coded(frame: Any, features: Sequence[str]) -> dict[str, str]:
    """Return what the columns of a public DataFrame that aren't numbers may be meant as; free texts are left out."""
    found: dict[str, str] = {}
    for name in features:
        kind = frame[name].dtype.kind
        if kind == "M":
            found[name] = "days"
        elif kind not in "biufc":
            entries = [str(entry) for entry in frame[name].dropna().tolist()]
            meant, _ = suggestion(entries)
            if meant != "exclude" and any(number_of(entry) is None for entry in entries):
                found[name] = meant
    return found


def _plain_columns(frame: Any, where: str) -> Any:
    """Return a DataFrame with numbers for booleans and plain values for categories."""
    for name in frame.columns:
        kind = str(frame[name].dtype)
        if kind in ("bool", "boolean"):
            frame = frame.assign(**{name: frame[name].astype("int8" if kind == "bool" else "Int8")})
        elif kind == "category":
            frame = frame.assign(**{name: frame[name].astype(object)})
        elif frame[name].dtype.kind == "m":
            raise UsageError(
                f"{where}: column {name!r} holds spans of time; expected numbers: .dt.total_seconds() makes them"
            )
    return frame


def _with_ids(frame: Any, roles: Roles, columns: list[str]) -> tuple[Any, str | None]:
    """Return a DataFrame with its unit ids as a column, and that column's name; None where each record is a unit."""
    if roles.ids is None:
        if roles.unit is None or roles.unit in columns:
            return frame, roles.unit
        if not roles.private:
            return frame, None
        raise UsageError(f"unit: no column {roles.unit!r} in {roles.where}; correct the name")
    if len(roles.ids) != len(frame):
        raise UsageError(f"unit: not as many ids as records in {roles.where}; expected one each")
    name = _free_name(roles.unit or "unit", columns)
    return frame.assign(**{name: roles.ids}), name


def _spool_arrays(data: Any, path: Path, roles: Roles) -> Spooled:
    import h5py

    unit = _free_name(roles.unit or "unit", [_FEATURES, _TARGET, _MASK])
    first: Batch | None = None
    ids: set[Any] = set()
    count, whole = 0, True
    with _new_file(path):
        pass
    with h5py.File(path, "w") as file:
        for batch in batches_of(data, roles):
            parts = {_FEATURES: batch.features, _TARGET: batch.targets, unit: batch.units, _MASK: batch.mask}
            first = first or batch
            for name, part in parts.items():
                if part is not None:
                    _append(file, name, part, roles.where)
            _require_one_length(parts, roles.where)
            count += len(batch.features)
            if batch.units is not None:
                ids.update(batch.units.tolist())
            if batch.targets is not None:
                of_type = batch.targets.dtype.kind in "iu" or roles.classes is not None
                whole = whole and (of_type or (not roles.private and _are_whole(batch.targets)))
    if first is None or count == 0:
        raise UsageError(f"{roles.where}: no record; expected at least one")
    columns: dict[str, Any] = {"features": [_FEATURES]}
    if first.targets is not None:
        columns["target"] = _TARGET
    if first.tokens:
        columns |= {"tokens": True} | ({"mask": _MASK} if first.mask is not None else {})
    else:
        columns["standardise"] = False  # a live module takes its inputs as they are
    tree: dict[str, Any] = {"format": "hdf5", "path": str(path), "columns": columns}
    if first.units is not None:
        tree["unit"] = unit
    targets = () if first.targets is None else first.targets.shape[1:]
    return Spooled(path, tree, len(ids) or count, first.features.shape[1:], (), whole, targets=targets)


def _append(file: Any, name: str, values: NDArray[Any], where: str) -> None:
    """Append rows to a dataset, which the first call makes."""
    import h5py

    texts = values.dtype.kind in "OUS"
    if name not in file:
        dtype = h5py.string_dtype() if texts else values.dtype
        row = values.dtype.itemsize * int(np.prod(values.shape[1:]))
        chunk = (min(max(1, _CHUNK // max(1, row)), 2**16), *values.shape[1:])
        file.create_dataset(name, (0, *values.shape[1:]), dtype, maxshape=(None, *values.shape[1:]), chunks=chunk)
    dataset = file[name]
    if values.shape[1:] != dataset.shape[1:]:
        raise UsageError(
            f"{where}: {name} of shape {values.shape[1:]} after ones of shape {dataset.shape[1:]}; expected one shape for all records"
        )
    if not texts and not np.can_cast(values.dtype, dataset.dtype, "same_kind"):
        raise UsageError(
            f"{where}: {name} of type {values.dtype} after {dataset.dtype}; expected one type for all records"
        )
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = _as_texts(values) if texts else values


def _require_one_length(parts: dict[str, NDArray[Any] | None], where: str) -> None:
    lengths = {len(part) for part in parts.values() if part is not None}
    if len(lengths) != 1:
        raise UsageError(f"{where}: a batch whose parts have different numbers of rows; expected one length")


def _as_texts(values: NDArray[Any]) -> list[Any]:
    return ["" if value is None or value != value else value for value in values.tolist()]


def _are_whole(values: NDArray[Any]) -> bool:
    known = values[np.isfinite(values)]
    return bool((known == np.floor(known)).all())


def _free_name(name: str, taken: list[str]) -> str:
    while name in taken:
        name += "_"
    return name


@contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    """Open a new file of mode 0600 for writing."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        yield file
