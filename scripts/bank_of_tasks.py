"""The bank: tasks that need no download, with nothing set but data, model and budget, beside Opacus with its documented defaults.

    python scripts/bank_of_tasks.py --out runs/bank                       # every task, epsilon 0.5, 1 and 8, three seeds
    python scripts/bank_of_tasks.py --out runs/bank --tasks wine --seeds 1 --epsilons 8

For every run it says by how much the error (the share of wrong labels, or the squared error relative to the variance of the targets)
fell on the evaluation records, and the standard error of that. Runs are lines of ``runs.jsonl``; the same command goes on
where it stopped. Opacus takes its tutorial's settings: SGD with rate 0.1, clip 1, batches of 64, ten epochs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bank.tasks import Task, tasks
from numpy.typing import NDArray
from torch import nn


def started(task: Task) -> nn.Module:
    """The module to begin with, fitted to the public records where the task says so."""
    torch.manual_seed(0)
    module = task.module()
    if not task.pretrained:
        return module
    features, targets = (torch.from_numpy(array) for array in task.public)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, 0.01)
    for _ in range(100):
        optimiser.zero_grad()
        loss_of(task)(module(features), targets).backward()
        optimiser.step()
    return module


def loss_of(task: Task) -> Any:
    """Torch's loss of a task."""
    if task.loss == "cross-entropy":
        return nn.functional.cross_entropy
    return lambda outputs, targets: nn.functional.mse_loss(outputs.reshape(targets.shape), targets)


def errors(task: Task, module: nn.Module) -> NDArray:
    """The error of each evaluation record, (n,)."""
    features, targets = task.evaluation
    module.eval()
    with torch.no_grad():
        outputs = module(torch.from_numpy(features)).numpy()
    if task.loss == "cross-entropy":
        return (outputs.argmax(axis=1) != targets).astype(np.float64)
    return (outputs.reshape(targets.shape).astype(np.float64) - targets) ** 2 / targets.var()


def ours(task: Task, start: nn.Module, epsilon: float, seed: int) -> nn.Module:
    """The model of distqexp with nothing set."""
    import distqexp

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        fitted = distqexp.fit(
            start, task.private, public=task.public, epsilon=epsilon, delta=delta_of(task), loss=task.loss,
            population=task.name, ledger=Path(folder) / "ledger.sqlite", insecure_noise_seed=seed, callback=lambda event: None,
        )  # fmt: skip
        return fitted.model


def opacus(task: Task, start: nn.Module, epsilon: float, seed: int) -> nn.Module:
    """The model of DP-SGD with the settings of Opacus' tutorial."""
    from opacus import PrivacyEngine
    from opacus.accountants.utils import get_noise_multiplier

    torch.manual_seed(seed)
    module = type_copy(start)
    features, targets = (torch.from_numpy(array) for array in task.private)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(features, targets), batch_size=64)
    rate = 1 / len(loader)
    noise = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=delta_of(task), sample_rate=rate, epochs=10, accountant="rdp"
    )
    module.train()
    engine = PrivacyEngine(accountant="rdp")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    private, optimiser, batches = engine.make_private(
        module=module,
        optimizer=torch.optim.SGD(parameters, 0.1),
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=1.0,
    )
    for _ in range(10):
        for inputs, labels in batches:
            optimiser.zero_grad()
            if len(inputs):
                loss_of(task)(private(inputs), labels).backward()
                optimiser.step()
    return private._module


def type_copy(module: nn.Module) -> nn.Module:
    """A copy of a module."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def delta_of(task: Task) -> float:
    """A tenth of 1 / units."""
    return 0.1 / len(task.private[0])


METHODS = {"distqexp": ours, "Opacus": opacus}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bank"))
    parser.add_argument("--tasks", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    runs = {}
    if path.exists():
        runs = {tuple(run["key"]): run for run in map(json.loads, path.read_text("utf-8").splitlines())}
    for task in tasks():
        if not any(part in task.name for part in options.tasks):
            continue
        start = started(task)
        before = errors(task, start)
        for key in (
            (task.name, m, e, s) for m in options.methods for e in options.epsilons for s in range(options.seeds)
        ):
            if key in runs:
                continue
            begun = time.monotonic()
            try:
                after = errors(task, METHODS[key[1]](task, start, key[2], key[3]))
                gain = before - after
                run = {
                    "before": float(before.mean()), "after": float(after.mean()), "gain": float(gain.mean()),
                    "standard_error": float(gain.std() / len(gain) ** 0.5),
                }  # fmt: skip
            except Exception as error:  # noqa: BLE001 - a method that fails on a task is a row of the table
                run = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
            runs[key] = {"key": list(key), "seconds": time.monotonic() - begun, **run}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[key]) + "\n")
            print(json.dumps(runs[key]), flush=True)
    report(runs)


def report(runs: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Print the table, and how many tasks got better, and how many worse than chance explains."""
    for epsilon in sorted({key[2] for key in runs}):
        better, worse, ahead, count = 0, [], 0, 0
        for name in dict.fromkeys(key[0] for key in runs):
            cells = {
                method: [run for key, run in runs.items() if key[:3] == (name, method, epsilon)] for method in METHODS
            }
            means = {
                method: statistics.fmean(run.get("after", float("inf")) for run in cell) if cell else float("nan")
                for method, cell in cells.items()
            }
            own = [run for run in cells["distqexp"] if "after" in run]
            if not own:
                print(f"{epsilon:4g} {name:32s} {[run.get('failed') for run in cells['distqexp']][:1]}")
                continue
            gain = statistics.fmean(run["gain"] for run in own)
            error = max(run["standard_error"] for run in own)
            count, better = count + 1, better + (gain > 0)
            ahead += means["distqexp"] < means["Opacus"]
            worse += [name] if gain < -2 * error else []
            print(
                f"{epsilon:4g} {name:32s} before {own[0]['before']:.4f} distqexp {means['distqexp']:.4f} Opacus {means['Opacus']:.4f}"
            )
        print(
            f"epsilon {epsilon:g}: of {count} tasks {better} better than the start, ahead of Opacus in {ahead}; worse: {worse}"
        )


if __name__ == "__main__":
    main()
