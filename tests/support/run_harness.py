"""Small tables, small configs, and ways to run the commands in this process or in one of their own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_server import commands
from mpi_harness import run_environ
from numpy.typing import NDArray

from distqexp import cli, fit
from distqexp.privacy.ledger import Ledger
from distqexp.problem.dataset import Dataset

FEATURES = ("age", "dose", "rate")

ANNOUNCEMENT = re.compile(
    r"distqexp: (plan|sketch|pool|release|export)(, round \d+/\d+)?: (started|\d+%, .* left|running for .*|done (in|within) .*)"
    r"|plan [0-9a-f]{16}: .*|privacy: .*|mechanism: .*|trained: .*|chosen: .*|forecast: .*|expect: .*|a rank needs .*"
    r"|distqexp: warning: (privacy\.delta|privacy\.epsilon|noise will win).*|distqexp: round \d+: the move was .*"
    r"|distqexp: (the model stays as it was|[\d.]+% of the way that the rounds went is kept): .*"
    r"|distqexp: (data\.eval, not covered|guarantee: epsilon|budget of|model: |the run ended worse).*"
    r"|distqexp: (new ledger at|no config given|moves: |whether the private records could).*"
)
"""The lines that a run prints about itself: progress, what the plan says and warns of its budget, and what it ends with."""


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    code: int
    out: str
    err: str

    def reasons(self) -> list[str]:
        """The lines of standard error that are no announcement."""
        return [line for line in self.err.splitlines() if not ANNOUNCEMENT.fullmatch(line)]

    def refused(self, code: int, *words: str) -> str:
        """The one line of a refusal, after checking that it is one line and nothing else."""
        reasons = self.reasons()
        assert (self.code, len(reasons)) == (code, 1), (self.code, self.out, self.err)
        assert reasons[0].startswith("distqexp: "), reasons
        assert "Traceback" not in self.err
        for word in words:
            assert word in reasons[0], (word, reasons[0])
        return reasons[0]


class Commands:
    """Runs commands in this process; what they print is caught."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def fit(self, *arguments: str | Path) -> Outcome:
        """``python -m distqexp.fit``."""
        self._capsys.readouterr()
        return self._outcome(fit.main([str(argument) for argument in arguments]))

    def distqexp(self, *arguments: str | Path) -> Outcome:
        """``distqexp``."""
        self._capsys.readouterr()
        return self._outcome(cli.run([str(argument) for argument in arguments]))

    def done(self, *arguments: str | Path) -> Outcome:
        """``distqexp``, and it works."""
        outcome = self.distqexp(*arguments)
        assert outcome.code == 0, (arguments, outcome)
        return outcome

    def _outcome(self, code: int) -> Outcome:
        caught = self._capsys.readouterr()
        return Outcome(code, caught.out, caught.err)


def run_process(module: str, *arguments: str | Path, folder: Path, environ: Mapping[str, str] | None = None) -> Outcome:
    """A process of its own, in ``folder``: the main job (distqexp.fit) or the command (distqexp.cli)."""
    command = [
        str(commands() / {"distqexp.fit": "distqexp-fit", "distqexp.cli": "distqexp"}[module]),
        *map(str, arguments),
    ]
    done = subprocess.run(
        command, cwd=folder, env=run_environ(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=300
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def to_toml(tree: Mapping[str, Any]) -> str:
    """A tree of numbers, texts, lists and tables as TOML, every table inline."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{json.dumps(name)} = {text(item)}" for name, item in value.items()) + " }"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(text(item) for item in value) + "]"
        return json.dumps(value)

    return "".join(f"{name} = {text(value)}\n" for name, value in tree.items())


def write_table(
    path: Path, seed: int, units: int, *, records: int = 1, shift: float = 0.0, columns: Sequence[str] = FEATURES
) -> NDArray[np.float64]:
    """A CSV of ``units`` patients with 1 to ``records`` records each, in mixed order; returns its features."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(units), random.integers(1, records + 1, units))
    random.shuffle(patients)
    values = random.normal(size=(len(patients), len(columns))) + shift
    labels = (values @ np.arange(1, len(columns) + 1) + random.normal(size=len(patients)) > 0).astype(int)
    lines = [",".join(["patient", *columns, "died"])]
    for patient, row, label in zip(patients, values, labels, strict=True):
        lines.append(",".join([f"p{seed}-{patient}", *(f"{value:.6g}" for value in row), str(label)]))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return values


def table_source(path: str | None, *, unit: bool = False, **more: Any) -> dict[str, Any]:
    """A [data.*] table for the files of write_table."""
    source: dict[str, Any] = {"format": "csv", "columns": {"target": "died", "exclude": ["patient"]}}
    if path is not None:
        source["path"] = path
    if unit:
        source["unit"] = "patient"
    return source | more


def table_tree(**sections: Mapping[str, Any]) -> dict[str, Any]:
    """A quick task: logistic regression on public.csv and private.csv beside the config; sections are merged in."""
    tree: dict[str, Any] = {
        "model": {
            "factory": "distqexp.problem.models:logistic",
            "args": {"inputs": len(FEATURES)},
            "loss": "binary-cross-entropy",
            "pretrain": {"epochs": 5, "optimiser": "lbfgs", "learning_rate": 1.0, "weight_decay": 0.01},
        },
        "data": {
            "population": "patients",
            "public": table_source("public.csv"),
            "private": table_source("private.csv"),
        },
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "units": 100},
        "precision": {"kind": "dense", "damping": 0.5},
        "mechanism": {"rounds": 1, "clip": 0.5},
        "engine": {"micro_batch": 16},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return tree


def write_task(folder: Path, tree: Mapping[str, Any] | None = None, *, private_units: int = 60) -> Path:
    """public.csv, private.csv, eval.csv and task.toml in ``folder``; returns the config's path."""
    write_table(folder / "public.csv", 1, 80)
    write_table(folder / "private.csv", 2, private_units, shift=0.3)
    write_table(folder / "eval.csv", 3, 40, shift=0.3)
    path = folder / "task.toml"
    path.write_text(to_toml(table_tree() if tree is None else tree), "utf-8")
    return path


def overrides(*assignments: str) -> list[str]:
    """``--set`` before each."""
    return [word for assignment in assignments for word in ("--set", assignment)]


def lines(count: int, header: str = "patient,age,dose,rate,died", row: str = "p{0},0.5,{0},1.5,{1}") -> list[str]:
    return [header, *(row.format(number, number % 2) for number in range(count))]


def charges(ledger: Path) -> int:
    """How many releases a ledger has on record."""
    if not ledger.exists():
        return 0
    with Ledger.open(ledger) as opened:
        return len(opened.rows())


def rewrite(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a config."""
    path.write_text(to_toml(tree), "utf-8")


def forbid_records(patch: pytest.MonkeyPatch) -> None:
    """Reading a row of private.csv fails."""
    read = Dataset.read

    def guarded(self: Dataset, rows: Any, views: Any = None) -> Any:
        assert self.data.path is None or Path(self.data.path).name != "private.csv", "a private record was read"
        return read(self, rows, views)

    patch.setattr(Dataset, "read", guarded)
