"""Tells the owner of private records which of them are usable, and why others are not; for the owner's terminal only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import WORDS, Fault, label_rule, token_rule
from distqexp.problem.network import Network
from distqexp.problem.readers import Reader
from distqexp.problem.readers.base import LABEL, some
from distqexp.problem.schema import Schema
from distqexp.problem.slots import NO_ROW, SlotMap
from distqexp.stages.remarks import Study, remarks_of

WARNING = "PRIVATE: what follows tells about single records; read it on this terminal, and don't store, send or log it"

_ROWS_AT_ONCE = 1 << 14
_MOST = 20
"""So many columns or classes are listed one by one."""


def check_records(schema: Schema, shards: Sequence[DataConfig], network: Network, study: Study) -> list[str]:
    """Describe the columns, rules and counts of each shard in lines for people, after a warning. The lines are private.

    Nothing is written and nothing is charged.

    Args:
        schema: The schema of the plan, or one fitted as a plan's is.
        shards: The sources of private records.
        network: The plan's model.
        study: What the records are held against.

    Raises:
        FileContentError: A file can't be used at all.
    """
    return [WARNING, *(line for data in shards for line in _lines(data, schema, network, study))]


@dataclass
class _Counts:
    """What was counted in the rows of a shard. Private."""

    faults: Counter[int] = field(default_factory=Counter)
    labels: Counter[float] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    infinite: Counter[str] = field(default_factory=Counter)
    usable: list[BoolArray] = field(default_factory=list)

    def add(self, dataset: Dataset, reader: Reader, rows: IntegerArray) -> None:
        """Count these rows, which come in the order of the slots."""
        faults = dataset.faults(rows)
        self.faults.update(faults.tolist())
        self.usable.append(faults == Fault.NONE)
        records = rows[(faults != Fault.BLANK) & (faults != Fault.NO_UNIT)]
        names = dataset.schema.names
        raw, _ = reader.read(records, names)
        unreadable = reader.unreadable(records, names)
        for place, name in enumerate((*names, dataset.data.columns.target or "labels")):
            self.unreadable[name] += int(unreadable[:, place].sum())
        if not dataset.schema.tokens:
            self._add_features(raw, unreadable[:, :-1], names)
        if dataset.schema.loss != "mean-squared-error":
            self.labels.update(reader.read(rows[faults == Fault.NONE], names)[1].flatten().tolist())

    def _add_features(self, raw: FloatArray, unreadable: BoolArray, names: Sequence[str]) -> None:
        table = raw if len(names) == raw.shape[1] and raw.ndim == 2 else raw.reshape(len(raw), 1, -1)
        marks = unreadable if table.ndim == 2 else unreadable[:, :, None]
        with np.errstate(all="ignore"):
            beyond = np.isinf(table.astype(np.float32)) & ~marks
        for place, name in enumerate(names):
            self.missing[name] += int(np.isnan(table[:, place]).sum())
            self.infinite[name] += int(beyond[:, place].sum())


def _lines(data: DataConfig, schema: Schema, network: Network, study: Study) -> Iterator[str]:
    dataset = open_dataset(data, schema, private=True).of_model(network)
    dataset.check_whole()
    reader, slots, counts = dataset.reader, dataset.slot_map(), _Counts()
    for first in range(0, slots.slots, _ROWS_AT_ONCE):
        counts.add(dataset, reader, slots.rows[first : first + _ROWS_AT_ONCE])
    yield f"shard {data.shard or 'all'}: {', '.join(str(path) for path in reader.files()) or data.format}"
    yield f"  columns: {_columns(data, schema)}"
    yield from (f"  rule: {rule}" for rule in _rules(data, dataset.schema))
    yield f"  rows: {reader.count:,} in the file, {slots.slots:,} selected by rows and where"
    yield f"  usable: {counts.faults[Fault.NONE]:,} records{_units(data, slots, counts)}"
    yield from (f"  dirt, in the whole source: {count:,} {words}" for words, count in reader.dirt().items())
    for fault, words in WORDS.items():
        if counts.faults[fault]:
            yield f"  left out: {counts.faults[fault]:,} records: {words}"
    for what, by_column in (
        ("entries that are no number", counts.unreadable),
        ("entries that are infinite or beyond float32", counts.infinite),
        ("missing values, which become public medians", counts.missing),
    ):
        yield from (f"  {what}, in {line}" for line in _lines_by_column(by_column))
    if counts.labels:
        classes = sorted(counts.labels.items())
        more = f", and {len(classes) - _MOST} more" if len(classes) > _MOST else ""
        yield "  labels: " + ", ".join(f"{value:g}: {count:,}" for value, count in classes[:_MOST]) + more
    yield from (f"  looks wrong: {remark}" for remark in remarks_of(dataset, slots, study))


def _lines_by_column(counts: Counter[str]) -> Iterator[str]:
    present = [(name, count) for name, count in counts.items() if count]
    yield from (f"{name}: {count:,}" for name, count in present[:_MOST])
    if len(present) > _MOST:
        yield f"{len(present) - _MOST} other columns: {sum(count for _, count in present[_MOST:]):,}"


def _columns(data: DataConfig, schema: Schema) -> str:
    parts = [
        f"{len(schema.names)} of features ({some(schema.names)})",
        f"labels {data.columns.target or data.labels or LABEL}",
    ]
    if data.columns.mask is not None:
        parts.append(f"mask {data.columns.mask}")
    parts.append("a record is a unit" if data.unit is None else f"unit ids {data.unit}")
    return "; ".join([*parts, *([f"where {data.where}"] if data.where else [])])


def _rules(data: DataConfig, schema: Schema) -> Iterator[str]:
    yield f"labels are {label_rule(schema)}"
    if schema.tokens:
        yield f"tokens are {token_rule(schema)}; a mask has 0 or 1, and a 1 at least"
    elif not schema.image:
        yield "features are numbers within float32, or missing"
    if data.unit is not None:
        yield "a row without a legible unit id is nobody's"
    if data.where is not None:
        yield "a row whose filter columns can't be compared is not selected"
    yield "a record that breaks a rule contributes nothing, as if it were blank"


def _units(data: DataConfig, slots: SlotMap, counts: _Counts) -> str:
    if data.unit is None:
        return ""
    usable = np.concatenate(counts.usable) if counts.usable else np.zeros(0, dtype=np.bool_)
    all_units, usable_units = (len(np.unique(slots.unit[which])) for which in (slots.rows != NO_ROW, usable))
    return f", of {usable_units:,} units; {all_units:,} units have an id"
