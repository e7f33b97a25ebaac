"""One stage at a time, by files that people exchange: what a site does, and what a coordinator does."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.artefacts.plan import Plan, same_rules
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import restored
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config, DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, required
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.setup import build_network
from distqexp.gradients.worker import Worker
from distqexp.privacy.ledger import Ledger
from distqexp.problem.models import allowed_factory
from distqexp.problem.sources import Readers
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.built import check_built, read_plan, read_release
from distqexp.stages.chain import check_chain, check_follows, refuse_other_noise, refuse_test_noise
from distqexp.stages.charging import (
    Charging,
    charge,
    charged_parts,
    charged_to_everybody,
    check_budget,
    everybody_pays,
    ledger_entry,
)
from distqexp.stages.check import check_records
from distqexp.stages.export import evaluate, export_model
from distqexp.stages.folder import new_file, open_folder, release_path
from distqexp.stages.naming import accepted_as, with_contents
from distqexp.stages.overlaps import refuse_overlaps
from distqexp.stages.plan import fitted_schema
from distqexp.stages.release import draw_release, make_release
from distqexp.stages.sharing import plan_from_root, release_from_root
from distqexp.stages.sketch import basis_of, open_shards, sketch_same_records, whole_sketch
from distqexp.stages.void import Void, refuse_false_void, void_round
from distqexp.storage.hdf5 import read_header


def sketch_shard(
    plan_file: Path,
    data: Path | None,
    out: Path,
    engine: Engine,
    *,
    release: Path | None = None,
    shard: str | None = None,
    labels: Path | None = None,
    blank: Path | None = None,
    population: str | None = None,
    insecure_seed: int | None = None,
    ledger: Path | None = None,
    callback: Callable[[ProgressEvent], None] | None = None,
) -> None:
    """At a site: see ``api.sketch``. Collective."""
    plan = plan_from_root(engine, lambda: received_plan(plan_file))
    worker = Worker.of_plan(plan)
    state = _state_after(plan, engine, release, ledger, lambda found: refuse_test_noise(found, insecure_seed), worker)
    spec = shard_data(plan, shard, data, out, labels, blank)

    def own_books() -> Charging:
        books = Charging(Ledger.open(ledger), insecure_seed, unit=spec.unit_name)
        return accepted_as(plan, books, population)

    charging = on_root_only(engine, own_books)
    role = f"site-{spec.shard or 'all'}"
    engine.on_root(lambda: check_budget(plan, required(charging), role, first_round=state.round))

    def digest(*facts: bytes) -> bytes:  # on the root
        return required(charging).ledger.keyed_digest(*facts)

    engine.on_root(lambda: refuse_overlaps(dataclasses.replace(plan.config.data, private=(spec,)), worker.readers))
    sources, fingerprints = open_shards(plan, [spec], engine, digest, state, worker)
    named = on_root_only(
        engine,
        lambda: with_contents(required(charging), required(charging).population_of(plan), [spec], worker.readers),
    )
    parts = out.with_name(out.name + ".parts")
    engine.on_root(lambda: open_folder(parts, resume=True, private=True))
    rounds, public = plan.config.mechanism.rounds, plan.config.privacy.counts_public
    with Progress(rounds=rounds, counts_public=public, silent=not engine.is_root, callback=callback) as progress:
        engine.on_progress = progress.advance
        progress.stage("sketch", state.round)
        sums = sketch_same_records(plan, state, sources, fingerprints, parts, engine, digest, worker)
        progress.advance(1.0)

    def finish() -> None:
        books, total = required(named), required(sums)
        reservation = charge(plan, state, total, books, role, basis=basis_of(sources))
        books.ledger.commit(reservation, None)
        whole_sketch(plan, state, sources[0], total, everybody_pays(plan, reservation)).write(out)
        shutil.rmtree(parts)

    engine.on_root(finish)


def release_round(
    plan_file: Path,
    quadratic: Path,
    out: Path,
    engine: Engine,
    *,
    previous: Path | None = None,
    config: Config | None = None,
    insecure_seed: int | None = None,
    ledger: Path | None = None,
    keep_quadratic: bool = False,
) -> Release:
    """At the coordinator: see ``api.release``. Collective."""
    plan = plan_from_root(engine, lambda: received_plan(plan_file))
    worker = Worker.of_plan(plan)
    state = _state_after(plan, engine, previous, ledger, lambda found: refuse_other_noise(found, insecure_seed), worker)
    public = _public_data(plan, state, config)
    charging = on_root_only(engine, lambda: Charging(Ledger.open(ledger), insecure_seed))

    def draw() -> tuple[npt.NDArray[Any], bool]:
        check_built(plan, worker, state)
        pooled, books = Quadratic.read(quadratic, plan), required(charging)
        return draw_release(plan, state, pooled, books), charged_to_everybody(plan, state, pooled, books)

    noisy_sums, everybody = on_root_only(engine, draw) or (None, False)
    released = make_release(plan, state, noisy_sums, insecure_seed, public, engine, everybody=everybody, worker=worker)
    engine.on_root(lambda: released.write(out))
    if not keep_quadratic:
        engine.on_root(lambda: quadratic.unlink(missing_ok=True))
    return released


def export_run(
    plan_file: Path, releases: Sequence[Path], out: Path, *, config: Config | None = None, ledger: Path | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """See ``api.export``."""
    plan = received_plan(plan_file)
    worker = Worker.of_plan(plan)
    found = sorted((read_release(path, plan) for path in releases), key=lambda item: item.round)
    if found:
        refuse_false_void(plan, found[-1], ledger)
    rounds = plan.config.mechanism.rounds
    if [item.round for item in found] != list(range(rounds)):
        raise UsageError(
            f"export: rounds {[item.round for item in found]}; expected each of 0 to {rounds - 1} once: name every release"
        )
    check_built(plan, worker)
    check_chain(plan, found, worker=worker)
    data = _checked(plan, config).data.eval if config is not None else None
    thetas = {"before": plan.state.theta, "after": found[-1].theta}
    metrics = {when: evaluate(plan, theta, data, worker) for when, theta in thetas.items()}
    charging = Charging(Ledger.open(ledger), found[-1].insecure_seed)
    entry = ledger_entry(plan, charging, rounds - 1)
    open_folder(out, resume=False)
    return export_model(plan, found, out, entry, charged_parts(plan, charging), worker), metrics


def check_source(
    source: Config | Path,
    *,
    shard: str | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    blank: Path | None = None,
) -> list[str]:
    """See ``api.check``. Private."""
    if not isinstance(source, Config):
        plan = received_plan(source)
        spec = shard_data(plan, shard, data, None, labels, blank)
        return check_records(plan.schema, [spec], build_network(plan.config))
    if data is not None or labels is not None or blank is not None:
        raise UsageError(
            "check: data, labels or blank with a config, which names them itself; expected them with a plan"
        )
    found = [spec for spec in source.data.private if shard is None or (spec.shard or "all") == shard]
    if not found:
        raise UsageError(f"shard {shard}: not in the config; expected one of {', '.join(source.shards)}")
    network = build_network(source)
    return check_records(fitted_schema(source, network, Readers()), found, network)


def void_next(plan_file: Path, out: Path, *, release: Path | None = None, ledger: Path | None = None) -> Void:
    """At the coordinator: see ``api.void``."""
    plan = received_plan(plan_file)
    state = _state_after(plan, SerialEngine(), release, ledger, lambda found: None, Worker.of_plan(plan))
    for folder in {plan_file.absolute().parent, out.absolute().parent}:
        _refuse_released(release_path(folder, state.round), plan)
    earlier = _stored_void(out)
    if earlier is None or earlier.release != f"{plan.plan_id}/{state.round}/{state.identity()}":
        new_file(out)
    with Ledger.open(ledger) as books:
        found = void_round(plan, state, books)
    if found != earlier:
        found.write(new_file(out))
    return found


def received_plan(path: Path) -> Plan:
    """The plan of a file, whose model this installation may build. Raises FileContentError, UsageError."""
    received = read_plan(path)
    allowed_factory(received.config.model.factory)
    return received


def _state_after(
    made: Plan,
    engine: Engine,
    release: Path | None,
    ledger: Path | None,
    check: Callable[[Release], None],
    worker: Worker,
) -> RoundState:
    """The state that a release left, which ``check`` lets through; the plan's own without one.

    Whatever is wrong with the release, the ledger is no longer told by a void that its round wasn't released.
    """
    if release is None:
        return made.state

    def read() -> Release:
        found = read_release(release, made)
        refuse_false_void(made, found, ledger)
        check(found)
        if found.round == 0:  # of later ones the state before is not at hand
            restored(release, lambda: check_follows(made, made.state, found, worker=worker))
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


def shard_data(
    made: Plan, shard: str | None, data: Path | None, out: Path | None, labels: Path | None, blank: Path | None
) -> DataConfig:
    """The plan's shard by that name, or by the name of ``data`` or ``out``, with its files on this machine. Raises UsageError."""
    names = made.config.shards
    files = [path for path in (data, out) if path is not None]
    candidates = [shard] if shard is not None else [path.name.split(".")[0] for path in files]
    found = next(
        (name for name in candidates if name in names), names[0] if len(names) == 1 and shard is None else None
    )
    if found is None and not candidates:
        raise UsageError(f"--data: not given; expected the file of one of the shards {', '.join(names)}")
    if found is None and data is not None and not data.exists():
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
        path=None if data is None else str(data.absolute()),
        labels=None if labels is None else str(labels.absolute()),
        blank=None if blank is None else str(blank.absolute()),
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
