"""Originals of every kind of file, and a parent of ``hostile_child`` that survives its deaths."""

from __future__ import annotations

import gzip
import json
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import hostile_child
import numpy as np
import pandas as pd
import pytest
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.errors import FileContentError
from distqexp.storage.hdf5 import read_file

CHILD = Path(__file__).with_name("hostile_child.py")
SECONDS = 10.0
PATIENCE = 3.0
"""Seconds before a file counts as one that the library loops on."""
BYTES = 2 << 30
SHARED_FROM = 400
"""So many mutants are shared by two children."""


def write_originals(folder: Path) -> None:
    """original.KIND for every kind."""
    for name, seed in (("private", 1), ("public", 2)):
        random_table("logistic", [1, 2, 3] * 10, seed).write(folder / f"{name}.h5")
    plan = plan_of(make_config(folder, "logistic", mechanism={"rounds": 2}))
    state, random = plan.state, np.random.default_rng(5)
    sums = random.integers(-1000, 1000, plan.k)
    plan.write(folder / "original.plan")
    sketch = Sketch(plan.plan_id, 0, state.identity(), plan.config.shards[0], sums, np.ones(8, np.bool_), "ab" * 32)
    sketch.write(folder / "original.sketch")
    Quadratic(plan.plan_id, 0, state.identity(), sums).write(folder / "original.quadratic")
    following: RoundState = replace(state, round=1)
    Release(plan.plan_id, 0, sums, state.theta, state.header(), following, None).write(folder / "original.release")
    (folder / "plan_id").write_text(plan.plan_id)
    _write_tables(folder)
    _write_images(folder)


def _write_tables(folder: Path) -> None:
    random = np.random.default_rng(6)
    count = 40
    frame = pd.DataFrame(random.normal(size=(count, 3)) * 1000, columns=["a", "b", "c"]).round(4)
    frame.loc[::5, "b"] = np.nan
    frame["died"] = random.integers(0, 2, count)
    frame["patient"] = [f"person{code}" for code in random.integers(0, 9, count)]
    frame["ward"] = np.where(random.random(count) < 0.7, "north", "south")
    frame.to_csv(folder / "original.csv", index=False)
    (folder / "original.csv.gz").write_bytes(gzip.compress((folder / "original.csv").read_bytes()))
    frame.to_parquet(folder / "original.parquet", row_group_size=15)
    with h5py.File(folder / "original.h5", "w") as file:
        values = frame[["a", "b", "c"]].to_numpy()
        file.create_dataset("x", data=values, chunks=(15, 3), compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("died", data=frame["died"].to_numpy(), chunks=(15,), compression="lzf")
        file["patient"] = [str(value) for value in frame["patient"]]
        file["ward"] = np.array(frame["ward"], dtype="S5")


def _write_images(folder: Path) -> None:
    random = np.random.default_rng(7)
    images, labels = random.integers(0, 256, (12, 4, 5), np.uint8), random.integers(0, 10, 12).astype(np.uint8)
    for name, array in (("original", images), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
        (folder / f"{name}.idx").write_bytes(head + array.tobytes())
        (folder / f"{name}.idx.gz").write_bytes(gzip.compress(head + array.tobytes()))
    np.save(folder / "original.npy", np.arange(12) % 3 == 0)


@dataclass
class Fuzzed:
    """What came of many files. deaths: index and who was at work."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    deaths: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def joined(self, other: Fuzzed) -> Fuzzed:
        """Both together."""
        return Fuzzed(
            outcomes=self.outcomes + other.outcomes,
            wrong=self.wrong + other.wrong,
            deaths=self.deaths + other.deaths,
            slowest=max(self.slowest, other.slowest),
            largest=max(self.largest, other.largest),
        )


def fuzz(folder: Path, kind: str, indices: range, seed: int = 20) -> Fuzzed:
    """Have a child meet the mutants of these numbers, many of them shared by two children; each is started anew after one it dies of."""
    first, after = indices.start, indices.stop
    if len(indices) < SHARED_FROM:
        return _fuzz_part(folder, kind, seed, first, after)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        other = shutil.copytree(
            folder, Path(name) / "originals"
        )  # mutants have a name: each child has a folder of its own
        middle = (first + after) // 2
        one = pool.submit(_fuzz_part, folder, kind, seed, first, middle)
        two = pool.submit(_fuzz_part, other, kind, seed, middle, after)
        return one.result().joined(two.result())


def _fuzz_part(folder: Path, kind: str, seed: int, first: int, count: int) -> Fuzzed:
    """The mutants from ``first`` to ``count``."""
    found = Fuzzed()
    while first < count:
        first = _until_death(folder, kind, seed, first, count, found)
    return found


class _NotBegun(AssertionError):
    """The child died of something else than a mutant."""


def _until_death(folder: Path, kind: str, seed: int, first: int, count: int, found: Fuzzed) -> int:
    """The index to go on from. A child that dies before its first mutant says nothing about files: it is started once more."""
    try:
        return _one_child(folder, kind, seed, first, count, found)
    except _NotBegun:
        return _one_child(folder, kind, seed, first, count, found)


def _one_child(folder: Path, kind: str, seed: int, first: int, count: int, found: Fuzzed) -> int:
    command = [sys.executable, str(CHILD), str(folder), kind, str(seed), str(first), str(count)]
    with tempfile.TemporaryFile() as words, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words) as process:
        index, at_work, buffer = first - 1, "start", b""
        while True:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], PATIENCE if index >= first else 60)[0]:
                process.kill()
                found.deaths.append((index, f"{at_work}: more than {PATIENCE} s"))
                return index + 1
            chunk = process.stdout.read1(1 << 16)
            if not chunk:
                if index < first:
                    code = process.wait()
                    words.seek(0)
                    raise _NotBegun(f"the child did not begin, exit code {code}: {words.read()[-2000:]!r}")
                found.deaths.append((index, at_work))
                return index + 1
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                word, _, rest = line.decode("utf-8", "replace").partition(" ")
                if word == "file":
                    index, at_work = int(rest), "start"
                elif word == "outcome":
                    found.outcomes[rest.split()[0].rstrip(":")] += 1
                    if rest.startswith("wrong"):
                        found.wrong.append((index, rest))
                elif word == "end":
                    seconds, kibibytes = rest.split()
                    found.slowest = max(found.slowest, float(seconds))
                    found.largest = max(found.largest, 1024 * int(kibibytes))
                    return count
                else:
                    at_work = word


def assert_refused_for_real(folder: Path, kind: str, index: int, seed: int = 20) -> None:
    """A mutant that the child died of: the reader of a run refuses it and lives on."""
    original = (folder / f"original.{kind}").read_bytes()
    path = folder / f"again.{kind}"
    path.write_bytes(hostile_child.mutant(original, kind, seed, index))
    with pytest.raises(FileContentError) as caught:
        read_file(path, kind=kind, plan_id=(folder / "plan_id").read_text())
    assert "\n" not in str(caught.value)


def tell(found: Fuzzed) -> str:
    """For the message of an assertion."""
    return json.dumps({"wrong": found.wrong[:5], "deaths": found.deaths[:5], "outcomes": dict(found.outcomes)})
