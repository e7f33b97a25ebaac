"""Checks of the hosts: versions, cores and threads, GPUs, clocks, entropy."""

from __future__ import annotations

from collections import Counter

from distqexp.doctor.facts import RankFacts, by_host, within
from distqexp.doctor.findings import Finding, graded
from distqexp.doctor.survey import Survey
from distqexp.engines.placement import device_of

CLOCK_SECONDS = 5.0
"""Clocks may differ by so much, the way to the file system and a coarse clock of its own included."""


def check_versions(survey: Survey) -> Finding:
    """Python and the packages are in the supported ranges, and the same on all ranks."""
    versions = survey.ranks[0].versions
    outside = [f"{name} {version}" for name, version in versions.items() if not _supported(survey, name, version)]
    limits = (
        ", ".join(f"{name} {limits}" for name, limits in survey.ranges.items()) or "versions of the installed package"
    )
    missing = [name for name in ("torch", "numpy", "h5py") if not versions.get(name)]
    others = [facts.rank for facts in survey.ranks if facts.versions != versions]
    fault = ""
    if others:
        fault = (
            f"rank {others[0]} on {survey.ranks[others[0]].host} has other versions: use one environment on all hosts"
        )
    elif outside or missing:
        fault = f"install {', '.join(outside + missing)} in a supported version: pip install distqexp"
    return graded(
        "versions", ", ".join(f"{name} {text or 'absent'}" for name, text in versions.items()), limits, fault=fault
    )


def check_threads(survey: Survey) -> Finding:
    """The threads of a host's ranks have a core each."""
    worst, warning = "", ""
    for host, ranks in by_host(survey.ranks).items():
        threads = max(_threads(survey, facts) for facts in ranks)
        cores = _cores(ranks)
        own = min(len(facts.cores) for facts in ranks)
        words = f"{len(ranks)} rank(s) of {threads} thread(s) on {cores:g} core(s) of {host}"
        worst = worst or words
        if own < threads and not warning:
            worst = f"{words}, {own} of them for a rank"
            warning = (
                "the launcher bound a rank to fewer cores than its threads: --bind-to none, or --map-by slot:PE=THREADS"
            )
        elif threads * len(ranks) > cores and not warning:
            worst, warning = words, "fewer ranks on a host, or fewer threads (engine.threads, OMP_NUM_THREADS)"
    return graded("threads", worst, "no more threads than cores", warning=warning)


def check_gpus(survey: Survey) -> Finding:
    """Each rank finds a GPU, and none shares it with another rank of its host."""
    expected = "a GPU of its own for each rank" if survey.device == "cuda" else "nothing, with engine.device = cpu"
    if survey.ranks[0].gpus is None:
        return graded("gpus", "not looked for", expected)
    taken: Counter[tuple[str, str]] = Counter()
    blind = [facts for facts in survey.ranks if not facts.gpus]
    for facts in survey.ranks:
        if facts.gpus:
            number = int(device_of("cuda", facts.local_rank, len(facts.gpus)).partition(":")[2])
            taken[facts.host, facts.gpus[number]] += 1
    words = ", ".join(f"{name} on {host} for {count} rank(s)" for (host, name), count in taken.items()) or "none"
    fault = warning = ""
    if blind and survey.device == "cuda":
        fault = f"rank {blind[0].rank} on {blind[0].host} sees none: install torch for CUDA and ask the scheduler for a GPU a rank"
    elif any(count > 1 for count in taken.values()):
        warning = "ranks share a GPU: as many ranks as GPUs on a host, and let the launcher number them (local rank)"
    return graded("gpus", words, expected, fault=fault, warning=warning)


def check_clock(survey: Survey) -> Finding:
    """The clocks of the ranks and of the run's file system agree."""
    clocks = [facts.clock for facts in survey.ranks]
    spread, skew = max(clocks) - min(clocks), survey.run.skew
    late = spread > CLOCK_SECONDS or abs(skew) > CLOCK_SECONDS
    return graded(
        "clock",
        f"ranks within {spread:.1f} s, file system {skew:+.1f} s",
        f"within {CLOCK_SECONDS:g} s",
        warning="set the clocks by a time server (NTP): a change of the private files is told by their times"
        if late
        else "",
    )


def check_entropy(survey: Survey) -> Finding:
    """The system's random source is ready on the first rank, which draws the noise."""
    ready = survey.ranks[0].entropy
    remedy = "wait until the machine has gathered randomness, or run rngd; noise is never drawn from anything else"
    return graded(
        "entropy",
        "at once" if ready else "not ready",
        "32 bytes from the system at once",
        fault="" if ready else remedy,
    )


def _supported(survey: Survey, name: str, version: str) -> bool:
    return not version or within(version, survey.ranges.get(name, ""))


def _threads(survey: Survey, facts: RankFacts) -> int:
    """How many threads a rank has: the config's, to which a run is pinned, else what the environment says."""
    return survey.config.engine.threads if survey.config else facts.threads or 1


def _cores(ranks: list[RankFacts]) -> float:
    """How many cores the ranks of a host have together."""
    cores = float(len({core for facts in ranks for core in facts.cores}))
    quotas = [facts.quota for facts in ranks if facts.quota is not None]
    return min([cores, *quotas])
