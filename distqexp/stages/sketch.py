"""Stage 2, sketch: the private pass. Clipped unit gradients to one int64 vector a shard, with checkpoints."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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

IntegerArray = npt.NDArray[np.int64]

CHECKPOINT_SECONDS = 20.0
FILE_NAME = re.compile(r"sketch-(?P<round>\d{3,})-(?P<shard>[A-Za-z0-9_-]+)-a(?P<attempt>\d{3,})-[a-z]\d+\.h5")


@dataclass(frozen=True)
class SketchWork:
    """A round's work on the private shards: sent to every rank or worker.

    width: of the plan's sketches. folder: where this process keeps its private sketch files. attempt: how often the round was started.
    state_id: identity of the state. shards, bases: name of each source's shard, and what its parts rest on.
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
    attempt: int

    def require_same_files(self, source: int) -> None:
        """See DataSource."""
        found = self.context.sources[source]
        if isinstance(found, DataSource):
            found.require_same_files()


def open_shards(
    plan: Plan,
    shards: Sequence[DataConfig],
    engine: Engine,
    digest: Digest = plain_digest,
    state: RoundState | None = None,
    worker: Worker | None = None,
) -> tuple[tuple[DataSource, ...], tuple[str, ...]]:
    """Slot maps and fingerprints of the private shards: the root scans ids and filters, never features.

    Where the plan has parts, the sources carry their partition. digest: of the fingerprints, called on the root; of private
    records the ledger's. state: a later round's that came from elsewhere: it is held against the model, as the plan is.
    """
    worker = worker or Worker.of_plan(plan)
    scanned = arrays_from_root(engine, lambda: _scan(plan, shards, digest, state, worker))

    def source(i: int, data: DataConfig) -> DataSource:
        slots = SlotMap(rows=scanned[f"rows-{i}"], unit=scanned[f"unit-{i}"])
        parts = plan.config.mechanism.parts > 1
        partition = Partition(scanned[f"part-{i}"], bytes(scanned[f"basis-{i}"])) if parts else None
        host, files = json.loads(bytes(scanned[f"facts-{i}"]))
        facts = FileFacts(host, tuple(tuple(file) for file in files))
        return DataSource(data, slots, partition, private=True, facts=facts)

    sources = tuple(source(i, data) for i, data in enumerate(shards))
    fingerprints = tuple(bytes(scanned[f"fingerprint-{i}"]).decode() for i in range(len(shards)))
    return sources, fingerprints


def require_same_records(
    sources: Sequence[DataSource], fingerprints: Sequence[str], engine: Engine, digest: Digest = plain_digest
) -> None:
    """Raise RecordsChangedError unless the shards still are what ``open_shards`` found: before and after a round reads them."""

    def check() -> None:
        for source, found in zip(sources, fingerprints, strict=True):
            source.require_same_files()
            now = fingerprint(
                source.data, file_facts(source.data), partial(open_reader, source.data, private=True), digest
            )
            source.require_same_files()
            if now != found:
                raise another_file(source.data)

    engine.on_root(check)


