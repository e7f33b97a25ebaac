"""What a rank or worker needs to work on one round: the plan, the round's state, and its own view of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distqexp.config import Config, DataConfig
from distqexp.engines.threads import pin_threads
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions import IdentityPrecision, precision_from_arrays
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.kronecker import KroneckerPrecision
from distqexp.geometry.subspaces import make_subspace
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kronecker import (
    KroneckerSubspace,
    kronecker_dimension,
    random_kronecker,
    stored_kronecker,
    unprojected,
)
from distqexp.geometry.subspaces.public_pca import stored_basis
from distqexp.geometry.whitening import combined_whitening
from distqexp.mechanism.batch_sums import CANCELLATION, LARGEST_TERMS
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.identity import FileFacts, another_file, file_facts, require_opened
from distqexp.problem.images import Turns, Views
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.models import build_model
from distqexp.problem.network import Network
from distqexp.problem.probes import Probes
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.slots import Partition, SlotMap, slot_map
from distqexp.sketching.block_gradients import BlockGradients
from distqexp.sketching.block_moments import FisherMoments, label_noise
from distqexp.sketching.counters import UnitCounters
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.sketching.layers.layout import block_layout
from distqexp.sketching.range_sums import RangeSums
from distqexp.sketching.sketcher import BatchSketcher, Sketcher
from distqexp.sketching.unit_gradients import Batch, UnitGradients
from distqexp.stages.artefacts import Plan, RoundState


@dataclass(frozen=True)
class DataSource:
    """One source of records with its slots: rows of the file and unit of each slot, in slot order.

    partition: of the units, where the plan has parts and the source is not one part of another already. turned: public images,
    each turned by a random angle. private: whether the records play a private role, see Dataset. facts: of the files when the
    slots were read from them, where they must not change.
    The slot map of private data is public under zero-out and replace-one, private under add-remove.
    """

    data: DataConfig
    slots: SlotMap
    partition: Partition | None = None
    turned: Turns | None = None
    private: bool = True
    facts: FileFacts | None = None

    def of_part(self, number: int, parts: int) -> DataSource:
        """The source with the slots of one part of ``parts`` alone: all that a round may see."""
        if parts == 1:
            return self
        if self.partition is None:
            raise ValueError(f"a source without its partition; expected one of {parts} parts")
        return dataclasses.replace(self, slots=self.slots.only(self.partition.part == number), partition=None)

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Half-open slot ranges: whole units, at most a micro-batch each, or one larger unit."""
        return self.slots.pieces(micro_batch)

    def open(self, schema: Schema, round: int) -> Dataset:
        """The reader of the records, the same in every round. Raises RecordsChangedError where it has opened other files than ``facts``.

        What the paths name before and after doesn't tell: a link or a folder may lead elsewhere for an instant.
        """
        found = open_dataset(self.data, schema, self.turned, private=self.private)
        if self.facts is not None:
            require_opened(self.data, self.facts, found.opened_files())
        return found

    def require_same_files(self) -> None:
        """Raise RecordsChangedError where this process meets other files than those that the slots were read from."""
        if self.facts is not None and not self.facts.agree(file_facts(self.data)):
            raise another_file(self.data)


@dataclass(frozen=True)
class ProbeSource:
    """``count`` synthetic records in the place of public ones, a unit each, others in every round. Public."""

    count: int
    seed: int

    @property
    def slots(self) -> SlotMap:
        """Record i in slot i."""
        return slot_map(np.arange(self.count), None)

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """As those of a DataSource."""
        return self.slots.pieces(micro_batch)

    def open(self, schema: Schema, round: int) -> Probes:
        """The records of a round."""
        return Probes(schema, self.seed, round)


