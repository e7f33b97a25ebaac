"""Membership inference on an exported model: does its loss tell who was among the records?

The guess is that units are members whose loss is small (Yeom and others 2018, "Privacy risk in machine learning"), or has fallen much
since pretraining (Watson and others 2022, "On the importance of difficulty calibration in membership inference attacks").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.audit.bounds import rate_above
from distqexp.errors import UsageError
from distqexp.gradients.setup import build_network
from distqexp.problem.losses import area_under_roc, get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.weights import load_weights
from distqexp.stages.export import EVALUATION_BATCH

FALSE_POSITIVES = (0.001, 0.01)
"""The false positive rates at which true positives are reported."""
CONFIDENCE = 0.95
"""The confidence of the intervals of true positive rates."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold that at most a share ``target`` of the non-members exceeds.

    Attributes:
        target: The largest false positive rate.
        false_positives: The number of non-members above the threshold.
        true_positives: The number of members above the threshold.
        lowest: The lower end of the interval of the true positive rate, by Clopper and Pearson, at CONFIDENCE.
        highest: Its upper end.
        allowed: The largest true positive rate that the claim allows at this target, see ``allowed_rate``.
    """

    target: float
    false_positives: int
    true_positives: int
    lowest: float
    highest: float
    allowed: float


@dataclass(frozen=True)
class Attack:
    """How well one score tells members from non-members. Public: coins decided on membership.

    Attributes:
        score: The name of the score.
        members: The number of members.
        non_members: The number of non-members.
        area: The area under the ROC curve; a half for guessing.
        advantage: The largest difference of true positive rate and false positive rate.
        allowed_advantage: The largest one that the claim allows, (e^epsilon - 1 + 2 delta) / (e^epsilon + 1).
        points: The rates at each of FALSE_POSITIVES.
    """

    score: str
    members: int
    non_members: int
    area: float
    advantage: float
    allowed_advantage: float
    points: tuple[OperatingPoint, ...]


def loss_scores(
    plan: Plan, pretrained: Path, exported: Path, records: Records, unit: IntegerArray
) -> dict[str, FloatArray]:
    """Compute scores of membership from losses, before and after the run.

    Args:
        plan: The plan of the run.
        pretrained: The file of the weights before the run.
        exported: The file of the weights after it.
        records: The records of all candidates.
        unit: The unit of each record, ascending.

    Returns:
        Scores (units,) by name, larger for likelier members; NaN for a unit without a present record.
    """
    before, after = (_unit_losses(plan, path, records, unit) for path in (pretrained, exported))
    return {"loss": -after, "loss since pretraining": before - after}


def _unit_losses(plan: Plan, weights: Path, records: Records, unit: IntegerArray) -> FloatArray:
    """Return the mean loss (units,) over each unit's present records, of the plan's model with these weights."""
    network = build_network(plan.config)
    load_weights(network, weights)
    losses = _losses(network, plan.config.model.loss, records)
    present = records.present.numpy()
    units = int(unit[-1]) + 1
    counts = np.bincount(unit[present], minlength=units)
    sums = np.bincount(unit[present], losses[present], minlength=units)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), math.nan))


def measure_attack(score: str, scores: FloatArray, included: BoolArray, epsilon: float, delta: float) -> Attack:
    """Compare the ROC curve of a score with what (epsilon, delta)-privacy allows.

    Args:
        score: The name of the score.
        scores: The score of each unit, (n,).
        included: Whether each unit is a member, (n,).
        epsilon: The claimed epsilon.
        delta: Its delta.

    Raises:
        UsageError: All units are members, or none is.
    """
    area = area_under_roc(scores, included)
    if area is None:
        raise UsageError("audit: all candidates are members, or none; expected both: hold out more public units")
    members, others = np.sort(scores[included]), np.sort(scores[~included])
    values = np.unique(scores)
    rates = [1.0 - np.searchsorted(side, values, side="left") / len(side) for side in (members, others)]
    return Attack(
        score=score, members=len(members), non_members=len(others), area=area,
        advantage=float(max(0.0, (rates[0] - rates[1]).max())),
        allowed_advantage=math.tanh(epsilon / 2) + 2 * delta / (1 + math.exp(min(epsilon, 700.0))),
        points=tuple(_point(members, others, target, epsilon, delta) for target in FALSE_POSITIVES),
    )  # fmt: skip


def allowed_rate(false_positives: float, epsilon: float, delta: float) -> float:
    """Return the largest true positive rate that both inequalities of (epsilon, delta)-privacy allow at this false positive rate."""
    growth = math.exp(min(epsilon, 700.0))
    return min(1.0, growth * false_positives + delta, 1.0 - (1.0 - delta - false_positives) / growth)


def _point(members: FloatArray, others: FloatArray, target: float, epsilon: float, delta: float) -> OperatingPoint:
    largest_count = math.floor(target * len(others))
    threshold = others[-1 - largest_count]
    true, false = int((members > threshold).sum()), int((others > threshold).sum())
    failure = (1.0 - CONFIDENCE) / 2
    return OperatingPoint(
        target=target, false_positives=false, true_positives=true,
        lowest=1.0 - rate_above(len(members) - true, len(members), failure),
        highest=rate_above(true, len(members), failure),
        allowed=allowed_rate(target, epsilon, delta),
    )  # fmt: skip


def _losses(network: Network, loss: str, records: Records) -> FloatArray:
    value, losses = get_loss(loss).value, []
    for first in range(0, len(records), EVALUATION_BATCH):
        window = slice(first, first + EVALUATION_BATCH)
        outputs = network.outputs(records.inputs[window].to(network.device)).cpu().double()
        losses.append(value(outputs, records.targets[window]).numpy())
    return np.concatenate(losses).astype(np.float64)


def attack_lines(attacks: Sequence[Attack]) -> list[str]:
    """Return a line for people on each attack."""
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
