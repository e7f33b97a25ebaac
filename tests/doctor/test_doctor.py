"""``distqexp doctor`` on this machine: its experiments, its command, its ranks; nothing is left behind or altered."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from mpi_harness import MpiRun, find_mpirun, mpi_command, write_script
from run_harness import Commands

from distqexp.doctor.facts import cpu_quota, own_facts, supported_ranges, within
from distqexp.doctor.mpi import MpiFacts, family, find_launcher
from distqexp.doctor.places import excludes, file_system, look_at, nearest
from distqexp.doctor.survey import look_at_ledger
from distqexp.doctor.world import World, look_at_folder
from distqexp.privacy.ledger import Ledger


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.process
def test_the_command_leaves_nothing_and_alters_no_ledger(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distqexp.doctor.mpi.LAUNCHERS", ())
    books = tmp_path / "books" / "ledger.sqlite"
    with Ledger.open(books):
        pass
    before = contents(tmp_path)
    outcome = run.done("doctor", "--ledger", books, "--json")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["books"]
    lines = outcome.out.splitlines()
    tree = json.loads(lines[-1])
    assert tree["faults"] == 0
    assert len(lines) == len(tree["findings"]) + 2
    said = {finding["check"]: finding for finding in tree["findings"]}
    assert said["ledger"]["status"] == said["hdf5"]["status"] == said["locks"]["status"] == "ok"
    assert "POSIX locks hold, flock locks hold" in said["locks"]["found"]
    books.write_bytes(b"not a ledger" * 100)
    refused = run.distqexp("doctor", "--ledger", books)
    assert refused.code == 5
    assert "fault   ledger: " in refused.out
    assert "file is not a database" in refused.out


@pytest.mark.process
def test_two_ranks_contribute_and_the_first_prints(tmp_path: Path) -> None:
    find_mpirun()
    body = "import sys; from distqexp.cli import run; sys.exit(run(['doctor', '--json']))"
    with MpiRun(mpi_command(2, str(write_script(tmp_path, body))), tmp_path) as job:
        done = job.finish()
    assert done.code == 0, done.err
    tree = json.loads(done.out.splitlines()[-1])
    said = {finding["check"]: finding["found"] for finding in tree["findings"]}
    assert (tree["ranks"], len(tree["hosts"]), done.out.count(" size: ")) == (2, 1, 1)
    assert said["size"] == "2 by MPI"
    assert said["threads"].startswith("2 rank(s) of 1 thread(s)")
    assert said["shared"].endswith("seen by 2 rank(s)")
    assert "OMPI_COMM_WORLD_SIZE is 2" in said["launcher"]
    assert not list(tmp_path.glob(".doctor-*"))


@pytest.mark.process
@pytest.mark.parametrize(("variable", "size"), [("OMPI_COMM_WORLD_SIZE", "4"), ("PMI_SIZE", "3")])
def test_a_world_of_one_under_a_launcher_of_many_is_a_fault(tmp_path: Path, variable: str, size: str) -> None:
    """Each process of a launcher whose MPI isn't mpi4py's looks like this; only the first prints."""
    pytest.importorskip("mpi4py")
    body = "import sys; from distqexp.cli import run; sys.exit(run(['doctor']))"
    script = str(write_script(tmp_path, body))
    printed = []
    for number in ("0", "1"):
        environ = {variable: size, variable.replace("SIZE", "RANK"): number}
        with MpiRun([mpi_command(1, script)[-2], script], tmp_path, environ=environ) as job:
            done = job.finish()
        assert done.code == 5
        printed.append(done.out)
    assert f"fault   size: 1 by MPI; expected {size} ({variable})" in printed[0]
    assert printed[1] == ""


# --- experiments ---------------------------------------------------------------------------------------------


def test_a_lock_that_another_holds_is_noticed_and_a_free_one_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open("r+b") as holder:
        assert not excludes(path, "flock")
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert excludes(path, "flock")
        assert not excludes(path, "posix")  # within one process POSIX locks exclude nobody


def test_locks_that_are_not_supported_exclude_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "lock").touch()
    assert not excludes(tmp_path / "lock", "flock")
    place = look_at("run", tmp_path)  # both kinds are held or none: nothing is tried in another process
    assert (place.posix, place.flock, list(tmp_path.iterdir())) == (False, False, [tmp_path / "lock"])


def test_a_folder_that_is_not_there_is_tried_above(tmp_path: Path) -> None:
    place = look_at("run", tmp_path / "runs" / "new", locks=False, hdf5=True)
    assert (place.folder, place.problem, place.hdf5) == (tmp_path, "", "")
    assert place.free > 0
    assert abs(place.skew) < 5
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert nearest(tmp_path / "file" / "below") == tmp_path


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert look_at("run", tmp_path).problem == "Permission denied"


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    real = os.path.realpath(tmp_path)
    mounts.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {real} rw shared:1 - lustre mds:/x rw\n3 1 0:6 / {real}s rw - nfs4 h:/ rw\n"
    )
    assert file_system(tmp_path, mounts) == "lustre"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "absent") == ""


def test_one_process_sees_its_own_file(tmp_path: Path) -> None:
    (sight,) = look_at_folder(World(MpiFacts()), tmp_path)
    assert (sight.seen, sight.excluded) == (True, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_facts_of_this_process() -> None:
    facts = own_facts(0, 1, {"OMP_NUM_THREADS": "3,2", "SLURM_LOCALID": "5"})
    assert (facts.threads, facts.local_rank, facts.entropy, facts.gpus) == (3, 5, True, None)
    assert set(facts.cores) == os.sched_getaffinity(0)
    assert own_facts(0, 1, {}).threads is None


@pytest.mark.parametrize(
    ("version", "limits", "inside"),
    [
        ("2.8.0", ">=2.8,<2.14", True),
        ("2.13.0+cpu", "<2.14,>=2.8", True),
        ("2.7.9", ">=2.8", False),
        ("2.14", "<2.14", False),
        ("2.14.0", "<2.14", False),
        ("3.0.0rc1", "<3", False),
        ("2025.1", ">=2025.1,<2027", True),
        ("1", "", True),
    ],
)
def test_versions_against_ranges(version: str, limits: str, inside: bool) -> None:
    assert within(version, limits) is inside


def test_the_supported_ranges_are_those_of_the_installed_package() -> None:
    ranges = supported_ranges()
    assert set(ranges) == {"python", "torch", "numpy", "h5py", "mpi4py"}
    assert all(">=" in limits and "<" in limits for limits in ranges.values())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Open MPI v5.0.11", "Open MPI"),
        ("prterun (Open MPI) 5", "Open MPI"),
        ("MPICH Version: 4.2", "MPICH"),
        ("Intel(R) MPI Library 2021.9 for Linux", "MPICH"),
        ("CRAY MPICH version 8.1", "MPICH"),
        ("MVAPICH2 Version 2.3", "MPICH"),
        ("slurm 23.02", ""),
    ],
)
def test_families_of_mpi(words: str, name: str) -> None:
    assert family(words) == name


def test_a_launcher_beside_this_python_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert find_launcher(lambda words: None) is None
    (tmp_path / "srun").touch()
    assert find_launcher(lambda words: "slurm\n 23") == (str(tmp_path / "srun"), "slurm 23")
    (tmp_path / "mpirun").touch()
    assert find_launcher(lambda words: None) == (str(tmp_path / "mpirun"), "")


def test_a_ledger_is_looked_at_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert not look_at_ledger(path).exists
    with Ledger.open(path):
        pass
    before = contents(tmp_path)
    facts = look_at_ledger(path)
    assert (facts.exists, facts.problem, facts.open_to_others) == (True, "", False)
    path.chmod(0o644)
    assert look_at_ledger(path).open_to_others
    assert contents(tmp_path) == before
    key = tmp_path / "ledger.sqlite.files" / "key"
    key.rename(tmp_path / "key")
    assert "no key in" in look_at_ledger(path).problem
    path.unlink()
    assert "its file is gone" in look_at_ledger(path).problem
