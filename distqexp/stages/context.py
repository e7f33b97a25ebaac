"""What a rank or worker needs to work on one round: the plan, the round's state, and its own view of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distqexp.config import Config, DataConfig
from distqexp.engines.threads import pin_threads
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.subspaces import make_subspace
from distqexp.geometry.subspaces.base import Subspace
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.models import build_model
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.sketching.sketcher import Sketcher
from distqexp.sketching.unit_gradients import Batch, UnitGradients
from distqexp.stages.artefacts import Plan, RoundState


@dataclass(frozen=True)
class DataSource:
    """One source of records with its slots: rows of the file and unit of each slot, in slot order.

    The slot map of private data is public under zero-out and replace-one, private under add-remove.
    """

    data: DataConfig
    slots: SlotMap

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Half-open slot ranges: whole units, at most a micro-batch each, or one larger unit."""
        return self.slots.pieces(micro_batch)


@dataclass(frozen=True)
class RoundContext:
    """The work of one round on some sources. Sent to Dask workers whole; what is built from it is not.

    model_weights: every parameter and buffer. state: where the quadratic is expanded; its precision may be
    absent while it is being computed.
    """

    config: Config
    schema: Schema
    weights: dict[str, npt.NDArray[Any]]
    theta: npt.NDArray[np.float64]
    round: int
    k: int
    sources: tuple[DataSource, ...]
    precision_arrays: dict[str, npt.NDArray[Any]] | None = None

    @staticmethod
    def of_state(plan: Plan, state: RoundState, sources: tuple[DataSource, ...]) -> RoundContext:
        """The context of sketching ``state`` of ``plan``."""
        return RoundContext(
            config=plan.config,
            schema=plan.schema,
            weights=dict(plan.weights),
            theta=state.theta,
            round=state.round,
            k=plan.k,
            sources=sources,
            precision_arrays=dict(state.precision),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def pieces(self) -> list[tuple[int, int, int]]:
        """(source, first slot, last slot) of every piece, in the order of the slots."""
        size = self.config.engine.micro_batch
        return [(i, *piece) for i, source in enumerate(self.sources) for piece in source.pieces(size)]

    @cached_property
    def network(self) -> Network:
        """The model at theta, frozen parts included."""
        network = build_network(self.config)
        network.load_state(self.weights)
        network.load(self.theta)
        return network

    @cached_property
    def loss(self) -> Loss:
        """The training loss."""
        return get_loss(self.config.model.loss)

    @cached_property
    def subspace(self) -> Subspace:
        """P of this round, regenerated from (seed, round)."""
        return subspace_of(self.config, self.network.d, self.k, self.round)

    @cached_property
    def precision(self) -> Precision | None:
        """A of this round, when it is known."""
        if self.precision_arrays is None:
            return None
        return precision_from_arrays(self.config.precision.kind, self.k, self.precision_arrays)

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Readers of the sources; each counts the rows that this process opened."""
        return [open_dataset(source.data, self.schema) for source in self.sources]

    @cached_property
    def gradients(self) -> UnitGradients:
        """Whitened unit gradients (only projected ones while the precision is unknown)."""
        pin_threads(self.config.engine.threads)
        return UnitGradients(
            network=self.network,
            loss=self.loss,
            subspace=self.subspace,
            precision=self.precision,
            micro_batch=self.config.engine.micro_batch,
        )

    def sketcher(self, state: RoundState) -> Sketcher:
        """The sketcher of ``state``."""
        return Sketcher(self.gradients, clip=state.clip, step=state.grid.step, clip_integer=state.grid.clip_integer)

    def batches(self, piece: int) -> Iterator[Batch]:
        """The records of a piece, at most a micro-batch at a time, with the unit of each."""
        source, first, last = self.pieces[piece]
        slots, size = self.sources[source].slots, self.config.engine.micro_batch
        for start in range(first, last, size):
            window = slice(start, min(start + size, last))
            yield self.on_device(self.datasets[source].read(slots.rows[window])), slots.unit[window]

    def on_device(self, records: Records) -> Records:
        """The records on the device of the network."""
        device = self.network.device
        if device.type == "cpu":
            return records
        return Records(records.inputs.to(device), records.targets.to(device), records.present.to(device))


def build_network(config: Config) -> Network:
    """The module of the config, in evaluation mode, on its device, with the trainable parameters selected."""
    seed = config.model.pretrain.seed if config.model.pretrain else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_model(config.model.factory, config.model.args)
    return Network(module, config.model.trainable, device=config.engine.device)


def subspace_of(config: Config, d: int, k: int, round: int) -> Subspace:
    """P of one round."""
    subspace = config.subspace
    return make_subspace(subspace.kind, d, k, seed=subspace.seed, round=round, nonzeros=subspace.nonzeros)
