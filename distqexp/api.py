"""The stages as functions, for notebooks and scripts: everything that the command line can do.

>>> from distqexp.api import fit, load_config
>>> result = fit(load_config(), "runs/digits")  # doctest: +SKIP
>>> result.certificate["epsilon"]  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.audit.command import Audit, audit_plan, write_audit
from distqexp.audit.one_run import RunAudit, run_audit, write_run_audit
from distqexp.config import Config, EngineConfig, load_config
from distqexp.engines import make_engine
from distqexp.engines.base import Engine
from distqexp.privacy.ledger import Ledger, LedgerRow
from distqexp.privacy.ledger.head import Anchor
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.by_hand import (
    check_source,
    export_run,
    release_round,
    sketch_shard,
    void_next,
)
from distqexp.stages.charging import Charging
from distqexp.stages.count import UnitCount, release_count
from distqexp.stages.folder import new_file, open_folder
from distqexp.stages.plan import describe_plan, make_plan
from distqexp.stages.pool import pool_by_hand
from distqexp.stages.rounds import FitResult, run
from distqexp.stages.verify import verify_paths
from distqexp.stages.void import Void, accept
from distqexp.storage.inspect import describe
from distqexp.tuning import tune

__all__ = [
    "Audit",
    "Ledger",
    "RunAudit",
    "Void",
    "accept_void",
    "audit",
    "audit_run",
    "check",
    "count",
    "describe_plan",
    "export",
    "fit",
    "inspect",
    "ledger_head",
    "ledger_verify",
    "load_config",
    "plan",
    "pool",
    "release",
    "sketch",
    "tune",
    "verify",
    "void",
]

StrPath = str | os.PathLike[str]


def fit(
    config: Config,
    out: StrPath,
    *,
    resume: bool = False,
    insecure_noise_seed: int | None = None,
    callback: Callable[[ProgressEvent], None] | None = None,
    engine: Engine | None = None,
) -> FitResult | None:
    """Run plan to export into the folder ``out``. Returns the releases, the certificate and the metrics.

    callback: called with each progress event, which holds no private figure, in the calling thread. engine: the one of the config
    when None. Under MPI every rank calls it and the first one gets the result, the others None. Raises
    DistqexpError.
    """
    folder = Path(out)
    with engine or make_engine(config.engine, os.environ) as running:
        rounds, silent = config.mechanism.rounds, not running.is_root
        public = config.privacy.counts_public
        with Progress(folder, rounds=rounds, counts_public=public, silent=silent, callback=callback) as progress:
            return run(config, folder, running, progress, resume=resume, insecure_seed=insecure_noise_seed)


def count(
    config: Config, epsilon: float, *, ledger: StrPath | None = None, insecure_noise_seed: int | None = None
) -> UnitCount:
    """A noisy count of the private units, charged to the ledger: for ``privacy.units`` where no public figure is known."""
    charging = Charging(Ledger.open(_path(ledger)), insecure_noise_seed)
    return release_count(config, charging, epsilon)


def check(
    source: Config | StrPath,
    *,
    shard: str | None = None,
    data: StrPath | None = None,
    labels: StrPath | None = None,
    blank: StrPath | None = None,
) -> list[str]:
    """Which private records of a config, or of a plan file and ``data``, are usable, and why others are not, in lines for people.

    PRIVATE, and marked so: for whoever may see the records, on their own terminal. Writes nothing and charges nothing. shard: this one
    alone. Raises FileContentError for a file that can't be used at all.
    """
    return check_source(
        source if isinstance(source, Config) else Path(source),
        shard=shard, data=_path(data), labels=_path(labels), blank=_path(blank),
    )  # fmt: skip


def plan(config: Config, out: StrPath, *, engine: Engine | None = None) -> Plan:
    """Fix every rule before a private record is read and store plan.h5 at ``out``. Reads public data only."""
    path = new_file(Path(out))
    with engine or make_engine(config.engine, os.environ) as running:
        made = make_plan(config, running)
        running.on_root(lambda: made.write(path))
        return made


def sketch(
    plan_file: StrPath,
    data: StrPath | None,
    out: StrPath,
    *,
    release: StrPath | None = None,
    shard: str | None = None,
    labels: StrPath | None = None,
    blank: StrPath | None = None,
    population: str | None = None,
    insecure_noise_seed: int | None = None,
    ledger: StrPath | None = None,
    callback: Callable[[ProgressEvent], None] | None = None,
    engine: Engine | None = None,
) -> None:
    """At a site: sketch one shard of private records at the plan's round, or at the one after ``release``.

    Charges the site's own ledger, once for the same records. The file ``out`` is as sensitive as the
    records (mode 0600). shard: one of the plan's names; may be left out when the plan has one shard, or when
    ``data`` or ``out`` carries its name. population: what this site calls the plan's population, needed once where its
    ledger knows other names only. Interrupted work in ``out``.parts is taken up again.

    insecure_noise_seed: of a test run, whose releases are NOT PRIVATE: any other release so marked is refused, and the charge is to
    that test run's books.
    """
    path = new_file(Path(out))
    with engine or make_engine(EngineConfig(), os.environ) as running:
        sketch_shard(
            Path(plan_file), _path(data), path, running,
            release=_path(release), shard=shard, labels=_path(labels), blank=_path(blank), population=population,
            insecure_seed=insecure_noise_seed, ledger=_path(ledger), callback=callback,
        )  # fmt: skip


def pool(plan_file: StrPath, sketches: Sequence[StrPath], out: StrPath) -> Quadratic:
    """Add the sketches of exactly the plan's shards and store the pooled quadratic at ``out`` (private, 0600)."""
    return pool_by_hand(Path(plan_file), [Path(sketch) for sketch in sketches], Path(out))


