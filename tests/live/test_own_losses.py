"""Losses of one's own: what a fit makes of them, and which are refused before anything is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_records import EVALUATION, OwnNet, linear, records, unequal
from run_harness import table_tree
from torch import nn

import distqexp
from distqexp.config import config_from_tree
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.live import Fitted
from distqexp.privacy.ledger import Ledger
from distqexp.problem.losses import get_loss
from distqexp.problem.models import require_allowed_factory
from distqexp.problem.own_losses import OwnLoss, check_own_loss, own_loss
from distqexp.report.progress import ProgressEvent

pytestmark = pytest.mark.process

COEFFICIENTS = np.array([0.5, -0.5, 0.25, 0.0])


def targets_of(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (features @ COEFFICIENTS).astype(np.float32)


def pinball(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of the 0.9 quantile."""
    difference = targets - outputs
    return torch.maximum(0.9 * difference, -0.1 * difference)


pinball.convex = True  # type: ignore[attr-defined]


class Declared(nn.Module):
    """A function of outputs and targets as a loss that says it is convex."""

    convex = True

    def __init__(self, function: Any = None) -> None:
        super().__init__()
        self.function = function or (lambda outputs, targets: (outputs - targets).abs())

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """What the function gives."""
        return self.function(outputs, targets)


def fitted(loss: Any, **more: Any) -> Fitted:
    features, public, held_out = records(1, 400)[0], records(2, 120)[0], EVALUATION[0]
    options = {"mechanism.clip_natural": 1.0, "mechanism.rounds": 3, "precision.kind": "kronecker"}
    return distqexp.fit(
        more.pop("model", linear(1)), (features, targets_of(features)), public=(public, targets_of(public)), loss=loss, epsilon=8,
        evaluation=(held_out, targets_of(held_out)), delta=1e-5, settings=options | more.pop("settings", {}),
        **{"callback": lambda _: None, **more},
    )  # fmt: skip


def test_a_loss_of_torch_and_one_of_ones_own_are_minimised() -> None:
    for number, loss in enumerate([nn.HuberLoss(reduction="none"), pinball, Declared()]):
        result = fitted(loss, population=f"p{number}")
        assert list(result.metrics["after"]) == ["loss"]
        assert result.metrics["after"]["loss"] < 0.7 * result.metrics["before"]["loss"]
        assert result.predict(EVALUATION[0]).shape == (300,)
        assert distqexp.load_model(result.out).loss.startswith("lent:")


def test_the_squared_distance_by_hand_is_that_of_the_built_in_loss() -> None:
    """Gradients are the same, and without curvature nothing else matters."""
    plain = {
        "precision.kind": "identity",
        "mechanism.clip_natural": 1.0,
        "mechanism.guard": False,
        "model.scale_targets": False,
    }
    common: dict[str, Any] = {"settings": plain, "insecure_noise_seed": 1, "model": OwnNet(1)}
    own = fitted(Declared(lambda outputs, targets: (outputs - targets) ** 2), population="a", **common)
    common["model"] = own_start = OwnNet(1)
    own_start.load_state_dict(own.model.state_dict())
    again = fitted(Declared(lambda outputs, targets: (outputs - targets) ** 2), population="b", **common)
    built_in = fitted("mean-squared-error", population="c", **common)
    assert not unequal(again.model, built_in.model)
    assert unequal(again.model, own_start)


def test_a_loss_is_refused_before_anything_is_charged() -> None:
    def undeclared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs()

    picky = Declared(lambda o, t: (o - t).abs() if bool((t >= 0).all()) else (o - t).abs().reshape(-1, 0))
    for loss, words in (
        (undeclared, "convex = True"),
        (Declared(lambda o, t: torch.sin(o - t)), "isn't on made-up outputs"),
        (Declared(lambda o, t: -((o - t) ** 2)), "isn't on made-up outputs"),
        (Declared(lambda o, t: (o - t).abs() + o.mean() ** 2), "mixes the records"),
        (Declared(lambda o, t: torch.tensor([float(x) ** 2 for x in o])), "torch.func"),
        (nn.MSELoss(), "reduction='none'"),
        (picky, "a value a record"),
        (3.0, "float"),
        ("nowhere:loss", "can't be imported"),
        ("cross entropy", "loss: found"),
    ):
        with pytest.raises(UsageError, match=words):
            fitted(loss)
    with pytest.raises(UsageError, match=r'mechanism\.curvature = "private"'):
        fitted(
            pinball,
            settings={"mechanism.curvature": "private", "mechanism.trust_radius": 1.0, "mechanism.noise": "gaussian"},
        )
    with Ledger.open() as ledger:
        assert ledger.rows() == []


