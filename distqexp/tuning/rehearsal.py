"""One rehearsal: the real stages on public records that play the private ones, with seeded noise and without a ledger."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import (
    AllDataConfig,
    Config,
    MechanismConfig,
    PrecisionConfig,
    PrivacyConfig,
    SubspaceConfig,
    TuneConfig,
    config_to_tree,
)
from distqexp.config.checks import check
from distqexp.config.tuning import LISTS
from distqexp.engines.base import Engine
from distqexp.engines.collectives import required
from distqexp.errors import UsageError
from distqexp.privacy import gdp
from distqexp.privacy.calibration import MARGIN, SLACK_SHARE
from distqexp.problem.dataset import open_dataset
from distqexp.problem.records import Records, concatenated
from distqexp.problem.sources import DataSource
from distqexp.problem.weights import write_weights
from distqexp.stages.export import EVALUATION_BATCH, metrics_of
from distqexp.stages.plan import make_plan
from distqexp.stages.release import make_release
from distqexp.stages.sketch import open_shards, sketch_round
from distqexp.tuning.roles import Roles, assign_roles
from distqexp.tuning.shift import StandIns, hold
from distqexp.tuning.trials import Run

LARGEST_DISCRETE = 500.0
"""Discrete noise serves epsilon up to about 600; beyond, a rehearsal takes continuous noise of the same size."""
LARGEST_EPSILON = 1e4
METRICS = {
    "cross-entropy": "accuracy",
    "binary-cross-entropy": "auroc",
    "mean-squared-error": "mean_squared_error",
}


class Rehearsal:
    """Public records in their roles, the model pretrained once, and runs of settings on them. Opens public files alone.

    folder: a scratch folder. ``roles``: who plays whom. ``before``: metrics of the pretrained model on the test records.
    ``metric``: what is compared. ``task``: a digest of all that a run depends on besides its setting, epsilon and seed.
    Raises UsageError without public data, or where the split leaves a role empty.
    """

    def __init__(self, config: Config, folder: Path, engine: Engine) -> None:
        self._tune = config.tune or TuneConfig()
        self._engine = engine
        self._folder = folder
        self.roles = assign_roles(config)
        start = make_plan(only_pretrained(self._with_roles(config)), engine)
        self._weights = folder / "pretrained.safetensors"
        weights = write_weights(self._weights, start.weights)
        self._held = [hold(data, start.schema, self._tune, private=True) for data in self.roles.stand_ins]
        self._test = concatenated(
            [hold(data, start.schema, self._tune, private=False).records for data in self.roles.test]
        )
        self._sources: dict[int, tuple[tuple[DataSource, ...], tuple[str, ...]]] = {}
        self.before = self._metrics(start, start.state.theta)
        self.metric = self._tune.metric or METRICS[config.model.loss]
        if self.metric not in self.before:
            raise UsageError(
                f"tune.metric: {self.metric}; the test records give {', '.join(self.before) or 'none'}: choose one of these, or "
                "hold out more records"
            )
        sources = (self.roles.reference, *self.roles.stand_ins, *self.roles.test)
        prints = [open_dataset(data, start.schema).fingerprint() for data in sources]
        self.task = _digest(config, self.roles, [*prints, hashlib.sha256(weights).hexdigest()])

    def config_of(self, config: Config, epsilon: float) -> Config:
        """What is run in the place of ``config`` at ``epsilon``: the same noise against signal with fewer units.

        Whitened by the precision of m units, unit vectors are sqrt(n_bar/m) times as long as by that of n_bar units, and
        so is a clip of their own lengths; a move of the parameters is sqrt(m/n_bar) times as long, and so is a trust radius. The
        sum of m unit vectors moves the parameters as far as that of n_bar did; noise of C/mu then moves them by n_bar/m times as
        much. So mu is n_bar/m times the real one. Raises UsageError.
        """
        raised = self.raised(config, epsilon)
        mechanism, privacy = config.mechanism, config.privacy
        ratio = privacy.units / self.roles.units
        single = all(data.unit is None for data in self.roles.stand_ins)
        mechanism = dataclasses.replace(
            mechanism,
            clip=None if mechanism.clip is None else mechanism.clip * math.sqrt(ratio),
            trust_radius=None if mechanism.trust_radius is None else mechanism.trust_radius / math.sqrt(ratio),
            noise="gaussian" if raised > LARGEST_DISCRETE else mechanism.noise,
            rounding="batch" if config.by_batch and single else "unit",
        )
        adjacency = "zero-out" if privacy.adjacency == "add-remove" else privacy.adjacency  # the same noise
        privacy = dataclasses.replace(privacy, epsilon=raised, units=self.roles.units, adjacency=adjacency)
        model = dataclasses.replace(config.model, pretrain=None, weights=str(self._weights))
        found = dataclasses.replace(self._with_roles(config), model=model, privacy=privacy, mechanism=mechanism)
        check(found)
        return found

    def raised(self, config: Config, epsilon: float) -> float:
        """The epsilon that a rehearsal is run at. Raises UsageError where that is beyond all bounds."""
        units, delta = config.privacy.units, config.privacy.delta
        if delta == 0:
            raise UsageError("tune: privacy.delta is 0; expected one above 0: rehearse with that, then set 0")
        raised = rehearsed_epsilon(epsilon, delta, units / self.roles.units, config.mechanism.noise)
        if raised > LARGEST_EPSILON:
            raise UsageError(
                f"tune: {self.roles.units} public units play {units} private ones; too few to rehearse noise of epsilon "
                f"{epsilon:g}: hold out more, or give tune.private"
            )
        return raised

    def runs(self, config: Config, epsilon: float, seeds: Sequence[int]) -> Iterator[Run]:
        """A run with each noise seed; one that diverges, or whose plan is refused, has no score, and says why."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder) as name, np.errstate(all="ignore"):
            made: tuple[Plan, Config] | None = None
            for seed in seeds:
                metrics, note = {}, ""
                try:
                    if made is None:
                        rehearsed = self.config_of(config, epsilon)
                        made = make_plan(rehearsed, self._engine), rehearsed
                    metrics = self._metrics(made[0], self.released(*made, seed, Path(name)))
                except UsageError as error:
                    note = " ".join(str(error).split())
                loss = metrics.get("log_loss", metrics.get("mean_squared_error", math.nan))
                score = metrics.get(self.metric, math.nan)
                finite = math.isfinite(loss) and math.isfinite(score)
                seconds = time.monotonic() - started
                if finite:
                    yield Run(seed, self.metric, score, loss, seconds)
                else:
                    yield Run(seed, self.metric, None, None, seconds, note or "diverged")
                started = time.monotonic()

    def released(self, plan: Plan, config: Config, seed: int, folder: Path) -> npt.NDArray[np.float64]:
        """theta (d,) after the last round of a plan of ``config_of``, with seeded noise.

        folder: for sketches; in one folder the seeds of a plan share the sums of round 0, which no noise has touched yet.
        """
        sources, fingerprints = self._opened(plan)
        state: RoundState | None = plan.state
        theta = plan.state.theta
        while state is not None:
            sums = required(sketch_round(plan, state, sources, fingerprints, folder, self._engine))
            rule = plan.rule(state)
            noisy_sums = rule.released(sums, rule.draw(sums, seed, state.round))
            release = make_release(plan, state, noisy_sums, seed, config.data.public, self._engine)
            theta, state = release.theta, release.next_state
        return theta

    def _with_roles(self, config: Config) -> Config:
        data = AllDataConfig(
            private=self.roles.stand_ins,
            population="rehearsal",
            public=self.roles.reference,
            record_shape=config.data.record_shape,
        )
        engine = dataclasses.replace(config.engine, kind="serial", scheduler=None, workers=None)
        return dataclasses.replace(config, data=data, engine=engine, tune=None)

    def _opened(self, plan: Plan) -> tuple[tuple[DataSource, ...], tuple[str, ...]]:
        parts = plan.config.mechanism.parts
        if parts not in self._sources:
            found, fingerprints = open_shards(plan, self.roles.stand_ins, self._engine)
            sources = tuple(
                StandIns(source.data, source.slots, source.partition, held=held, private=True)
                for source, held in zip(found, self._held, strict=True)
            )
            self._sources[parts] = sources, fingerprints
        return self._sources[parts]

    def _metrics(self, plan: Plan, theta: npt.NDArray[np.float64]) -> dict[str, float]:
        """Metrics of the model at ``theta`` on the test records."""
        test = self._test
        sides = (torch.split(side, EVALUATION_BATCH) for side in (test.inputs, test.targets, test.present))
        return metrics_of(plan, theta, (Records(*side) for side in zip(*sides, strict=True)))


