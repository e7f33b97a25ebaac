"""The walk from plan to export in one group of processes: what ``python -m distqexp.fit`` and ``api.fit`` run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.artefacts.plan import Plan, same_rules
from distqexp.artefacts.release import Release, diagnostics_of
from distqexp.artefacts.restoring import restored
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, required
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.worker import Worker
from distqexp.privacy.ledger import Ledger
from distqexp.problem.identity import Digest
from distqexp.problem.sources import DataSource
from distqexp.report.progress import Progress
from distqexp.stages.built import read_plan, read_release
from distqexp.stages.chain import check_follows
from distqexp.stages.charging import Charging, charged_parts, charged_to_everybody, check_budget, ledger_entry
from distqexp.stages.export import evaluate, export_model
from distqexp.stages.folder import open_folder, quadratic_path, release_path
from distqexp.stages.inputs import check_paths
from distqexp.stages.naming import with_contents
from distqexp.stages.overlaps import refuse_overlaps
from distqexp.stages.plan import describe_plan, plan_and_worker
from distqexp.stages.release import draw_release, make_release
from distqexp.stages.sharing import plan_from_root, release_from_root
from distqexp.stages.sketch import basis_of, open_shards, sketch_files, sketch_same_records


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind. metrics are computed on data.eval and not covered by epsilon."""

    out: Path
    plan: Plan
    releases: tuple[Release, ...]
    certificate: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """The JSON object that ``--json`` prints as the last line."""
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
    insecure_seed: int | None = None,
    ledger: Path | None = None,
) -> FitResult | None:
    """Plan, then sketch, pool and release every round, then export. The root returns the result, others None.

    Collective: every rank calls it with the same arguments. After a kill at any instant ``resume`` goes on
    without repeating finished work and without a second charge. ledger: the user's own when None. Raises DistqexpError.
    """
    engine.on_progress = progress.advance
    if not resume:
        engine.on_root(lambda: check_paths(config))
    engine.on_root(lambda: open_folder(out, resume))
    progress.stage("plan")
    plan, worker = _plan(config, out, engine)
    if engine.is_root:
        sys.stderr.write("".join(f"{line}\n" for line in describe_plan(plan)))
        sys.stderr.flush()
    # Before anything is spent: evaluation data that are refused must not cost a release.
    before = on_root_only(engine, lambda: evaluate(plan, plan.state.theta, config.data.eval, worker))

    releases, state = _finished_rounds(plan, out, engine, worker)
    engine.on_root(lambda: _same_noise(releases, insecure_seed))
    charging = on_root_only(engine, lambda: Charging(Ledger.open(ledger), insecure_seed))
    if state is not None:
        engine.on_root(lambda: check_budget(plan, required(charging), "release", first_round=len(releases)))

        def digest(*parts: bytes) -> bytes:  # on the root
            return required(charging).ledger.keyed_digest(*parts)

        engine.on_root(lambda: refuse_overlaps(config.data, worker.readers))
        sources, fingerprints = open_shards(plan, config.data.private, engine, digest, worker=worker)
        named = on_root_only(
            engine,
            lambda: with_contents(required(charging), config.data.population, config.data.private, worker.readers),
        )
        work = _Work(config, plan, worker, sources, fingerprints, digest, out, named, insecure_seed)
        while state is not None:
            release = _round(work, state, engine, progress)
            releases.append(release)
            state = release.next_state

    progress.stage("export")
    return on_root_only(
        engine, lambda: _export(config, plan, worker, releases, out, required(charging), before or {}, progress)
    )


@dataclass(frozen=True)
class _Work:
    """What every round of a run shares."""

    config: Config
    plan: Plan
    worker: Worker
    sources: tuple[DataSource, ...]
    fingerprints: tuple[str, ...]
    digest: Digest
    out: Path
    charging: Charging | None
    insecure_seed: int | None


