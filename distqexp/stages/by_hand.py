"""One stage at a time, through files that people exchange: what a site does, and what a coordinator does."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import with_file_errors
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config, DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, require
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.setup import build_network
from distqexp.gradients.worker import Worker
from distqexp.privacy.ledger import Ledger
from distqexp.problem.losses import is_own
from distqexp.problem.models import require_allowed_factory
from distqexp.problem.sources import DataSource, Readers
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.built import check_built, read_plan, read_release
from distqexp.stages.chain import check_chain, check_follows, completed_chain, refuse_other_noise, refuse_test_noise
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
from distqexp.stages.completing import completion, required_public_data, same_config
from distqexp.stages.export import evaluation_of, export_model
from distqexp.stages.extra_columns import extra_columns, line_of_extra, without_columns
from distqexp.stages.folder import new_file, open_folder, release_path
from distqexp.stages.naming import charging_at_site, with_contents
from distqexp.stages.overlaps import refuse_overlaps
from distqexp.stages.own_weights import completed_plan
from distqexp.stages.plan import fitted_schema
from distqexp.stages.release import Draw, completed_release, draw_release, make_release
from distqexp.stages.remarks import Study, remarks_of
from distqexp.stages.reporting import Account, store_report
from distqexp.stages.sampling import forget_coins, forgetting_refused, secrets_of
from distqexp.stages.shards import basis_of, open_shards
from distqexp.stages.shares import handed_on, refuse_seed
from distqexp.stages.sharing import plan_from_root, release_from_root
from distqexp.stages.sketch import sketch_same_records, whole_sketch
from distqexp.stages.table_warnings import count_warnings
from distqexp.stages.void import Void, refuse_false_void, void_round
from distqexp.storage.hdf5 import read_header


@dataclass(frozen=True)
class SketchOrder:
    """What a site is asked to sketch; ``api.sketch`` describes the fields."""

    plan: Path
    data: Path | None
    out: Path
    releases: tuple[Path, ...] = ()
    shard: str | None = None
    labels: Path | None = None
    tokenizer: Path | None = None
    blank: Path | None = None
    population: str | None = None
    noise_seed: int | None = None
    ledger: Path | None = None
    callback: Callable[[ProgressEvent], None] | None = None
    weights: Path | None = None
    on_remarks: Callable[[Sequence[str]], None] | None = None


def sketch_shard(order: SketchOrder, engine: Engine) -> None:
    """Sketch a site's shard and charge the site's ledger, as ``api.sketch`` describes. Collective: every rank calls it."""
    out = order.out
    plan = plan_from_root(engine, lambda: _received_plan(order.plan, order.weights))
    refuse_seed(plan, order.noise_seed)
    worker = Worker.of_plan(plan)
    state = _state_after(
        plan, engine, order.releases, order.ledger, lambda release: refuse_test_noise(release, order.noise_seed), worker
    )
    spec = _shard_data(plan, order.shard, order.data, out, order.labels, order.blank, order.tokenizer)

    def open_books() -> Charging:
        books = Charging(Ledger.open(order.ledger), order.noise_seed, unit=spec.unit_name)
        if sys.stderr.isatty() and (line := books.ledger.new_line()):  # for people: logs of two runs are alike
            sys.stderr.write(f"distqexp: {line}\n")
        return charging_at_site(plan, books, order.population)

    charging = on_root_only(engine, open_books)
    role = f"site-{spec.shard or 'all'}"
    engine.on_root(lambda: check_budget(plan, require(charging), role, first_round=state.round))

    spec = without_columns(spec, engine.on_root(lambda: _told_extra_columns(plan, spec, worker.readers)))
    secrets = secrets_of(plan, charging, role)
    engine.on_root(lambda: refuse_overlaps(dataclasses.replace(plan.config.data, private=(spec,)), worker.readers))
    shards = open_shards(plan, [spec], engine, secrets.digest, state, worker)
    engine.on_root(lambda: sys.stderr.write("".join(f"{line}\n" for line in count_warnings(plan, shards.sources))))
    if (tell := order.on_remarks) is not None:
        engine.on_root(lambda: tell(_remarks_on(plan, shards.sources[0], worker)))
    charging_with_contents = on_root_only(
        engine,
        lambda: with_contents(require(charging), require(charging).population_of(plan), [spec], worker.readers),
    )
    parts = out.with_name(out.name + ".parts")
    engine.on_root(lambda: open_folder(parts, resume=True, private=True))
    rounds, public = plan.config.mechanism.rounds, plan.config.privacy.adjacency.counts_public
    with Progress(rounds=rounds, counts_public=public, silent=not engine.is_root, callback=order.callback) as progress:
        engine.on_progress = progress.advance
        progress.stage("sketch", state.round)
        sums = sketch_same_records(plan, state, shards, parts, engine, secrets, worker)
        progress.advance(1.0)

    def finish() -> None:
        books, total = require(charging_with_contents), require(sums)
        with forgetting_refused(plan, books, role, state.round):
            reservation = charge(plan, state, total, books, role, basis=basis_of(shards.sources))
        total = handed_on(plan, state, total, books, reservation)
        whole_sketch(plan, state, shards.sources[0], total, everybody_pays(plan, reservation)).write(out)
        shutil.rmtree(parts)
        forget_coins(plan, books, role, range(state.round + 1))

    engine.on_root(finish)


def _told_extra_columns(plan: Plan, data: DataConfig, readers: Readers) -> list[str]:
    names = extra_columns(plan, data, readers)
    if names:
        sys.stderr.write(f"{line_of_extra(names, data)}\n")
    return names


def _remarks_on(plan: Plan, source: DataSource, worker: Worker) -> list[str]:
    """Return what looks wrong in a site's records, for their owner alone."""
    dataset = source.open(plan.schema, 0, worker.readers).of_model(worker.network)
    return remarks_of(dataset, source.slots, Study.of_plan(plan, worker))


