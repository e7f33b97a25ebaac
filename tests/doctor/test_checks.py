"""Each check of ``distqexp doctor``, both ways, on surveys of machines that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distqexp.config import load_config
from distqexp.doctor import CHECKS, Survey, judge
from distqexp.doctor.facts import RankFacts
from distqexp.doctor.findings import Finding, Status
from distqexp.doctor.mpi import MpiFacts
from distqexp.doctor.places import Place
from distqexp.doctor.survey import LedgerFacts
from distqexp.doctor.world import Sight

VERSIONS = {"python": "3.12.1", "torch": "2.9.0+cpu", "numpy": "2.1.0", "h5py": "3.12.1", "mpi4py": "4.1.0"}
RANGES = {"python": ">=3.11,<3.14", "torch": ">=2.8,<2.14", "numpy": "<3,>=2.0"}
OPEN_MPI = MpiFacts("Open MPI v5.0.11", "Open MPI", (3, 1), (3, 1))
CUDA = load_config(None, ["engine.device=cuda"])
SPACE = 2**40


def place(name: str) -> Place:
    """A good folder."""
    return Place(name, Path("/data", name), Path("/data"), "ext4", "", SPACE, True, True, 0.0, "")


def rank(number: int = 0, size: int = 1, **facts: object) -> RankFacts:
    """A rank of one host with 4 cores."""
    own = RankFacts(
        rank=number, size=size, host="node1", local_rank=number, cores=(0, 1, 2, 3), clock=1000.0, versions=VERSIONS
    )
    return replace(own, **facts)  # type: ignore[arg-type]


def silent(words: Sequence[str]) -> str | None:
    """A scheduler that doesn't answer."""
    return None


GOOD = Survey(
    environ={},
    command=silent,
    ranks=(rank(),),
    mpi=OPEN_MPI,
    run=place("run"),
    scratch=place("scratch"),
    books=place("ledger"),
    ledger=LedgerFacts(Path("/data/ledger/ledger.sqlite"), exists=True),
    launcher=("/opt/bin/mpirun", "mpirun (Open MPI) 5.0.11"),
    sights=(Sight(True, None),),
    ranges=RANGES,
    now=1000.0,
)
TWO = replace(
    GOOD,
    environ={"OMPI_COMM_WORLD_SIZE": "2"},
    ranks=(rank(0, 2), rank(1, 2)),
    sights=(Sight(True, None), Sight(True, True)),
    launcher=None,
)
UNSEEN = Place("run", Path("/data/run"), Path("/data"), problem="Permission denied")


def found(survey: Survey, check: str) -> Finding:
    """What one check finds."""
    (finding,) = [finding for finding in judge(survey).findings if finding.check == check]
    return finding


@pytest.mark.parametrize("survey", [GOOD, TWO], ids=["one process", "two ranks"])
def test_a_good_machine_has_nothing_at_fault(survey: Survey) -> None:
    report = judge(survey)
    assert [finding.line() for finding in report.findings if finding.status is not Status.OK] == []
    assert len({finding.check for finding in report.findings}) == len(CHECKS) == len(report.findings)
    assert report.tree()["faults"] == 0


def ranks(*changes: Mapping[str, object]) -> tuple[RankFacts, ...]:
    """Ranks of one host, each with facts of its own."""
    return tuple(rank(number, len(changes), **facts) for number, facts in enumerate(changes))


