"""Small CSV tables of patients with several rows each, and configs on them: for what a run does when its files change or overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.config import Config, config_from_tree
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger


@dataclass(frozen=True)
class Patients:
    """Rows of a table: x (n, 3), y (n,), ids (n,), a ward each."""

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    ids: Sequence[Any]

    @staticmethod
    def some(units: int, records: int, seed: int, first: int = 0) -> Patients:
        """``records`` rows of each of so many patients, one patient after the other."""
        random = np.random.default_rng(seed)
        x = random.normal(size=(units * records, 3))
        y = (x.sum(axis=1) + random.normal(size=len(x)) > 0).astype(np.int64)
        return Patients(x, y, [first + int(unit) for unit in np.repeat(np.arange(units), records)])

    def named(self, ids: Sequence[Any]) -> Patients:
        """The same rows under other ids."""
        return replace(self, ids=list(ids))

    def in_order(self, order: Sequence[int] | NDArray[np.int64]) -> Patients:
        """These rows, in this order."""
        return Patients(self.x[order], self.y[order], [self.ids[row] for row in order])

    def by_visit(self, records: int) -> Patients:
        """Sorted by visit instead of by patient: the same bytes in another order."""
        return self.in_order(np.argsort(np.tile(np.arange(records), len(self.y) // records), kind="stable"))

    def write(self, path: Path) -> Path:
        """As CSV; every line is of the same length, whatever the order."""
        lines = ["pid,ward,a,b,c,y"]
        for row, (x, y, name) in enumerate(zip(self.x, self.y, self.ids, strict=True)):
            values = ",".join(f"{value:+.12e}" for value in x)
            lines.append(f"{name},{'north' if row % 2 else 'south'},{values},{y}")
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path


def source(path: Path | None, *, unit: str | None = "pid", **more: Any) -> dict[str, Any]:
    """A source of a config on such a table."""
    found: dict[str, Any] = {"format": "csv", "columns": {"target": "y", "exclude": ["ward", "pid"]}, **more}
    return found | ({"path": str(path)} if path else {}) | ({"unit": unit} if unit else {})


def config_of(public: dict[str, Any] | None, *private: dict[str, Any], **sections: Mapping[str, Any]) -> Config:
    """A logistic task; ``sections`` override keys."""
    data: dict[str, Any] = {"population": "patients", "private": list(private)}
    tree: dict[str, Any] = {
        "model": {
            "factory": "distqexp.problem.models:logistic",
            "args": {"inputs": 3, "outputs": 1},
            "loss": "binary-cross-entropy",
        },
        "data": data | ({"public": public} if public else {}),
        "privacy": {"epsilon": 2.0, "delta": 1e-5, "units": 30},
        "precision": {"kind": "dense"},
        "mechanism": {"rounds": 2, "clip": 0.05},
        "engine": {"kind": "serial", "micro_batch": 16},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return config_from_tree(tree)


def parts_charged(ledger: Path) -> list[Part | None]:
    """Whose units each charge is for."""
    with Ledger.open(ledger) as books:
        return [row.part for row in books.rows()]
