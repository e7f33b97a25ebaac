"""What looks wrong in a site's records beside the plan's public ones: told to their owner alone, before anything is charged.

A few records, evenly spread over the slots, are looked at: gross mistakes show in any part of a table. Everything here is private.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import expit, softmax
from scipy.stats import rankdata

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.config import Config
from distqexp.gradients.worker import Worker
from distqexp.problem.dataset import Dataset
from distqexp.problem.faults import WORDS, Fault
from distqexp.problem.hiding import quiet
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.stages.export import outputs_of
from distqexp.stages.public_columns import PublicColumns, columns_of, targets_of

_ROWS = 2048
_IMAGES = 256
_VALUES = 1 << 23
"""So many records are looked at, or images, and so many numbers at most."""

_LEAST = 10
"""Columns with fewer values, and labels of fewer records, say nothing."""

_AWAY, _WIDE, _NARROW, _ASIDE = 4.0, 5.0, 0.5, 1.0
"""In public standard deviations of a column: how far away its median is; how wide the middle half; or how narrow nine tenths are, so far
away."""

_UNUSUAL = 0.5
"""So much larger than the public one is a share of missing values that is told."""

_CHANCE = 1e-3
"""One class alone is told where chance gives it more seldom than this. Without a model that was trained, a class is taken to have at
least the share ``_SHARE``."""
_SHARE = 0.05

_ERRORS, _REVERSED, _APART = 5.0, 0.4, 0.4
"""Labels look inverted where the area under the ROC curve is below ``_REVERSED``, and below a half by so many standard errors; or where
the share of a class is so far from what the model expects and nearer to one minus that, by as many."""

_MORE, _FEWER = 4, 100
"""Units are told where they are more than 4 times those of the whole study, or less than a hundredth of an equal share of them."""

_MOST = 20
"""So many columns are listed one by one."""


@dataclass(frozen=True)
class Study:
    """What a site's records are held against. Public, but for what ``shares`` is called with.

    Attributes:
        units: The study's units, over all shards.
        shards: How many shards it has.
        shares: Gives the probability of each class by the plan's start, (n, C), with the classes, (n,), of the records that it can be
            computed for. None where the start was not trained on public records.
        public: Whether the plan was fitted on public records. Without them its columns have textbooks' figures at most, and nothing is
            compared.
    """

    units: int
    shards: int
    shares: Callable[[Records], tuple[FloatArray, IntegerArray] | None] | None = None
    public: bool = True

    @classmethod
    def of_config(cls, config: Config) -> Study:
        """Return the study without its model."""
        return cls(config.privacy.units, len(config.shards), public=config.data.public is not None)

    @classmethod
    def of_plan(cls, plan: Plan, worker: Worker) -> Study:
        """Return the study of a plan, with its model where public records trained it and the weights are here."""
        study = cls.of_config(plan.config)
        if plan.config.model.pretrain is None or plan.lacking or not _has_classes(plan.schema):
            return study

        def shares(records: Records) -> tuple[FloatArray, IntegerArray] | None:
            sides = outputs_of(
                worker.network_at(plan.state.theta), _batches(records, plan.config.engine.micro_batch), hidden=True
            )
            if sides is None:
                return None
            outputs = sides[0].double().numpy().reshape(len(sides[1]), -1)
            if outputs.shape[1] == 1:
                positive = expit(outputs)
                probabilities = np.concatenate([1 - positive, positive], axis=1)
            else:
                probabilities = np.asarray(softmax(outputs, axis=1))
            kept = np.isfinite(probabilities).all(axis=1)
            return probabilities[kept], sides[1].numpy().astype(np.int64)[kept]

        return replace(study, shares=shares)


def _batches(records: Records, size: int) -> Iterator[Records]:
    sides = (torch.split(side, size) for side in (records.inputs, records.targets, records.present))
    return (Records(*parts) for parts in zip(*sides, strict=True))


def remarks_of(dataset: Dataset, slots: SlotMap, study: Study) -> list[str]:
    """Return what looks wrong, in lines for the owner of the records; none where nothing does. Private.

    Args:
        dataset: The records.
        slots: Their slots.
        study: What they are held against.
    """
    with quiet():
        return list(_remarks(dataset, slots, study))


def _remarks(dataset: Dataset, slots: SlotMap, study: Study) -> Iterator[str]:
    schema, rows = dataset.schema, _spread(dataset.live(slots.rows), dataset)
    if len(rows) == 0:
        yield "there is no record: rows, where and blank select none that belongs to anybody"
        return
    # Records of one unit may be alike: they count as one.
    alone = slots.units / slots.slots
    yield from _units(slots.units, study)
    records = _usable(dataset.read(rows))
    if len(records) == 0:
        fault = Fault(Counter(dataset.faults(rows).tolist()).most_common(1)[0][0])
        yield f"none of the {len(rows):,} records that were looked at can be used: {WORDS[fault]}"
    if schema.image:
        flat = records.inputs.flatten(1)
        if len(records) >= _LEAST and bool((flat == flat[:, :1]).all()):
            yield "images: each of them is of one colour"
    elif study.public and schema.means and not schema.tokens:
        raw, labels = dataset.reader.read(rows, schema.names)
        yield from _listed(_columns(columns_of(schema), raw.reshape(len(rows), -1), alone))
        if schema.target_scales:
            yield from _columns(
                targets_of(schema, dataset.data.columns.target), labels.reshape(len(rows), -1), alone, missing=False
            )
    if _has_classes(schema) and len(records):
        yield from _labels(records, schema, study, alone)


def _usable(records: Records) -> Records:
    kept = records.present.bool()
    return Records(records.inputs[kept], records.targets[kept], records.present[kept])


def _has_classes(schema: Schema) -> bool:
    return schema.loss in ("binary-cross-entropy", "cross-entropy")


def _spread(rows: IntegerArray, dataset: Dataset) -> IntegerArray:
    """Return some of these rows, evenly spread over them."""
    width = max(1, math.prod(dataset.input_shape))
    most = max(2 * _LEAST, min(_IMAGES if dataset.schema.image else _ROWS, _VALUES // width))
    if len(rows) <= most:
        return rows
    return rows[np.arange(most) * len(rows) // most]


def _units(units: int, study: Study) -> Iterator[str]:
    if units > _MORE * study.units:
        yield f"units: {units:,} here, while the study states {study.units:,} in all; is the unit column the right one?"
    elif units * study.shards * _FEWER < study.units:
        yield (
            f"units: {units:,} here, while the study states {study.units:,} over {study.shards} shards; is this the whole file, and the "
            "right unit column?"
        )


def _listed(lines: Iterator[str]) -> Iterator[str]:
    """Yield the first lines, and how many more there are."""
    for number, line in enumerate(lines):
        if number == _MOST:
            yield f"{1 + sum(1 for _ in lines)} more of the kind"
            return
        yield line


# --- columns -------------------------------------------------------------------------------------------------------


def _columns(public: PublicColumns, raw: FloatArray, alone: float, missing: bool = True) -> Iterator[str]:
    """Yield what is told of the columns of raw values, (n, width) with NaN where missing."""
    values = np.where(np.isfinite(raw), np.asarray(raw, dtype=np.float64), np.nan)
    ordered, counts = np.sort(values, axis=0), np.isfinite(values).sum(axis=0)
    low, first, middle, third, high = (_quantile(ordered, counts, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    # A flag that is rare in public may be everybody's here.
    varied = ((np.diff(ordered, axis=0) > 0).sum(axis=0) >= 2) & public.comparable & (counts * alone >= _LEAST)
    spread = public.deviations
    nearest = np.clip(middle, np.minimum(public.medians, public.means), np.maximum(public.medians, public.means))
    away = np.abs(middle - nearest) / spread
    far = varied & (away > _AWAY)
    wide = varied & ~far & (third - first > _WIDE * spread)
    narrow = varied & ~far & (high - low < _NARROW * spread) & (away > _ASIDE)
    share = np.isnan(raw).mean(axis=0)
    absent = (share - public.absent > _UNUSUAL) & (len(raw) * alone >= 2 * _LEAST) & missing
    for at in np.flatnonzero(far | wide | narrow | absent).tolist():
        name = public.name(at)
        if far[at] or wide[at] or narrow[at]:
            yield (
                f"column {name}: half of the values are between {first[at]:.4g} and {third[at]:.4g}, around {middle[at]:.4g}; public "
                f"ones are around {public.means[at]:.4g}, with a standard deviation of {spread[at]:.3g}; is it another unit of measure?"
            )
        if absent[at]:
            yield f"column {name}: {share[at]:.0%} of the values are missing, of public ones {public.absent[at]:.0%}"


def _quantile(ordered: FloatArray, counts: IntegerArray, level: float) -> FloatArray:
    """Return a quantile of the first ``counts`` entries of each column, which are in order, (n, width); NaN of none."""
    place = level * np.maximum(counts - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(counts - 1, 0))
    columns = np.arange(ordered.shape[1])
    return np.asarray(ordered[below, columns] * (1 - place + below) + ordered[above, columns] * (place - below))


# --- labels --------------------------------------------------------------------------------------------------------


def _labels(records: Records, schema: Schema, study: Study, alone: float) -> Iterator[str]:
    expected = study.shares(records) if study.shares else None
    probabilities, classes = expected or (None, records.targets.numpy().astype(np.int64))
    if len(classes) == 0:
        return
    found = np.unique(classes)
    if len(found) == 1:
        name = _class_name(int(found[0]), schema)
        share = 1 - _SHARE if probabilities is None else float(probabilities.mean(axis=0)[found[0]])
        if share ** (len(classes) * alone) < _CHANCE:
            yield f"labels: all {len(classes):,} that were looked at are {name}; is there no other class?"
    elif probabilities is not None and probabilities.shape[1] == 2:
        yield from _inverted(probabilities[:, 1], classes == 1, schema, alone)


def _inverted(scores: FloatArray, positive: BoolArray, schema: Schema, alone: float) -> Iterator[str]:
    """Yield a line where labels of both classes look inverted, by the order of their scores or by how many there are."""
    more, fewer = int(positive.sum()), int((~positive).sum())
    area = (float(rankdata(scores)[positive].sum()) - more * (more + 1) / 2) / (more * fewer)
    error = math.sqrt((more + fewer + 1) / (12 * more * fewer * alone))
    actual, share = float(positive.mean()), float(scores.mean())
    apart = abs(actual - share)
    # Of a sum of independent labels with these shares, had the model it right.
    chance = math.sqrt(share * (1 - share) / (len(scores) * alone))
    if area < min(_REVERSED, 0.5 - _ERRORS * error):
        yield f"labels: the plan's model ranks the records the wrong way round (AUROC {area:.2f}); are the labels inverted?"
    elif apart > max(_APART, _ERRORS * chance) and abs(actual - (1 - share)) < apart / 2:
        yield (
            f"labels: {actual:.0%} are {_class_name(1, schema)}, while the plan's model expects {share:.0%}; are the labels inverted?"
        )


def _class_name(number: int, schema: Schema) -> str:
    words: Sequence[str] = schema.words_of_classes
    return f"{words[number]!r}" if number < len(words) else f"of class {number}"