BAD: list[tuple[str, Status, Survey, str]] = [
    ("versions", Status.FAULT, replace(GOOD, ranks=ranks({"versions": VERSIONS | {"torch": "2.7.1"}})), "torch 2.7.1"),
    ("versions", Status.FAULT, replace(GOOD, ranks=ranks({"versions": VERSIONS | {"numpy": "3.0"}})), "numpy 3.0"),
    ("versions", Status.FAULT, replace(GOOD, ranks=ranks({"versions": VERSIONS | {"torch": ""}})), "install torch"),
    ("versions", Status.FAULT, replace(TWO, ranks=ranks({}, {"versions": {"python": "3.11"}})), "rank 1 on node1"),
    ("mpi", Status.WARNING, replace(GOOD, mpi=MpiFacts(problem="ImportError: no")), "one process needs none"),
    ("mpi", Status.FAULT, replace(TWO, mpi=MpiFacts(problem="ImportError: no")), "distqexp[mpi-bundled]"),
    ("mpi", Status.FAULT, replace(GOOD, mpi=replace(OPEN_MPI, built_for="MPICH")), "build mpi4py against"),
    ("mpi", Status.WARNING, replace(GOOD, mpi=replace(OPEN_MPI, built_standard=(4, 1))), "mpi4py expects 4.1"),
    ("launcher", Status.WARNING, replace(GOOD, launcher=None), "load the site's MPI module"),
    ("launcher", Status.FAULT, replace(GOOD, launcher=("/usr/bin/mpirun", "HYDRA build details")), "only one"),
    ("size", Status.FAULT, replace(GOOD, environ={"OMPI_COMM_WORLD_SIZE": "4"}), "expected 4 (OMPI_COMM_WORLD_SIZE)"),
    ("size", Status.FAULT, replace(GOOD, environ={"PMI_SIZE": "3"}), "--mpi=pmix"),
    ("size", Status.FAULT, replace(TWO, environ={"SLURM_STEP_NUM_TASKS": "3"}), "left over from an outer launcher"),
    ("size", Status.WARNING, replace(TWO, environ={**TWO.environ, "SLURM_NTASKS": "8"}), "has 8 tasks"),
    ("threads", Status.WARNING, replace(GOOD, ranks=ranks({"threads": 8})), "8 thread(s) on 4 core(s)"),
    ("threads", Status.WARNING, replace(TWO, ranks=ranks({"threads": 3}, {"threads": 3})), "fewer ranks on a host"),
    ("threads", Status.WARNING, replace(TWO, ranks=ranks({"quota": 1.5}, {})), "on 1.5 core(s)"),
    (
        "threads",
        Status.WARNING,
        replace(TWO, ranks=ranks({"threads": 2, "cores": (0,)}, {"threads": 2, "cores": (1,)})),
        "bound a rank to fewer cores",
    ),
    ("gpus", Status.FAULT, replace(GOOD, config=CUDA, ranks=ranks({"gpus": ()})), "sees none"),
    ("gpus", Status.WARNING, replace(TWO, config=CUDA, ranks=ranks({"gpus": ("A",)}, {"gpus": ("A",)})), "share a GPU"),
    (
        "shared",
        Status.FAULT,
        replace(TWO, sights=(Sight(True, None), Sight(False, None))),
        "rank 1 on node1 doesn't see",
    ),
    ("shared", Status.WARNING, replace(TWO, sights=(Sight(True, None), Sight(True, False))), "localflock"),
    ("hdf5", Status.FAULT, replace(GOOD, run=UNSEEN), "Permission denied"),
    ("hdf5", Status.FAULT, replace(GOOD, run=replace(GOOD.run, hdf5="other numbers come back")), "other numbers"),
    ("locks", Status.FAULT, replace(GOOD, books=replace(GOOD.books, posix=False)), "set DISTQEXP_LEDGER"),
    ("locks", Status.WARNING, replace(GOOD, books=replace(GOOD.books, posix=None)), "not known"),
    ("space", Status.FAULT, replace(GOOD, run=replace(GOOD.run, free=2**20)), "too full; free some space, or choose"),
    ("space", Status.FAULT, replace(GOOD, scratch=replace(GOOD.scratch, free=2**20)), "set TMPDIR"),
    ("space", Status.FAULT, replace(GOOD, books=replace(UNSEEN, name="ledger")), "Permission denied"),
    ("space", Status.WARNING, replace(GOOD, books=replace(GOOD.books, free=150 * 2**20)), "nearly full"),
    ("clock", Status.WARNING, replace(TWO, ranks=ranks({"clock": 0.0}, {"clock": 60.0})), "NTP"),
    ("clock", Status.WARNING, replace(GOOD, run=replace(GOOD.run, skew=-90.0)), "file system -90.0 s"),
    ("large", Status.FAULT, replace(TWO, large=False), "did not arrive"),
    ("entropy", Status.FAULT, replace(GOOD, ranks=ranks({"entropy": False})), "rngd"),
    ("time", Status.WARNING, replace(GOOD, environ={"SLURM_JOB_END_TIME": "1060"}), "1 minutes"),
    ("time", Status.FAULT, replace(GOOD, environ={"SLURM_JOB_END_TIME": "900"}), "the time is over"),
    ("ledger", Status.FAULT, replace(GOOD, ledger=replace(GOOD.ledger, problem="no key in x")), "from a backup"),
    ("ledger", Status.FAULT, replace(GOOD, books=replace(UNSEEN, name="ledger")), "may write to"),
    ("ledger", Status.WARNING, replace(GOOD, ledger=replace(GOOD.ledger, open_to_others=True)), "chmod"),
    ("ledger", Status.WARNING, replace(GOOD, books=replace(GOOD.books, kind="nfs4", flock=False)), "whole locks"),
]


