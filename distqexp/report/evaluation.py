"""What evaluation records say of a model before and after a run, as figures for a report. For records that are not private alone.

The guarantee of a run says nothing about these records: whoever shows the figures has to be free to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, softmax

from distqexp.arrays import BoolArray, FloatArray

BINS = 10
"""How many bins a calibration curve has."""

MOST_POINTS = 101
"""A ROC curve has at most so many points."""

MOST_CLASSES = 25
"""With more classes than this a confusion matrix is left out: nobody could read it."""


class Outputs(NamedTuple):
    """What a model says of the present records, in the order of the records.

    Attributes:
        outputs: float64 (n, C): logits, or predictions of a regression.
        targets: float64 (n,) or (n, C): classes, or true values.
        losses: float64 (n,): the loss of each record.
    """

    outputs: FloatArray
    targets: FloatArray
    losses: FloatArray


def evaluation_figures(loss: str, before: Outputs, after: Outputs) -> dict[str, Any]:
    """Return the figures of the same records before and after a run, as JSON types; null stands for what is no finite number.

    Args:
        loss: The name of the training loss, which says what the outputs are.
        before: What the model that the run began with says.
        after: What the released model says.
    """
    kind, sides = _kind(loss, before), {"before": before, "after": after}
    tree: dict[str, Any] = {"kind": kind, "records": len(before.losses)}
    change = after.losses - before.losses
    paired: dict[str, Any] = {"loss": _mean(change)}
    if kind != "regression":
        right = {when: _guesses(kind, side.outputs) == side.targets for when, side in sides.items()}
        paired |= {
            "gained": int((right["after"] & ~right["before"]).sum()),
            "lost": int((right["before"] & ~right["after"]).sum()),
        }
    return tree | {when: _side(kind, side) for when, side in sides.items()} | {"paired": paired}


def _kind(loss: str, side: Outputs) -> str:
    if loss == "mean-squared-error":
        return "regression"
    return "binary" if loss == "binary-cross-entropy" or side.outputs.shape[1] == 2 else "classes"


def _side(kind: str, side: Outputs) -> dict[str, Any]:
    tree: dict[str, Any] = {"loss": _mean(side.losses)}
    if kind == "regression":
        return tree | {"calibration": _binned_means(side.outputs.ravel(), side.targets.ravel())}
    guesses = _guesses(kind, side.outputs)
    tree |= {"correct": int((guesses == side.targets).sum()), "confusion": _confusion(kind, guesses, side)}
    finite = np.isfinite(side.outputs).all(axis=1)
    if not finite.any():
        return tree | {"roc": None, "calibration": []}
    probabilities, truth = _probabilities(kind, side.outputs[finite]), side.targets[finite]
    if kind == "binary":
        scores, positive = probabilities[:, 1], truth > 0.5
        return tree | {"roc": roc_curve(scores, positive), "calibration": _calibration(scores, positive)}
    one_hot = truth[:, None] == np.arange(probabilities.shape[1])
    likeliest = probabilities.argmax(axis=1)
    return tree | {
        "roc": roc_curve(probabilities.ravel(), one_hot.ravel()),
        "calibration": _calibration(probabilities.max(axis=1), likeliest == truth),
    }


def _guesses(kind: str, outputs: FloatArray) -> FloatArray:
    if kind == "binary" and outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).astype(np.float64)
    return outputs.argmax(axis=1).astype(np.float64)


def _probabilities(kind: str, outputs: FloatArray) -> FloatArray:
    """Return (n, C) probabilities of finite logits; those of one logit are (n, 2)."""
    if outputs.shape[1] > 1:
        return np.asarray(softmax(outputs, axis=1))
    share = expit(outputs[:, 0])
    return np.stack([1 - share, share], axis=1)


def _confusion(kind: str, guesses: FloatArray, side: Outputs) -> list[list[int]] | None:
    """Return how many records of each true class (row) were taken for each class (column)."""
    classes = 2 if kind == "binary" else side.outputs.shape[1]
    truth = side.targets.ravel()
    if classes > MOST_CLASSES or len(truth) == 0 or truth.min() < 0 or truth.max() >= classes:
        return None
    cells = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(cells, (truth.astype(np.int64), guesses.astype(np.int64)), 1)
    return [[int(count) for count in row] for row in cells]


def roc_curve(scores: FloatArray, positive: BoolArray) -> dict[str, Any] | None:
    """Return the ROC curve of finite scores (n,), with the area under it; None unless both classes are there.

    Records of one score are taken together, so that ties count a half. Of a long curve evenly spread points are kept.
    """
    wins, losses = int(positive.sum()), int((~positive).sum())
    if wins == 0 or losses == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.concatenate([[0], np.cumsum(positive[order])[last]]) / wins
    alarms = np.concatenate([[0], np.cumsum(~positive[order])[last]]) / losses
    area = float(np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2))
    kept = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), MOST_POINTS)).round().astype(int))
    points = [[round(float(alarms[i]), 6), round(float(hits[i]), 6)] for i in kept]
    return {"points": points, "area": area, "positives": wins, "negatives": losses}


def _calibration(scores: FloatArray, event: BoolArray) -> list[dict[str, float]]:
    """Return what was predicted and what was found in each of ten equal ranges of probability that holds a record."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {
            "predicted": float(scores[place == bin].mean()),
            "found": int(event[place == bin].sum()),
            "records": int((place == bin).sum()),
        }
        for bin in np.unique(place)
    ]


def _binned_means(guesses: FloatArray, truth: FloatArray) -> list[dict[str, float]]:
    """Return mean prediction and mean truth of ten equally large groups, from the smallest predictions to the largest."""
    finite = np.isfinite(guesses) & np.isfinite(truth)
    guesses, truth = guesses[finite], truth[finite]
    order = np.argsort(guesses, kind="stable")
    groups = [group for group in np.array_split(order, BINS) if len(group)]
    return [
        {
            "predicted": float(guesses[group].mean()),
            "found": float(truth[group].mean()),
            "deviation": float(truth[group].std()),
            "records": len(group),
        }
        for group in groups
    ]


def _mean(values: FloatArray) -> dict[str, float | None]:
    """Return mean and standard deviation; null where they are no finite numbers."""
    with np.errstate(all="ignore"):
        mean, deviation = (float(values.mean()), float(values.std())) if len(values) else (np.nan, np.nan)
    return {"mean": _finite(mean), "deviation": _finite(deviation)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
