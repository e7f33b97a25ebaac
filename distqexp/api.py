"""The stages as functions, for notebooks and scripts: everything that the command line can do.

>>> from distqexp.api import fit, load_config
>>> result = fit(load_config(), "runs/digits")  # doctest: +SKIP
>>> result.certificate["epsilon"]  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.audit.command import Audit, audit_plan, write_audit
from distqexp.audit.one_run import RunAudit, run_audit, write_run_audit
from distqexp.config import Config, DataConfig, EngineConfig, load_config
from distqexp.engines import make_engine
from distqexp.engines.base import Engine
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.fit import FitResult, run
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger_books import LedgerRow
from distqexp.privacy.ledger_head import Anchor
from distqexp.problem.models import allowed_factory
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.artefacts import Plan, Quadratic, Release, RoundState, restored, same_rules
from distqexp.stages.built import check_built
from distqexp.stages.chain import check_chain, check_follows, refuse_other_noise, refuse_test_noise
from distqexp.stages.check import check_records
from distqexp.stages.context import build_network
from distqexp.stages.count import UnitCount, release_count
from distqexp.stages.export import evaluate, export_model
from distqexp.stages.folder import open_folder, release_path
from distqexp.stages.naming import accepted_as, with_contents
from distqexp.stages.overlaps import refuse_overlaps
from distqexp.stages.plan import describe_plan, fitted_schema, make_plan
from distqexp.stages.pool import pool_files
from distqexp.stages.release import (
    Charging,
    charge,
    charged_parts,
    charged_to_everybody,
    check_budget,
    draw_release,
    everybody_pays,
    ledger_entry,
    make_release,
)
from distqexp.stages.sharing import on_root_only, plan_from_root, release_from_root, required
from distqexp.stages.sketch import basis_of, open_shards, sketch_same_records, whole_sketch
from distqexp.stages.verify import verify_paths
from distqexp.stages.void import Void, accept, refuse_false_void, void_round
from distqexp.storage.hdf5 import read_header
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
    charging = Charging(Ledger.open(Path(ledger) if ledger else None), insecure_noise_seed)
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
    if not isinstance(source, Config):
        received = _received_plan(source)
        spec = _shard_data(received, shard, data, None, labels, blank)
        return check_records(received.config, received.schema, [spec])
    if data is not None or labels is not None or blank is not None:
        raise UsageError(
            "check: data, labels or blank with a config, which names them itself; expected them with a plan"
        )
    found = [spec for spec in source.data.private if shard is None or (spec.shard or "all") == shard]
    if not found:
        raise UsageError(f"shard {shard}: not in the config; expected one of {', '.join(source.shards)}")
    return check_records(source, fitted_schema(source), found)


def plan(config: Config, out: StrPath, *, engine: Engine | None = None) -> Plan:
    """Fix every rule before a private record is read and store plan.h5 at ``out``. Reads public data only."""
    path = _new_file(out)
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
    path = _new_file(out)
    parts = path.with_name(path.name + ".parts")
    with engine or make_engine(EngineConfig(), os.environ) as running:
        received = plan_from_root(running, lambda: _received_plan(plan_file))
        state = _state_after(
            received, running, release, ledger, lambda found: refuse_test_noise(found, insecure_noise_seed)
        )
        spec = _shard_data(received, shard, data, path, labels, blank)
        charging = on_root_only(
            running,
            lambda: accepted_as(
                received,
                Charging(Ledger.open(Path(ledger) if ledger else None), insecure_noise_seed, unit=spec.unit_name),
                population,
            ),
        )
        role = f"site-{spec.shard or 'all'}"
        running.on_root(lambda: check_budget(received, required(charging), role, first_round=state.round))

        def digest(*facts: bytes) -> bytes:  # on the root
            return required(charging).ledger.keyed_digest(*facts)

        running.on_root(lambda: refuse_overlaps(dataclasses.replace(received.config.data, private=(spec,))))
        sources, fingerprints = open_shards(received, [spec], running, digest, state)
        named = on_root_only(
            running,
            lambda: with_contents(required(charging), required(charging).population_of(received), [spec]),
        )
        running.on_root(lambda: open_folder(parts, resume=True, private=True))
        rounds = received.config.mechanism.rounds
        public = received.config.privacy.counts_public
        with Progress(rounds=rounds, counts_public=public, silent=not running.is_root, callback=callback) as progress:
            running.on_progress = progress.advance
            progress.stage("sketch", state.round)
            sums = sketch_same_records(received, state, sources, fingerprints, parts, running, digest)
            progress.advance(1.0)

        def finish() -> None:
            books, total = required(named), required(sums)
            reservation = charge(received, state, total, books, role, basis=basis_of(sources))
            books.ledger.commit(reservation, None)
            everybody = everybody_pays(received, reservation)
            whole_sketch(received, state, sources[0], total, everybody).write(path)
            shutil.rmtree(parts)

        running.on_root(finish)


def pool(plan_file: StrPath, sketches: Sequence[StrPath], out: StrPath) -> Quadratic:
    """Add the sketches of exactly the plan's shards and store the pooled quadratic at ``out`` (private, 0600)."""
    path = _new_file(out)
    quadratic = pool_files(Plan.read(Path(plan_file)), [Path(sketch) for sketch in sketches])
    quadratic.write(path)
    return quadratic


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
    path = _new_file(out)
    with engine or make_engine(EngineConfig(), os.environ) as running:
        made = plan_from_root(running, lambda: _received_plan(plan_file))
        state = _state_after(
            made, running, previous, ledger, lambda found: refuse_other_noise(found, insecure_noise_seed)
        )
        public = _public_data(made, state, config)
        charging = on_root_only(
            running, lambda: Charging(Ledger.open(Path(ledger) if ledger else None), insecure_noise_seed)
        )

        def draw() -> tuple[npt.NDArray[Any], bool]:
            check_built(made, build_network(made.config), state)
            pooled, books = Quadratic.read(Path(quadratic), made), required(charging)
            return draw_release(made, state, pooled, books), charged_to_everybody(made, state, pooled, books)

        noisy_sums, everybody = on_root_only(running, draw) or (None, False)
        released = make_release(made, state, noisy_sums, insecure_noise_seed, public, running, everybody=everybody)
        running.on_root(lambda: released.write(path))
        if not keep_quadratic:
            running.on_root(lambda: Path(quadratic).unlink(missing_ok=True))
        return released


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
    made = _received_plan(plan_file)
    found = sorted((Release.read(Path(path), made) for path in releases), key=lambda item: item.round)
    if found:
        refuse_false_void(made, found[-1], Path(ledger) if ledger else None)
    rounds = made.config.mechanism.rounds
    if [item.round for item in found] != list(range(rounds)):
        raise UsageError(
            f"export: rounds {[item.round for item in found]}; expected each of 0 to {rounds - 1} once: name every release"
        )
    check_built(made, build_network(made.config))
    check_chain(made, found)
    data = _checked(made, config).data.eval if config is not None else None
    metrics = {"before": evaluate(made, made.state.theta, data), "after": evaluate(made, found[-1].theta, data)}
    charging = Charging(Ledger.open(Path(ledger) if ledger else None), found[-1].insecure_seed)
    entry = ledger_entry(made, charging, rounds - 1)
    folder = Path(out)
    open_folder(folder, resume=False)
    return export_model(made, found, folder, entry, charged_parts(made, charging)), metrics


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
    path = Path(out)
    made = _received_plan(plan_file)
    state = _state_after(made, SerialEngine(), release, ledger, lambda found: None)
    for folder in {Path(plan_file).absolute().parent, path.absolute().parent}:
        _refuse_released(release_path(folder, state.round), made)
    earlier = _stored_void(path)
    if earlier is None or earlier.release != f"{made.plan_id}/{state.round}/{state.identity()}":
        _new_file(path)
    with Ledger.open(Path(ledger) if ledger else None) as books:
        found = void_round(made, state, books)
    if found != earlier:
        found.write(_new_file(path))
    return found


