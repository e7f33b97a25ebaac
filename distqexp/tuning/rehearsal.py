"""A rehearsal: the real stages on public records that play the private ones, with seeded noise and without a ledger."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqexp.arrays import FloatArray
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
from distqexp.config.running import LISTS
from distqexp.engines.base import Engine
from distqexp.engines.collectives import require
from distqexp.errors import UsageError
from distqexp.gradients.worker import Worker
from distqexp.kinds import Adjacency, Noise
from distqexp.privacy import gdp
from distqexp.privacy.calibration import FAILURE_SHARE, MARGIN, SLACK_SHARE, Sampling, calibrate
from distqexp.privacy.events import GaussianRelease, cost
from distqexp.privacy.sampled import joint_rate
from distqexp.problem.dataset import open_dataset
from distqexp.problem.records import Records, concatenate
from distqexp.problem.weights import write_weights
from distqexp.stages.export import EVALUATION_BATCH, metrics_of
from distqexp.stages.features import keep_features
from distqexp.stages.guard import Guard
from distqexp.stages.plan import make_plan, plan_and_worker
from distqexp.stages.release import Draw, make_release
from distqexp.stages.sampling import Secrets, drawn_shards, insecure_toss
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round
from distqexp.tuning.roles import Roles, assign_roles
from distqexp.tuning.shift import StandIns, hold
from distqexp.tuning.trials import LOWER_IS_BETTER, Run

LARGEST_DISCRETE = 500.0
"""The largest epsilon with discrete noise, which serves up to about 600; beyond, a rehearsal takes continuous noise of the same size."""
LARGEST_SAMPLED_DISCRETE = 10.0
"""The same with sampled rounds, whose raised epsilons are large, and whose vectors are rounded unit by unit to at most 2^30 steps."""
LARGEST_EPSILON = 1e4
"""The largest epsilon that a rehearsal is run at."""
METRICS = {
    "cross-entropy": "accuracy",
    "binary-cross-entropy": "auroc",
    "mean-squared-error": "mean_squared_error",
}
"""The metric that settings are compared by, for each loss, where tune.metric is absent."""


class Rehearsal:
    """Public records in their roles, the model pretrained once, and runs of settings on them. Opens public files alone.

    Attributes:
        roles: Who plays whom.
        before: The metrics of the pretrained model on the test records.
        metric: The metric that settings are compared by.
        task: A digest of all that a run depends on besides its setting, epsilon and seed.
    """

    def __init__(self, config: Config, folder: Path, engine: Engine) -> None:
        """Split and read the public records, and pretrain the model; ``folder`` is a scratch folder.

        Raises:
            UsageError: There are no public data, the split leaves a role empty, or the test records don't give the metric.
        """
        self._tune = config.tune or TuneConfig()
        self._engine = engine
        self._folder = folder
        self.roles = assign_roles(config)
        start = make_plan(only_pretrained(self._with_roles(config)), engine)
        self._weights = folder / "pretrained.safetensors"
        weights = write_weights(self._weights, start.weights)
        self._stand_ins = [hold(data, start.schema, self._tune, private=True) for data in self.roles.stand_ins]
        self._test = concatenate(
            [hold(data, start.schema, self._tune, private=False).records for data in self.roles.test]
        )
        self._shards_by_parts: dict[int, Shards] = {}
        self._test_features: torch.Tensor | None = None
        self.before = self._metrics(start, Worker.of_plan(start), start.state.theta)
        self.metric = self._tune.metric or METRICS.get(config.model.loss, "loss")
        if self.metric not in self.before:
            raise UsageError(
                f"tune.metric: {self.metric}; the test records give {', '.join(self.before) or 'none'}: choose one of these, or "
                "hold out more records"
            )
        sources = (self.roles.reference, *self.roles.stand_ins, *self.roles.test)
        fingerprints = [open_dataset(data, start.schema).fingerprint() for data in sources]
        self.task = _digest(config, self.roles, [*fingerprints, hashlib.sha256(weights).hexdigest()])

    def config_of(self, config: Config, epsilon: float) -> Config:
        """Return the config that is run instead of ``config`` at ``epsilon``: fewer units, with the same ratio of noise to signal.

        Let m units stand in for n = privacy.units. Whitened by the precision of m units, unit vectors are sqrt(n/m) times as long as
        by that of n units, and so is a clip that follows their lengths; a move of the parameters is sqrt(m/n) times as long, and so
        is a trust radius. The sum of m unit vectors moves the parameters as far as the sum of n would; noise of C/mu then moves them
        n/m times as far. So mu is n/m times the real one. With sampled rounds a share q of either is summed, and it is the mu of a
        round that is n/m times the real one, at the same q.

        Raises:
            UsageError: The epsilon is beyond all bounds, or the config that results is not allowed.
        """
        raised_epsilon = self.raised_epsilon(config, epsilon)
        mechanism, privacy = config.mechanism, config.privacy
        ratio = privacy.units / self.roles.units
        largest_discrete = LARGEST_SAMPLED_DISCRETE if mechanism.sampled else LARGEST_DISCRETE
        single = all(data.unit is None for data in self.roles.stand_ins)
        mechanism = dataclasses.replace(
            mechanism,
            clip=None if mechanism.clip is None else mechanism.clip * math.sqrt(ratio),
            trust_radius=None if mechanism.trust_radius is None else mechanism.trust_radius / math.sqrt(ratio),
            noise=Noise.GAUSSIAN if raised_epsilon > largest_discrete else mechanism.noise,
            rounding="batch" if config.by_batch and single else "unit",
        )
        adjacency = privacy.adjacency if privacy.adjacency.counts_public else Adjacency.ZERO_OUT  # the same noise
        privacy = dataclasses.replace(privacy, epsilon=raised_epsilon, units=self.roles.units, adjacency=adjacency)
        model = dataclasses.replace(config.model, pretrain=None, weights=str(self._weights))
        rehearsal_config = dataclasses.replace(
            self._with_roles(config), model=model, privacy=privacy, mechanism=mechanism
        )
        check(rehearsal_config)
        return rehearsal_config

    def raised_epsilon(self, config: Config, epsilon: float) -> float:
        """Return the epsilon that a rehearsal is run at. Raises UsageError where that is beyond all bounds."""
        units, delta = config.privacy.units, config.privacy.delta
        if delta == 0:
            raise UsageError("tune: privacy.delta is 0; expected one above 0: rehearse with that, then set 0")
        ratio, mechanism = units / self.roles.units, config.mechanism
        if mechanism.sampled:
            rate = joint_rate(mechanism.sampling, config.privacy.presence)
            raised_epsilon = rehearsed_sampled_epsilon(epsilon, delta, ratio, mechanism.noise, rate, mechanism.passes)
        else:
            raised_epsilon = rehearsed_epsilon(epsilon, delta, ratio, mechanism.noise)
        if raised_epsilon > LARGEST_EPSILON:
            raise UsageError(
                f"tune: {self.roles.units} public units play {units} private ones; too few to rehearse noise of epsilon "
                f"{epsilon:g}: hold out more, or give tune.private"
            )
        return raised_epsilon

    def runs(self, config: Config, epsilon: float, seeds: Sequence[int]) -> Iterator[Run]:
        """Yield a run with each noise seed; one that diverges, or whose plan is refused, has no score, and says why."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder) as name, np.errstate(all="ignore"):
            setup: tuple[Plan, Worker, Config] | None = None
            for seed in seeds:
                metrics, note = {}, ""
                try:
                    if setup is None:
                        rehearsal_config = self.config_of(config, epsilon)
                        setup = *plan_and_worker(rehearsal_config, self._engine), rehearsal_config
                    metrics = self._metrics(*setup[:2], self.released_theta(*setup, seed, Path(name)))
                except UsageError as error:
                    note = " ".join(str(error).split())
                loss = next((metrics[name] for name in LOWER_IS_BETTER if name in metrics), math.nan)
                score = metrics.get(self.metric, math.nan)
                finite = math.isfinite(loss) and math.isfinite(score)
                seconds = time.monotonic() - start
                if finite:
                    yield Run(seed, self.metric, score, loss, seconds)
                else:
                    yield Run(seed, self.metric, None, None, seconds, note or "diverged")
                start = time.monotonic()

    def released_theta(self, plan: Plan, worker: Worker, config: Config, noise_seed: int, folder: Path) -> FloatArray:
        """Run all rounds of a plan with seeded noise, and return the released parameters theta (d,).

        Args:
            plan: A plan of ``config``.
            worker: A worker on the plan.
            config: A config of ``config_of``.
            noise_seed: The seed of the noise.
            folder: For sketches. In one folder the seeds of a plan share the sums of round 0, which no noise has touched yet, but
                for sampled rounds: there each seed has coins of its own.
        """
        shards, secrets = self._shards(plan, worker), Secrets(toss=insecure_toss(plan, noise_seed))
        state: RoundState | None = plan.state
        theta, guard = plan.state.theta, Guard(plan, config.data.public, worker)
        while state is not None:
            drawn = drawn_shards(plan, state, shards, secrets, self._engine)
            sums = require(sketch_round(plan, state, drawn, folder, self._engine, worker))
            rule = plan.rule(state)
            noisy_sums = rule.noisy_sums(sums, rule.draw(sums, noise_seed, state.round))
            draw = Draw(noisy_sums, noise_seed)
            release = make_release(plan, state, draw, config.data.public, self._engine, worker, guard)
            theta, state = release.theta, release.next_state
        return theta

    def _with_roles(self, config: Config) -> Config:
        """The config with the public records in their roles, for one process."""
        data = AllDataConfig(
            private=self.roles.stand_ins,
            population="rehearsal",
            public=self.roles.reference,
            record_shape=config.data.record_shape,
        )
        engine = dataclasses.replace(config.engine, kind="serial", scheduler=None, workers=None)
        return dataclasses.replace(config, data=data, engine=engine, tune=None)

    def _shards(self, plan: Plan, worker: Worker) -> Shards:
        """The stand-ins as the shards of a plan, opened once for each number of parts, with the features of all settings."""
        parts = plan.config.mechanism.parts
        if parts not in self._shards_by_parts:
            sources, fingerprints = open_shards(plan, self.roles.stand_ins, self._engine, worker=worker)
            stand_ins = tuple(
                StandIns(source.data, source.slots, source.partition, dataset=dataset, private=True)
                for source, dataset in zip(sources, self._stand_ins, strict=True)
            )
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            opened = Shards(stand_ins, fingerprints)
            self._shards_by_parts[parts] = keep_features(plan, opened, folder, self._engine, worker)
        return self._shards_by_parts[parts]

    def _metrics(self, plan: Plan, worker: Worker, theta: FloatArray) -> dict[str, float]:
        """The metrics of the model at ``theta`` on the test records, whose features serve all settings."""
        test, network = self._test, worker.network_at(theta)
        if worker.frozen is not None:
            if self._test_features is None:
                parts = torch.split(test.inputs, EVALUATION_BATCH)
                self._test_features = torch.cat([worker.frozen.features(part) for part in parts])
            test, network = dataclasses.replace(test, inputs=self._test_features), worker.frozen.head
        sides = (torch.split(side, EVALUATION_BATCH) for side in (test.inputs, test.targets, test.present))
        return metrics_of(network, plan.config.model.loss, (Records(*side) for side in zip(*sides, strict=True)))


