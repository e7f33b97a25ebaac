"""One pass over a batch of records, in every way that is compared: plain, distqexp, Opacus, torch.func."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from distqexp.api import plan as make_plan
from distqexp.artefacts.plan import Plan
from distqexp.config import config_from_tree
from distqexp.gradients.context import RoundContext
from distqexp.problem.dataset import open_dataset
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.sources import DataSource
from distqexp.sketching.choice import sketcher_of

PLAIN = "plain"
PCA, FULL = "distqexp, kronecker-pca", "distqexp, full kronecker"
HOOKS, GHOST, TORCH_FUNC = "Opacus hooks", "Opacus ghost", "torch.func"
WAYS = (PLAIN, PCA, FULL, HOOKS, GHOST, TORCH_FUNC)

OUTPUTS = 10
CLIP = 1.0

Pass = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A model, the shape of a record, how many records a pass has, and the directions a side of kronecker-pca."""

    name: str
    factory: str
    shape: tuple[int, ...]
    batch: int
    args: Mapping[str, Any] = field(default_factory=dict)
    directions: int = 64


WIDE = {"width": 768, "layers": 6, "heads": 12, "outputs": OUTPUTS}
"""Six blocks as wide as those of a small GPT-2."""

CASES = {
    case.name: case
    for case in (
        Case("cnn", "distqexp.problem.models:cnn", (1, 28, 28), 512, {"outputs": OUTPUTS}),
        Case("mlp", "distqexp.problem.models:mlp", (784,), 256, {"inputs": 784, "outputs": OUTPUTS, "hidden": [512, 512]}),
        Case(
            "mlp-large-k", "distqexp.problem.models:mlp", (784,), 256,
            {"inputs": 784, "outputs": OUTPUTS, "hidden": [512, 512]}, directions=512,
        ),
        Case("encoder", "benchmarks.models:encoder", (128, 256), 16, {"outputs": OUTPUTS}),
        Case("encoder-large-k", "benchmarks.models:encoder", (128, 256), 16, {"outputs": OUTPUTS}, directions=160),
        Case("wide-large-k", "benchmarks.models:encoder", (128, 768), 8, WIDE, directions=160),
    )
}  # fmt: skip

GEOMETRIES: dict[str, dict[str, Any]] = {
    PCA: {"subspace": {"kind": "kronecker-pca"}, "precision": {"kind": "kronecker"}},
    FULL: {"subspace": {"kind": "identity"}, "precision": {"kind": "kronecker"}},
}


class Prepared:
    """A case's records and plans in a folder. Written once, then read by every process that measures."""

    def __init__(self, case: Case, batch: int, folder: Path, threads: int) -> None:
        self.case = case
        self.batch = batch
        self.folder = folder
        self.threads = threads

    def write(self, ways: Iterable[str]) -> None:
        """Records of noise, and a plan for each of these geometries (its public data are other records of noise)."""
        generator = np.random.default_rng(0)
        for role in ("private", "public"):
            with h5py.File(self.folder / f"{role}.h5", "w") as file:
                file["inputs"] = generator.standard_normal((self.batch, *self.case.shape)).astype(np.float32)
                file["target"] = generator.integers(0, OUTPUTS, self.batch)
        for way in ways:
            make_plan(config_from_tree(self._tree(GEOMETRIES[way])), self._plan_file(way))

    def plan(self, way: str) -> Plan:
        """The plan of a distqexp way."""
        return Plan.read(self._plan_file(way))

    def context(self, way: str) -> tuple[RoundContext, Plan]:
        """What a rank has in hand before it sketches the first round."""
        plan = self.plan(way)
        data = config_from_tree(self._tree(GEOMETRIES[way])).data.private[0]
        source = DataSource(data, open_dataset(data, plan.schema).slot_map())
        return RoundContext.of_state(plan, plan.state, (source,)), plan

    def network_and_records(self) -> tuple[Network, Records]:
        """The model and the batch, for the ways that know nothing of plans."""
        context, _ = self.context(PCA)
        ((records, _),) = list(context.batches(0))
        return context.network, records

    def _plan_file(self, way: str) -> Path:
        return self.folder / f"{GEOMETRIES[way]['subspace']['kind']}.h5"

    def _tree(self, geometry: Mapping[str, Any]) -> dict[str, Any]:
        def source(role: str) -> dict[str, Any]:
            columns = {"features": ["inputs"], "target": "target", "standardise": False}
            return {"format": "hdf5", "path": str(self.folder / f"{role}.h5"), "columns": columns}

        sides = {"k_in": self.case.directions, "k_out": self.case.directions}
        return {
            "model": {"factory": self.case.factory, "args": dict(self.case.args), "loss": "cross-entropy"},
            "data": {"population": "speed", "private": source("private"), "public": source("public")},
            "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": self.batch},
            "subspace": {**geometry["subspace"], **(sides if geometry is GEOMETRIES[PCA] else {})},
            "precision": {**geometry["precision"], "samples": self.batch},
            "mechanism": {"clip": 0.01},
            "engine": {"kind": "serial", "micro_batch": self.batch, "threads": self.threads},
        }


def make_pass(way: str, prepared: Prepared) -> Pass:
    """A function that takes one pass over the batch. Everything that a run makes once is made here."""
    if way in GEOMETRIES:
        return _distqexp(way, prepared)
    network, records = prepared.network_and_records()
    module = copy.deepcopy(network.module)
    make = {PLAIN: _plain, HOOKS: _hooks, GHOST: _ghost, TORCH_FUNC: _torch_func}[way]
    return make(module, records.inputs, records.targets)


def _distqexp(way: str, prepared: Prepared) -> Pass:
    """Whiten, clip, sum, round to integers: what a rank does with a piece, as a run does it."""
    context, plan = prepared.context(way)
    batches = list(context.batches(0))
    sketcher = sketcher_of(context, plan.state)
    return lambda: sketcher.sketch(batches)


def _plain(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Pass:
    parameters = list(module.parameters())

    def run() -> object:
        loss = torch.nn.functional.cross_entropy(module(inputs), targets)
        return torch.autograd.grad(loss, parameters)

    return run


def _hooks(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Pass:
    """Forward, backward with gradients of each example, clip, sum, step; without noise, which is drawn once a round."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    sampled = GradSampleModule(module.train())
    optimiser = DPOptimizer(
        torch.optim.SGD(sampled.parameters(), lr=1e-6),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=len(inputs),
    )

    def run() -> None:
        torch.nn.functional.cross_entropy(sampled(inputs), targets).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)  # at the end, so that no pass begins with the last one's gradients

    return run


def _ghost(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Pass:
    """Norms without gradients of each example, then a second backward pass of the weighted loss; without noise."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    sampled = GradSampleModuleFastGradientClipping(module.train(), max_grad_norm=CLIP, use_ghost_clipping=True)
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.SGD(sampled.parameters(), lr=1e-6),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=len(inputs),
    )
    criterion = DPLossFastGradientClipping(sampled, optimiser, torch.nn.CrossEntropyLoss(), loss_reduction="mean")

    def run() -> None:
        criterion(sampled(inputs), targets).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def _torch_func(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Pass:
    """vmap of grad, flat clip, sum."""
    from torch.func import functional_call, grad, vmap

    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(module, values, (x[None],)), y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> object:
        found = gradients(parameters, inputs, targets)
        squares = torch.stack([part.flatten(1).square().sum(dim=1) for part in found.values()]).sum(dim=0)
        weights = (CLIP / squares.sqrt()).clamp(max=1.0)
        return {name: torch.tensordot(weights, part, dims=1) for name, part in found.items()}

    return run
