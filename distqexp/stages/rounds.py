"""A whole run, from plan to export, in one group of processes: what ``python -m distqexp.fit`` and ``api.fit`` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.arrays import IntegerArray
from distqexp.artefacts.moves import WHOLE
from distqexp.artefacts.plan import Plan, other_rules, same_rules
from distqexp.artefacts.release import Release, diagnostics_of
from distqexp.artefacts.restoring import with_file_errors
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.engines.base import Engine, stop_error
from distqexp.engines.collectives import on_root_only, require
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.automatic import adopted
from distqexp.gradients.worker import Worker
from distqexp.privacy.ledger import Ledger
from distqexp.problem.pretrained import resolved, write_companions
from distqexp.report.certificate import kept_words
from distqexp.report.progress import Progress
from distqexp.stages.advice import last_lines, lines_on_moves, lines_on_worse
from distqexp.stages.built import read_plan, read_release
from distqexp.stages.chain import check_follows, check_rules_follow
from distqexp.stages.charging import Charging, charged_parts, charged_to_everybody, check_budget, ledger_entry
from distqexp.stages.completing import completed_state
from distqexp.stages.export import Evaluation, evaluation_of, export_model
from distqexp.stages.features import keep_features
from distqexp.stages.folder import forget_features, open_folder, quadratic_path, release_path
from distqexp.stages.guard import Guard, guard_line
from distqexp.stages.inputs import check_paths
from distqexp.stages.naming import with_contents
from distqexp.stages.overlaps import refuse_overlaps
from distqexp.stages.own_weights import completed_plan
from distqexp.stages.plan import describe_plan, plan_and_worker
from distqexp.stages.release import Draw, completed_release, draw_release, make_release
from distqexp.stages.reporting import Account, store_report
from distqexp.stages.sampling import Secrets, forget_coins, secrets_of
from distqexp.stages.scattered import draw_by_blocks
from distqexp.stages.shards import Shards, basis_of, open_shards
from distqexp.stages.shares import refuse_one_group
from distqexp.stages.sharing import plan_from_root, release_from_root
from distqexp.stages.sketch import scatter_same_records, sketch_files, sketch_same_records
from distqexp.stages.table_warnings import count_warnings


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind. The metrics are computed on data.eval and are not covered by epsilon.

    ``warnings`` are the plan's and the run's own, lines of public text. Where the plan names its weights, the last of the releases
    alone has its parameters.
    """

    out: Path
    plan: Plan
    releases: tuple[Release, ...]
    certificate: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return the JSON object that ``--json`` prints as its last line."""
        return {
            "out": str(self.out),
            "epsilon": self.certificate["epsilon"],
            "delta": self.certificate["delta"],
            "mu": self.certificate["mu"],
            "rounds": len(self.releases),
            "metrics": self.metrics,
            "seconds": self.seconds,
        }


def run(
    config: Config,
    out: Path,
    engine: Engine,
    progress: Progress,
    *,
    resume: bool = False,
    noise_seed: int | None = None,
    ledger: Path | None = None,
) -> FitResult | None:
    """Plan, then sketch, pool and release every round, then export. Collective: every rank calls it with the same arguments.

    Returns the result on the root and None on all other ranks. Raises DistqexpError when the run is refused or fails.

    Args:
        config: The run's config.
        out: The folder of the run.
        engine: The engine.
        progress: Where progress is reported.
        resume: Go on with the run in ``out``; after a kill at any instant no finished work is repeated or charged again.
        noise_seed: The seed of a test run's noise, or None for real noise.
        ledger: The ledger's file, or None for the user's own ledger.
    """
    refuse_one_group(config)
    engine.on_progress = progress.advance
    if not resume:
        engine.on_root(lambda: check_paths(config))
    engine.on_root(lambda: open_folder(out, resume))
    progress.stage("plan")
    plan, worker = _plan(config, out, engine)
    engine.raise_if_stopped()
    if engine.is_root:
        progress.write(describe_plan(plan))
    # Evaluate before anything is spent: evaluation data that are refused must not cost a release.
    before = on_root_only(engine, lambda: evaluation_of(plan, plan.state.theta, config.data.eval, worker))

    releases, state = _finished_rounds(plan, config, out, engine, worker)
    engine.on_root(lambda: _require_same_noise(releases, noise_seed))
    engine.on_root(partial(_lighten, out, releases[:-1]))  # what a kill left
    charging = on_root_only(engine, lambda: _open_books(ledger, noise_seed, progress))
    engine.on_root(lambda: forget_coins(plan, require(charging), "release", range(len(releases))))  # what a kill left
    again: list[str] = []
    try:
        if state is not None:
            engine.on_root(lambda: check_budget(plan, require(charging), "release", first_round=len(releases)))
            opened = _opened(config, plan, worker, engine, charging, progress)
            work = _Work(config, plan, worker, *opened, out, noise_seed, Guard(plan, config.data.public, worker))
            again = count_warnings(plan, work.shards.sources)
            if worker.frozen is not None:
                progress.stage("features")
                work = replace(work, shards=keep_features(plan, work.shards, out, engine, worker))
        while state is not None:
            engine.raise_if_stopped()
            release = _round(work, state, engine, progress)
            engine.on_root(partial(_lighten, out, releases[-1:]))
            releases = [*(earlier.without_parameters() for earlier in releases), release]
            state = release.next_state
    finally:
        if engine.is_root:
            forget_features(out)

    engine.raise_if_stopped()
    progress.stage("export")
    finished = _Finished(config, plan, releases, worker, charging, out)
    return on_root_only(engine, lambda: _export(finished, require(before), engine, progress, again))


@dataclass(frozen=True)
class _Finished:
    """What is left of a run when its last round is released."""

    config: Config
    plan: Plan
    releases: Sequence[Release]
    worker: Worker
    charging: Charging | None
    out: Path


def _export(
    finished: _Finished, before: Evaluation, engine: Engine, progress: Progress, again: Sequence[str]
) -> FitResult:
    """Evaluate and write the model, its certificate and the report; for the first process."""
    plan, releases, out, config = finished.plan, finished.releases, finished.out, finished.config
    for release in releases:  # Also removes what a kill between a release and its clean-up left.
        _forget_private(config, out, release.round)
    theta, books = releases[-1].theta, require(finished.charging)
    evaluations = {"before": before, "after": evaluation_of(plan, theta, config.data.eval, finished.worker)}
    metrics = {when: evaluation.metrics for when, evaluation in evaluations.items()}
    _leave_if_stopped(engine)
    entry, payers = ledger_entry(plan, books, releases[-1].round), charged_parts(plan, books)
    certificate = export_model(plan, releases, out, entry, payers, finished.worker)
    write_companions(config.model.weights, out)
    _leave_if_stopped(engine)
    account = Account(books, payers, evaluations, config.data.public, finished.worker, engine.size, engine.kind)
    failure = store_report(plan, releases, certificate, account, out)
    _leave_if_stopped(engine)
    progress.close()
    late = [] if failure is None else [f"the report was left out ({failure}); make it: distqexp report {out}"]
    for line in [*late, *last_lines(plan, releases, metrics, certificate, books, out)]:
        progress.say(line)
    progress.write(again)
    own = [*lines_on_moves(releases), *lines_on_worse(plan, metrics)]
    told = (*progress.warnings, *map(progress.wording, own))
    return FitResult(out, plan, tuple(releases), certificate, metrics, dict(progress.seconds), told)


def _leave_if_stopped(engine: Engine) -> None:
    """Between pieces of the first process's work: raise StoppedError where a stop was asked for."""
    if engine.stop_requested():
        raise stop_error()


