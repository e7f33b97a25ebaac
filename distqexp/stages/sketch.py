"""Stage 2, sketch: the private pass, from the units' clipped gradients to one int64 vector a shard, with checkpoints."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Sketch
from distqexp.engines.base import Control, Engine, stop_error
from distqexp.engines.collectives import on_root_only
from distqexp.errors import FileContentError, RecordsChangedError
from distqexp.gradients.context import RoundContext
from distqexp.gradients.worker import Worker
from distqexp.problem.hiding import quiet
from distqexp.problem.sources import DataSource
from distqexp.sketching.choice import sketcher_of
from distqexp.stages.sampling import Secrets, drawn_shards
from distqexp.stages.shards import Shards, basis_of, require_same_records
from distqexp.stopping import PATIENCE

CHECKPOINT_SECONDS = 20.0
FILE_NAME = re.compile(r"sketch-(?P<round>\d{3,})-(?P<shard>[A-Za-z0-9_-]+)-a(?P<attempt>\d{3,})-[a-z]\d+\.h5")


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


def sketch_same_records(
    plan: Plan,
    state: RoundState,
    shards: Shards,
    folder: Path,
    engine: Engine,
    secrets: Secrets,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """Sketch a round as ``sketch_round`` does, if the records are those that ``open_shards`` found before and after it.

    If they changed, the round's sketch files are deleted and RecordsChangedError is raised. The digest of ``secrets`` is the one
    that ``open_shards`` was given; its coins say which units a sampled round takes.
    """
    with _same_records(shards, folder, state.round, engine, secrets):
        return sketch_round(plan, state, drawn_shards(plan, state, shards, secrets, engine), folder, engine, worker)


def scatter_same_records(
    plan: Plan,
    state: RoundState,
    shards: Shards,
    folder: Path,
    engine: Engine,
    secrets: Secrets,
    worker: Worker | None = None,
) -> IntegerArray | None:
    """Sketch a round as ``sketch_same_records`` does, and return each rank's own blocks of the sum."""
    with _same_records(shards, folder, state.round, engine, secrets):
        drawn = drawn_shards(plan, state, shards, secrets, engine)
        return sketch_round(plan, state, drawn, folder, engine, worker, scattered=True)


@contextmanager
def _same_records(shards: Shards, folder: Path, round: int, engine: Engine, secrets: Secrets) -> Iterator[None]:
    require_same_records(shards, engine, secrets.digest)
    try:
        yield
        require_same_records(shards, engine, secrets.digest)
    except RecordsChangedError:
        if engine.is_root:
            for path in sketch_files(folder, round):
                path.unlink(missing_ok=True)
        raise


def sketch_round(
    plan: Plan,
    state: RoundState,
    shards: Shards,
    folder: Path,
    engine: Engine,
    worker: Worker | None = None,
    scattered: bool = False,
) -> IntegerArray | None:
    """Sketch what is not sketched yet, and return the int64 sum (width,) over every piece on the root, None elsewhere.

    Where the sum is ``scattered``, every rank gets its own blocks of it. Collective. Every slot of ``shards`` takes part.
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
    earlier = on_root_only(engine, lambda: _earlier_pieces(plan, work))
    numbers = engine.broadcast_arrays(earlier and {"attempt": np.array([earlier.attempt]), "missing": earlier.missing})
    work = dataclasses.replace(work, attempt=int(numbers["attempt"][0]))
    missing = [int(item) for item in numbers["missing"]]
    pieces = partial(_sketch_pieces, work=work)
    if scattered:
        return engine.scattered_sum(pieces, work.context.worker, missing, earlier and earlier.sums)
    fresh = engine.sum(pieces, work.context.worker, missing)
    if earlier is None or fresh is None:
        return None
    return fresh if earlier.sums is None else earlier.sums + fresh


def _sketch_pieces(worker: Worker, chunk: Sequence[int], control: Control, *, work: SketchWork) -> IntegerArray:
    """Return the int64 sum (width,) over a chunk of pieces; runs on a rank or a worker and opens only its own slots."""
    with quiet():
        return _sum_of_pieces(worker, chunk, control, work)


def _sum_of_pieces(worker: Worker, chunk: Sequence[int], control: Control, work: SketchWork) -> IntegerArray:
    context = work.context.on(worker)
    sketcher = sketcher_of(context, work.state)
    total: IntegerArray | None = None
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
                raise stop_error()
            began = time.monotonic()
            sums += sketcher.sketch(context.batches(item))
            mask[item - numbers[0]] = True
            count += 1
            control.tick(count, len(chunk))
            # A stop waits for a short piece and not for a long one, after which there is a checkpoint each time.
            if time.monotonic() - last_save > CHECKPOINT_SECONDS or time.monotonic() - began > PATIENCE / 2:
                save(sums, mask)
                last_save = time.monotonic()
        save(sums, mask)
        total = sums if total is None else total + sums
    return np.zeros(work.width, dtype=np.int64) if total is None else total


def whole_sketch(
    plan: Plan, state: RoundState, source: DataSource, sums: IntegerArray, everybody: bool = False
) -> Sketch:
    """Return the finished sketch of one shard as a site hands it on: without the fingerprint of its file.

    ``everybody`` says whether it was charged to everybody although its round uses one part.
    """
    mechanism = plan.config.mechanism
    part = source.of_part(mechanism.part_of(state.round), mechanism.parts)
    # The pieces of a sample say nothing, but for a rare event: their number stays here all the same.
    pieces = 1 if mechanism.sampled else len(part.pieces(plan.config.engine.micro_batch))
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


class _Earlier(NamedTuple):
    """What earlier files hold.

    Attributes:
        sums: int64 (width,), the sums of the finished pieces, private and for the root alone; None where there are none.
        missing: int64, the numbers of the pieces that are still missing.
        attempt: The number of this attempt.
    """

    sums: IntegerArray | None
    missing: IntegerArray
    attempt: int


def _earlier_pieces(plan: Plan, work: SketchWork) -> _Earlier:
    """Read the files of earlier attempts."""
    sums: IntegerArray | None = None
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
        sums = sketch.sums if sums is None else sums + sketch.sums
    return _Earlier(sums, np.flatnonzero(~finished).astype(np.int64), attempt)