def test_a_run_is_not_gone_on_with_under_another_loss(tmp_path: Path) -> None:
    """The identity of a plan has a digest of the loss in it."""

    def interrupt(event: ProgressEvent) -> None:
        if (event.stage, event.round, event.share) == ("release", 0, 1.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(nn.HuberLoss(reduction="none", delta=1.0), out=tmp_path / "run", callback=interrupt)
    with pytest.raises(DistqexpError, match="plan"):
        fitted(nn.HuberLoss(reduction="none", delta=0.01), out=tmp_path / "run", resume=True)
    assert len(fitted(nn.HuberLoss(reduction="none", delta=1.0), out=tmp_path / "run", resume=True).history) == 3


def test_a_loss_by_its_place_is_found_and_a_foreign_one_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = get_loss("torch.nn:SoftMarginLoss")
    assert isinstance(loss, OwnLoss)
    huber = own_loss(f"{__name__}:Declared")
    check_own_loss(huber, 1)
    check_own_loss(huber, 3)
    with pytest.raises(FileContentError, match=r"model\.loss"):
        require_allowed_factory("somebody:loss", "model.loss")
    monkeypatch.setenv("DISTQEXP_ALLOW_FACTORIES", "somebody:*")
    require_allowed_factory("somebody:loss", "model.loss")
    with pytest.raises(UsageError, match="isn't here"):
        own_loss("lent:gone")


class _OfLongs:
    """A loss that takes numbers of classes, and says so by failing on others."""

    convex = True

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets.long(), reduction="none")


@pytest.mark.parametrize(
    "function",
    [
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(reduction="none", weight=torch.tensor([1.0, 3.0, 2.0])),
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        nn.MultiMarginLoss(reduction="none"),
        nn.NLLLoss(reduction="none"),
        _OfLongs(),
    ],
    ids=["plain", "weights", "smoothing", "margin", "likelihood", "own"],
)
def test_losses_that_take_classes_are_taken(function: Any) -> None:
    loss = OwnLoss("test:loss", function)
    check_own_loss(loss, 3)
    outputs, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0])
    for dtype in (torch.float32, torch.float64):
        values = loss.value(outputs.to(dtype), labels)
        expected = function(outputs.float(), labels.long())
        torch.testing.assert_close(values.float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [-1.0, 3.0, 0.5, torch.nan, 1e30])
def test_a_record_whose_label_is_no_class_has_no_gradient(label: float) -> None:
    loss = OwnLoss("test:loss", nn.CrossEntropyLoss(reduction="none"))
    outputs = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    values = loss.value(outputs, torch.tensor([0.0, label, 2.0]))
    assert torch.isfinite(values).tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(values[[0, 2]].sum() + values[1], outputs)
    assert not gradient[1].any()
    assert torch.isfinite(gradient).all()


def test_what_a_loss_raises_is_shown() -> None:
    def wrong(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expected my own targets")

    with pytest.raises(UsageError, match="it raised RuntimeError: expected my own targets"):
        check_own_loss(OwnLoss("test:wrong", wrong), 3)


def test_a_config_names_one(tmp_path: Path) -> None:
    config = config_from_tree(table_tree(model={"loss": "torch.nn:SoftMarginLoss"}), tmp_path)
    assert config.model.loss == "torch.nn:SoftMarginLoss"
    with pytest.raises(UsageError, match="expected one of cross-entropy, binary-cross-entropy, mean-squared-error"):
        config_from_tree(table_tree(model={"loss": "hinge"}), tmp_path)