@dataclass(frozen=True)
class _Work:
    """What all rounds of a run share."""

    config: Config
    plan: Plan
    worker: Worker
    shards: Shards
    secrets: Secrets
    charging: Charging | None
    out: Path
    noise_seed: int | None
    guard: Guard


def _open_books(ledger: Path | None, noise_seed: int | None, progress: Progress) -> Charging:
    charging = Charging(Ledger.open(ledger), noise_seed)
    if sys.stderr.isatty() and (line := charging.ledger.new_line()):  # for people: logs of two runs are alike
        progress.say(line)
    return charging


def _opened(
    config: Config, plan: Plan, worker: Worker, engine: Engine, charging: Charging | None, progress: Progress
) -> tuple[Shards, Secrets, Charging | None]:
    """Open the private shards, and refuse those that can't be used; return them, their secrets, and the ledger with what they hold."""
    secrets = secrets_of(plan, charging, "release")
    engine.on_root(lambda: refuse_overlaps(config.data, worker.readers))
    shards = open_shards(plan, config.data.private, engine, secrets.digest, worker=worker)
    engine.on_root(lambda: progress.warn(count_warnings(plan, shards.sources)))
    data = config.data
    charging_with_contents = on_root_only(
        engine,
        lambda: with_contents(require(charging), data.population, data.private, worker.readers, progress.warn),
    )
    return shards, secrets, charging_with_contents


