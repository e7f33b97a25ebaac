"""Small runs of the real stages on HDF5 files: a config, a plan, and every unit's integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.gradients.context import RoundContext
from distqexp.sketching.sketcher import Sketcher
from distqexp.stages.plan import make_plan
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "logistic": (
        {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 6}, "loss": "binary-cross-entropy"},
        (6,),
        2,
    ),
    "mlp": (
        {
            "factory": "distqexp.problem.models:mlp",
            "args": {"inputs": 6, "outputs": 3, "hidden": [8]},
            "loss": "cross-entropy",
        },
        (6,),
        3,
    ),
    "double": (
        {
            "factory": "sketching_oracle:double_mlp",
            "args": {"inputs": 6, "outputs": 3, "hidden": [4]},
            "loss": "cross-entropy",
        },
        (6,),
        3,
    ),
    "double logistic": (
        {
            "factory": "sketching_oracle:double_logistic",
            "args": {"inputs": 6},
            "loss": "binary-cross-entropy",
        },
        (6,),
        2,
    ),
    "cnn": (
        {"factory": "distqexp.problem.models:cnn", "args": {"outputs": 3}, "loss": "cross-entropy"},
        (1, 28, 28),
        3,
    ),
}
"""Name: the config's [model], the shape of a record, the number of classes."""


@dataclass
class Table:
    """The content of a file: features x (n, ...), labels y (n,), unit ids u (n,)."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    u: NDArray[np.int64]

    def write(self, path: Path) -> None:
        """Store as HDF5, over any earlier file."""
        with h5py.File(path, "w") as file:
            file["x"], file["y"], file["u"] = self.x, self.y, self.u

    def without(self, unit: int) -> Table:
        """The table with a unit's records taken out."""
        keep = self.u != unit
        return Table(self.x[keep], self.y[keep], self.u[keep])

    def only(self, unit: int) -> Table:
        """The records of one unit."""
        keep = self.u == unit
        return Table(self.x[keep], self.y[keep], self.u[keep])


def random_table(model: str, sizes: list[int], seed: int) -> Table:
    """Random records, as many as ``sizes`` says in each unit; the units' records stand mixed in the file."""
    _, shape, classes = MODELS[model]
    random = np.random.default_rng(seed)
    u = np.repeat(np.arange(len(sizes)), sizes)
    random.shuffle(u)
    x = random.normal(size=(len(u), *shape)).astype(np.float32)
    return Table(np.abs(x) if len(shape) == 3 else x, random.integers(0, classes, len(u)), u)


def make_config(folder: Path, kind: str, *, public: bool = True, **sections: Mapping[str, Any]) -> Config:
    """A config on folder/private.h5 and folder/public.h5; ``sections`` override keys of its tables."""
    columns = {"features": ["x"], "target": "y", "standardise": False}
    source = {"format": "hdf5", "columns": columns, "unit": "u"}
    data = {"population": "somebody", "private": {**source, "path": str(folder / "private.h5")}}
    if public:
        data["public"] = {**source, "path": str(folder / "public.h5")}
    tree: dict[str, Any] = {
        "model": MODELS[kind][0],
        "data": data,
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 40},
        "mechanism": {"clip": 0.05, "guard": False},
        "subspace": {"kind": "identity"},
        "precision": {"kind": "identity"},
        "engine": {"micro_batch": 8, "kind": "serial"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return config_from_tree(tree)


def plan_of(config: Config) -> Plan:
    """The plan, made by the real stage."""
    return make_plan(config, SerialEngine())


def with_blank(config: Config, blank: Path | None) -> Config:
    """The config with another mask of blank records."""
    private = replace(config.data.private[0], blank=None if blank is None else str(blank))
    return replace(config, data=replace(config.data, private=(private,)))


def context_of(config: Config, plan: Plan, state: RoundState | None = None) -> RoundContext:
    """What a rank works with, on the config's private files."""
    state = state or plan.state
    sources, _ = open_shards(plan, config.data.private, SerialEngine())
    return RoundContext.of_state(plan, state, sources)


def unit_integers(config: Config, plan: Plan, state: RoundState | None = None) -> NDArray[np.int64]:
    """Every unit's integers, (units, k), in the order of the units, rounded one by one whatever the plan rounds."""
    context, state = context_of(config, plan, state), state or plan.state
    grid = state.grid
    sketcher = Sketcher(context.gradients, clip=state.clip, step=grid.step, clip_integer=grid.clip_integer)
    return np.concatenate([sketcher.unit_integers(context.batches(i)) for i in range(len(context.pieces))])


def unit_vectors(config: Config, plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Every unit's whitened vector before the clip, and whether it is finite."""
    context = context_of(config, plan)
    found = [context.gradients.of_piece(context.batches(i)) for i in range(len(context.pieces))]
    return np.concatenate([vectors for vectors, _ in found]), np.concatenate([finite for _, finite in found])


def sums_of(config: Config, plan: Plan, folder: Path, state: RoundState | None = None) -> NDArray[np.int64]:
    """The pooled integer sum by the real sketch stage."""
    folder.mkdir(exist_ok=True)
    sources, fingerprints = open_shards(plan, config.data.private, SerialEngine())
    found = sketch_round(plan, state or plan.state, Shards(sources, fingerprints), folder, SerialEngine())
    assert found is not None
    return found


def exact_norm(row: NDArray[np.int64]) -> int:
    """The squared norm in Python's own integers, which don't wrap."""
    return sum(int(x) ** 2 for x in row)


def first_appearance(u: NDArray[np.int64]) -> list[int]:
    """Unit ids in the order in which units are numbered."""
    return list(dict.fromkeys(u.tolist()))
