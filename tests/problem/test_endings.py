"""A softmax or a sigmoid at the end, before a loss of logits, is warned of; logits of any model aren't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from live_records import PRIVATE, PUBLIC, SETTINGS, OwnNet
from torch import nn

import distqexp
from distqexp.problem.endings import ending_warning
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema


def zero(outputs: int) -> nn.Module:
    """Logits that are all 0, which is within [0, 1]."""
    layer = nn.Linear(4, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def positive(outputs: int) -> nn.Module:
    """Logits between 0 and 1 at the parameters that the model begins with."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, outputs))
    nn.init.constant_(model[2].weight, 0.01)
    nn.init.constant_(model[2].bias, 0.4)
    return model


LOGITS: dict[str, Any] = {
    "linear": lambda outputs: nn.Linear(4, outputs),
    "zero": zero,
    "positive": positive,
    "a network": OwnNet,
    "gates inside": lambda outputs: nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, outputs)),
}


def warning_of(model: nn.Module, loss: str) -> str | None:
    return ending_warning(Network(model.eval()), Schema(loss, False, ("x",), (4,), 1.0, None))


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize(("loss", "outputs"), [("cross-entropy", 3), ("binary-cross-entropy", 1)])
def test_probabilities_are_warned_of_and_logits_are_not(name: str, loss: str, outputs: int) -> None:
    logits = LOGITS[name](outputs)
    assert warning_of(logits, loss) is None
    text = warning_of(nn.Sequential(logits, nn.Sigmoid()), loss)
    assert text is not None
    assert "take the sigmoid off the end" in text
    if outputs > 1:
        text = warning_of(nn.Sequential(logits, nn.Softmax(dim=1)), loss)
        assert text is not None
        assert "with sum 1" in text
        assert "cross-entropy expects logits" in text
    else:
        text = warning_of(nn.Sequential(logits, nn.LogSigmoid()), loss)
        assert text is not None
        assert "none above 0" in text


def test_a_log_softmax_changes_neither_the_loss_nor_its_gradient() -> None:
    """Which is why it isn't warned of."""
    logits = nn.Linear(4, 3)
    assert warning_of(nn.Sequential(logits, nn.LogSoftmax(dim=1)), "cross-entropy") is None
    inputs, targets = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    gradients = []
    for model in (logits, nn.Sequential(logits, nn.LogSoftmax(dim=1))):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        gradients.append(torch.autograd.grad(loss, logits.weight)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_other_losses_and_models_that_can_not_be_tried_are_left_in_peace() -> None:
    assert warning_of(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), "mean-squared-error") is None
    assert warning_of(nn.Linear(7, 3), "cross-entropy") is None


@pytest.mark.process
def test_a_fit_says_it_once(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1))
    distqexp.fit(model, PRIVATE, public=PUBLIC, epsilon=4.0, delta=1e-5, settings={**SETTINGS, "mechanism.rounds": 1})
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("distqexp: warning: model: its outputs are probab")]) == 1