def _plan(config: Config, out: Path, engine: Engine) -> tuple[Plan, Worker]:
    """Make and store the run's plan, or read the one that an earlier attempt stored."""
    path = out / "plan.h5"
    if not engine.on_root(path.exists):
        plan, worker = plan_and_worker(config, engine)
        engine.on_root(lambda: plan.write(path))
        return plan, worker
    plan = plan_from_root(engine, lambda: completed_plan(read_plan(path), config.model.weights))
    filled = adopted(resolved(config), plan.config)
    if not same_rules(plan, filled):
        raise FileContentError(
            f"{path}: the plan of another config ({other_rules(plan, filled)}); resume with the config it was made from, or take a "
            "new --out"
        )
    return plan, Worker.of_plan(plan)


def _finished_rounds(
    plan: Plan, config: Config, out: Path, engine: Engine, worker: Worker
) -> tuple[list[Release], RoundState | None]:
    """Read the releases that stand in the folder already; return them and the state of the round to go on with, if any."""
    releases: list[Release] = []
    state: RoundState | None = plan.state
    for round in range(plan.config.mechanism.rounds):
        read = partial(_stored_release, plan, releases, state, release_path(out, round), worker)
        release = release_from_root(engine, plan, read)
        if release is None:
            break
        before = state
        if before is not None:
            release = completed_release(plan, before, release, worker)
        releases.append(release)
        state = release.next_state
        if state is None and before is not None and plan.named and round + 1 < plan.config.mechanism.rounds:
            state = completed_state(plan, before, release, config.data.public, engine, worker)
    if state is None and len(releases) < plan.config.mechanism.rounds:
        state = _completed(plan, releases, config, engine, worker)
    return releases, state


def _completed(plan: Plan, releases: Sequence[Release], config: Config, engine: Engine, worker: Worker) -> RoundState:
    """Return the state to go on with where the release that had it is gone: public records give it again."""
    state = plan.state
    for release in releases:
        state = release.next_state or completed_state(plan, state, release, config.data.public, engine, worker)
    return state


def _stored_release(
    plan: Plan, earlier: Sequence[Release], before: RoundState | None, path: Path, worker: Worker
) -> Release | None:
    """Read a stored release, and hold it against the one before it: also its parameters, where that one still has the state."""
    if not path.exists():
        return None
    release = read_release(path, plan)
    if before is not None:
        complete = with_file_errors(path, lambda: completed_release(plan, before, release, worker))
        with_file_errors(path, lambda: check_follows(plan, before, complete, worker=worker))
        return complete
    with_file_errors(path, lambda: check_rules_follow(earlier[-1], release))
    return release