@dataclass(frozen=True)
class ReleaseOrder:
    """What a coordinator is asked to release; ``api.release`` describes the fields."""

    plan: Path
    quadratic: Path
    out: Path
    previous: tuple[Path, ...] = ()
    config: Config | None = None
    noise_seed: int | None = None
    ledger: Path | None = None
    keep_quadratic: bool = False
    weights: Path | None = None


def release_round(order: ReleaseOrder, engine: Engine) -> Release:
    """Release a round at the coordinator, as ``api.release`` describes. Collective: every rank calls it."""
    seed = order.noise_seed
    plan = plan_from_root(engine, lambda: _received_plan(order.plan, order.weights, order.config))
    refuse_seed(plan, seed)
    worker = Worker.of_plan(plan)
    state = _state_after(
        plan, engine, order.previous, order.ledger, lambda previous: refuse_other_noise(previous, seed), worker
    )
    public = required_public_data(plan, state, order.config)
    charging = on_root_only(engine, lambda: Charging(Ledger.open(order.ledger), seed))

    def draw() -> tuple[npt.NDArray[Any], bool]:
        check_built(plan, worker, state)
        pooled, books = Quadratic.read(order.quadratic, plan), require(charging)
        noisy_sums = draw_release(plan, state, pooled, books)
        return noisy_sums, charged_to_everybody(plan, state, books, everybody=pooled.everybody)

    noisy_sums, everybody = on_root_only(engine, draw) or (None, False)
    release = make_release(plan, state, Draw(noisy_sums, seed, everybody), public, engine, worker)
    engine.on_root(lambda: release.write(order.out))
    if not order.keep_quadratic:
        engine.on_root(lambda: order.quadratic.unlink(missing_ok=True))
    return release


