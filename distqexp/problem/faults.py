"""Why a record is left out: the rules that a private record must meet to contribute anything."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.problem.losses import is_own
from distqexp.problem.schema import Schema

Faults = NDArray[np.int8]
"""int8 (n,): the Fault of each record."""


class Fault(IntEnum):
    """The rule that a record breaks; of several, the first one in this order. Private, as is how many records break any."""

    NONE = 0
    BLANK = 1
    NO_UNIT = 2
    UNREADABLE = 3
    LABEL_OUT_OF_RANGE = 4
    MASK_OUT_OF_RANGE = 5
    TOKEN_OUT_OF_RANGE = 6
    LABEL_MISSING = 7
    NO_TOKEN = 8
    NOT_FINITE = 9


WORDS = {
    Fault.BLANK: "blanked by data.blank",
    Fault.NO_UNIT: "unit id missing or illegible: the record is nobody's",
    Fault.UNREADABLE: "text where a number is expected, or bytes that are no record",
    Fault.LABEL_MISSING: "label missing",
    Fault.LABEL_OUT_OF_RANGE: "label out of range",
    Fault.MASK_OUT_OF_RANGE: "mask entry neither 0 nor 1",
    Fault.TOKEN_OUT_OF_RANGE: "token out of the vocabulary",
    Fault.NO_TOKEN: "no token that is seen",
    Fault.NOT_FINITE: "a number that is infinite, or beyond float32",
}
"""Each fault in words, for people who may see the records."""


def mark(faults: Faults, which: BoolArray, fault: Fault) -> None:
    """Note a fault of the records that ``which``, (n, ...), marks, unless one that comes before it in Fault is noted already."""
    faulty = which.any(axis=tuple(range(1, which.ndim)))
    faults[faulty & ((faults == Fault.NONE) | (faults > fault))] = fault


def checked_inputs(values: NDArray[Any], schema: Schema) -> tuple[NDArray[Any], Faults]:
    """Return the inputs of records, (n, ...), in the type that a model takes, and the rule that each of them breaks."""
    faults: Faults = np.zeros(len(values), dtype=np.int8)
    if schema.tokens:
        mark_tokens(faults, values, schema)
        return values, faults
    with np.errstate(all="ignore"):  # a warning would reveal something about the data
        values = values.astype(np.float32)
    mark(faults, ~np.isfinite(values), Fault.NOT_FINITE)
    return values, faults


def token_rule(schema: Schema) -> str:
    """Say in words which tokens are allowed."""
    top = schema.vocabulary
    return f"whole numbers from 0 to {top - 1}, the model's vocabulary" if top else "whole numbers from 0 up"


def label_rule(schema: Schema) -> str:
    """Say in words which labels are allowed."""
    if schema.loss == "mean-squared-error" or is_own(schema.loss):
        return f"finite numbers for {schema.loss}"
    if schema.loss == "binary-cross-entropy":
        return "0 or 1 for binary-cross-entropy"
    return f"whole numbers from {f'0 to {schema.classes - 1}' if schema.classes else '0 up'} for cross-entropy"


def mark_labels(faults: Faults, labels: FloatArray, schema: Schema) -> None:
    """Note which records have a label, in (n,) or for regression (n, o), that is missing or not allowed."""
    mark(faults, np.isnan(labels), Fault.LABEL_MISSING)
    if schema.loss == "mean-squared-error" or is_own(schema.loss):
        mark(faults, ~np.isfinite(labels.astype(np.float32)), Fault.NOT_FINITE)
        return
    bound = 2 if schema.loss == "binary-cross-entropy" else schema.classes or 2**31
    bad = (labels != np.floor(labels)) | (labels < 0) | (labels >= bound)
    mark(faults, bad & ~np.isnan(labels), Fault.LABEL_OUT_OF_RANGE)


def mark_tokens(faults: Faults, values: IntegerArray, schema: Schema) -> None:
    """Note which records have tokens or a mask, in (n, 2, L), that are not allowed, or no token at all."""
    tokens, mask = values[:, 0], values[:, 1]
    mark(faults, (mask != 0) & (mask != 1), Fault.MASK_OUT_OF_RANGE)
    mark(faults, (tokens < 0) | (tokens >= (schema.vocabulary or 2**62)), Fault.TOKEN_OUT_OF_RANGE)
    mark(faults, (mask == 0).all(axis=1, keepdims=True), Fault.NO_TOKEN)