def _lighten(out: Path, releases: Sequence[Release]) -> None:
    """Store finished rounds without the heavy state of the round after them, which is over too."""
    for release in releases:
        light = release.without_state()
        if light is not release:
            light.write(release_path(out, release.round))


def _require_same_noise(releases: Sequence[Release], noise_seed: int | None) -> None:
    for release in releases:
        if release.noise_seed != noise_seed:
            raise UsageError(
                f"--insecure-noise-seed: found {noise_seed}; round {release.round} was released with "
                f"{release.noise_seed}: resume with the same, or take a new --out"
            )


def _round(work: _Work, state: RoundState, engine: Engine, progress: Progress) -> Release:
    """Sketch, pool and release one round, going on with whatever of it an earlier attempt stored."""
    plan, noisy_sums = work.plan, _noisy_sums(work, state, engine, progress)

    def everybody() -> bool:
        return charged_to_everybody(plan, state, require(work.charging))

    round_draw = Draw(noisy_sums, work.noise_seed, on_root_only(engine, everybody) or False)
    release = make_release(plan, state, round_draw, work.config.data.public, engine, work.worker, work.guard)
    engine.on_root(lambda: release.write(release_path(work.out, state.round)))
    diagnostics = diagnostics_of(plan, release)
    if release.halvings:
        progress.say(f"round {state.round + 1}: {guard_line(release.halvings)}")
    if release.kept < WHOLE:
        progress.say(kept_words(release.kept / WHOLE))
    if diagnostics is not None:
        progress.say(f"round {state.round + 1}: {diagnostics.line()} (released: paid for)")
    engine.on_root(lambda: _forget_private(work.config, work.out, state.round))
    engine.on_root(lambda: forget_coins(plan, require(work.charging), "release", range(state.round, state.round + 1)))
    return release


def _noisy_sums(work: _Work, state: RoundState, engine: Engine, progress: Progress) -> npt.NDArray[Any] | None:
    """Sketch, pool and draw a round, and return its noisy sums on the root, None elsewhere."""
    plan, path, own = work.plan, quadratic_path(work.out, state.round), None
    progress.stage("sketch", state.round)
    if not engine.on_root(path.exists):
        own = _pooled(work, state, engine, progress)
    engine.raise_if_stopped()
    progress.stage("release", state.round)
    if own is not None:
        return draw_by_blocks(plan, state, own, basis_of(work.shards.sources), work.charging, engine)
    return on_root_only(
        engine, lambda: draw_release(plan, state, Quadratic.read(path, plan, own=True), require(work.charging))
    )


def _pooled(work: _Work, state: RoundState, engine: Engine, progress: Progress) -> IntegerArray | None:
    """Sketch and pool a round; the first rank stores the quadratic. Return None, or a rank's own blocks of sums that are scattered.

    Those are in no file: the sketches of all ranks give them again. A quadratic that is to be kept takes all of them.
    """
    plan = work.plan
    scattered = engine.size > 1 and plan.rule(state).by_blocks and not work.config.output.keep_sketches
    sketch = scatter_same_records if scattered else sketch_same_records
    sums = sketch(plan, state, work.shards, work.out, engine, work.secrets, work.worker)
    progress.advance(1.0)  # so that a shard without records gives the same lines
    progress.stage("pool", state.round)
    if scattered:
        return sums
    identity, basis, path = state.identity(), basis_of(work.shards.sources), quadratic_path(work.out, state.round)
    on_root_only(engine, lambda: Quadratic(plan.plan_id, state.round, identity, require(sums), basis).write(path))
    return None


def _forget_private(config: Config, out: Path, round: int) -> None:
    """Delete a round's sketches and quadratic, which are as sensitive as the records, once its release is stored."""
    if not config.output.keep_sketches:
        for path in [*sketch_files(out, round), quadratic_path(out, round)]:
            path.unlink(missing_ok=True)
