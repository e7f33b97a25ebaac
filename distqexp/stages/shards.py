"""Opening the private shards: ids and filters are scanned, features never, and a digest of the records shows later changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.engines.devices import refuse_mixed_devices
from distqexp.errors import UsageError
from distqexp.gradients.worker import Worker
from distqexp.mechanism.grid import max_slots
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.identity import (
    Digest,
    FileFacts,
    another_file,
    content_digest,
    file_facts,
    fingerprint,
    plain_digest,
    require_opened,
    source_files,
)
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.open_files import refuse_open_for_writing
from distqexp.problem.readers import open_reader
from distqexp.problem.slots import Partition, SlotMap, partition_by_id, partition_by_slot
from distqexp.problem.sources import DataSource
from distqexp.problem.unit_ids import canonical_id
from distqexp.stages.built import check_built
from distqexp.stages.inputs import check_files
from distqexp.stages.overlaps import refuse_common_rows, refuse_presence


class Shards(NamedTuple):
    """The private shards of this group of processes, opened.

    Attributes:
        sources: Each shard's source, with its slots.
        fingerprints: A digest of the records of each shard, to notice changes. Private, and local to the machine.
    """

    sources: tuple[DataSource, ...]
    fingerprints: tuple[str, ...]


def open_shards(
    plan: Plan,
    shards: Sequence[DataConfig],
    engine: Engine,
    digest: Digest = plain_digest,
    state: RoundState | None = None,
    worker: Worker | None = None,
) -> Shards:
    """Scan the private shards on the root and return their sources and fingerprints on every rank. Collective.

    Ids and filters are scanned, features never. Where the plan has parts, the sources carry their partition.

    Args:
        plan: The plan; it is held against the model.
        shards: The sources of private records.
        engine: The engine.
        digest: The digest of the fingerprints, called on the root; the ledger's keyed one for private records.
        state: The state of a later round that came from elsewhere; it is held against the model, too.
        worker: A worker on the plan; a new one when None.

    Raises:
        FileContentError: A file can't be used, or plan or state don't fit the model.
        UsageError: The shards don't fit the plan.
    """
    worker = worker or Worker.of_plan(plan)
    if plan.config.engine.device != "cpu":
        worker.network_at(plan.state.theta)  # which takes the rank's GPU
        refuse_mixed_devices(plan.config.engine.device, engine)
    scan = arrays_from_root(engine, lambda: _scan(plan, shards, digest, state, worker))

    def source(i: int, data: DataConfig) -> DataSource:
        slots = SlotMap(rows=scan[f"rows-{i}"], unit=scan[f"unit-{i}"])
        parts = plan.config.mechanism.parts > 1
        partition = Partition(scan[f"part-{i}"], bytes(scan[f"basis-{i}"])) if parts else None
        host, files = json.loads(bytes(scan[f"facts-{i}"]))
        facts = FileFacts(host, tuple(tuple(file) for file in files))
        return DataSource(data, slots, partition, private=True, facts=facts)

    sources = tuple(source(i, data) for i, data in enumerate(shards))
    fingerprints = tuple(bytes(scan[f"fingerprint-{i}"]).decode() for i in range(len(shards)))
    return Shards(sources, fingerprints)


def require_same_records(shards: Shards, engine: Engine, digest: Digest = plain_digest) -> None:
    """Raise RecordsChangedError unless the shards still are what ``open_shards`` found. Collective.

    It is called before and after a round reads them, with the ``digest`` that ``open_shards`` was given.
    """

    def check() -> None:
        for source, expected in zip(shards.sources, shards.fingerprints, strict=True):
            source.require_same_files()
            actual = fingerprint(
                source.data, file_facts(source.data), partial(open_reader, source.data, private=True), digest
            )
            source.require_same_files()
            if actual != expected:
                raise another_file(source.data)

    engine.on_root(check)


def basis_of(sources: Sequence[DataSource]) -> bytes:
    """Return what the parts of all sources' units depend on, see ``Partition``; empty without parts. Private."""
    return b"".join(source.partition.basis for source in sources if source.partition)


