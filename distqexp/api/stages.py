"""The interface: each stage by itself, and all of them together."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distqexp.api.paths import StrPath, optional_path, several_paths
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config, EngineConfig
from distqexp.consortium.pins import refuse_pinned
from distqexp.engines import make_engine
from distqexp.engines.base import Engine
from distqexp.live.writing import predict_file
from distqexp.privacy.ledger import Ledger
from distqexp.report.progress import Progress, ProgressEvent
from distqexp.stages.by_hand import (
    ReleaseOrder,
    SketchOrder,
    check_source,
    export_run,
    release_round,
    sketch_shard,
)
from distqexp.stages.charging import Charging
from distqexp.stages.count import UnitCount, release_count
from distqexp.stages.folder import new_file
from distqexp.stages.plan import make_plan
from distqexp.stages.pool import pool_by_hand
from distqexp.stages.room import make_room, require_run
from distqexp.stages.rounds import FitResult, run
from distqexp.stages.stays import prepare_stays


def fit(
    config: Config,
    out: StrPath,
    *,
    resume: bool = False,
    overwrite: bool = False,
    insecure_noise_seed: int | None = None,
    callback: Callable[[ProgressEvent], None] | None = None,
    engine: Engine | None = None,
) -> FitResult | None:
    """Run all stages, from plan to export, in one folder.

    After a kill at any instant, the same call with ``resume=True`` goes on without a second charge.

    Args:
        config: The config; ``load_config`` reads one.
        out: The folder of the run, new or empty unless ``resume`` is set; one in which nothing was spent will do.
        resume: Whether to go on with the run in ``out``.
        overwrite: Whether the unfinished work in ``out`` may be thrown away, where nothing was spent.
        insecure_noise_seed: Seed of the noise, for tests. The result is NOT PRIVATE, and says so.
        callback: Called in this thread with every progress event; no event holds a private figure. Nothing is printed then.
        engine: Where the work runs; the engine of the config when None.

    Returns:
        The plan, the releases, the certificate and the metrics. Under MPI the first rank alone gets them; the others get None.

    Raises:
        BudgetError: The run doesn't fit what the population has left; nothing was read.
        DistqexpError: Anything else that ends a run, with one line that says what to do.
    """
    folder = Path(out)
    with engine or make_engine(config.engine, os.environ) as running:
        rounds, silent = config.mechanism.rounds, not running.is_root
        public = config.privacy.adjacency.counts_public
        stream = None if callback is None else io.StringIO()
        with Progress(
            folder, rounds=rounds, counts_public=public, silent=silent, callback=callback, stream=stream
        ) as progress:
            if resume:
                running.on_root(lambda: require_run(folder))
                running.on_root(lambda: refuse_pinned(folder / "plan.h5"))
            else:
                running.on_root(lambda: make_room(folder, overwrite=overwrite))
            return run(config, folder, running, progress, resume=resume, noise_seed=insecure_noise_seed)


def count(
    config: Config, epsilon: float, *, ledger: StrPath | None = None, insecure_noise_seed: int | None = None
) -> UnitCount:
    """Release a noisy count of the private units, for ``privacy.units`` where no public figure is known.

    Args:
        config: The config whose private units are counted. The ledger must have a cap for its population.
        epsilon: The epsilon that the count may cost, at the config's delta.
        ledger: The ledger's file; the user's own when None.
        insecure_noise_seed: Seed of the noise, for tests: the count is NOT PRIVATE.

    Returns:
        The count, the standard deviation of its noise, and what is left for a run. Public, because the count is paid for.

    Raises:
        BudgetError: The count doesn't fit the cap; no record was read.
        UsageError: The population has no cap, or the adjacency makes the count public anyway.
    """
    charging = Charging(Ledger.open(optional_path(ledger)), insecure_noise_seed)
    return release_count(config, charging, epsilon)


def check(
    source: Config | StrPath,
    *,
    shard: str | None = None,
    data: StrPath | None = None,
    labels: StrPath | None = None,
    blank: StrPath | None = None,
    tokenizer: StrPath | None = None,
) -> list[str]:
    """Say which private records are usable, and why others are not.

    The lines are PRIVATE, and marked so: they are for whoever may see the records, on their own terminal. Writes nothing and charges
    nothing.

    Args:
        source: A config, or a plan's file.
        shard: The one shard to check; all shards of the config when None.
        data: With a plan, the private records of this site.
        labels: With a plan, the file of the labels, for idx, npy and images.
        blank: With a plan, a .npy file of booleans; true blanks that row's slot.
        tokenizer: With a plan, the folder of the tokenizer, for texts.

    Returns:
        Lines for people: columns, rules, counts. Private.

    Raises:
        FileContentError: A file can't be used at all.
        UsageError: There is no such shard, or files were named beside a config, which names them itself.
    """
    return check_source(
        source if isinstance(source, Config) else Path(source),
        shard=shard, data=optional_path(data), labels=optional_path(labels), blank=optional_path(blank),
        tokenizer=optional_path(tokenizer),
    )  # fmt: skip


def stays(folder: StrPath, out: StrPath, *, format: str = "mimic-iv") -> list[str]:
    """Make a table of ICU stays of a clinical database, once for all runs. Reading shows a progress bar.

    Args:
        folder: The folder of MIMIC-IV, with hosp and icu in it, or one in the Medical Event Data Standard.
        out: The Parquet file to write, which must be new; as private as the folder.
        format: ``mimic-iv`` or ``meds``.

    Returns:
        Lines for people: how many stays there are, and how often each rule for dirt applied. PRIVATE, and marked so.

    Raises:
        FileContentError: A table or a column is missing, or a file is damaged.
        UsageError: There is no such folder or format, or ``out`` exists.
    """
    return prepare_stays(Path(folder), Path(out), format)


def plan(config: Config, out: StrPath, *, engine: Engine | None = None) -> Plan:
    """Fix every rule before a private record is read.

    Args:
        config: The config. Public data alone are read.
        out: The plan's file, which must be new.
        engine: Where the work runs; the engine of the config when None.

    Returns:
        The plan, on every rank. Public.

    Raises:
        UsageError: The subspace is larger than the model, the grid would overflow, or public data are missing or useless.
    """
    path = new_file(Path(out))
    with engine or make_engine(config.engine, os.environ) as running:
        new_plan = make_plan(config, running)
        running.on_root(lambda: new_plan.write(path))
        return new_plan


def sketch(
    plan_file: StrPath,
    data: StrPath | None,
    out: StrPath,
    *,
    release: StrPath | Sequence[StrPath] | None = None,
    shard: str | None = None,
    labels: StrPath | None = None,
    blank: StrPath | None = None,
    tokenizer: StrPath | None = None,
    population: str | None = None,
    insecure_noise_seed: int | None = None,
    ledger: StrPath | None = None,
    callback: Callable[[ProgressEvent], None] | None = None,
    engine: Engine | None = None,
    weights: StrPath | None = None,
    on_remarks: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """At a site: sketch one shard of private records for the plan's first round, or for the round after ``release``.

    Charges the site's own ledger, once for the same records. Interrupted work in ``OUT.parts`` is taken up again.

    Args:
        plan_file: The plan's file.
        data: The private records of this site; None for the embedded digits.
        out: The sketch's file, which must be new; as sensitive as the records (mode 0600).
        release: The release that this round builds on; None for the first round. Where the plan names its weights, every release
            so far.
        shard: The shard's name in the plan; not needed where the plan has one shard, or ``data`` or ``out`` carries its name.
        labels: The file of the labels, for idx, npy and images.
        blank: A .npy file of booleans; true blanks that row's slot.
        tokenizer: The folder of the tokenizer, for texts; the plan holds its digest.
        population: What this site calls the plan's population; needed once, where its ledger knows other names.
        insecure_noise_seed: Seed of the test run to take part in. Its releases are NOT PRIVATE and its charges are in books of their
            own; releases of other test runs are refused.
        ledger: The ledger's file; the user's own when None.
        callback: Called in this thread with every progress event; no event holds a private figure.
        engine: Where the work runs; serial, or MPI under a launcher, when None.
        weights: This machine's copy of the pretrained weights, for a plan that names them; when None what DISTQEXP_WEIGHTS says, or
            else what the factory gives.
        on_remarks: Called on the first rank before anything is charged, with a line for everything that looks wrong in the records
            beside the plan's public ones; without any where nothing does. The lines are PRIVATE, for whoever may see the records.
            An exception that it raises ends the work. Nothing is looked for when None.

    Raises:
        BudgetError: The plan's rounds don't fit what this site has left; no record was read.
        FileContentError: The plan or a release was changed, a file of records can't be used, or the plan is that of a study that
            was accepted here: see ``distqexp study sketch``.
        RecordsChangedError: The records are no longer those that were opened; nothing is charged.
    """
    path = new_file(Path(out))
    with engine or make_engine(EngineConfig(), os.environ) as running:
        running.on_root(lambda: refuse_pinned(Path(plan_file)))
        sketch_shard(
            SketchOrder(
                Path(plan_file), optional_path(data), path, releases=several_paths(release), shard=shard,
                labels=optional_path(labels), blank=optional_path(blank), tokenizer=optional_path(tokenizer),
                population=population, noise_seed=insecure_noise_seed, ledger=optional_path(ledger), callback=callback,
                weights=optional_path(weights), on_remarks=on_remarks,
            ),
            running,
        )  # fmt: skip


def pool(plan_file: StrPath, sketches: Sequence[StrPath], out: StrPath) -> Quadratic:
    """Add the sketches of one round, one for each shard of the plan.

    Args:
        plan_file: The plan's file.
        sketches: The sketch files of the round, in any order.
        out: The file of the pooled sum, which must be new; as sensitive as the records (mode 0600).

    Returns:
        The pooled sum: int64, as wide as a sketch. Private until noise is added.

    Raises:
        FileContentError: A shard is missing, double or unfinished, or its sketch is of another round, release or plan.
    """
    return pool_by_hand(Path(plan_file), [Path(sketch) for sketch in sketches], Path(out))


def release(
    plan_file: StrPath,
    quadratic: StrPath,
    out: StrPath,
    *,
    previous: StrPath | Sequence[StrPath] | None = None,
    config: Config | None = None,
    insecure_noise_seed: int | None = None,
    ledger: StrPath | None = None,
    keep_quadratic: bool = False,
    engine: Engine | None = None,
    weights: StrPath | None = None,
) -> Release:
    """At the coordinator: charge the ledger, draw, and store the release of a round.

    Another call with the same pooled sum gives the same release without a second charge. The file of the pooled sum is deleted
    afterwards.

    Args:
        plan_file: The plan's file.
        quadratic: The file of the round's pooled sum.
        out: The release's file, which must be new.
        previous: The release of the round before, from the second round on. Where the plan names its weights, every release so far.
        config: Says where the public data are, for the next round's precision and clip.
        insecure_noise_seed: Seed of the noise, for tests: the release is NOT PRIVATE, and says so.
        ledger: The ledger's file; the user's own when None.
        keep_quadratic: Whether to keep the file of the pooled sum.
        engine: Where the work runs; serial, or MPI under a launcher, when None.
        weights: This machine's copy of the pretrained weights, for a plan that names them; when None what DISTQEXP_WEIGHTS says,
            ``config`` has, or
            else what the factory gives.

    Returns:
        The noisy sums, the new parameters and the next round's state, on every rank. Public.

    Raises:
        BudgetError: The round doesn't fit what the population has left; nothing was drawn.
        FileContentError: A file was changed, or is of another plan, round or state.
    """
    path = new_file(Path(out))
    with engine or make_engine(EngineConfig(), os.environ) as running:
        return release_round(
            ReleaseOrder(
                Path(plan_file), Path(quadratic), path, previous=several_paths(previous), config=config, noise_seed=insecure_noise_seed,
                ledger=optional_path(ledger), keep_quadratic=keep_quadratic, weights=optional_path(weights),
            ),
            running,
        )  # fmt: skip


def export(
    plan_file: StrPath,
    releases: Sequence[StrPath],
    out: StrPath,
    *,
    config: Config | None = None,
    ledger: StrPath | None = None,
    weights: StrPath | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Write model.safetensors, model.pt and certificate.json into a folder.

    Args:
        plan_file: The plan's file.
        releases: The releases of all rounds, in any order.
        out: The folder, new or empty.
        config: Says where the evaluation data are; no metrics when None.
        ledger: The ledger that the releases were charged to; the user's own when None.
        weights: As in ``release``.

    Returns:
        The certificate, and the metrics before and after by name. Metrics are not covered by epsilon.

    Raises:
        FileContentError: The releases don't build on one another, or the ledger has no charge for one.
        UsageError: A round is missing or double.
    """
    paths = [Path(path) for path in releases]
    return export_run(
        Path(plan_file), paths, Path(out), config=config, ledger=optional_path(ledger), weights=optional_path(weights)
    )


def predict(
    folder: StrPath,
    data: StrPath,
    out: StrPath,
    *,
    labels: StrPath | None = None,
    tokenizer: StrPath | None = None,
) -> str | None:
    """Predict for the records of a file and write the predictions into a new file, as private as the records (mode 0600).

    ``load_model`` gives the predictions as arrays.

    Args:
        folder: The folder of a finished run, or of an exported model.
        data: A file or folder of records in the form of the private ones, with or without labels, or a .npy or .npz file of features.
        out: The new file: .csv (``prediction``, then ``probability_CLASS`` for each class), or .npy (these, or a regression's values).
        labels: Of an image folder, a CSV file with the names of the images to predict for.
        tokenizer: The tokenizer's folder, for raw texts; when None the model's own folder, where it has one.

    Returns:
        A line on the records that have no prediction, and why; None where all have one. As private as the records.

    Raises:
        UsageError: A path is wrong, or the model needs a live module: then use ``load_model``.
        FileContentError: The model or the records can't be used, or no record has a prediction; nothing is written then.
    """
    return predict_file(Path(folder), Path(data), Path(out), optional_path(labels), optional_path(tokenizer))