def release(
    plan_file: StrPath,
    quadratic: StrPath,
    out: StrPath,
    *,
    previous: StrPath | None = None,
    config: Config | None = None,
    insecure_noise_seed: int | None = None,
    ledger: StrPath | None = None,
    keep_quadratic: bool = False,
    engine: Engine | None = None,
) -> Release:
    """At the curator: charge the ledger, draw, and store the release of the quadratic's round at ``out``.

    previous: the release before, from the second round on. config: where the public data are, for the next
    round's precision and clip. The quadratic file is deleted afterwards unless ``keep_quadratic``.
    """
    path = new_file(Path(out))
    with engine or make_engine(EngineConfig(), os.environ) as running:
        return release_round(
            Path(plan_file), Path(quadratic), path, running,
            previous=_path(previous), config=config, insecure_seed=insecure_noise_seed, ledger=_path(ledger),
            keep_quadratic=keep_quadratic,
        )  # fmt: skip


def export(
    plan_file: StrPath,
    releases: Sequence[StrPath],
    out: StrPath,
    *,
    config: Config | None = None,
    ledger: StrPath | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Write model.safetensors, model.pt and certificate.json into the folder ``out``.

    releases: all of the plan's rounds. Returns the certificate and, with a config that has data.eval, the
    metrics before and after.
    """
    paths = [Path(path) for path in releases]
    return export_run(Path(plan_file), paths, Path(out), config=config, ledger=_path(ledger))


def audit(plan_file: StrPath, out: StrPath, *, draws: int = 100_000) -> Audit:
    """Draw ``draws`` releases of a plan's mechanism on two neighbouring datasets; audit.json and audit.png into the folder ``out``."""
    found = audit_plan(Plan.read(Path(plan_file)), draws)
    write_audit(found, Path(out))
    return found


def audit_run(config: Config, canaries: int, out: StrPath, *, insecure_noise_seed: int | None = None) -> RunAudit:
    """One run on public records and ``canaries`` made-up ones, audited; audit-run.json and audit-run.png into the folder ``out``.

    Opens no private file and charges nothing.
    """
    open_folder(Path(out), resume=True)  # refused now, not after the run
    found = run_audit(config, canaries, seed=insecure_noise_seed)
    write_run_audit(found, Path(out))
    return found.audit


def inspect(path: StrPath) -> str:
    """What a file is, in a few lines for people. Of private files the header only."""
    return describe(Path(path))


def verify(*paths: StrPath) -> list[str]:
    """Check files, certificates or a run's folder, held against each other; one line a file, with what could not be checked.

    A certificate is computed again from the plan and all its releases, given or beside it. Raises FileContentError at the
    first bad one.
    """
    return verify_paths([Path(path) for path in paths])


def void(plan_file: StrPath, out: StrPath, *, release: StrPath | None = None, ledger: StrPath | None = None) -> Void:
    """At the coordinator: the plan's round, or the one after ``release``, will never be released. Stores that at ``out`` for the sites.

    For a round whose sketches don't all arrive. The ledger refuses the round's release from then on, whatever the sums; a
    round with a draw can't be voided. Again, it is the same file. Not signed yet: hand it on by a way that the sites trust.
    """
    return void_next(Path(plan_file), Path(out), release=_path(release), ledger=_path(ledger))


def accept_void(file: StrPath, *, ledger: StrPath | None = None) -> list[LedgerRow]:
    """At a site: take back, once, what the ledger charged for a round that the coordinator voided. Returns those charges.

    The file must fit the site's own charge: plan, round, state, population, shard. Refused when the ledger knows
    of a release of that round. The same records sketched again are a new charge. Raises FileContentError.
    """
    found = Void.read(Path(file))
    with Ledger.open(_path(ledger), create=False) as books:
        return accept(found, books)


def ledger_head(ledger: StrPath | None = None) -> str:
    """The ledger's newest entry as ``N:HASH``, to note where nobody rolls back. Public.

    Ledger and folder put back together look like an earlier time; ``ledger_verify`` with a noted head tells.
    """
    with Ledger.open(_path(ledger), create=False) as books:
        return str(books.head())


def ledger_verify(head: str | None = None, ledger: StrPath | None = None) -> None:
    """Check the ledger's chain, seals and stored arrays, and that it holds ``head`` (``N:HASH``). Raises FileContentError."""
    noted = None if head is None else Anchor.parse(head)
    with Ledger.open(_path(ledger), create=False) as books:
        books.verify(noted)


def _path(path: StrPath | None) -> Path | None:
    return Path(path) if path else None
