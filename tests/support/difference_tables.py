"""Private tables that are out to break a bound: huge, vanishing, cancelling, aligned and non-finite records, and worse neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
FEATURES, SIDE, VOCABULARY, LENGTH, CLASSES = 4, 5, 7, 4, 3
NOBODY = -1
"""The unit of a record whose id is missing."""


@dataclass(frozen=True)
class Shard:
    """Records of one shard: x (n, ...), y (n,) or (n, o), unit (n,): number of each record's unit, blank (n,): masked out."""

    x: NDArray[Any]
    y: NDArray[np.float64]
    unit: NDArray[np.int64]
    blank: NDArray[np.bool_]

    def without(self, unit: int) -> Shard:
        """The unit's rows taken out of the file."""
        return self.taken(np.flatnonzero(self.unit != unit))

    def blanked(self, unit: int) -> Shard:
        """The unit's rows masked out; they stay in the file."""
        return replace(self, blank=self.blank | (self.unit == unit))

    def taken(self, rows: NDArray[np.int64]) -> Shard:
        """These rows, in this order."""
        return Shard(self.x[rows], self.y[rows], self.unit[rows], self.blank[rows])


@dataclass(frozen=True)
class Form:
    """How records look: what a model of ``family`` takes (numbers, images, tokens), with what targets.

    targets: "binary", "classes", "one" or "two" real numbers.
    """

    family: str
    targets: str

    def plain(self, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Records of no particular kind."""
        if self.family == "images":
            return random.integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8), self.labels(random, count)
        if self.family == "tokens":
            mask = np.arange(LENGTH) < random.integers(1, LENGTH + 1, (count, 1))
            drawn = random.integers(0, VOCABULARY, (count, LENGTH))
            return np.stack([drawn, mask.astype(np.int64)], axis=1), self.labels(random, count)
        return random.normal(size=(count, FEATURES)), self.labels(random, count)

    def labels(self, random: Random, count: int) -> NDArray[np.float64]:
        """Random targets."""
        if self.targets == "binary":
            return random.integers(0, 2, count).astype(np.float64)
        if self.targets == "classes":
            return random.integers(0, CLASSES, count).astype(np.float64)
        return random.normal(size=count if self.targets == "one" else (count, 2))

    def opposite(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Other targets, whose gradients point the other way as far as they can."""
        if self.targets == "binary":
            return 1 - y
        if self.targets == "classes":
            return (y + 1) % CLASSES
        return np.where(np.abs(y) > 10, -y, np.where(y > 0, -50.0, 50.0))

    def opposite_records(self, x: NDArray[Any], y: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Other records, whose gradients point the other way as far as they can."""
        if (
            self.family == "numbers" and self.targets == "classes"
        ):  # three classes' gradients are 120 degrees apart at most
            return -x, y
        return x, self.opposite(y)


Kind = Callable[[Form, Random, int], tuple[NDArray[Any], NDArray[np.float64]]]


def aligned(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """One record as often as the unit has records: their gradients add up."""
    x, y = form.plain(random, 1)
    return np.repeat(x, count, axis=0), np.repeat(y, count, axis=0)


def cancelling(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """One record again and again, its targets by turns as far apart as they can be: large gradients, a small sum."""
    x, y = aligned(form, random, count)
    if form.targets in ("one", "two"):
        y = y * 10.0 ** random.uniform(1, 6)
    y[1::2] = -y[1::2] if form.targets in ("one", "two") else form.opposite(y[1::2])
    return x, y


def extreme(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Numbers of any size up to the largest of float32: gradients that bind, saturate or overflow."""
    x, y = form.plain(random, count)
    if form.family == "numbers":
        x = np.clip(x * 10.0 ** random.uniform(1, 38.6, (count, 1)), -3.4e38, 3.4e38)
    elif form.family == "images":
        x[:] = 255
    else:
        x[:, 0], x[:, 1] = x[0, 0, 0], 1
    return x, y * 10.0 ** random.uniform(0, 30) if form.targets in ("one", "two") else y


def large(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Gradients well beyond the clip."""
    x, y = form.plain(random, count)
    if form.family == "numbers":
        x = x * 30
    return x, y * 100 if form.targets in ("one", "two") else y


def vanishing(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Nothing but zeros, or numbers so small that their squares underflow."""
    x, y = form.plain(random, count)
    x = x * 10.0 ** random.uniform(-44, -20) if form.family == "numbers" and random.integers(2) else np.zeros_like(x)
    if form.family == "tokens":
        x[:, 1, 0] = 1
    return x, y


def broken(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A record of the unit breaks a rule (an infinite number, a label or token that there is not): it is as good as absent."""
    x, y = large(form, random, count)
    bad = random.integers(count)
    what = random.integers(3)
    if what == 0 and form.family == "numbers":
        x[bad, random.integers(FEATURES)] = random.choice([np.inf, -np.inf, 1e300])
    elif what < 2 and form.family == "tokens":
        x[bad, what] = (VOCABULARY, 0)[what]
    elif form.targets in ("binary", "classes"):
        y[bad] = random.choice([CLASSES, 200])
    else:
        y[bad] = np.nan
    return x, y


def missing(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Holes in the features, which the public median fills."""
    x, y = form.plain(random, count)
    if form.family == "numbers":
        x[random.random(x.shape) < 0.4] = np.nan
    return x, y


KINDS: tuple[Kind, ...] = (Form.plain, aligned, cancelling, extreme, large, large, vanishing, broken, missing)


def unit_records(form: Form, random: Random, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A unit of a random kind."""
    return KINDS[random.integers(len(KINDS))](form, random, count)


def make_shards(form: Form, random: Random, places: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[Shard]:
    """A shard for each of ``places``, the units that are in it, of ``sizes`` records each.

    In every shard a unit has the same records: the worst that presence in several can be. Where units have several
    records, those of different units stand mixed, some are blank, and of some the id is missing.
    """
    content = [unit_records(form, random, size) for size in sizes]
    shards = []
    for units in places:
        unit = np.repeat(np.array(units, dtype=np.int64), [sizes[u] for u in units])
        x = np.concatenate([content[u][0] for u in units])
        y = np.concatenate([content[u][1] for u in units])
        blank = (random.random(len(unit)) < 0.1) & (np.array(sizes)[unit] > 1)
        unit = np.where((random.random(len(unit)) < 0.05) & (np.array(sizes)[unit] > 1), NOBODY, unit)
        shard = Shard(x, y, unit, blank)
        order = random.permutation(len(unit)) if max(sizes) > 1 else np.arange(len(unit))
        shards.append(shard.taken(order))
    return shards


def replacements(form: Form, random: Random, shards: Sequence[Shard], unit: int) -> list[list[Shard]]:
    """The shards with the unit's records, as many as it had, made another unit's: the opposite one, and one of any kind."""
    opposite, other = [], []
    size = max(int((shard.unit == unit).sum()) for shard in shards)
    new_x, new_y = unit_records(form, random, size)
    for shard in shards:
        mine = shard.unit == unit
        x, y = shard.x.copy(), shard.y.copy()
        x[mine], y[mine] = form.opposite_records(x[mine], y[mine])
        opposite.append(replace(shard, x=x, y=y))
        x, y = shard.x.copy(), shard.y.copy()
        x[mine], y[mine] = new_x[: mine.sum()], new_y[: mine.sum()]
        other.append(replace(shard, x=x, y=y))
    return [opposite, other]


def write_blank(shard: Shard, stem: Path) -> dict[str, Any]:
    """Store which records are masked out, if any are; returns the key of the config's table that says where."""
    if not shard.blank.any():
        return {}
    np.save(f"{stem}-blank.npy", shard.blank)
    return {"blank": f"{stem}-blank.npy"}


def write_shard(shard: Shard, stem: Path, file_format: str, with_units: bool) -> dict[str, Any]:
    """Store as ``stem`` with an ending; returns the keys of the config's table that say where."""
    keys: dict[str, Any] = {"format": file_format, **write_blank(shard, stem)}
    names = ["" if unit == NOBODY else f"patient {unit}" for unit in shard.unit]
    if file_format == "idx":
        keys |= {"path": f"{stem}-images.idx", "labels": f"{stem}-labels.idx"}
        _write_idx(Path(keys["path"]), shard.x)
        _write_idx(Path(keys["labels"]), shard.y.astype(np.uint8))
        return keys
    keys["path"] = f"{stem}.{'h5' if file_format == 'hdf5' else 'csv'}"
    keys |= {"unit": "patient"} if with_units else {}
    if file_format == "csv":
        head = ",".join([*(f"x{i}" for i in range(FEATURES)), "y", "patient"])
        rows = zip(shard.x, shard.y, names, strict=True)
        lines = [",".join([*(repr(float(v)) for v in x), repr(float(y)), name]) for x, y, name in rows]
        Path(keys["path"]).write_text("\n".join([head, *lines]) + "\n", "utf-8")
        return keys
    with h5py.File(keys["path"], "w") as file:
        file["x"], file["y"] = shard.x[:, 0] if shard.x.ndim == 3 else shard.x, shard.y
        if shard.x.ndim == 3:
            file["mask"] = shard.x[:, 1]
        if with_units:
            file.create_dataset("patient", data=[name.encode() for name in names], dtype=h5py.string_dtype())
    return keys


def _write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(head + values.tobytes())
