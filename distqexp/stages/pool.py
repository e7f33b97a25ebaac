"""Stage 3, pool: add the integer sketches of exactly the plan's shards, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.errors import FileContentError, UsageError
from distqexp.stages.folder import new_file


def pool_files(plan: Plan, paths: Sequence[Path], shards: Sequence[str] | None = None) -> Quadratic:
    """Add the sketch files of one round, in any order: int64 addition is exact and commutative.

    ``shards`` are those that a signed closing lists, where some of the plan's may be missing: their units count as blank. The
    quadratic is charged to everybody where one of the sketches is. Raises FileContentError when a shard is missing, comes twice,
    is incomplete, or is of another round or plan.
    """
    expected = plan.config.shards if shards is None else tuple(shards)
    if not paths:
        raise UsageError(f"pool: no sketch file; expected one for each of {', '.join(expected)}")
    sums = np.zeros(plan.width, dtype=np.int64)
    path_of_shard: dict[str, Path] = {}
    bases: dict[str, bytes] = {}
    everybody = False
    first: Sketch | None = None
    for path in paths:
        sketch = Sketch.read(path, plan)
        first = first or sketch
        if sketch.round != first.round:
            raise FileContentError(
                f"{path}: round {sketch.round}; {paths[0]} is of round {first.round}: pool one round at a time"
            )
        if sketch.state != first.state:
            raise FileContentError(
                f"{path}: sketched from another release (state {sketch.state[:16]}) than {paths[0]} (state "
                f"{first.state[:16]}); sketch it again with the same --release"
            )
        if sketch.shard in path_of_shard:
            raise FileContentError(
                f"{path}: shard {sketch.shard!r} again; {path_of_shard[sketch.shard]} holds it already: leave one out"
            )
        if not sketch.done.all():
            raise FileContentError(f"{path}: shard {sketch.shard!r} is not finished; sketch it to the end")
        path_of_shard[sketch.shard] = path
        bases[sketch.shard] = sketch.basis
        everybody |= sketch.everybody
        sums += sketch.sums
    absentees = [name for name in expected if name not in path_of_shard]
    if first is None or absentees:
        raise FileContentError(
            f"pool: shards {', '.join(absentees)} are missing; expected {', '.join(expected)}: add their sketch files"
        )
    basis = b"".join(bases[name] for name in expected)
    return Quadratic(plan.plan_id, first.round, first.state, sums, basis, everybody)


def pool_by_hand(plan_file: Path, sketches: Sequence[Path], out: Path) -> Quadratic:
    """Pool sketch files at the coordinator, as ``api.pool`` describes. It needs no model, and so no torch."""
    path = new_file(out)
    quadratic = pool_files(Plan.read(plan_file), sketches)
    quadratic.write(path)
    return quadratic
