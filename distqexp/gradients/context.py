"""The context of one round's work: where the quadratic is expanded, on which records, in which coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import torch

from distqexp.arrays import Arrays, FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.engines.threads import pin_threads
from distqexp.geometry.precisions import Precision, precision_from_arrays
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.across import AcrossGradients
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch, pad_inputs
from distqexp.gradients.by_layer import BlockGradients
from distqexp.gradients.labels import label_noise
from distqexp.gradients.worker import Worker
from distqexp.problem.dataset import Dataset
from distqexp.problem.images import Views
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.probes import Probes
from distqexp.problem.records import Records
from distqexp.problem.sources import DataSource, ProbeSource


@dataclass(frozen=True)
class RoundContext:
    """Everything that the work of one round on some sources needs.

    It is sent to Dask workers without its worker and without what was built from it.

    Attributes:
        worker: The worker of this process.
        theta: The parameters at which the quadratic is expanded, (d,).
        round: The round.
        k: The number of coordinates of the subspace.
        sources: Where the records come from.
        precision_arrays: The arrays of the precision; None while it is being computed.
        subspace_arrays: The arrays of a subspace made from public data; None while it is being computed.
    """

    worker: Worker
    theta: FloatArray
    round: int
    k: int
    sources: tuple[DataSource | ProbeSource, ...]
    precision_arrays: Arrays | None = None
    subspace_arrays: Arrays | None = None

    private: ClassVar[bool] = True
    """Whether what the model raises for a record is hidden."""

    @classmethod
    def of_state(
        cls, plan: Plan, state: RoundState, sources: tuple[DataSource, ...], worker: Worker | None = None
    ) -> Self:
        """Return the context for sketching ``state`` of ``plan``, with only that part of each source that the round may see."""
        mechanism = plan.config.mechanism
        return cls(
            worker=worker or Worker.of_plan(plan),
            theta=state.theta,
            round=state.round,
            k=plan.k,
            sources=tuple(source.of_part(mechanism.part_of(state.round), mechanism.parts) for source in sources),
            precision_arrays=dict(state.precision),
            subspace_arrays=dict(state.subspace),
        )

    def __getstate__(self) -> dict[str, Any]:
        names = [field.name for field in fields(self) if field.name != "worker"]
        return {name: self.__dict__[name] for name in names}

    def on(self, worker: Worker) -> Self:
        """Give this context the worker of the process that it arrived in, and return it.

        What was built from it before stays, as a context only ever meets one worker.
        """
        if self.__dict__.get("worker") is not worker:
            object.__setattr__(self, "worker", worker)
        return self

    @property
    def config(self) -> Config:
        """The plan's config."""
        return self.worker.config

    @cached_property
    def pieces(self) -> list[tuple[int, int, int]]:
        """The source's number, first slot and end slot (exclusive) of every piece, in the order of the slots."""
        size = self.config.engine.micro_batch
        return [(i, *piece) for i, source in enumerate(self.sources) for piece in source.pieces(size)]

    @property
    def network(self) -> Network:
        """The model at theta; its trainable module alone, where ``batches`` gives what the frozen part below makes of records."""
        network, frozen = self.worker.network_at(self.theta), self.worker.frozen
        return network if frozen is None else frozen.head

    def frozen_features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the frozen part of the model gives for inputs (micro_batch, ...), on the CPU."""
        self.worker.network_at(self.theta)
        frozen = self.worker.frozen
        if frozen is None:
            raise ValueError("a model without a frozen part; expected one")
        if self.private:
            return frozen.private_features(inputs)
        return self.worker.public_features.of(inputs, frozen.features)

    @property
    def loss(self) -> Loss:
        """The training loss."""
        return self.worker.loss

    @cached_property
    def subspace(self) -> Subspace:
        """The subspace P of this round, regenerated from seed and round or from its arrays."""
        return self.worker.subspace_at(self.network.d, self.k, self.round, self.subspace_arrays)

    @cached_property
    def precision(self) -> Precision | None:
        """The precision A of this round; None while it is being computed."""
        if self.precision_arrays is None:
            return None
        return precision_from_arrays(self.config.precision.kind, self.k, dict(self.precision_arrays))

    @cached_property
    def datasets(self) -> list[Dataset | Probes]:
        """The records of the sources. Each dataset counts the rows that this process read in the round."""
        datasets = [source.open(self.worker.schema, self.round, self.worker.readers) for source in self.sources]
        network = self.worker.network_at(self.theta)
        return [dataset.of_model(network) if isinstance(dataset, Dataset) else dataset for dataset in datasets]

    @cached_property
    def whitening(self) -> Whitening:
        """The map from gradients to whitened coordinates; it only projects while the precision is unknown."""
        return Whitening(self.subspace, self.precision)

    @cached_property
    def gradients(self) -> UnitGradients | BlockGradients | AcrossGradients:
        """The whitened gradients of units, layer by layer where subspace and precision are pairs of factors for each block."""
        pin_threads(self.config.engine.threads)
        layers = self.whitening.by_blocks()
        if layers is None:
            return self.whole_gradients
        gradients = BlockGradients(
            network=self.network,
            loss=self.loss,
            whitening=layers[1],
            blocks=layers[0],
            micro_batch=self.config.engine.micro_batch,
            taps_of=self.worker.taps_of,
            private=self.private,
        )
        across = None if self.precision is None else self.precision.across
        return gradients if across is None else AcrossGradients(gradients, across)

    @cached_property
    def whole_gradients(self) -> UnitGradients:
        """The whitened gradients of units by automatic differentiation, for every subspace and precision, and curvature."""
        return UnitGradients(
            network=self.network,
            loss=self.loss,
            whitening=self.whitening,
            micro_batch=self.config.engine.micro_batch,
            prepare=self.worker.learn,
            private=self.private,
        )

    @property
    def views(self) -> Views | None:
        """The views of an image over which its gradient is averaged; None where the config has none."""
        augment = self.config.augment
        if not augment.active:
            return None
        return Views(augment.views, augment.rotate, augment.shift, self.config.subspace.seed, self.round)

    def batches(self, piece: int) -> Iterator[Batch]:
        """Yield the records of a piece, in their views, at most a micro-batch at a time, with the unit of each."""
        for _, records, unit in self.numbered_batches(piece, self.views):
            yield records, unit

    def numbered_batches(self, piece: int, views: Views | None = None) -> Iterator[tuple[int, Records, IntegerArray]]:
        """Yield the batches of a piece: the number of the first slot, the records in ``views`` (None: as stored), their units.

        From the first batch on the worker's model is at theta, wherever it was before.
        """
        number, first, last = self.pieces[piece]
        source, size = self.sources[number], self.config.engine.micro_batch
        slots = source.slots
        for start in range(first, last, size):
            window = slice(start, min(start + size, last))
            records = self.on_device(self._as_features(number, slots.rows[window], views))
            if isinstance(source, ProbeSource):
                records = self.at_sampled_targets(records, start)
            yield start, records, slots.unit[window]

    def _as_features(self, number: int, rows: IntegerArray, views: Views | None) -> Records:
        """Read these rows of a source; where the model has a frozen part, with its features in place of their inputs."""
        source, records = self.sources[number], self.datasets[number].read(rows, views)
        if self.worker.frozen is None:
            return records
        kept = source.features if isinstance(source, DataSource) else None
        if kept is not None and views is None:
            return dataclasses.replace(records, inputs=kept.read(rows))
        inputs, count = records.inputs, len(records)
        if records.views is None:
            features = self.frozen_features(pad_inputs(inputs, self.config.engine.micro_batch))[:count]
            return dataclasses.replace(records, inputs=features)
        size = self.config.engine.micro_batch * records.views
        features = self.frozen_features(pad_inputs(inputs.flatten(0, 1), size))[: count * records.views]
        return dataclasses.replace(records, inputs=features.reshape(count, records.views, *features.shape[1:]))

    def at_sampled_targets(self, records: Records, first_slot: int) -> Records:
        """Return public records with targets drawn from the model at their first view, as second moments need them.

        ``first_slot`` is the slot of the first record.
        """
        inputs = records.inputs if records.views is None else records.inputs[:, 0]
        with torch.no_grad(), self.network.sealed():
            outputs = self.network.forward(self.network.prepare(inputs))
        seed, width = self.config.subspace.seed, self.loss.noise_width(outputs)
        noise = label_noise(seed, self.round, first_slot, len(records), width)
        return dataclasses.replace(records, targets=self.loss.sample(outputs, noise.to(outputs.device)))

    def on_device(self, records: Records) -> Records:
        """Return the records on the device of the network."""
        device = self.network.device
        if device.type == "cpu":
            return records
        return dataclasses.replace(
            records,
            inputs=records.inputs.to(device),
            targets=records.targets.to(device),
            present=records.present.to(device),
        )