def export_run(
    plan_file: Path,
    releases: Sequence[Path],
    out: Path,
    *,
    config: Config | None = None,
    ledger: Path | None = None,
    weights: Path | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Write a finished run's model and certificate; return certificate and metrics, as ``api.export`` describes."""
    plan = _received_plan(plan_file, weights, config)
    worker = Worker.of_plan(plan)
    chain = sorted((read_release(path, plan) for path in releases), key=lambda release: release.round)
    if chain:
        refuse_false_void(plan, chain[-1], ledger)
    rounds = plan.config.mechanism.rounds
    numbers = [release.round for release in chain]
    if numbers != list(range(rounds)):
        raise UsageError(f"export: rounds {numbers}; expected each of 0 to {rounds - 1} once: name every release")
    check_built(plan, worker)
    complete = completion(plan, config, worker)
    chain = completed_chain(plan, chain, worker, complete)
    check_chain(plan, chain, worker=worker, complete=complete)
    data = same_config(plan, config).data.eval if config is not None else None
    thetas = {"before": plan.state.theta, "after": chain[-1].theta}
    evaluations = {when: evaluation_of(plan, theta, data, worker) for when, theta in thetas.items()}
    charging = Charging(Ledger.open(ledger), chain[-1].noise_seed)
    entry = ledger_entry(plan, charging, rounds - 1)
    open_folder(out, resume=False, of_run=False)
    payers = charged_parts(plan, charging)
    certificate = export_model(plan, chain, out, entry, payers, worker)
    public = config.data.public if config is not None else None
    store_report(plan, chain, certificate, Account(charging, payers, evaluations, public, worker), out)
    return certificate, {when: evaluation.metrics for when, evaluation in evaluations.items()}


def check_source(
    source: Config | Path,
    *,
    shard: str | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    blank: Path | None = None,
    tokenizer: Path | None = None,
) -> list[str]:
    """Describe a shard's records to their owner, in lines, as ``api.check`` describes. The lines are private."""
    if not isinstance(source, Config):
        plan = _allowed_plan(source)
        spec, worker = _shard_data(plan, shard, data, None, labels, blank, tokenizer), Worker.of_plan(plan)
        extra = extra_columns(plan, spec, worker.readers)
        lines = check_records(plan.schema, [without_columns(spec, extra)], worker.network, Study.of_plan(plan, worker))
        return [*lines, *([line_of_extra(extra, spec)] if extra else [])]
    if any(path is not None for path in (data, labels, blank, tokenizer)):
        raise UsageError(
            "check: data, labels, tokenizer or blank with a config, which names them itself; expected them with a plan"
        )
    specs = [spec for spec in source.data.private if shard is None or (spec.shard or "all") == shard]
    if not specs:
        raise UsageError(f"shard {shard}: not in the config; expected one of {', '.join(source.shards)}")
    network = build_network(source)
    return check_records(fitted_schema(source, network, Readers()), specs, network, Study.of_config(source))


def void_next(
    plan_file: Path,
    out: Path,
    *,
    releases: Sequence[Path] = (),
    ledger: Path | None = None,
    weights: Path | None = None,
    untried: bool = False,
) -> Void:
    """Declare at the coordinator that the next round is never released, as ``api.void`` describes.

    ``untried`` says that no release of the plan was ever tried, so that no ledger need know of it.
    """
    plan = _received_plan(plan_file, weights)
    state = _state_after(plan, SerialEngine(), releases, ledger, lambda previous: None, Worker.of_plan(plan))
    for folder in {plan_file.absolute().parent, out.absolute().parent}:
        _refuse_released(release_path(folder, state.round), plan)
    earlier = _stored_void(out)
    if earlier is None or earlier.release != f"{plan.plan_id}/{state.round}/{state.identity()}":
        new_file(out)
    with Ledger.open(ledger) as books:
        void = void_round(plan, state, books, untried=untried)
    if void != earlier:
        void.write(new_file(out))
    return void


def state_identity(plan_file: Path, releases: Sequence[Path], weights: Path | None = None) -> str:
    """Return the identity of the state that the sites sketch at after these releases, which a sketch has to name."""
    plan = _received_plan(plan_file, weights)
    return _state_after(plan, SerialEngine(), releases, None, lambda previous: None, Worker.of_plan(plan)).identity()


def _received_plan(path: Path, weights: Path | None = None, config: Config | None = None) -> Plan:
    """Read a plan whose model this installation may build, with this machine's own copy of the weights that it names.

    That is at ``weights``, or where ``config`` has it. Raises FileContentError or UsageError.
    """
    return completed_plan(_allowed_plan(path), weights or (config.model.weights if config else None))


def _allowed_plan(path: Path) -> Plan:
    """Read a plan whose model this installation may build, without the weights that it names."""
    plan = read_plan(path)
    require_allowed_factory(plan.config.model.factory)
    if is_own(plan.config.model.loss):
        require_allowed_factory(plan.config.model.loss, "model.loss")
    return plan


def _state_after(
    plan: Plan,
    engine: Engine,
    releases: Sequence[Path],
    ledger: Path | None,
    check: Callable[[Release], None],
    worker: Worker,
) -> RoundState:
    """Return the state that the latest release leads to, if ``check`` lets it through; without releases the plan's own state.

    Once a release is read, a void that it proves false is undone in the ledger, whatever else is wrong with the release. A plan that
    names its weights wants every release so far, of which the parameters are computed.
    """
    if not releases:
        return plan.state
    chain = sorted(
        (_previous_release(plan, engine, path, ledger, worker) for path in releases), key=lambda one: one.round
    )
    engine.on_root(lambda: check(chain[-1]))
    path = ", ".join(map(str, releases))
    numbers = [one.round for one in chain]
    if plan.named and numbers != list(range(len(chain))):
        raise UsageError(
            f"{path}: rounds {numbers}; expected every release so far, from round 0: the plan names its weights by digest, and the "
            "parameters follow from all of them"
        )
    latest = with_file_errors(releases[-1], lambda: completed_chain(plan, chain, worker)[-1])
    if latest.next_rules is not None:
        raise FileContentError(
            f"{path}: an earlier release of a run in one folder, without the state of the next round; expected the latest "
            "release of that run, or one that distqexp release wrote"
        )
    if latest.next_state is None:
        raise FileContentError(f"{path}: the release of the last round; nothing is left to do but to export it")
    return latest.next_state


def _previous_release(plan: Plan, engine: Engine, path: Path, ledger: Path | None, worker: Worker) -> Release:
    def read() -> Release:
        content = read_release(path, plan)
        refuse_false_void(plan, content, ledger)
        if content.round == 0:  # For later rounds the state before is not at hand.
            content = completed_release(plan, plan.state, content, worker)
            with_file_errors(path, lambda: check_follows(plan, plan.state, content, worker=worker))
        return content

    return require(release_from_root(engine, plan, read))


def _refuse_released(path: Path, plan: Plan) -> None:
    if path.exists() and read_header(path, kind="release").plan_id == plan.plan_id:
        raise UsageError(f"{path}: this round of the plan is released; expected one that never was: it can't be voided")


def _stored_void(path: Path) -> Void | None:
    """Return the void that an earlier attempt left there, if any. Raises UsageError where it is another file."""
    try:
        return Void.read(path) if path.exists() else None
    except FileContentError:
        raise UsageError(f"--out {path}: exists and is no void; expected a new file, nothing is overwritten") from None


def _shard_data(
    plan: Plan,
    shard: str | None,
    data: Path | None,
    out: Path | None,
    labels: Path | None,
    blank: Path | None,
    tokenizer: Path | None = None,
) -> DataConfig:
    """Return the shard of that name, or of the name of ``data`` or ``out``, with its files on this machine. Raises UsageError."""
    names = plan.config.shards
    files = [path for path in (data, out) if path is not None]
    candidates = [shard] if shard is not None else [path.name.split(".")[0] for path in files]
    only = names[0] if len(names) == 1 and shard is None else None
    match = next((name for name in candidates if name in names), only)
    if match is None and not candidates:
        raise UsageError(f"--data: not given; expected the file of one of the shards {', '.join(names)}")
    if match is None and data is not None and not data.exists():
        raise UsageError(f"--data {data}: no such file; correct the path")
    if match is None:
        where = "--shard" if shard is not None else "the names of " + " and ".join(path.name for path in files)
        raise UsageError(
            f"shard {' or '.join(candidates)} (from {where}): not in the plan; expected one of {', '.join(names)}: give --shard"
        )
    spec = plan.config.data.private[names.index(match)]
    if data is None and spec.format != "digits":
        raise UsageError(f"--data: not given; expected the {spec.format} file of shard {match}")
    return dataclasses.replace(
        spec,
        path=None if data is None else str(data.absolute()),
        labels=None if labels is None else str(labels.absolute()),
        blank=None if blank is None else str(blank.absolute()),
        tokenizer=None if tokenizer is None else str(tokenizer.absolute()),
    )
