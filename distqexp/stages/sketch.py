"""Stage 2, sketch: the private pass, from the units' clipped gradients to one int64 vector a shard, with checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Sketch
from distqexp.config import DataConfig
from distqexp.engines.base import Control, Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.errors import FileContentError, RecordsChangedError, StoppedError, UsageError
from distqexp.gradients.context import RoundContext
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
)
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.readers import open_reader
from distqexp.problem.slots import Partition, SlotMap, partition_by_id, partition_by_slot
from distqexp.problem.sources import DataSource
from distqexp.problem.unit_ids import canonical_id
from distqexp.sketching.choice import sketcher_of
from distqexp.stages.built import check_built
from distqexp.stages.inputs import check_files
from distqexp.stages.overlaps import refuse_common_rows, refuse_presence

CHECKPOINT_SECONDS = 20.0
FILE_NAME = re.compile(r"sketch-(?P<round>\d{3,})-(?P<shard>[A-Za-z0-9_-]+)-a(?P<attempt>\d{3,})-[a-z]\d+\.h5")


class Shards(NamedTuple):
    """The private shards of this group of processes, opened.

    Attributes:
        sources: Each shard's source, with its slots.
        fingerprints: A digest of the records of each shard, to notice changes. Private, and local to the machine.
    """

    sources: tuple[DataSource, ...]
    fingerprints: tuple[str, ...]


@dataclass(frozen=True)
class SketchWork:
    """A round's work on the private shards, as it is sent to every rank or worker.

    Attributes:
        plan_id: The identity of the plan.
        width: The number of integers in a sketch of the plan.
        state: The state of the round.
        state_id: The identity of that state.
        context: What the gradients of the round are computed with.
        shards: The name of each source's shard.
        bases: What the parts of each source's units depend on, see ``Partition``.
        fingerprints: The fingerprint of each source.
        folder: Where the processes keep their private sketch files.
        attempt: How often the round was started before.
    """

    plan_id: str
    width: int
    state: RoundState
    state_id: str
    context: RoundContext
    shards: tuple[str, ...]
    bases: tuple[bytes, ...]
    fingerprints: tuple[str, ...]
    folder: Path
    attempt: int = 0

    def require_same_files(self, source: int) -> None:
        """Require that the files of a source, by its number, are those that were opened, see ``DataSource``."""
        data_source = self.context.sources[source]
        if isinstance(data_source, DataSource):
            data_source.require_same_files()


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


def sketch_same_records(
    plan: Plan,
    state: RoundState,
    shards: Shards,
    folder: Path,
    engine: Engine,
    digest: Digest,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """Sketch a round as ``sketch_round`` does, if the records are those that ``open_shards`` found before and after it.

    If they changed, the round's sketch files are deleted and RecordsChangedError is raised. ``digest`` is the one that
    ``open_shards`` was given.
    """
    require_same_records(shards, engine, digest)
    try:
        sums = sketch_round(plan, state, shards, folder, engine, worker)
        require_same_records(shards, engine, digest)
    except RecordsChangedError:
        if engine.is_root:
            for path in sketch_files(folder, state.round):
                path.unlink(missing_ok=True)
        raise
    return sums


def sketch_round(
    plan: Plan,
    state: RoundState,
    shards: Shards,
    folder: Path,
    engine: Engine,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """Sketch what is not sketched yet; return the int64 sum (width,) over every piece on the root, None elsewhere. Collective.

    Finished pieces of earlier attempts are taken from their files in ``folder``; a checkpoint is written there every
    CHECKPOINT_SECONDS and at the end, so that a kill at any instant loses little. Raises StoppedError, after a checkpoint,
    when a stop was asked for.
    """
    work = SketchWork(
        plan_id=plan.plan_id,
        width=plan.width,
        state=state,
        state_id=engine.on_root(state.identity),
        context=RoundContext.of_state(plan, state, shards.sources, worker),
        shards=tuple(source.data.shard or "all" for source in shards.sources),
        bases=tuple(basis_of([source]) for source in shards.sources),
        fingerprints=shards.fingerprints,
        folder=folder,
    )
    earlier = arrays_from_root(engine, lambda: _earlier_pieces(plan, work))
    work = dataclasses.replace(work, attempt=int(earlier["attempt"][0]))
    numbers = [int(item) for item in earlier["missing"]]
    fresh = engine.sum(partial(_sketch_pieces, work=work), work.context.worker, numbers)
    if not engine.is_root:
        return None
    return earlier["sums"] if fresh is None else earlier["sums"] + fresh


def _sketch_pieces(worker: Worker, chunk: Sequence[int], control: Control, *, work: SketchWork) -> IntegerArray:
    """Return the int64 sum (width,) over a chunk of pieces; runs on a rank or a worker and opens only its own slots."""
    context = work.context.on(worker)
    sketcher = sketcher_of(context, work.state)
    total = np.zeros(work.width, dtype=np.int64)
    count = 0
    for source in range(len(context.sources)):
        numbers = [i for i, piece in enumerate(context.pieces) if piece[0] == source]
        items = sorted(set(chunk) & set(numbers))
        if not items:
            continue
        path = work.folder / (
            f"sketch-{work.state.round:03d}-{work.shards[source]}-a{work.attempt:03d}-{control.label}.h5"
        )
        mask = np.zeros(len(numbers), dtype=np.bool_)
        sums = np.zeros(work.width, dtype=np.int64)
        save = partial(_save, work, source, path)
        work.require_same_files(source)
        last_save = time.monotonic()
        for item in items:
            if control.stop():
                save(sums, mask)
                raise StoppedError("stopped on request after a checkpoint; run the same command with --resume")
            sums += sketcher.sketch(context.batches(item))
            mask[item - numbers[0]] = True
            count += 1
            control.tick(count, len(chunk))
            if time.monotonic() - last_save > CHECKPOINT_SECONDS:
                save(sums, mask)
                last_save = time.monotonic()
        save(sums, mask)
        total += sums
    return total


def basis_of(sources: Sequence[DataSource]) -> bytes:
    """Return what the parts of all sources' units depend on, see ``Partition``; empty without parts. Private."""
    return b"".join(source.partition.basis for source in sources if source.partition)


