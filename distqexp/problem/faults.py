"""Why a record is left out: the rules that a private record must meet to contribute anything."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from distqexp.problem.schema import Schema

Faults = NDArray[np.int8]


class Fault(IntEnum):
    """The rule that a record breaks; of several the first one in this order. Private, as is how many break any."""

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
"""For whoever may see the records."""


def mark(faults: Faults, which: NDArray[np.bool_], fault: Fault) -> None:
    """Note a fault of the records (n, ...), unless one that stands before it in the order of Fault is noted."""
    broken = which.any(axis=tuple(range(1, which.ndim)))
    faults[broken & ((faults == Fault.NONE) | (faults > fault))] = fault


def token_rule(schema: Schema) -> str:
    """Which tokens are allowed, in words."""
    top = schema.vocabulary
    return f"whole numbers from 0 to {top - 1}, the model's vocabulary" if top else "whole numbers from 0 up"


def label_rule(schema: Schema) -> str:
    """Which labels are allowed, in words."""
    if schema.loss == "mean-squared-error":
        return "finite numbers for mean-squared-error"
    if schema.loss == "binary-cross-entropy":
        return "0 or 1 for binary-cross-entropy"
    return f"whole numbers from {f'0 to {schema.classes - 1}' if schema.classes else '0 up'} for cross-entropy"


def mark_labels(faults: Faults, labels: NDArray[np.float64], schema: Schema) -> None:
    """``labels``: (n,) or, for regression, (n, o)."""
    mark(faults, np.isnan(labels), Fault.LABEL_MISSING)
    if schema.loss == "mean-squared-error":
        mark(faults, ~np.isfinite(labels.astype(np.float32)), Fault.NOT_FINITE)
        return
    bound = 2 if schema.loss == "binary-cross-entropy" else schema.classes or 2**31
    bad = (labels != np.floor(labels)) | (labels < 0) | (labels >= bound)
    mark(faults, bad & ~np.isnan(labels), Fault.LABEL_OUT_OF_RANGE)


def mark_tokens(faults: Faults, values: NDArray[np.int64], schema: Schema) -> None:
    """``values``: (n, 2, L), tokens and mask."""
    tokens, mask = values[:, 0], values[:, 1]
    mark(faults, (mask != 0) & (mask != 1), Fault.MASK_OUT_OF_RANGE)
    mark(faults, (tokens < 0) | (tokens >= (schema.vocabulary or 2**62)), Fault.TOKEN_OUT_OF_RANGE)
    mark(faults, (mask == 0).all(axis=1, keepdims=True), Fault.NO_TOKEN)