def rehearsed_epsilon(epsilon: float, delta: float, ratio: float, noise: Noise) -> float:
    """Return the epsilon whose mu is ``ratio`` times that of ``epsilon``, at the same delta; infinite beyond all bounds.

    Args:
        epsilon: The target for the private units.
        delta: Its delta.
        ratio: The number of nominal private units for each stand-in.
        noise: The kind of noise; discrete noise sets a share of delta aside.
    """
    if ratio == 1:
        return epsilon
    target = delta * (1 - (SLACK_SHARE if noise == Noise.DISCRETE else 0.0)) * (1 - MARGIN)
    mu = gdp.mu(epsilon, target) * ratio
    return gdp.epsilon(target, mu) if mu < math.sqrt(2 * LARGEST_EPSILON) else math.inf


@functools.lru_cache(64)  # Settings that differ in other keys ask for the same epsilon.
def rehearsed_sampled_epsilon(
    epsilon: float, delta: float, ratio: float, noise: Noise, rate: float, rounds: int
) -> float:
    """Return the epsilon at which sampled rounds have ``ratio`` times the mu that they have at ``epsilon``, at the same delta.

    Args:
        epsilon: The target for the private units.
        delta: Its delta.
        ratio: The number of nominal private units for each stand-in.
        noise: The kind of noise; discrete noise sets a share of delta aside.
        rate: The probability with which a unit takes part in a round, below 1.
        rounds: The number of rounds.

    Raises:
        UsageError: No noise serves the target.
    """
    if ratio == 1:
        return epsilon
    calibration = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=1, noise=noise, sampling=Sampling(rate))
    shares = FAILURE_SHARE + (SLACK_SHARE if noise == Noise.DISCRETE else 0.0)
    release = GaussianRelease(mu=calibration.mu_round * ratio, coordinates=1, sampling=rate)
    return cost([release] * rounds).guarantee().epsilon(delta * (1 - shares) * (1 - MARGIN))


def only_pretrained(config: Config) -> Config:
    """Return a config whose plan is little more than the pretrained weights: no curvature, no subspace."""
    return dataclasses.replace(
        config,
        subspace=SubspaceConfig(kind="identity"),
        precision=PrecisionConfig(kind="identity"),
        mechanism=MechanismConfig(clip=1.0, noise=Noise.GAUSSIAN),
        privacy=PrivacyConfig(epsilon=1.0, delta=1e-5, units=1),
    )


def _digest(config: Config, roles: Roles, facts: list[str]) -> str:
    """A digest of the config without what a search varies, of the roles, and of ``facts`` about files."""
    tune = config.tune or TuneConfig()
    tree: dict[str, Any] = config_to_tree(dataclasses.replace(config, tune=None))
    for name, section in LISTS.items():
        del tree[section][name]
    del tree["data"], tree["output"], tree["privacy"]["epsilon"]
    tree["engine"] = {
        name: value for name, value in tree["engine"].items() if name not in ("kind", "scheduler", "workers")
    }
    shift = [tune.noise, tune.rotate, tune.seed]
    sources = [config_to_tree(data) for data in (roles.reference, *roles.stand_ins, *roles.test)]
    text = json.dumps([tree, sources, config_to_tree(shift), facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