@dataclass(frozen=True)
class RoundContext:
    """The work of one round on some sources. Sent to Dask workers whole; what is built from it is not.

    weights: every parameter and buffer. theta: where the quadratic is expanded. The arrays of the precision and of a
    subspace made from public data are absent while they are being computed.
    """

    config: Config
    schema: Schema
    weights: dict[str, npt.NDArray[Any]]
    theta: npt.NDArray[np.float64]
    round: int
    k: int
    sources: tuple[DataSource | ProbeSource, ...]
    precision_arrays: dict[str, npt.NDArray[Any]] | None = None
    subspace_arrays: dict[str, npt.NDArray[Any]] | None = None

    @staticmethod
    def of_state(plan: Plan, state: RoundState, sources: tuple[DataSource, ...]) -> RoundContext:
        """The context of sketching ``state`` of ``plan``: of each source the part of the state's round alone."""
        mechanism = plan.config.mechanism
        return RoundContext(
            config=plan.config,
            schema=plan.schema,
            weights=dict(plan.weights),
            theta=state.theta,
            round=state.round,
            k=plan.k,
            sources=tuple(source.of_part(mechanism.part_of(state.round), mechanism.parts) for source in sources),
            precision_arrays=dict(state.precision),
            subspace_arrays=dict(state.subspace),
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
        """P of this round, regenerated from (seed, round) or from its arrays."""
        blocks = blocks_of(self.config, self.network)
        return subspace_of(self.config, self.network.d, self.k, self.round, blocks, self.subspace_arrays)

    @cached_property
    def curvature_rows(self) -> int:
        """How many factors the loss's curvature has for one record: known from blank inputs alone."""
        outputs = self.network.outputs(self.schema.blank_inputs(1).to(self.network.device))
        return int(self.loss.hessian_factor(outputs).shape[-1])

    @cached_property
    def moment_subspace(self) -> KroneckerSubspace:
        """The coordinates that second moments are taken in: those of a random subspace, else every parameter."""
        if self.config.subspace.kind == "kronecker" and isinstance(self.subspace, KroneckerSubspace):
            return self.subspace
        return unprojected(block_layout(self.network))

    @cached_property
    def moments(self) -> FisherMoments:
        """Second moments of public records at theta."""
        return FisherMoments(
            network=self.network,
            loss=self.loss,
            subspace=self.moment_subspace,
            micro_batch=self.config.engine.micro_batch,
        )

    @cached_property
    def range_sums(self) -> RangeSums:
        """Products with the gradients of public records at theta."""
        return RangeSums(network=self.network, loss=self.loss, micro_batch=self.config.engine.micro_batch)

    @cached_property
    def precision(self) -> Precision | None:
        """A of this round, when it is known."""
        if self.precision_arrays is None:
            return None
        return precision_from_arrays(self.config.precision.kind, self.k, self.precision_arrays)

    @cached_property
    def datasets(self) -> list[Dataset | Probes]:
        """Readers of the sources; each counts the rows that this process opened."""
        opened = [source.open(self.schema, self.round) for source in self.sources]
        return [dataset.of_model(self.network) if isinstance(dataset, Dataset) else dataset for dataset in opened]

    @cached_property
    def gradients(self) -> UnitGradients | BlockGradients:
        """Whitened unit gradients (only projected ones while the precision is unknown)."""
        pin_threads(self.config.engine.threads)
        subspace, precision = self.subspace, self.precision
        if isinstance(subspace, KroneckerSubspace) and isinstance(precision, IdentityPrecision | KroneckerPrecision):
            return BlockGradients(
                network=self.network,
                loss=self.loss,
                whitening=combined_whitening(subspace, precision),
                blocks=subspace.blocks,
                micro_batch=self.config.engine.micro_batch,
            )
        return self.projected_gradients

    @cached_property
    def projected_gradients(self) -> UnitGradients:
        """The general way, by torch.func: for every subspace and precision, and for public curvature."""
        return UnitGradients(
            network=self.network,
            loss=self.loss,
            subspace=self.subspace,
            precision=self.precision,
            micro_batch=self.config.engine.micro_batch,
        )

    def sketcher(self, state: RoundState) -> Sketcher | BatchSketcher | CurvatureSketcher:
        """The sketcher of ``state``."""
        grid, radius = state.grid, self.config.mechanism.trust_radius
        if state.factors is not None and radius is not None:
            return CurvatureSketcher(
                self.projected_gradients,
                step=grid.step,
                clip_integer=grid.clip_integer,
                radius=radius,
                factor_step=state.factors.step,
                price=state.factors.price,
                largest_trace=state.factors.largest_trace,
            )
        gradients, counters = self.gradients, self._counters(grid.counter)
        if self.config.by_batch and isinstance(gradients, BlockGradients):
            return BatchSketcher(
                gradients, clip=state.clip, step=grid.step, cancellation=CANCELLATION, largest_terms=LARGEST_TERMS,
                counters=counters,
            )  # fmt: skip
        return Sketcher(gradients, clip=state.clip, step=grid.step, clip_integer=grid.clip_integer, counters=counters)

    def _counters(self, counter: int) -> UnitCounters | None:
        """Of diagnostics, where the grid has a step for them."""
        if counter == 0:
            return None
        largest = self.config.diagnostics.largest_loss
        return UnitCounters(self.network, self.loss, self.config.engine.micro_batch, counter, largest)

    @property
    def views(self) -> Views | None:
        """The views of images that gradients are the mean of, where the config has any."""
        augment = self.config.augment
        if not augment.active:
            return None
        return Views(augment.views, augment.rotate, augment.shift, self.config.subspace.seed, self.round)

    def batches(self, piece: int) -> Iterator[Batch]:
        """The records of a piece, in their views, at most a micro-batch at a time, with the unit of each."""
        for _, records, unit in self.numbered_batches(piece, self.views):
            yield records, unit

    def numbered_batches(
        self, piece: int, views: Views | None = None
    ) -> Iterator[tuple[int, Records, npt.NDArray[np.int64]]]:
        """As batches, as they are without ``views``, each with the number of its first slot before it."""
        number, first, last = self.pieces[piece]
        source, size = self.sources[number], self.config.engine.micro_batch
        slots = source.slots
        for start in range(first, last, size):
            window = slice(start, min(start + size, last))
            records = self.on_device(self.datasets[number].read(slots.rows[window], views))
            if isinstance(source, ProbeSource):
                records = self.at_sampled_targets(records, start)
            yield start, records, slots.unit[window]

    def at_sampled_targets(self, records: Records, first_slot: int) -> Records:
        """Public records with targets drawn from the model, at the first of their views: those that second moments are taken at."""
        inputs = records.inputs if records.views is None else records.inputs[:, 0]
        with torch.no_grad():
            outputs = self.network.module(self.network.prepare(inputs))
        seed, width = self.config.subspace.seed, self.loss.noise_width(outputs)
        noise = label_noise(seed, self.round, first_slot, len(records), width)
        return dataclasses.replace(records, targets=self.loss.sample(outputs, noise.to(outputs.device)))

    def on_device(self, records: Records) -> Records:
        """The records on the device of the network."""
        device = self.network.device
        if device.type == "cpu":
            return records
        return dataclasses.replace(
            records,
            inputs=records.inputs.to(device),
            targets=records.targets.to(device),
            present=records.present.to(device),
        )


def build_network(config: Config) -> Network:
    """The module of the config, in evaluation mode, on its device, with the trainable parameters selected."""
    seed = config.model.pretrain.seed if config.model.pretrain else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_model(config.model.factory, config.model.args)
    return Network(module, config.model.trainable, device=config.engine.device)


def blocks_of(config: Config, network: Network) -> list[Block] | None:
    """The parameters as matrices, where the subspace or the precision works layer by layer."""
    return block_layout(network) if config.by_blocks else None


def dimension_of(config: Config, network: Network) -> int:
    """k: what the config says, or what the layers give."""
    subspace = config.subspace
    if subspace.kind in ("kronecker", "kronecker-pca"):
        return kronecker_dimension(block_layout(network), subspace.k_in, subspace.k_out)
    return subspace.k if subspace.k is not None else network.d


def subspace_of(
    config: Config,
    d: int,
    k: int,
    round: int,
    blocks: Sequence[Block] | None = None,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Subspace:
    """P of one round. ``blocks``: of ``blocks_of``. ``arrays``: the state's, for a subspace made from public data."""
    subspace = config.subspace
    drawn = config.precision.made_at(round)  # kept as long as the precision in its coordinates
    if subspace.kind == "public-pca":
        return stored_basis(d, k, arrays or {})
    if blocks is None:
        return make_subspace(subspace.kind, d, k, seed=subspace.seed, round=drawn, nonzeros=subspace.nonzeros)
    if subspace.kind == "identity":
        return unprojected(blocks)
    if subspace.kind == "kronecker":
        return random_kronecker(blocks, subspace.k_in, subspace.k_out, subspace.seed, drawn)
    return stored_kronecker(blocks, arrays or {}, subspace.k_in, subspace.k_out)