def accept_void(file: StrPath, *, ledger: StrPath | None = None) -> list[LedgerRow]:
    """At a site: take back, once, what the ledger charged for a round that the coordinator voided. Returns those charges.

    The file must fit the site's own charge: plan, round, state, population, shard. Refused when the ledger knows
    of a release of that round. The same records sketched again are a new charge. Raises FileContentError.
    """
    found = Void.read(Path(file))
    with Ledger.open(Path(ledger) if ledger else None, create=False) as books:
        return accept(found, books)


def ledger_head(ledger: StrPath | None = None) -> str:
    """The ledger's newest entry as ``N:HASH``, to note where nobody rolls back. Public.

    Ledger and folder put back together look like an earlier time; ``ledger_verify`` with a noted head tells.
    """
    with Ledger.open(Path(ledger) if ledger else None, create=False) as books:
        return str(books.head())


def ledger_verify(head: str | None = None, ledger: StrPath | None = None) -> None:
    """Check the ledger's chain, seals and stored arrays, and that it holds ``head`` (``N:HASH``). Raises FileContentError."""
    noted = None if head is None else Anchor.parse(head)
    with Ledger.open(Path(ledger) if ledger else None, create=False) as books:
        books.verify(noted)


def _received_plan(path: StrPath) -> Plan:
    received = Plan.read(Path(path))
    allowed_factory(received.config.model.factory)
    return received


