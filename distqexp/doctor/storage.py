"""Checks of the folders of the run, of scratch files and of the ledger."""

from __future__ import annotations

import os
from pathlib import Path

from distqexp.config import Config
from distqexp.doctor.findings import Finding, graded
from distqexp.doctor.places import Place
from distqexp.doctor.survey import Survey

LEAST_SPACE = 100 * 2**20
"""The bytes that any run's folder should have free."""


def check_shared(survey: Survey) -> Finding:
    """Every rank sees the run's folder, and ranks keep each other from a lock there."""
    unseen = [rank for rank, sight in enumerate(survey.sights) if not sight.seen]
    loose = [rank for rank, sight in enumerate(survey.sights) if sight.excluded is False]
    fault = warning = ""
    if unseen and not survey.run.problem:
        host = survey.ranks[unseen[0]].host
        fault = f"rank {unseen[0]} on {host} doesn't see the first rank's file: take a folder on a file system that all nodes see"
    elif loose:
        host = survey.ranks[loose[0]].host
        warning = f"rank {loose[0]} on {host} was granted a lock that the first rank held (localflock?): keep the ledger elsewhere"
    return graded(
        "shared",
        f"{survey.run.words()} seen by {len(survey.sights) - len(unseen)} rank(s)",
        "all",
        fault=fault,
        warning=warning,
    )


def check_hdf5(survey: Survey) -> Finding:
    """An HDF5 file can be written to the run's folder and read back."""
    place, version = survey.run, survey.ranks[0].versions.get("h5py", "")
    problem = place.problem or place.hdf5
    found = problem or f"written and read back, h5py {version}; no HDF5 locks are used"
    return graded(
        "hdf5",
        f"{place.words()}: {found}",
        "a file that comes back as it was",
        fault="choose another --out, on a file system that can be written" if problem else "",
    )


def check_locks(survey: Survey) -> Finding:
    """POSIX locks keep two processes apart in the ledger's folder; in the run's folder nobody needs them."""
    books, run = survey.books, survey.run
    found = f"{books.words()}: POSIX {_word(books.posix)}, flock {_word(books.flock)}; run: POSIX {_word(run.posix)}"
    remedy = "set DISTQEXP_LEDGER to a path on a file system with locks, often the home folder"
    return graded(
        "locks",
        books.problem or found,
        "POSIX locks where the ledger is",
        fault=remedy if books.posix is False else "",
        warning=remedy if books.posix is None else "",
    )


def check_space(survey: Survey) -> Finding:
    """There is room for the run's files, scratch files and the ledger."""
    ranks = len(survey.ranks)
    needs = [
        (survey.run, needed_bytes(survey.config, ranks)),
        (survey.scratch, LEAST_SPACE),
        (survey.books, LEAST_SPACE),
    ]
    words = ", ".join(f"{place.name} {_mebibytes(place.free)}" for place, _ in needs)
    expected = ", ".join(f"{place.name} {_mebibytes(need)}" for place, need in needs)
    broken = [place for place, _ in needs if place.problem]
    full = [place for place, need in needs if place.free < need]
    tight = [place for place, need in needs if place.free < 2 * need]
    fault = warning = ""
    if broken:
        fault = f"{broken[0].path}: {broken[0].problem}; {_remedy(broken[0])}"
    elif full:
        fault = f"{full[0].path} is too full; {_remedy(full[0])}"
    elif tight:
        warning = f"{tight[0].path} is nearly full; {_remedy(tight[0])}"
    return graded("space", words, expected, fault=fault, warning=warning)


def check_ledger(survey: Survey) -> Finding:
    """The ledger can be read, or made, and is its owner's alone. Nothing is charged or altered."""
    ledger, place = survey.ledger, survey.books
    found = f"{ledger.path}" + (f" ({place.kind})" if place.kind else "")
    fault = warning = ""
    if ledger.problem:
        fault = (
            f"{ledger.problem}: check DISTQEXP_LEDGER, owner and mode; restore file and folder together from a backup"
        )
    elif place.problem:
        fault = f"no file can be made there ({place.problem}): set DISTQEXP_LEDGER to a path that you may write to"
    elif ledger.open_to_others:
        warning = f"others may read it: chmod -R go= {ledger.path} {ledger.path}.files"
    elif place.network and not (place.posix and place.flock):
        warning = "a network file system without whole locks: set DISTQEXP_LEDGER to a path on one with locks"
    state = "is there and can be read" if ledger.exists else "is not there yet; the first charge makes it"
    return graded(
        "ledger",
        f"{found} {state if not fault else 'fails'}",
        "a ledger that this user alone can open",
        fault=fault,
        warning=warning,
    )


def needed_bytes(config: Config | None, ranks: int) -> int:
    """Estimate the bytes of a run's folder, from the config alone: weights in the plan and twice in the model, sketches, releases.

    A k that follows from the model isn't known here, and counts as nothing.
    """
    if config is None:
        return LEAST_SPACE
    k = config.subspace.k or 0
    weights = 3 * _size(config.model.weights)
    return LEAST_SPACE + weights + 8 * k * (2 * ranks + 2 + 3 * config.mechanism.rounds)


def _size(weights: str | None) -> int:
    path = Path(weights) if weights else None
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [item for item in path.rglob("*.safetensors") if item.is_file()]
    return sum(os.path.getsize(item) for item in files)


def _remedy(place: Place) -> str:
    return {
        "run": "free some space, or choose another --out",
        "scratch": "free some space, or set TMPDIR",
        "ledger": "free some space, or set DISTQEXP_LEDGER",
    }[place.name]


def _word(locks: bool | None) -> str:
    return {True: "locks hold", False: "locks don't hold", None: "locks not known"}[locks]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
