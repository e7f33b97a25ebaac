"""A consortium in one process: identities, a study in any mode of trust, and a round of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from distqexp.federation.contribution import Contribution, contribute
from distqexp.federation.helper import Helper
from distqexp.federation.keys import Identity
from distqexp.federation.log import Log
from distqexp.federation.pooling import Pool
from distqexp.federation.study import Study, Trust
from distqexp.kinds import Adjacency

PLAN = "9" * 64

ALARM = 1e-7
"""The false-alarm rate of one uniformity test; with fixed seeds it raises none."""


@functools.cache
def identity(name: str) -> Identity:
    """The identity of that name, drawn once."""
    return Identity.draw(name)


def make_study(site_count: int = 4, helper_count: int = 2, /, **changes: Any) -> Study:
    """A study of some sites and helpers; with helpers its trust is helper-masks."""
    fields: dict[str, Any] = {
        "name": "sepsis",
        "plan_id": PLAN,
        "model": "8" * 64,
        "coordinator": identity("office").card,
        "sites": tuple(identity(f"site{number}").card for number in range(site_count)),
        "helpers": tuple(identity(f"helper{number}").card for number in range(helper_count)),
        "k_min": 2,
        "epsilon": 2.0,
        "delta": 1e-5,
        "unit": "patient",
        "adjacency": Adjacency.ZERO_OUT,
        "presence": 1,
        "rounds": 3,
        "trust": Trust.MASKS if helper_count else Trust.CURATOR,
    }
    return Study(**{**fields, **changes})


def vectors(count: int, size: int, seed: int = 0) -> NDArray[np.int64]:
    """Integers of the whole range of int64, so that sums wrap."""
    limits = np.iinfo(np.int64)
    return np.random.default_rng(seed).integers(limits.min, limits.max, (count, size), endpoint=True)


def uniform(words: NDArray[np.uint64]) -> bool:
    """Whether the bytes look uniform, and neighbouring ones independent: two chi-square tests, ALARM in all."""
    data = np.ascontiguousarray(words, dtype="<u8").view(np.uint8).ravel().astype(np.int64)
    halves = data[: data.size // 2 * 2].reshape(-1, 2) >> 4
    statistics = []
    for counts in (np.bincount(data, minlength=256), np.bincount(halves[:, 0] * 16 + halves[:, 1], minlength=256)):
        expected = counts.sum() / 256
        statistics.append(float(np.square(counts - expected).sum() / expected))
    return max(statistics) < chi2.isf(ALARM / 2, 255)


@dataclass
class Consortium:
    """A study with a folder where all messages lie, and a log for each helper."""

    study: Study
    folder: Path
    size: int = 0
    sent: dict[tuple[str, int, int], Contribution] = field(default_factory=dict)

    def send(self, values: NDArray[np.int64], round: int = 0, attempt: int = 0) -> None:
        """Every site that there are values for sends its vector."""
        self.size = values.shape[1]
        for name, row in zip(self.study.site_names, values, strict=False):
            contribution = contribute(self.study, identity(name), row, (round, attempt), self.folder)
            self.sent[name, round, attempt] = contribution

    def pool(self, sites: Iterable[str], round: int = 0, attempt: int = 0) -> tuple[Pool, Path]:
        """The vectors of these sites, closed."""
        pool = Pool(self.study, identity("office"), (round, attempt), self.size)
        for name in sites:
            assert pool.add(self.sent[name, round, attempt].masked)
        return pool, pool.close(self.folder)[0]

    def helper(self, name: str) -> Helper:
        """A helper with its log, which stays from call to call."""
        return Helper(self.study, identity(name), Log(self.folder / f"{name}.log", identity(name)))

    def answer(self, name: str, closing: Path) -> Path:
        """The helper's answer, from all seeds in the folder."""
        return self.helper(name).answer(closing, sorted(self.folder.glob("seed-*")), self.folder)[0]
