"""What a task begins with, and what distqexp and Opacus make of it; and how wrong a module is on the evaluation records."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bank.tasks import Task

PRETRAINING_STEPS = 100
LARGEST_ERROR = 1e12
"""What a squared error counts as at most, one that is not a number too."""

EPOCHS, BATCH, RATE, CLIP = 10, 64, 0.1, 1.0
"""Of DP-SGD: the defaults of Opacus' MNIST example."""


def started(task: Task) -> nn.Module:
    """The module to begin with, fitted to the public records where the task says so, and stopped early by a quarter of them."""
    torch.manual_seed(0)
    module = task.module()
    if not task.pretrained:
        return module
    features, targets = (torch.from_numpy(array) for array in task.public)
    kept = len(targets) // 4
    optimiser = torch.optim.Adam(_trainable(module), task.rate)
    best, least = copy.deepcopy(module.state_dict()), math.inf
    for _ in range(PRETRAINING_STEPS):
        optimiser.zero_grad()
        loss_of(task)(module(features[kept:]), targets[kept:]).backward()
        optimiser.step()
        with torch.no_grad():
            held_out = float(loss_of(task)(module(features[:kept]), targets[:kept]))
        if held_out < least:
            best, least = copy.deepcopy(module.state_dict()), held_out
    module.load_state_dict(best)
    return module


def errors(task: Task, module: nn.Module) -> NDArray[np.float64]:
    """The error of each evaluation record, (n,): 1 for a wrong label, or the squared error in variances of the targets."""
    features, targets = task.evaluation
    module.eval()
    with torch.no_grad():
        outputs = module(torch.from_numpy(features)).numpy()
    if task.loss == "cross-entropy":
        return (outputs.argmax(axis=1) != targets).astype(np.float64)
    squares = (outputs.reshape(targets.shape).astype(np.float64) - targets) ** 2 / targets.astype(np.float64).var()
    return np.nan_to_num(squares, nan=LARGEST_ERROR).clip(max=LARGEST_ERROR)


def of_distqexp(task: Task, name: str, epsilon: float, seed: int) -> nn.Module:
    """The model of distqexp with nothing set."""
    from distqexp.live import fit

    records = [_as_fit_takes(task, part) for part in (task.private, task.public)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        fitted = fit(
            started(task), records[0], public=records[1], epsilon=epsilon, delta=delta_of(task), loss=task.loss,
            population=name, ledger=Path(folder) / "ledger.sqlite", insecure_noise_seed=seed, callback=lambda event: None,
        )  # fmt: skip
        return fitted.model


def of_opacus(task: Task, name: str, epsilon: float, seed: int) -> nn.Module:
    """The model of Opacus' DP-SGD with the defaults of its MNIST example, the noise found by Opacus for this epsilon."""
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    module = _as_opacus_takes(ModuleValidator, started(task))
    torch.manual_seed(seed)
    features, targets = (torch.from_numpy(array) for array in task.private)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(features, targets), batch_size=BATCH)
    module.train()
    private, optimiser, batches = PrivacyEngine().make_private_with_epsilon(
        module=module, optimizer=torch.optim.SGD(_trainable(module), RATE), data_loader=loader, target_epsilon=epsilon,
        target_delta=delta_of(task), epochs=EPOCHS, max_grad_norm=CLIP,
    )  # fmt: skip
    for _ in range(EPOCHS):
        for inputs, labels in batches:
            optimiser.zero_grad()
            if len(inputs):
                loss_of(task)(private(inputs), labels).backward()
                optimiser.step()
    return private._module


METHODS = {"distqexp": of_distqexp, "Opacus": of_opacus}


def loss_of(task: Task) -> Any:
    """Torch's loss of a task."""
    if task.loss == "cross-entropy":
        return nn.functional.cross_entropy
    return lambda outputs, targets: nn.functional.mse_loss(outputs.reshape(targets.shape), targets)


def delta_of(task: Task) -> float:
    """A tenth of 1 / units."""
    return 0.1 / len(task.private[0])


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _as_fit_takes(task: Task, records: tuple[NDArray, NDArray]) -> Any:
    if not task.tokens:
        return records
    features, labels = records
    return {"input_ids": features[:, 0], "attention_mask": features[:, 1], "labels": labels}


def _as_opacus_takes(validator: Any, module: nn.Module) -> nn.Module:
    """The module with Opacus' own layers in the place of those that it can't run, with the same weights."""
    return copy.deepcopy(module) if validator.is_valid(module) else validator.fix(module)