def whole_sketch(
    plan: Plan, state: RoundState, source: DataSource, sums: IntegerArray, everybody: bool = False
) -> Sketch:
    """Return the finished sketch of one shard as a site hands it on: without the fingerprint of its file.

    ``everybody`` says whether it was charged to everybody although its round uses one part.
    """
    mechanism = plan.config.mechanism
    part = source.of_part(mechanism.part_of(state.round), mechanism.parts)
    pieces = len(part.pieces(plan.config.engine.micro_batch))
    return Sketch(
        plan_id=plan.plan_id,
        round=state.round,
        state=state.identity(),
        shard=source.data.shard or "all",
        sums=sums,
        done=np.ones(pieces, dtype=np.bool_),
        fingerprint="",
        basis=basis_of([source]),
        everybody=everybody,
    )


def sketch_files(folder: Path, round: int) -> list[Path]:
    """Return the sketch files of a round in a folder, sorted."""
    return sorted(path for path in folder.glob(f"sketch-{round:03d}-*.h5") if FILE_NAME.fullmatch(path.name))


def _save(work: SketchWork, source: int, path: Path, sums: IntegerArray, mask: BoolArray) -> None:
    work.require_same_files(source)
    Sketch(
        plan_id=work.plan_id,
        round=work.state.round,
        state=work.state_id,
        shard=work.shards[source],
        sums=sums,
        done=mask,
        fingerprint=work.fingerprints[source],
        basis=work.bases[source],
    ).write(path)


def _scan(
    plan: Plan, shards: Sequence[DataConfig], digest: Digest, state: RoundState | None, worker: Worker
) -> dict[str, npt.NDArray[Any]]:
    """Scan the shards' ids and filters, and refuse every file that can't be used before anything is drawn or charged."""
    scan: dict[str, npt.NDArray[Any]] = {}
    slots = 0
    present: Counter[str] = Counter()
    for data in shards:
        check_files("data.private", data)
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
    for shape in sorted({dataset.input_shape for dataset in datasets}):
        refuse_coupling(network, shape, plan.schema.tokens, plan.schema.vocabulary)
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


def _earlier_pieces(plan: Plan, work: SketchWork) -> dict[str, npt.NDArray[Any]]:
    """The sums of finished pieces in earlier files, the numbers of the pieces still missing, and the number of this attempt."""
    sums = np.zeros(work.width, dtype=np.int64)
    attempt = 0
    finished = np.zeros(len(work.context.pieces), dtype=np.bool_)
    owner = np.array([piece[0] for piece in work.context.pieces], dtype=np.int64)
    for path in sketch_files(work.folder, work.state.round):
        match = FILE_NAME.fullmatch(path.name)
        attempt = max(attempt, int(match["attempt"]) + 1) if match else attempt
        sketch = Sketch.read(path, plan, own=True)
        source = work.shards.index(sketch.shard) if sketch.shard in work.shards else -1
        expected = None if source < 0 else (work.fingerprints[source], work.bases[source], work.state_id)
        if (sketch.fingerprint, sketch.basis, sketch.state) != expected:
            # The private file or the state has changed since: the old sums belong to other records or parameters.
            path.unlink()
            continue
        pieces = np.flatnonzero(owner == source)
        if len(sketch.done) != len(pieces) or finished[pieces][sketch.done].any():
            raise FileContentError(
                f"{path}: its pieces are not this plan's or stand in another file too; delete the file"
            )
        finished[pieces] |= sketch.done
        sums += sketch.sums
    return {"sums": sums, "missing": np.flatnonzero(~finished).astype(np.int64), "attempt": np.array([attempt])}