def rehearsed_epsilon(epsilon: float, delta: float, ratio: float, noise: str) -> float:
    """The epsilon whose mu is ``ratio`` times that of ``epsilon``, at the same delta; infinite beyond all bounds.

    ratio: nominal private units a stand-in. noise: discrete sets a share of delta aside.
    """
    if ratio == 1:
        return epsilon
    target = delta * (1 - (SLACK_SHARE if noise == "discrete" else 0.0)) * (1 - MARGIN)
    mu = gdp.mu(epsilon, target) * ratio
    return gdp.epsilon(target, mu) if mu < math.sqrt(2 * LARGEST_EPSILON) else math.inf


def only_pretrained(config: Config) -> Config:
    """A config whose plan is little more than the pretrained weights: no curvature, no subspace."""
    return dataclasses.replace(
        config,
        subspace=SubspaceConfig(),
        precision=PrecisionConfig(),
        mechanism=MechanismConfig(clip=1.0, noise="gaussian"),
        privacy=PrivacyConfig(epsilon=1.0, delta=1e-5, units=1),
    )


def _digest(config: Config, roles: Roles, facts: list[str]) -> str:
    tune = config.tune or TuneConfig()
    tree: dict[str, Any] = config_to_tree(dataclasses.replace(config, tune=None))
    for name, (section, _) in LISTS.items():
        del tree[section][name]
    del tree["data"], tree["output"], tree["privacy"]["epsilon"]
    tree["engine"] = {name: tree["engine"][name] for name in ("micro_batch", "threads", "device")}
    shift = [tune.noise, tune.rotate, tune.seed]
    sources = [config_to_tree(data) for data in (roles.reference, *roles.stand_ins, *roles.test)]
    text = json.dumps([tree, sources, config_to_tree(shift), facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
