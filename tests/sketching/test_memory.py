"""A large sketch: how many vectors of its length a process holds at once, as Python counts memory, and what travels of it."""

from __future__ import annotations

import hashlib
import hmac
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from layers_harness import CrossEntropy, fast, random_records, whitening_for
from numpy.typing import NDArray
from sketching_oracle import make_problem
from small_runs import make_config, plan_of, random_table
from torch import nn

from distqexp.arrays import NewArrays
from distqexp.engines.serial import SerialEngine
from distqexp.geometry.subspaces import make_subspace
from distqexp.geometry.whitening import Whitening
from distqexp.gradients import autodiff
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch
from distqexp.gradients.layers import block_layout
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.problem.network import Network
from distqexp.sketching.sketcher import BatchSketcher, Sketcher
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round
from distqexp.storage.canonical import array_digest

LENGTH = 200_000
"""The length of a vector: so long that units are clipped and rounded one by one."""

UNITS = 16


def peak(work: Callable[[], object]) -> float:
    """The most memory that ``work`` took at once, in vectors of LENGTH numbers of 8 bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / (8 * LENGTH)
    finally:
        tracemalloc.stop()


class ReadyGradients:
    """Gradients that are there already."""

    def __init__(self) -> None:
        self.vectors = np.random.default_rng(0).standard_normal((UNITS, LENGTH))

    def of_piece(self, batches: Iterable[Batch]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return self.vectors, np.ones(UNITS, dtype=np.bool_)


def test_a_piece_is_summed_unit_by_unit() -> None:
    sketcher = Sketcher(cast(Any, ReadyGradients()), clip=1.0, step=2.0**-20, clip_integer=2**20)
    expected = sketcher.unit_integers([]).sum(axis=0)
    found = []
    assert (
        peak(lambda: found.append(sketcher.sketch([]))) < 0.6 * UNITS
    )  # the integers of all units together take UNITS
    assert np.array_equal(found[0], expected)


def test_later_micro_batches_are_added_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no backward pass makes torch import sympy, which takes 35 MiB a rank."""
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    network = Network(nn.Sequential(*(nn.Linear(200, 200) for _ in range(4))))
    gradients = fast(network, CrossEntropy(), whitening_for(block_layout(network), None), 4)
    sketcher = BatchSketcher(gradients, clip=1.0, step=2.0**-20, cancellation=1024.0, largest_terms=2**22)
    batches = [(random_records((200,), 200, 4), np.arange(4) + first) for first in (0, 4, 8)]
    expected = sum(sketcher.sketch([batch]) for batch in batches)
    found = []
    assert peak(lambda: found.append(sketcher.sketch(batches))) < 1.7 * gradients.k / LENGTH  # the sum, and a block
    assert np.array_equal(found[0], expected)


def test_a_piece_of_gradients_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("logistic", (1,) * UNITS, seed=0)
    gradients = UnitGradients(
        network=problem.network, loss=problem.loss, whitening=Whitening(make_subspace("identity", LENGTH, LENGTH, 0, 0)),
        micro_batch=UNITS,
    )  # fmt: skip
    vectors, finite = np.ones((UNITS, LENGTH)), np.ones(UNITS, dtype=np.bool_)
    finite[3] = False
    monkeypatch.setattr(autodiff, "sum_by_unit", lambda batches, vectors_of: (vectors, finite))
    assert peak(lambda: gradients.of_piece([])) < 1.5 * UNITS
    rows, good = gradients.of_piece([])
    assert np.array_equal(rows, np.where(np.arange(UNITS) == 3, 0.0, 1.0)[:, None] * np.ones(LENGTH))
    assert np.array_equal(good, finite)


def test_digests_and_tags_copy_nothing_long(tmp_path: Path) -> None:
    array = np.arange(LENGTH)
    files = LedgerFiles(tmp_path / "ledger.sqlite")
    files.key = bytes(range(32))
    message = b"".join(struct.pack("<Q", len(part)) + part for part in (b"sums", array.tobytes(), b""))
    assert files.tag(b"sums", memoryview(array.view(np.uint8)), b"") == hmac.new(files.key, message, "sha256").digest()
    expected = hashlib.sha256(b'["<i8",[200000]]\n' + array.tobytes()).hexdigest()
    assert array_digest(array) == expected
    assert peak(lambda: (array_digest(array), files.tag(memoryview(array.view(np.uint8))))) < 0.1


class Watched(SerialEngine):
    """Notes how many bytes the first process sends to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def broadcast_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> NewArrays:
        self.sent += [array.nbytes for array in (arrays or {}).values()]
        return super().broadcast_arrays(arrays)


def test_sums_of_earlier_attempts_stay_with_the_first_process(tmp_path: Path) -> None:
    random_table("mlp", [1] * 20, seed=0).write(tmp_path / "private.h5")
    config = make_config(tmp_path, "mlp", public=False)
    plan = plan_of(config)
    shards = Shards(*open_shards(plan, config.data.private, SerialEngine())[:2])
    first, second = Watched(), Watched()
    fresh = sketch_round(plan, plan.state, shards, tmp_path, first)
    taken = sketch_round(plan, plan.state, shards, tmp_path, second)
    assert fresh is not None
    assert taken is not None
    assert fresh.any()
    assert np.array_equal(fresh, taken)
    assert plan.width > 50
    for engine in (first, second):
        assert 0 < len(engine.sent) <= 2
        assert max(engine.sent) < plan.width
    assert second.sent[-1] == 0  # nothing was missing any more
