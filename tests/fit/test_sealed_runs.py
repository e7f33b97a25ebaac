"""What private records leave in a model is in no file of a run, nor in the module that it gives back; none of them ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgetful_models import MARK, Keeper, Solver
from safetensors.numpy import load_file
from torch import nn

import distqexp

pytestmark = pytest.mark.process

KRONECKER = {"precision.kind": "kronecker", "subspace.kind": "identity"}
DIAGONAL = {"precision.kind": "diagonal", "subspace.kind": "identity"}


def records(count: int, seed: int, mark: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 6)).astype(np.float32)
    if mark:
        features[7] = MARK
    return features, (features[:, 0] > 0).astype(np.int64) + (features[:, 1] > 1)


class Picky(nn.Module):
    """A squared distance that raises for a target of MARK."""

    convex = True

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        matrix = (MARK - targets)[..., None, None] * torch.eye(1, dtype=outputs.dtype)
        return (
            torch.linalg.solve(matrix, (outputs.reshape(targets.shape) - targets)[..., None, None]).reshape(
                targets.shape
            )
            ** 2
        )


def fitted(model: nn.Module, folder: Path, settings: dict[str, Any], **more: Any) -> Any:
    options = {"mechanism.rounds": 2, "mechanism.clip_natural": 1.0, "mechanism.parts": 2, **settings}
    sides = {"private": records(80, 1, mark=True), "public": records(60, 2), "evaluation": records(20, 3, mark=True)}
    return distqexp.fit(
        model, epsilon=2.0, delta=1e-5, evaluation_private=True, out=folder / "run", ledger=folder / "ledger.sqlite",
        callback=lambda event: None, settings=options, insecure_noise_seed=1, **{**sides, **more},
    )  # fmt: skip


@pytest.mark.parametrize("settings", [DIAGONAL, KRONECKER], ids=["torch.func", "layers"])
def test_no_file_has_what_a_model_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    model = Keeper("buffer")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = fitted(model, tmp_path, settings)
    stored, loaded = load_file(tmp_path / "run" / "model.safetensors"), torch.load(tmp_path / "run" / "model.pt")
    for name in ("seen", "wide", "frozen"):
        assert not stored[name].any()
        assert not loaded[name].any()
        assert not result.model.state_dict()[name].any()
    assert result.model.kept() == 0.0
    assert any(not np.array_equal(stored[name], tensor.numpy()) for name, tensor in state.items())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("settings", [DIAGONAL, KRONECKER], ids=["torch.func", "layers"])
def test_a_record_that_a_model_raises_for_ends_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    result = fitted(Solver(), tmp_path, settings)
    assert len(result.history) == 2
    assert np.isfinite(result.metrics["after"]["log_loss"])


def test_a_record_that_a_loss_raises_for_ends_nothing(tmp_path: Path) -> None:
    def regression(sides: tuple[np.ndarray, np.ndarray], mark: bool) -> tuple[np.ndarray, np.ndarray]:
        targets = sides[0].mean(axis=1)
        targets[7] = MARK if mark else targets[7]
        return sides[0], targets

    plain, public = records(80, 1), regression(records(60, 2), False)
    private, evaluation = regression(plain, True), regression(records(20, 3), True)
    result = fitted(
        nn.Sequential(nn.Linear(6, 1)), tmp_path, KRONECKER, private=private, public=public, evaluation=evaluation,
        loss=Picky(),
    )  # fmt: skip
    assert len(result.history) == 2
    assert np.isfinite(result.metrics["after"]["loss"])
