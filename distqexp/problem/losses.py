"""Losses, convex in the model's outputs, with the square root of their Hessian in the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import BoolArray
from distqexp.errors import UsageError


class Loss(ABC):
    """A loss l(outputs, target) of one record, computed in batches of B records with C outputs."""

    name: str

    def kept(self) -> AbstractContextManager[None]:
        """Inside, the state of a loss of somebody's own may change; afterwards it is as it was before. Others have none."""
        return nullcontext()

    @abstractmethod
    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (B,): the loss of each record, differentiable and usable under torch.func."""

    @abstractmethod
    def hessian_factor(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return (B, C, r): S with S S^T the Hessian of the loss in the outputs, which doesn't depend on the target."""

    @abstractmethod
    def sample(self, outputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw targets (B,) or (B, o) from the model's own distribution, whose -log likelihood is the loss.

        Gradients at such targets have mean zero and the Fisher matrix as second moment: J^T Lambda J, with Lambda the Hessian of the loss
        in the outputs. ``noise``, float64 (B, noise_width(outputs)), is uniform on (0, 1).
        """

    def noise_width(self, outputs: torch.Tensor) -> int:
        """Return how many uniform numbers ``sample`` takes for a record."""
        return 1

    @abstractmethod
    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
        """Return metrics over the present records. Private when the records are."""


class CrossEntropy(Loss):
    """Softmax cross-entropy of logits (B, C) and targets int64 (B,). Its Hessian is diag(q) - q q^T."""

    name = "cross-entropy"

    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def hessian_factor(self, outputs: torch.Tensor) -> torch.Tensor:
        share = torch.softmax(outputs, dim=-1)
        root = torch.sqrt(share)
        return torch.diag_embed(root) - share.unsqueeze(-1) * root.unsqueeze(-2)

    def sample(self, outputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw int64 (B,): the class whose interval of the cumulative distribution holds the noise."""
        below = torch.softmax(outputs.double(), dim=-1).cumsum(dim=-1)
        labels = (below <= noise[:, :1] * below[:, -1:]).sum(dim=-1)
        return labels.clamp(max=outputs.shape[-1] - 1)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
        logits, truth = _present_rows(outputs, targets, present)
        if len(truth) == 0:
            return {}
        hits = (logits.argmax(dim=-1) == truth).double().mean()
        return {"accuracy": float(hits), "log_loss": float(self.value(logits, truth).mean())}


class BinaryCrossEntropy(Loss):
    """Logistic loss of logits (B, 1) or (B,) and targets 0 or 1, (B,). Its Hessian is q (1 - q)."""

    name = "binary-cross-entropy"

    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _single(outputs)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")

    def hessian_factor(self, outputs: torch.Tensor) -> torch.Tensor:
        logits = _single(outputs)
        return torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(-logits)).reshape(-1, 1, 1)

    def sample(self, outputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw (B,) of 0 and 1, in the type of the outputs."""
        logits = _single(outputs)
        return (noise[:, 0] < torch.sigmoid(logits.double())).to(logits.dtype)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
        logits, truth = _present_rows(_single(outputs), targets, present)
        if len(truth) == 0:
            return {}
        values = {
            "accuracy": float(((logits > 0) == (truth > 0.5)).double().mean()),
            "log_loss": float(self.value(logits, truth).mean()),
        }
        area = area_under_roc(logits.numpy(), truth.numpy() > 0.5)
        return values if area is None else {"auroc": area, **values}


class MeanSquaredError(Loss):
    """Mean over the o outputs of the squared error, of outputs (B, o) or (B,) and targets (B, o) or (B,).

    Its Hessian is (2/o) I.
    """

    name = "mean-squared-error"

    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        guess, truth = _matrix(outputs), _matrix(targets).to(outputs.dtype)
        if guess.shape != truth.shape:
            raise UsageError(
                f"model outputs: found {guess.shape[-1]} a record; mean-squared-error expects {truth.shape[-1]}, as many as "
                "targets; correct model.args"
            )
        squares: torch.Tensor = torch.square(guess - truth)
        return squares.mean(dim=-1)

    def hessian_factor(self, outputs: torch.Tensor) -> torch.Tensor:
        count, width = _matrix(outputs).shape
        eye = torch.eye(width, dtype=outputs.dtype, device=outputs.device)
        root: float = (2.0 / width) ** 0.5
        return (root * eye).expand(count, width, width)

    def noise_width(self, outputs: torch.Tensor) -> int:
        return _matrix(outputs).shape[1]

    def sample(self, outputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw (B, o): the outputs plus normal noise of variance o/2."""
        guess = _matrix(outputs)
        spread: float = (guess.shape[1] / 2.0) ** 0.5
        return guess + (spread * torch.special.ndtri(noise)).to(guess.dtype)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
        guess, truth = _present_rows(_matrix(outputs), targets, present)
        return {"mean_squared_error": float(self.value(guess, truth).mean())} if len(truth) else {}


def is_own(name: str) -> bool:
    """Return whether a config's name of a loss is one of somebody's own, "package.module:name"."""
    return ":" in name


def get_loss(name: str) -> Loss:
    """Return the loss of this name in configs. Raises UsageError for an unknown one."""
    if is_own(name):
        from distqexp.problem.own_losses import own_loss

        return own_loss(name)
    kinds: dict[str, type[Loss]] = {kind.name: kind for kind in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError)}
    if name not in kinds:
        raise UsageError(f"model.loss: found {name!r}; expected one of {', '.join(kinds)}")
    return kinds[name]()


def constant_loss(name: str, targets: torch.Tensor) -> tuple[float, float] | None:
    """Return the mean loss of the best constant prediction for these targets, and the unit that losses are compared in.

    The unit is 1 for likelihoods, and the variance of the targets for squared errors. None where the loss is of one's own.
    """
    if is_own(name):
        return None
    if name == "mean-squared-error":
        spread = float(_matrix(targets.double()).var(dim=0, correction=0).mean())
        return spread, spread
    counts = torch.bincount(targets.long()).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum()), 1.0


def area_under_roc(scores: NDArray[np.floating], positive: BoolArray) -> float | None:
    """Return P(score of a positive > score of a negative), ties counting a half (Mann-Whitney U).

    The result is None unless both classes are there.
    """
    from scipy.stats import rankdata

    wins = int(positive.sum())
    losses = len(positive) - wins
    if wins == 0 or losses == 0:
        return None
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * losses))


def _single(outputs: torch.Tensor) -> torch.Tensor:
    if outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[-1] != 1):
        raise UsageError(
            f"model outputs: found shape (n, {', '.join(map(str, outputs.shape[1:]))}); binary-cross-entropy expects "
            "one logit a record; set outputs = 1 in model.args"
        )
    return outputs.reshape(-1)


def _matrix(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), -1)


def _present_rows(
    outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    keep = present.detach().cpu().bool()
    return outputs.detach().cpu().double()[keep], targets.detach().cpu()[keep]