def _scan(
    plan: Plan, shards: Sequence[DataConfig], digest: Digest, state: RoundState | None, worker: Worker
) -> dict[str, npt.NDArray[Any]]:
    """Scan the shards' ids and filters, and refuse every file that can't be used before anything is drawn or charged."""
    scan: dict[str, npt.NDArray[Any]] = {}
    slots = 0
    present: Counter[str] = Counter()
    for data in shards:
        check_files("data.private", data)
        for path in source_files(data):
            refuse_open_for_writing(path)
    facts = [file_facts(data) for data in shards]
    readers = [worker.readers.of(data, private=True) for data in shards]
    datasets = [
        open_dataset(data, plan.schema, private=True, reader=reader)
        for data, reader in zip(shards, readers, strict=True)
    ]
    _check_model(plan, datasets, state, worker)
    for data, dataset, own_facts in zip(shards, datasets, facts, strict=True):
        require_opened(data, own_facts, dataset.opened_files())
        dataset.check_whole()
    for i, (data, dataset) in enumerate(zip(shards, datasets, strict=True)):
        slot_map = dataset.slot_map()
        if len(shards) > 1 and data.unit is not None:
            names = {canonical_id(name) for name in dataset.identifiers(slot_map.rows) or ()}
            present.update(name for name in names if name is not None)
        slots += len(slot_map.rows)
        fingerprint_bytes = fingerprint(data, facts[i], partial(worker.readers.of, data, private=True), digest).encode()
        scan |= {
            f"rows-{i}": slot_map.rows,
            f"unit-{i}": slot_map.unit,
            f"fingerprint-{i}": np.frombuffer(fingerprint_bytes, dtype=np.uint8),
            f"facts-{i}": np.frombuffer(json.dumps([facts[i].host, facts[i].files]).encode(), dtype=np.uint8),
        }
        if plan.config.mechanism.parts > 1:
            partition = _partition(plan, dataset, slot_map)
            scan |= {f"part-{i}": partition.part, f"basis-{i}": np.frombuffer(partition.basis, dtype=np.uint8)}
        if not facts[i].agree(file_facts(data)):
            raise another_file(data)
    presence = plan.config.privacy.presence
    refuse_presence(present, presence)
    refuse_common_rows(shards, presence, worker.readers)
    # Under add-remove the number of slots is private: sums wrap modulo 2^64 and nothing is refused on the data.
    limit = max_slots(plan.state.grid, plan.k)
    if plan.config.privacy.adjacency.counts_public and slots > limit:
        raise UsageError(
            f"grid overflow: {slots} slots; the plan's grid sums at most {limit}: raise privacy.units, plan again"
        )
    return scan


def _check_model(plan: Plan, datasets: Sequence[Dataset], state: RoundState | None, worker: Worker) -> None:
    """Refuse a plan, and shards, that don't fit the model as this machine builds it.

    A model that couples records of the shards' shapes is refused, too, and so are shards with other targets.
    """
    check_built(plan, worker, state)
    network = worker.network_at(plan.state.theta)
    separable = not plan.config.by_blocks and plan.schema.input_shape is not None
    for shape in sorted({dataset.input_shape for dataset in datasets}):
        refuse_coupling(
            network, shape, plan.schema.tokens, plan.schema.vocabulary, separable, plan.config.records_together
        )
        worker.refuse_wrong_gradients(shape)
    for dataset in datasets:
        dataset.of_model(network)


def _partition(plan: Plan, dataset: Dataset, slots: SlotMap) -> Partition:
    parts, identifiers = plan.config.mechanism.parts, dataset.identifiers(slots.rows)
    if plan.config.privacy.adjacency.counts_public:
        content = content_digest(dataset.data) if identifiers is None else ""
        return partition_by_slot(slots, parts, identifiers, content)
    if identifiers is None:
        raise UsageError("data.unit: absent; expected the column of the unit ids, which parts under add-remove rest on")
    return partition_by_id(slots, parts, identifiers, bytes.fromhex(plan.plan_id))
