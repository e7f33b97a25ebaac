"""The runs that give the same bytes on every engine, and a job of one engine that makes them all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from bad_runs import task
from fit_harness import QUICK, pooled, released, settings
from mpi_harness import Finished, MpiRun, mpi_command, write_script
from small_clusters import scheduler_with_workers

from distqexp import fit

MLP = (
    "model.factory=distqexp.problem.models:mlp",
    "model.args={inputs=64, outputs=10, hidden=[16]}",
    "model.pretrain.optimiser=adam",
    "model.pretrain.learning_rate=0.01",
    "model.pretrain.epochs=30",
    "precision.kind=kronecker",
    "precision.damping=0.3",
)
KRONECKER_PCA = ("subspace.kind=kronecker-pca", "subspace.k_in=12", "subspace.k_out=6")
SCHEDULE = ("precision.refresh=2", "precision.rotate=[0, 40]", "mechanism.warmup=1", "mechanism.momentum=0.5")
PUBLIC_PCA = ("subspace.kind=public-pca", "subspace.k=20", "precision.refresh=2")
PARTS = (*QUICK, "mechanism.rounds=4", "mechanism.parts=2", "mechanism.final_step=0.2")
TRUST_REGION = (
    *QUICK, "mechanism.clip_quantile=0.5", 'mechanism.noise="gaussian"', "mechanism.trust_radius=3.0", 'subspace.kind="gaussian"',
    "subspace.k=20",
)  # fmt: skip
PRIVATE_CURVATURE = (*TRUST_REGION, 'mechanism.curvature="private"')
PROBES = (
    *QUICK,
    "model.factory=distqexp.problem.models:mlp",
    "model.args={inputs=64, outputs=10, hidden=[6]}",
    "model.pretrain.epochs=0",
    "precision.source=probes",
    "precision.kind=diagonal",
    "precision.samples=70",
    "mechanism.rounds=2",
)

SAMPLED = (*QUICK, "mechanism.sampling=0.25", "mechanism.momentum=0.5", "diagnostics.share=0.1")

DIGITS: dict[str, tuple[str, ...]] = {
    "dense": QUICK,
    "parts": PARTS,
    "kronecker": (*QUICK, *MLP, *KRONECKER_PCA, *SCHEDULE),
    "public-pca": (*QUICK, *PUBLIC_PCA),
    "private curvature": PRIVATE_CURVATURE,
    "probes": PROBES,
    "sampled": SAMPLED,
    "sampled layers": (
        *QUICK,
        *MLP,
        *KRONECKER_PCA,
        "mechanism.sampling=0.125",
        "augment.views=2",
        "augment.shift=1.0",
    ),
    "frozen body": (*SAMPLED, *MLP, *KRONECKER_PCA, "precision.kind=kronecker-joint", 'model.trainable=["3.*"]'),
    "one piece": (*QUICK, "engine.micro_batch=1024", "mechanism.rounds=1"),
}
"""Overrides of the digits task by the name of the run. Of one piece most ranks and workers have nothing to do."""

BAD_RECORDS = "bad records"
ROUNDS = {
    "dense": 3,
    "parts": 4,
    "kronecker": 3,
    "public-pca": 3,
    "private curvature": 3,
    "probes": 2,
    "sampled": 3,
    "sampled layers": 3,
    "frozen body": 3,
    "one piece": 1,
    BAD_RECORDS: 2,
}
"""Rounds of every run."""

JOB = """
import json, os, sys
from pathlib import Path
from distqexp import fit
from distqexp.problem.dataset import Dataset

opened = []
original = Dataset.read

def read(self, rows, views=None):
    if self.data.rows == ((597, 1397),):  # the private records of digits
        opened.extend(int(row) for row in rows if row >= 0)
    return original(self, rows, views)

if __name__ == "__main__":
    Dataset.read = read
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
    for out, arguments in json.loads(Path(sys.argv[1]).read_text("utf-8")).items():
        os.environ["DISTQEXP_LEDGER"] = out + ".sqlite"
        opened.clear()
        code = fit.main(["--out", out, "--insecure-noise-seed", "7", "--json", *arguments])
        Path(f"{out}-opened-{rank}.json").write_text(json.dumps(opened), "utf-8")
        if code:
            sys.exit(code)
"""
"""Makes all runs in turn, and writes which private rows of digits this rank opened, in order, to RUN-opened-RANK.json."""


def folder_of(folder: Path, name: str) -> Path:
    """Where the run of that name ends up."""
    return folder / name.replace(" ", "-")


def write_runs(folder: Path, names: Iterable[str], *more: str, blank: bool = False) -> Path:
    """Arguments of the runs, as JSON by output folder; ``blank``: bad records are declared blank instead of being found bad."""
    runs = {str(folder_of(folder, name)): [*settings(*DIGITS[name]), *more] for name in names if name in DIGITS}
    if BAD_RECORDS in names:
        config, spoiled = task(folder, "csv", mechanism={"rounds": 2, "parts": 2}, output={"keep_sketches": True})
        declared = settings(f"data.private.blank={spoiled.blank(folder)}") if blank else []
        runs[str(folder_of(folder, BAD_RECORDS))] = [str(config), *declared, *more]
    path = folder / "runs.json"
    path.write_text(json.dumps(runs), "utf-8")
    return path


def serial_runs(folder: Path) -> Path:
    """All runs in this process, with blank records in the place of bad ones."""
    for out, arguments in json.loads(write_runs(folder, ROUNDS, blank=True).read_text("utf-8")).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DISTQEXP_LEDGER", f"{out}.sqlite")
            assert fit.main(["--out", out, "--insecure-noise-seed", "7", *arguments]) == 0
    return folder


def job_of(folder: Path, runs: Path, ranks: int) -> Finished:
    """The runs of a JSON file, arguments by output folder, in one job of so many MPI ranks."""
    with MpiRun(mpi_command(ranks, str(write_script(folder, JOB)), str(runs)), folder) as job:
        return job.finish(600)


def runs_on_ranks(folder: Path, names: Iterable[str], ranks: int) -> Finished:
    """The runs of these names in one job of so many MPI ranks."""
    return job_of(folder, write_runs(folder, names), ranks)


def runs_on_dask(folder: Path, names: Iterable[str]) -> Finished:
    """The runs of these names on one Dask cluster of two worker processes, which outlives them."""
    with scheduler_with_workers(folder, 2) as (address, _):
        runs = write_runs(folder, names, *settings("engine.kind=dask", f"engine.scheduler={json.dumps(address)}"))
        with MpiRun([sys.executable, str(write_script(folder, JOB)), str(runs)], folder) as job:
            return job.finish(600)


def public_bytes(folder: Path, name: str) -> dict[str, bytes]:
    """Sums, releases, plan and weights of the run of that name in ``folder``."""
    out = folder_of(folder, name)
    return {**pooled(out), **released(out)}


def opened_rows(folder: Path, name: str, ranks: int) -> list[list[int]]:
    """Which private rows each rank opened in the run of that name."""
    return [json.loads(Path(f"{folder_of(folder, name)}-opened-{rank}.json").read_text()) for rank in range(ranks)]