def _plan(config: Config, out: Path, engine: Engine) -> tuple[Plan, Worker]:
    path = out / "plan.h5"
    if not engine.on_root(path.exists):
        plan, worker = plan_and_worker(config, engine)
        engine.on_root(lambda: plan.write(path))
        return plan, worker
    plan = plan_from_root(engine, lambda: read_plan(path))
    if not same_rules(plan, config):
        raise FileContentError(
            f"{path}: the plan of another config; resume with the config it was made from, or take a new --out"
        )
    return plan, Worker.of_plan(plan)


def _finished_rounds(plan: Plan, out: Path, engine: Engine, worker: Worker) -> tuple[list[Release], RoundState | None]:
    releases: list[Release] = []
    state: RoundState | None = plan.state
    while state is not None:
        release = release_from_root(
            engine, plan, partial(_stored_release, plan, state, release_path(out, state.round), worker)
        )
        if release is None:
            break
        releases.append(release)
        state = release.next_state
    return releases, state


def _stored_release(plan: Plan, before: RoundState, path: Path, worker: Worker) -> Release | None:
    if not path.exists():
        return None
    release = read_release(path, plan)
    restored(path, lambda: check_follows(plan, before, release, worker=worker))
    return release


def _same_noise(releases: Sequence[Release], insecure_seed: int | None) -> None:
    for release in releases:
        if release.insecure_seed != insecure_seed:
            raise UsageError(
                f"--insecure-noise-seed: found {insecure_seed}; round {release.round} was released with "
                f"{release.insecure_seed}: resume with the same, or take a new --out"
            )


def _round(work: _Work, state: RoundState, engine: Engine, progress: Progress) -> Release:
    plan, pooled = work.plan, quadratic_path(work.out, state.round)
    progress.stage("sketch", state.round)
    if not engine.on_root(pooled.exists):
        sums = sketch_same_records(
            plan, state, work.sources, work.fingerprints, work.out, engine, work.digest, work.worker
        )
        progress.advance(1.0)  # the same lines for a shard without records
        progress.stage("pool", state.round)
        basis = basis_of(work.sources)
        on_root_only(
            engine, lambda: Quadratic(plan.plan_id, state.round, state.identity(), required(sums), basis).write(pooled)
        )
    progress.stage("release", state.round)

    def draw() -> tuple[npt.NDArray[Any], bool]:
        quadratic, charging = Quadratic.read(pooled, plan, own=True), required(work.charging)
        noisy_sums = draw_release(plan, state, quadratic, charging)
        return noisy_sums, charged_to_everybody(plan, state, quadratic, charging)

    noisy_sums, everybody = on_root_only(engine, draw) or (None, False)
    release = make_release(
        plan,
        state,
        noisy_sums,
        work.insecure_seed,
        work.config.data.public,
        engine,
        everybody=everybody,
        worker=work.worker,
    )
    engine.on_root(lambda: release.write(release_path(work.out, state.round)))
    told = diagnostics_of(plan, release)
    if told is not None:
        progress.say(f"round {state.round + 1}: {told.line()} (released: paid for)")
    engine.on_root(lambda: _forget_private(work.config, work.out, state.round))
    return release


def _forget_private(config: Config, out: Path, round: int) -> None:
    """Sketches and quadratic are as sensitive as the records: gone once their release is stored."""
    if not config.output.keep_sketches:
        for path in [*sketch_files(out, round), quadratic_path(out, round)]:
            path.unlink(missing_ok=True)


def _export(
    config: Config,
    plan: Plan,
    worker: Worker,
    releases: Sequence[Release],
    out: Path,
    charging: Charging,
    before: dict[str, float],
    progress: Progress,
) -> FitResult:
    for release in releases:  # also what a kill between a release and its clean-up left
        _forget_private(config, out, release.round)
    after = evaluate(plan, releases[-1].theta, config.data.eval, worker)
    entry = ledger_entry(plan, charging, releases[-1].round)
    certificate = export_model(plan, releases, out, entry, charged_parts(plan, charging), worker)
    progress.close()
    metrics = {"before": before, "after": after}
    return FitResult(out, plan, tuple(releases), certificate, metrics, dict(progress.seconds))