def sketch_same_records(
    plan: Plan,
    state: RoundState,
    sources: tuple[DataSource, ...],
    fingerprints: tuple[str, ...],
    folder: Path,
    engine: Engine,
    digest: Digest,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """As sketch_round, over the records that ``open_shards`` found; of others nothing is left. Raises RecordsChangedError.

    digest: as open_shards was given.
    """
    require_same_records(sources, fingerprints, engine, digest)
    try:
        sums = sketch_round(plan, state, sources, fingerprints, folder, engine, worker)
        require_same_records(sources, fingerprints, engine, digest)
    except RecordsChangedError:
        if engine.is_root:
            for path in sketch_files(folder, state.round):
                path.unlink(missing_ok=True)
        raise
    return sums


def sketch_round(
    plan: Plan,
    state: RoundState,
    sources: tuple[DataSource, ...],
    fingerprints: tuple[str, ...],
    folder: Path,
    engine: Engine,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """Sketch what is not sketched yet; the root gets the int64 sum (width,) over every piece, others None.

    Finished pieces of earlier attempts are taken from their files in ``folder``; a checkpoint is written
    there every few seconds and at the end, so that a kill at any instant loses little. Raises StoppedError
    after the checkpoint when a stop was asked for.
    """
    context = RoundContext.of_state(plan, state, sources, worker)
    shards = tuple(source.data.shard or "all" for source in sources)
    bases = tuple(basis_of([source]) for source in sources)

    state_id = engine.on_root(state.identity)

    def earlier() -> dict[str, npt.NDArray[Any]]:
        sums, missing, attempt = _adopt(plan, state.round, state_id, context, shards, bases, fingerprints, folder)
        return {"sums": sums, "missing": missing, "attempt": np.array([attempt])}

    found = arrays_from_root(engine, earlier)
    attempt = int(found["attempt"][0])
    work = SketchWork(plan.plan_id, plan.width, state, state_id, context, shards, bases, fingerprints, folder, attempt)
    fresh = engine.sum(partial(sketch_pieces, work=work), context.worker, [int(item) for item in found["missing"]])
    if not engine.is_root:
        return None
    return found["sums"] if fresh is None else found["sums"] + fresh


def sketch_pieces(worker: Worker, chunk: Sequence[int], control: Control, *, work: SketchWork) -> IntegerArray:
    """The int64 sum (width,) over a chunk of pieces; runs on a rank or a worker and opens only its own slots."""
    context = work.context.on(worker)
    sketcher = sketcher_of(context, work.state)
    total = np.zeros(work.width, dtype=np.int64)
    done = 0
    for source in range(len(context.sources)):
        numbers = [i for i, piece in enumerate(context.pieces) if piece[0] == source]
        mine = sorted(set(chunk) & set(numbers))
        if not mine:
            continue
        path = work.folder / (
            f"sketch-{work.state.round:03d}-{work.shards[source]}-a{work.attempt:03d}-{control.label}.h5"
        )
        mask = np.zeros(len(numbers), dtype=np.bool_)
        sums = np.zeros(work.width, dtype=np.int64)
        save = partial(_save, work, source, path)
        work.require_same_files(source)
        saved = time.monotonic()
        for item in mine:
            if control.stop():
                save(sums, mask)
                raise StoppedError("stopped on request after a checkpoint; run the same command with --resume")
            sums += sketcher.sketch(context.batches(item))
            mask[item - numbers[0]] = True
            done += 1
            control.tick(done, len(chunk))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(sums, mask)
                saved = time.monotonic()
        save(sums, mask)
        total += sums
    return total


def basis_of(sources: Sequence[DataSource]) -> bytes:
    """What the parts of all sources rest on, see Partition; empty without parts. Private."""
    return b"".join(source.partition.basis for source in sources if source.partition)


def whole_sketch(
    plan: Plan, state: RoundState, source: DataSource, sums: IntegerArray, everybody: bool = False
) -> Sketch:
    """The finished sketch of one shard, as a site hands it on: without the fingerprint of its file, which is the site's alone.

    everybody: whether it was charged to everybody, whatever its part.
    """
    mechanism = plan.config.mechanism
    part = source.of_part(mechanism.part_of(state.round), mechanism.parts)
    pieces = len(part.pieces(plan.config.engine.micro_batch))
    done = np.ones(pieces, dtype=np.bool_)
    shard, basis = source.data.shard or "all", basis_of([source])
    return Sketch(plan.plan_id, state.round, state.identity(), shard, sums, done, "", basis, everybody)


def sketch_files(folder: Path, round: int) -> list[Path]:
    """The sketch files of a round in a folder."""
    return sorted(path for path in folder.glob(f"sketch-{round:03d}-*.h5") if FILE_NAME.fullmatch(path.name))


def _save(work: SketchWork, source: int, path: Path, sums: IntegerArray, mask: npt.NDArray[np.bool_]) -> None:
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
    found: dict[str, npt.NDArray[Any]] = {}
    slots = 0
    present: Counter[str] = Counter()
    for data in shards:
        check_files("data.private", data)
    facts = [file_facts(data) for data in shards]
    # All that a file as a whole can be refused for is found now, in every shard: before anything is drawn or charged.
    readers = [worker.readers.of(data, private=True) for data in shards]
    datasets = [
        open_dataset(data, plan.schema, private=True, reader=reader)
        for data, reader in zip(shards, readers, strict=True)
    ]
    _check_model(plan, datasets, state, worker)
    for data, dataset, known in zip(shards, datasets, facts, strict=True):
        require_opened(data, known, dataset.opened_files())
        dataset.check_whole()
    for i, (data, dataset) in enumerate(zip(shards, datasets, strict=True)):
        slot_map = dataset.slot_map()
        if len(shards) > 1 and data.unit is not None:
            names = {canonical_id(name) for name in dataset.identifiers(slot_map.rows) or ()}
            present.update(name for name in names if name is not None)
        slots += len(slot_map.rows)
        shown = fingerprint(data, facts[i], partial(worker.readers.of, data, private=True), digest).encode()
        found |= {
            f"rows-{i}": slot_map.rows,
            f"unit-{i}": slot_map.unit,
            f"fingerprint-{i}": np.frombuffer(shown, dtype=np.uint8),
            f"facts-{i}": np.frombuffer(json.dumps([facts[i].host, facts[i].files]).encode(), dtype=np.uint8),
        }
        if plan.config.mechanism.parts > 1:
            partition = _partition(plan, dataset, slot_map)
            found |= {f"part-{i}": partition.part, f"basis-{i}": np.frombuffer(partition.basis, dtype=np.uint8)}
        if not facts[i].agree(file_facts(data)):
            raise another_file(data)
    presence = plan.config.privacy.presence
    refuse_presence(present, presence)
    refuse_common_rows(shards, presence, worker.readers)
    # Under add-remove the number of slots is private: sums wrap modulo 2^64 and nothing is refused on the data.
    limit = max_slots(plan.state.grid, plan.k)
    if plan.config.privacy.adjacency != "add-remove" and slots > limit:
        raise UsageError(
            f"grid overflow: {slots} slots; the plan's grid sums at most {limit}: raise privacy.units, plan again"
        )
    return found


def _check_model(plan: Plan, datasets: Sequence[Dataset], state: RoundState | None, worker: Worker) -> None:
    """Refuse the plan where it is not of its model, as this machine builds it, or where records of the shards' shapes would meet in
    that, or have other targets."""
    check_built(plan, worker, state)
    network = worker.network_at(plan.state.theta)
    for shape in sorted({dataset.input_shape for dataset in datasets}):
        refuse_coupling(network, shape, plan.schema.tokens, plan.schema.vocabulary)
    for dataset in datasets:
        dataset.of_model(network)


def _partition(plan: Plan, dataset: Dataset, slots: SlotMap) -> Partition:
    parts, identifiers = plan.config.mechanism.parts, dataset.identifiers(slots.rows)
    if plan.config.privacy.adjacency != "add-remove":
        content = content_digest(dataset.data) if identifiers is None else ""
        return partition_by_slot(slots, parts, identifiers, content)
    if identifiers is None:
        raise UsageError("data.unit: absent; expected the column of the unit ids, which parts under add-remove rest on")
    return partition_by_id(slots, parts, identifiers, bytes.fromhex(plan.plan_id))


def _adopt(
    plan: Plan,
    round: int,
    state_id: str,
    context: RoundContext,
    shards: tuple[str, ...],
    bases: tuple[bytes, ...],
    fingerprints: tuple[str, ...],
    folder: Path,
) -> tuple[IntegerArray, IntegerArray, int]:
    """Sums of finished pieces in earlier files, the pieces still missing, and the number of this attempt."""
    sums = np.zeros(plan.width, dtype=np.int64)
    attempt = 0
    finished = np.zeros(len(context.pieces), dtype=np.bool_)
    owner = np.array([piece[0] for piece in context.pieces], dtype=np.int64)
    for path in sketch_files(folder, round):
        match = FILE_NAME.fullmatch(path.name)
        attempt = max(attempt, int(match["attempt"]) + 1) if match else attempt
        sketch = Sketch.read(path, plan, own=True)
        source = shards.index(sketch.shard) if sketch.shard in shards else -1
        if source < 0 or (sketch.fingerprint, sketch.basis, sketch.state) != (
            fingerprints[source],
            bases[source],
            state_id,
        ):
            # The private file or the state changed since: its old sums belong to other records or parameters.
            path.unlink()
            continue
        pieces = np.flatnonzero(owner == source)
        if len(sketch.done) != len(pieces) or finished[pieces][sketch.done].any():
            raise FileContentError(
                f"{path}: its pieces are not this plan's or stand in another file too; delete the file"
            )
        finished[pieces] |= sketch.done
        sums += sketch.sums
    return sums, np.flatnonzero(~finished).astype(np.int64), attempt
