"""Fine-tuning by the methods that distqexp is compared with: Opacus, private gradient descent, no privacy at all."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

from benchmarks.problems import Problem
from distqexp.privacy import gdp

PHYSICAL_BATCH = 512
"""Records whose gradients Opacus holds at once; a larger batch is accumulated, as its BatchMemoryManager does."""

Setting = Mapping[str, Any]


@cache
def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Opacus' smallest noise for so many Poisson-sampled steps, by its PRV accountant, to 0.2 % of epsilon."""
    from opacus.accountants.utils import get_noise_multiplier

    tolerance = 0.002 * epsilon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="prv",
                epsilon_tolerance=tolerance, eps_error=tolerance,
            )
        )  # fmt: skip


def train_opacus(
    problem: Problem,
    setting: Setting,
    epsilon: float,
    seed: int,
    each_epoch: Callable[[torch.nn.Module, float], None] | None = None,
) -> dict[str, Any]:
    """Metrics and seconds of one run of Opacus with gradients of each example by hooks.

    setting: optimiser (sgd or adam), momentum, batch, learning_rate, epochs, clip. Records are sampled as Opacus'
    loaders do by default: each with probability 1 / ceil(n / batch) in every step. With a batch of all records there is
    no sampling, and ``noise`` = "gdp" takes the exact noise of composed Gaussians. each_epoch is given the model and the seconds so
    far, outside the clock.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch.manual_seed(seed)
    inputs, targets, loss = problem.private.inputs, problem.private.targets, problem.loss
    n = len(targets)
    steps = math.ceil(n / min(setting["batch"], n))  # an epoch's
    total, rate = steps * setting["epochs"], 1 / steps
    if setting.get("noise") == "gdp":
        noise = math.sqrt(total) / gdp.mu(epsilon, problem.delta)
    else:
        noise = noise_multiplier(epsilon, problem.delta, rate, total)
    bare = problem.module().train()
    module = GradSampleModule(bare)
    optimiser = DPOptimizer(
        _optimiser(setting, bare), noise_multiplier=noise, max_grad_norm=setting["clip"], expected_batch_size=n * rate
    )
    clock = Clock()
    for _ in range(setting["epochs"]):
        for _ in range(steps):
            chosen = torch.nonzero(torch.rand(n) < rate).flatten() if steps > 1 else torch.arange(n)
            parts = torch.split(chosen, PHYSICAL_BATCH) or (chosen,)
            for part in parts:
                optimiser.zero_grad()
                loss.value(module(inputs[part]), targets[part]).mean().backward()
                optimiser.signal_skip_step(do_skip=part is not parts[-1])
                optimiser.step()
        if each_epoch is not None:
            seconds = clock.read()["seconds"]
            with clock.stopped():
                each_epoch(bare, seconds)
    return {**clock.read(), "noise_multiplier": noise, "metrics": problem.metrics(bare)}


def train_plain(problem: Problem, setting: Setting, seed: int) -> dict[str, Any]:
    """Metrics and seconds of one run without privacy: shuffled batches."""
    torch.manual_seed(seed)
    inputs, targets, loss = problem.private.inputs, problem.private.targets, problem.loss
    module = problem.module().train()
    optimiser = _optimiser(setting, module)
    clock = Clock()
    for _ in range(setting["epochs"]):
        for part in torch.split(torch.randperm(len(targets)), setting["batch"]):
            optimiser.zero_grad()
            loss.value(module(inputs[part]), targets[part]).mean().backward()
            optimiser.step()
    return {**clock.read(), "metrics": problem.metrics(module)}


def _optimiser(setting: Setting, module: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if setting["optimiser"] == "adam":
        return torch.optim.Adam(parameters, lr=setting["learning_rate"])
    return torch.optim.SGD(parameters, lr=setting["learning_rate"], momentum=setting["momentum"])


class Clock:
    """Seconds of the wall and of this process since it was made, less those while it was stopped."""

    def __init__(self) -> None:
        self._wall, self._process = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._process}

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        wall, process = time.perf_counter(), time.process_time()
        yield
        self._wall += time.perf_counter() - wall
        self._process += time.process_time() - process
