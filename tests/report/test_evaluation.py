"""Figures of evaluation records, against scikit-learn's; intervals, against scipy's and counted ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from report_files import outputs
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, confusion_matrix, roc_auc_score, roc_curve

from distqexp.report import evaluation
from distqexp.report.evaluation import Outputs, evaluation_figures
from distqexp.report.html.intervals import of_area, of_change, of_mean, of_share


def test_two_classes_as_scikit_learn_sees_them() -> None:
    before, after = (outputs(2, 400, strength=strength, seed=3) for strength in (0.2, 1.0))
    tree = evaluation_figures("binary-cross-entropy", before, after)
    assert (tree["kind"], tree["records"]) == ("binary", 400)
    for when, side in (("before", before), ("after", after)):
        logits, truth = side.outputs[:, 0], side.targets
        assert tree[when]["confusion"] == confusion_matrix(truth, logits > 0).tolist()
        assert tree[when]["correct"] == int(((logits > 0) == truth).sum())
        assert tree[when]["roc"]["area"] == pytest.approx(roc_auc_score(truth, logits), abs=1e-12)
        points = np.array(tree[when]["roc"]["points"])
        assert len(points) <= evaluation.MOST_POINTS
        alarms, hits, _ = roc_curve(truth, logits)
        assert auc(points[:, 0], points[:, 1]) == pytest.approx(auc(alarms, hits), abs=0.01)
        found, predicted = calibration_curve(truth, expit(logits), n_bins=evaluation.BINS)
        bins = tree[when]["calibration"]
        np.testing.assert_allclose([bin["predicted"] for bin in bins], predicted, rtol=1e-9)
        np.testing.assert_allclose([bin["found"] / bin["records"] for bin in bins], found, rtol=1e-9)
        assert tree[when]["loss"]["mean"] == pytest.approx(side.losses.mean())
    gained = ((after.outputs[:, 0] > 0) == after.targets) & ((before.outputs[:, 0] > 0) != before.targets)
    assert tree["paired"]["gained"] == int(gained.sum())
    assert tree["paired"]["loss"]["mean"] == pytest.approx((after.losses - before.losses).mean())


def test_two_logits_are_two_classes_and_one_logit_says_the_same() -> None:
    side = outputs(2, 200, strength=1.0, seed=5)
    pair = Outputs(np.hstack([np.zeros_like(side.outputs), side.outputs]), side.targets, side.losses)
    one = evaluation_figures("binary-cross-entropy", side, side)
    assert evaluation_figures("cross-entropy", pair, pair)["after"]["roc"]["area"] == pytest.approx(
        one["after"]["roc"]["area"]
    )
    assert evaluation_figures("cross-entropy", pair, pair)["after"]["confusion"] == one["after"]["confusion"]


def test_several_classes() -> None:
    side = outputs(4, 300, strength=1.0, seed=6)
    tree = evaluation_figures("cross-entropy", side, side)["after"]
    guesses = side.outputs.argmax(axis=1)
    assert tree["confusion"] == confusion_matrix(side.targets, guesses).tolist()
    shares = np.exp(side.outputs) / np.exp(side.outputs).sum(axis=1, keepdims=True)
    one_hot = side.targets[:, None] == np.arange(4)
    assert tree["roc"]["area"] == pytest.approx(roc_auc_score(one_hot.ravel(), shares.ravel()), abs=1e-12)
    assert sum(bin["found"] for bin in tree["calibration"]) == int((guesses == side.targets).sum())


def test_too_many_classes_have_no_matrix() -> None:
    side = outputs(evaluation.MOST_CLASSES + 1, 200, strength=1.0, seed=6)
    assert evaluation_figures("cross-entropy", side, side)["after"]["confusion"] is None


def test_a_regression_is_binned_by_its_predictions() -> None:
    side = outputs(0, 105, strength=1.0, seed=7)
    tree = evaluation_figures("mean-squared-error", side, side)
    bins = tree["after"]["calibration"]
    assert sum(bin["records"] for bin in bins) == 105
    assert [bin["predicted"] for bin in bins] == sorted(bin["predicted"] for bin in bins)
    assert sum(bin["found"] * bin["records"] for bin in bins) == pytest.approx(side.targets.sum())


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_a_model_that_diverged_gives_json_that_a_parser_takes(classes: int) -> None:
    good = outputs(classes, 60, strength=1.0, seed=8)
    bad = Outputs(np.full_like(good.outputs, np.nan), good.targets, np.full_like(good.losses, np.inf))
    loss = {0: "mean-squared-error", 2: "binary-cross-entropy"}.get(classes, "cross-entropy")
    tree = evaluation_figures(loss, good, bad)
    assert json.loads(json.dumps(tree, allow_nan=False))["after"]["loss"] == {"mean": None, "deviation": None}
    assert tree["before"]["loss"]["mean"] is not None


@pytest.mark.parametrize(("hits", "tries"), [(0, 7), (7, 7), (3, 10), (950, 1000)])
def test_wilsons_interval(hits: int, tries: int) -> None:
    interval = of_share(hits, tries)
    expected = binomtest(hits, tries).proportion_ci(0.95, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.value == hits / tries


def test_of_no_records_nothing_is_known_and_more_hits_than_tries_are_refused() -> None:
    assert of_share(0, 0)[1:] == (0.0, 1.0)
    assert of_change(0, 0, 0)[1:] == (-1.0, 1.0)
    with pytest.raises(ValueError, match="hits"):
        of_share(4, 3)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Means, areas and paired changes on many draws with a known truth: within 3 standard errors of 95 %."""
    random, draws, count = np.random.default_rng(0), 800, 300
    covered = {"mean": 0, "area": 0, "change": 0}
    area = 0.5 * (1 + math.erf(1.0 / 2))  # P(N(1, 1) > N(0, 1)) = Phi(1/sqrt 2)
    for _ in range(draws):
        values = random.normal(size=count)
        covered["mean"] += (
            of_mean(values.mean(), values.std(), count).low <= 0 <= of_mean(values.mean(), values.std(), count).high
        )
        low, high = random.normal(size=150), random.normal(size=150) + 1
        interval = of_area(float((high[:, None] > low[None, :]).mean()), 150, 150)
        covered["area"] += interval.low <= area <= interval.high
        gained, lost, _ = random.multinomial(count, [0.15, 0.05, 0.8])
        change = of_change(int(gained), int(lost), count)
        covered["change"] += change.low <= 0.1 <= change.high
    error = 3 * math.sqrt(0.95 * 0.05 / draws)
    assert all(abs(hits / draws - 0.95) < error for hits in covered.values()), covered
