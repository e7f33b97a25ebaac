"""What each rank knows of itself: its host, cores, clock, versions, GPUs. Plain data that travels to the first rank."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from distqexp.engines.launcher import local_rank

PACKAGES = ("torch", "numpy", "h5py", "mpi4py")
"""The packages whose versions are told and compared over the ranks."""

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class RankFacts:
    """One rank's account of itself.

    Attributes:
        rank: Its number by MPI.
        size: How many ranks there are by MPI.
        host: The name of its host.
        local_rank: Its number on the host, by the launcher.
        cores: The cores that it may run on.
        quota: How many cores' worth of time its group of processes may use; None without a limit.
        threads: OMP_NUM_THREADS; None where it is not set.
        clock: Seconds since the epoch, read when all ranks met.
        entropy: Whether the system's random source answered without waiting.
        gpus: What names each GPU that the rank sees, such as its UUID; None where nobody looked.
        versions: Of Python and of PACKAGES, by name; empty for what is not installed.
    """

    rank: int = 0
    size: int = 1
    host: str = ""
    local_rank: int = 0
    cores: tuple[int, ...] = (0,)
    quota: float | None = None
    threads: int | None = None
    clock: float = 0.0
    entropy: bool = True
    gpus: tuple[str, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def own_facts(rank: int, size: int, environ: Mapping[str, str], *, look_for_gpus: bool = False) -> RankFacts:
    """Return the facts of this process."""
    threads = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return RankFacts(
        rank=rank,
        size=size,
        host=socket.gethostname(),
        local_rank=local_rank(environ),
        cores=_cores(),
        quota=cpu_quota(_CGROUPS),
        threads=int(threads) if threads.isdigit() else None,
        clock=time.time(),
        entropy=has_entropy(),
        gpus=visible_gpus() if look_for_gpus else None,
        versions={"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
    )


def has_entropy() -> bool:
    """Whether the system's random source gives 32 bytes at once."""
    if not hasattr(os, "getrandom"):
        return len(os.urandom(32)) == 32
    try:
        return len(os.getrandom(32, os.GRND_NONBLOCK)) == 32
    except BlockingIOError:
        return False


def cpu_quota(folder: Path) -> float | None:
    """Return the limit of a control group's processor time in cores, of version 2 or 1; None without a limit."""
    for name, period_name in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (folder / name).read_text("ascii").split()
            if period_name is not None:
                words += (folder / period_name).read_text("ascii").split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            return int(words[0]) / int(words[1])
    return None


def visible_gpus() -> tuple[str, ...]:
    """Return what names each GPU that torch sees here. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return ()
    names = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        names.append(f"{properties.name} {getattr(properties, 'uuid', number)}")
    return tuple(names)


def version_of(package: str) -> str:
    """Return a package's version without loading it; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def supported_ranges() -> dict[str, str]:
    """Return the ranges of versions that distqexp declares for Python and PACKAGES, such as ``>=2.0,<3``."""
    try:
        own = metadata.metadata("distqexp")
    except metadata.PackageNotFoundError:
        return {}
    ranges = {"python": "".join(own.get_all("Requires-Python") or [])}
    for words in own.get_all("Requires-Dist") or []:
        name, _, limits = _split_requirement(words.partition(";")[0].strip())
        if name in PACKAGES:
            ranges.setdefault(name, limits)
    return ranges


def within(version: str, limits: str) -> bool:
    """Whether a version lies in a range of ``>=`` and ``<`` limits. Letters after the numbers don't count."""
    for limit in filter(None, (part.strip() for part in limits.split(","))):
        sign = ">=" if limit.startswith(">=") else "<"
        bound = _numbers(limit.removeprefix(sign))
        if (_numbers(version) >= bound) != (sign == ">="):
            return False
    return True


def _split_requirement(words: str) -> tuple[str, str, str]:
    """Return name, extras and limits of a requirement such as ``mpi4py[x]<5,>=4.1``."""
    at = next((i for i, letter in enumerate(words) if letter in "<>=!~[ ("), len(words))
    rest = words[at:].strip("() ")
    extras, limits = rest[: rest.find("]") + 1], rest[rest.find("]") + 1 :]
    return words[:at], extras, limits


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, without zeros at the end."""
    numbers = []
    for part in version.strip().split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def by_host(ranks: Sequence[RankFacts]) -> dict[str, list[RankFacts]]:
    """Return the ranks of each host."""
    hosts: dict[str, list[RankFacts]] = {}
    for facts in ranks:
        hosts.setdefault(facts.host, []).append(facts)
    return hosts
