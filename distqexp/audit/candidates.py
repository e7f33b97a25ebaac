"""Who may be in an audited run: public units and made-up canaries, with a fair coin for each, in HDF5 files that play the private ones.

No file of data.private is opened: an audited run is not charged, so it may not touch a private record. A candidate whose coin leaves it
out has a blank slot, as in a neighbouring dataset under zero-out adjacency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.audit.canaries import make_canaries
from distqexp.config import (
    AllDataConfig,
    AugmentConfig,
    ColumnsConfig,
    Config,
    DataConfig,
    TuneConfig,
)
from distqexp.config.checks import check
from distqexp.engines.base import Engine
from distqexp.errors import UsageError
from distqexp.kinds import Adjacency
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Turns
from distqexp.problem.records import Records, concatenate
from distqexp.problem.schema import Schema
from distqexp.problem.weights import write_weights
from distqexp.stages.plan import make_plan
from distqexp.stages.shares import refuse_one_group
from distqexp.tuning.roles import Roles, assign_roles
from distqexp.tuning.shift import hold

FEWEST_CANARIES = 20


@dataclass(frozen=True)
class Candidates:
    """The records of an audited run, in the order of the rows of its file: public units first, then the canaries. All public.

    Attributes:
        config: The config of the run, with the coins in data.private.blank.
        full_source: The private source of that config, without the coins.
        records: The records of all candidates.
        unit: The unit of each record, (records,), ascending.
        included: The coin of each unit, (units,).
        canaries: The number of canaries; they are the last units.
        differences: In which ways the run differs from the user's config, in words.
    """

    config: Config
    full_source: DataConfig
    records: Records
    unit: IntegerArray
    included: BoolArray
    canaries: int
    differences: tuple[str, ...]


def make_candidates(
    config: Config, canaries: int, folder: Path, engine: Engine, coin_seed: int | None = None
) -> Candidates:
    """Split the public records as [tune] says, pretrain, make canaries, toss the coins, and write it all into ``folder``.

    The units that [tune] would let play private ones, and those that it would test on, are the public candidates.

    Args:
        config: The user's config.
        canaries: How many canaries to make.
        folder: An empty folder.
        engine: Where the work runs.
        coin_seed: The seed of the coins, for tests; they come from the operating system's entropy when None.

    Raises:
        UsageError: The adjacency is replace-one, there are too few canaries, or there are no public data.
    """
    _refuse(config, canaries)
    tune = config.tune or TuneConfig()
    roles = assign_roles(config)
    start = make_plan(_on_reference(config, roles), engine)
    datasets = [
        *(hold(data, start.schema, tune, private=True) for data in roles.stand_ins),
        *(hold(data, start.schema, tune, private=False) for data in roles.test),
    ]
    maps = [dataset.slot_map() for dataset in datasets]
    base = concatenate([dataset.read(slots.rows) for dataset, slots in zip(datasets, maps, strict=True)])
    records = concatenate([base, make_canaries(start, base, canaries, tune.seed)])
    unit = np.arange(len(records))
    grouped = any(data.unit is not None for data in config.data.private)
    if grouped:
        firsts = np.cumsum([0, *(slots.units for slots in maps)])
        public_units = [slots.unit + first for slots, first in zip(maps, firsts[:-1], strict=True)]
        unit = np.concatenate([*public_units, np.arange(firsts[-1], firsts[-1] + canaries)])
    coins = np.random.default_rng(coin_seed).random(int(unit[-1]) + 1) < 0.5
    weights = folder / "pretrained.safetensors"
    write_weights(weights, start.weights)
    source = _write_source(folder / "candidates.h5", records, start.schema, unit if grouped else None)
    present = records.present.numpy()
    private, full_source = (
        dataclasses.replace(source, blank=_write_blank(folder / name, blank))
        for name, blank in (("coins.npy", ~(coins[unit] & present)), ("absent.npy", ~present))
    )
    run_config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pretrain=None, weights=str(weights)),
        data=AllDataConfig(
            private=(private,),
            population="audit",
            public=_write_reference(config, roles, start.schema, folder / "reference.h5"),
        ),
        precision=dataclasses.replace(config.precision, rotate=None),
        augment=AugmentConfig(),
        engine=dataclasses.replace(config.engine, kind="serial", scheduler=None, workers=None),
        tune=None,
    )
    check(run_config)
    return Candidates(run_config, full_source, records, unit, coins, canaries, tuple(_differences(config)))


def _refuse(config: Config, canaries: int) -> None:
    """Raise UsageError where canaries can't audit the config."""
    refuse_one_group(config)
    if config.privacy.adjacency == Adjacency.REPLACE_ONE:
        raise UsageError(
            "privacy.adjacency: replace-one; expected zero-out or add-remove: an audit by canaries leaves units out, one by one"
        )
    if canaries < FEWEST_CANARIES:
        raise UsageError(f"--canaries: found {canaries}; expected {FEWEST_CANARIES} or more: fewer can't show anything")


def _on_reference(config: Config, roles: Roles) -> Config:
    """Return the config whose plan has the pretrained weights and the schema."""
    data = AllDataConfig(
        private=roles.stand_ins, population="audit", public=roles.reference, record_shape=config.data.record_shape
    )
    engine = dataclasses.replace(config.engine, kind="serial", scheduler=None, workers=None)
    return dataclasses.replace(config, data=data, engine=engine, tune=None)


def _write_reference(config: Config, roles: Roles, schema: Schema, path: Path) -> DataConfig:
    """Write the records that curvature and clip come from; where each round would turn them anew, they are turned once."""
    angles = config.precision.rotate
    turns = Turns(*angles, config.subspace.seed, 0) if angles else None
    dataset = open_dataset(roles.reference, schema, turns)
    slots = dataset.slot_map()
    records = dataset.read(slots.rows)
    keep = records.present
    records = Records(records.inputs[keep], records.targets[keep], records.present[keep])
    return _write_source(path, records, schema, slots.unit[keep.numpy()] if roles.reference.unit is not None else None)


def _write_blank(path: Path, blank: BoolArray) -> str:
    np.save(path, blank)
    return str(path)


def _write_source(path: Path, records: Records, schema: Schema, unit: IntegerArray | None) -> DataConfig:
    """Write model inputs as an HDF5 file, in the order of the records, and return the source that reads them back bit for bit."""
    inputs = records.inputs.numpy()
    with h5py.File(path, "w") as file:
        file["inputs"] = inputs[:, 0] if schema.tokens else inputs
        file["target"] = records.targets.numpy()
        if schema.tokens:
            file["mask"] = inputs[:, 1]
        if unit is not None:
            file["unit"] = unit
    columns = ColumnsConfig(
        target="target", features=("inputs",), standardise=False, tokens=schema.tokens,
        mask="mask" if schema.tokens else None,
    )  # fmt: skip
    return DataConfig("hdf5", path=str(path), columns=columns, unit=None if unit is None else "unit")


def _differences(config: Config) -> Iterator[str]:
    """Yield, in words, the ways in which the run differs from the user's config."""
    yield "public records play the private ones, in one shard; the pretrained weights come from the public records left over"
    if config.augment.active:
        yield "images are sketched without views (augment)"
    if config.precision.rotate:
        yield "public images are turned once, not anew in every round (precision.rotate)"
