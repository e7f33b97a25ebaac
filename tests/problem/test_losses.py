"""Losses against torch's own, and their Hessian roots against automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from distqexp.errors import UsageError
from distqexp.problem.losses import area_under_roc, get_loss

CASES = [("cross-entropy", 4), ("binary-cross-entropy", 1), ("mean-squared-error", 1), ("mean-squared-error", 3)]


def _targets(name: str, width: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "mean-squared-error":
        return torch.randn(count, width, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, max(width, 2), (count,), generator=generator)
    return classes if name == "cross-entropy" else classes.float()


@pytest.mark.parametrize(("name", "width"), CASES)
def test_hessian_factor_squares_to_the_hessian_in_the_outputs(name: str, width: int) -> None:
    loss = get_loss(name)
    outputs = 3 * torch.randn(6, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = _targets(name, width, 6)
    roots = loss.hessian_factor(outputs)
    assert roots.shape[:2] == (6, width)
    for row in range(6):
        target = targets[row : row + 1]
        hessian = torch.autograd.functional.hessian(
            lambda o, target=target: loss.value(o.unsqueeze(0), target).sum(), outputs[row]
        )
        torch.testing.assert_close(roots[row] @ roots[row].T, hessian, rtol=1e-12, atol=1e-13)


def test_values_are_torchs() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.tensor([0, 2, 1, 1, 0])
    for found, expected in (
        (get_loss("cross-entropy").value(logits, classes), functional.cross_entropy(logits, classes)),
        (get_loss("mean-squared-error").value(logits, logits.flip(0)), functional.mse_loss(logits, logits.flip(0))),
        (
            get_loss("binary-cross-entropy").value(logits[:, :1], (classes > 0).float()),
            functional.binary_cross_entropy_with_logits(logits[:, 0], (classes > 0).double()),
        ),
    ):
        assert found.shape == (5,)
        torch.testing.assert_close(found.mean(), expected)


def test_extreme_logits_stay_finite() -> None:
    outputs = torch.tensor([[800.0, -800.0], [0.0, 0.0]])
    assert torch.isfinite(get_loss("cross-entropy").value(outputs, torch.tensor([1, 0]))).all()
    assert torch.isfinite(get_loss("cross-entropy").hessian_factor(outputs)).all()
    assert torch.isfinite(get_loss("binary-cross-entropy").hessian_factor(outputs[:, :1])).all()


def test_auroc_is_that_of_scikit_learn_with_ties() -> None:
    random = np.random.default_rng(3)
    scores, truth = random.integers(0, 9, 200) / 4.0, random.random(200) < 0.3
    assert area_under_roc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert area_under_roc(scores, np.zeros(200, dtype=bool)) is None


def test_metrics_count_present_records_only() -> None:
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, float("nan")]])
    found = get_loss("cross-entropy").metrics(outputs, torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2)
    binary = get_loss("binary-cross-entropy").metrics(
        torch.tensor([[3.0], [-1.0], [2.0], [9.0]]),
        torch.tensor([1.0, 0, 0, 0]),
        torch.tensor([True, True, True, False]),
    )
    assert binary["auroc"] == 1.0
    assert binary["accuracy"] == pytest.approx(2 / 3)
    squared = get_loss("mean-squared-error").metrics(torch.ones(3, 1), torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert squared == {"mean_squared_error": 1.0}
    assert get_loss("cross-entropy").metrics(outputs, torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.bool)) == {}


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(UsageError, match="mean-squared-error"):
        get_loss("mean-squared-error").value(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(UsageError, match="one logit"):
        get_loss("binary-cross-entropy").value(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(UsageError, match=r"model\.loss"):
        get_loss("hinge")
