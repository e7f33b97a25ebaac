"""Membership inference on an exported model: does its loss tell who was among the records?

Guessed in are units with a small loss (Yeom and others 2018, "Privacy risk in machine learning"), or with a loss that fell much since
pretraining (Watson and others 2022, "On the importance of difficulty calibration in membership inference attacks").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distqexp.artefacts.plan import Plan
from distqexp.audit.bounds import rate_above
from distqexp.errors import UsageError
from distqexp.gradients.setup import build_network
from distqexp.problem.losses import area_under_roc, get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.weights import load_weights
from distqexp.stages.export import EVALUATION_BATCH

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FALSE_POSITIVES = (0.001, 0.01)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold that lets at most ``target`` of the non-members in.

    false_positives, true_positives: counts. lowest, highest: of the true positive rate, by Clopper and Pearson, at CONFIDENCE.
    allowed: the largest true positive rate at this target under the claim, e^epsilon target + delta or 1.
    """

    target: float
    false_positives: int
    true_positives: int
    lowest: float
    highest: float
    allowed: float


@dataclass(frozen=True)
class Attack:
    """How one score tells members from non-members. Public: membership is made up.

    area: under the ROC curve, a half for guessing. advantage: the largest true positive rate less the false positive rate;
    allowed_advantage: by the claim, (e^epsilon - 1 + 2 delta) / (e^epsilon + 1).
    """

    score: str
    members: int
    non_members: int
    area: float
    advantage: float
    allowed_advantage: float
    points: tuple[OperatingPoint, ...]


def loss_scores(
    plan: Plan, pretrained: Path, exported: Path, records: Records, unit: NDArray[np.int64]
) -> dict[str, FloatArray]:
    """Scores (units,), larger for likelier members, from files of weights; NaN for a unit without a record that is there."""
    before, after = (unit_losses(plan, path, records, unit) for path in (pretrained, exported))
    return {"loss": -after, "loss since pretraining": before - after}


def unit_losses(plan: Plan, weights: Path, records: Records, unit: NDArray[np.int64]) -> FloatArray:
    """Mean loss (units,) over each unit's records that are there, of the plan's model with these weights."""
    network = build_network(plan.config)
    load_weights(network, weights)
    losses = _losses(network, plan.config.model.loss, records)
    present = records.present.numpy()
    units = int(unit[-1]) + 1
    counts = np.bincount(unit[present], minlength=units)
    sums = np.bincount(unit[present], losses[present], minlength=units)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), math.nan))


def attacked(score: str, scores: FloatArray, included: BoolArray, epsilon: float, delta: float) -> Attack:
    """The ROC curve of ``scores`` (n,) against membership (n,), beside what (epsilon, delta)-privacy allows. Raises UsageError."""
    area = area_under_roc(scores, included)
    if area is None:
        raise UsageError("audit: all candidates are members, or none; expected both: hold out more public units")
    members, others = np.sort(scores[included]), np.sort(scores[~included])
    values = np.unique(scores)
    above = [1.0 - np.searchsorted(side, values, side="left") / len(side) for side in (members, others)]
    return Attack(
        score=score, members=len(members), non_members=len(others), area=area,
        advantage=float(max(0.0, (above[0] - above[1]).max())),
        allowed_advantage=math.tanh(epsilon / 2) + 2 * delta / (1 + math.exp(min(epsilon, 700.0))),
        points=tuple(_point(members, others, target, epsilon, delta) for target in FALSE_POSITIVES),
    )  # fmt: skip


def allowed_rate(false_positives: float, epsilon: float, delta: float) -> float:
    """The largest true positive rate that (epsilon, delta)-privacy leaves at this false positive rate: both of its lines."""
    growth = math.exp(min(epsilon, 700.0))
    return min(1.0, growth * false_positives + delta, 1.0 - (1.0 - delta - false_positives) / growth)


def _point(members: FloatArray, others: FloatArray, target: float, epsilon: float, delta: float) -> OperatingPoint:
    let_in = math.floor(target * len(others))
    threshold = others[-1 - let_in]
    true, false = int((members > threshold).sum()), int((others > threshold).sum())
    failure = (1.0 - CONFIDENCE) / 2
    return OperatingPoint(
        target=target, false_positives=false, true_positives=true,
        lowest=1.0 - rate_above(len(members) - true, len(members), failure),
        highest=rate_above(true, len(members), failure),
        allowed=allowed_rate(target, epsilon, delta),
    )  # fmt: skip


def _losses(network: Network, loss: str, records: Records) -> FloatArray:
    value, found = get_loss(loss).value, []
    for first in range(0, len(records), EVALUATION_BATCH):
        window = slice(first, first + EVALUATION_BATCH)
        outputs = network.outputs(records.inputs[window].to(network.device)).cpu().double()
        found.append(value(outputs, records.targets[window]).numpy())
    return np.concatenate(found).astype(np.float64)


def attack_lines(attacks: Sequence[Attack]) -> list[str]:
    """For people."""
    lines = []
    for attack in attacks:
        rates = ", ".join(
            f"{point.true_positives / attack.members:.2%} (95 %: {point.lowest:.2%} to {point.highest:.2%}; allowed "
            f"{point.allowed:.2%}) at {point.target:.1%} false positives"
            for point in attack.points
        )
        advantage = f"advantage {attack.advantage:.3f} (allowed {attack.allowed_advantage:.3f})"
        lines.append(f"membership by {attack.score}: area {attack.area:.3f}, {advantage}, true positives {rates}")
    return lines