@pytest.mark.parametrize(("check", "status", "survey", "words"), BAD)
def test_what_is_wrong_is_told_in_one_line_with_a_remedy(
    check: str, status: Status, survey: Survey, words: str
) -> None:
    finding = found(survey, check)
    assert finding.status is status, finding.line()
    assert words in finding.line()
    assert "\n" not in finding.line()
    assert finding.remedy
    assert finding.expected


def test_every_check_is_provoked() -> None:
    assert {check for check, *_ in BAD} == {finding.check for finding in judge(GOOD).findings}


@pytest.mark.parametrize(
    ("check", "survey", "words"),
    [
        (
            "mpi",
            replace(GOOD, mpi=replace(OPEN_MPI, library="Intel(R) MPI Library 2021.9", built_for="MPICH")),
            "Intel",
        ),
        ("mpi", replace(GOOD, mpi=replace(OPEN_MPI, built_for="any MPI 5")), "any MPI 5"),
        (
            "gpus",
            replace(TWO, config=CUDA, ranks=ranks({"gpus": ("A",)}, {"gpus": ("B",)})),
            "A on node1 for 1 rank(s)",
        ),
        ("gpus", replace(TWO, config=CUDA, ranks=ranks({"gpus": ("A", "B")}, {"gpus": ("A", "B")})), "B on node1"),
        ("threads", replace(TWO, config=CUDA, ranks=ranks({"threads": 64}, {"threads": 64})), "1 thread(s)"),
        ("large", replace(TWO, large=True), "arrived on every rank"),
        ("ledger", replace(GOOD, ledger=LedgerFacts(Path("/data/new.sqlite"))), "the first charge makes it"),
        ("ledger", replace(GOOD, books=replace(GOOD.books, kind="nfs4")), "nfs4"),
    ],
)
def test_what_looks_odd_and_is_well(check: str, survey: Survey, words: str) -> None:
    finding = found(survey, check)
    assert finding.status is Status.OK, finding.line()
    assert words in finding.line()


@pytest.mark.parametrize(
    ("environ", "said", "minutes"),
    [
        ({"SLURM_JOB_ID": "7"}, {"squeue": "1-02:03:04\n"}, 26 * 60 + 3),
        ({"SLURM_JOB_ID": "7"}, {"squeue": "20:00\n"}, 20),
        ({"SLURM_JOB_ID": "7"}, {"squeue": "UNLIMITED\n"}, None),
        ({"SLURM_JOB_ID": "7"}, {}, None),
        (
            {"PBS_JOBID": "8.host"},
            {"qstat": "    Resource_List.walltime = 04:00:00\n    resources_used.walltime = 01:30:00\n"},
            150,
        ),
        ({"LSB_JOBID": "9"}, {"bjobs": "2:30 L\n"}, 150),
        ({}, {"squeue": "20:00"}, None),
    ],
)
def test_the_time_that_is_left(environ: dict[str, str], said: dict[str, str], minutes: int | None) -> None:
    finding = found(replace(GOOD, environ=environ, command=lambda words: said.get(words[0])), "time")
    assert finding.found.split(" (")[0] == ("not known" if minutes is None else f"{minutes} minutes")


def test_the_space_follows_from_the_config() -> None:
    config = load_config(None, ["subspace.kind=sjlt", "subspace.k=1000000", "mechanism.rounds=2"])
    small, large = (found(replace(GOOD, config=given), "space").expected for given in (None, config))
    assert "run 100 MiB" in small
    assert f"run {100 + 8e6 * (2 + 2 + 6) / 2**20:,.0f} MiB" in large