def _state_after(
    made: Plan, engine: Engine, release: StrPath | None, ledger: StrPath | None, check: Callable[[Release], None]
) -> RoundState:
    """The state that a release left, which ``check`` lets through; the plan's own without one.

    Whatever is wrong with the release, the ledger is no longer told by a void that its round wasn't released.
    """
    if release is None:
        return made.state
    path = Path(release)

    def read() -> Release:
        found = Release.read(path, made)
        refuse_false_void(made, found, Path(ledger) if ledger else None)
        check(found)
        if found.round == 0:  # of later ones the state before is not at hand
            restored(path, lambda: check_follows(made, made.state, found))
        return found

    found = release_from_root(engine, made, read)
    if found is None or found.next_state is None:
        raise FileContentError(f"{release}: the release of the last round; nothing is left to do but to export it")
    return found.next_state


def _refuse_released(path: Path, made: Plan) -> None:
    if path.exists() and read_header(path, kind="release").plan_id == made.plan_id:
        raise UsageError(f"{path}: this round of the plan is released; expected one that never was: it can't be voided")


def _stored_void(path: Path) -> Void | None:
    """What an earlier attempt left there. Raises UsageError where it is another file."""
    try:
        return Void.read(path) if path.exists() else None
    except FileContentError:
        raise UsageError(f"--out {path}: exists and is no void; expected a new file, nothing is overwritten") from None


def _shard_data(
    made: Plan, shard: str | None, data: StrPath | None, out: Path | None, labels: StrPath | None, blank: StrPath | None
) -> DataConfig:
    names = made.config.shards
    files = [Path(path) for path in (data, out) if path is not None]
    candidates = [shard] if shard is not None else [path.name.split(".")[0] for path in files]
    found = next(
        (name for name in candidates if name in names), names[0] if len(names) == 1 and shard is None else None
    )
    if found is None and not candidates:
        raise UsageError(f"--data: not given; expected the file of one of the shards {', '.join(names)}")
    if found is None and data is not None and not Path(data).exists():
        raise UsageError(f"--data {data}: no such file; correct the path")
    if found is None:
        where = "--shard" if shard is not None else "the names of " + " and ".join(path.name for path in files)
        raise UsageError(
            f"shard {' or '.join(candidates)} (from {where}): not in the plan; expected one of {', '.join(names)}: give --shard"
        )
    spec = made.config.data.private[names.index(found)]
    if data is None and spec.format != "digits":
        raise UsageError(f"--data: not given; expected the {spec.format} file of shard {found}")
    return dataclasses.replace(
        spec,
        path=None if data is None else str(Path(data).absolute()),
        labels=None if labels is None else str(Path(labels).absolute()),
        blank=None if blank is None else str(Path(blank).absolute()),
    )


def _public_data(made: Plan, state: RoundState, config: Config | None) -> DataConfig | None:
    public = made.config.data.public
    if made.config.precision.source == "probes":
        return None
    if public is None or state.round + 1 >= made.config.mechanism.rounds:
        return None
    if config is not None:
        return _checked(made, config).data.public
    if public.format != "digits":
        raise UsageError(
            "--config: not given; expected the config whose data.public the next round's precision is computed from"
        )
    return public


def _checked(made: Plan, config: Config) -> Config:
    if not same_rules(made, config):
        raise FileContentError(f"config: not the one that plan {made.plan_id[:16]} was made from; give that one")
    return config


def _new_file(path: StrPath) -> Path:
    found = Path(path)
    if found.exists():
        raise UsageError(f"--out {found}: exists; expected a new file, nothing is overwritten")
    if not found.absolute().parent.is_dir():
        raise UsageError(f"--out {found}: its folder does not exist; make it first")
    return found
