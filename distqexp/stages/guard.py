"""The guard: a released point is tried on public records or probes before the next round builds on it. Costs no privacy.

What it does is post-processing: it sees released parameters and public records alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.artefacts.moves import HALVINGS, WHOLE, halved
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import DataConfig
from distqexp.errors import UsageError
from distqexp.expansion.source import public_classes, public_source
from distqexp.gradients.worker import Worker
from distqexp.problem.losses import constant_loss
from distqexp.problem.records import Records
from distqexp.problem.sources import ProbeSource
from distqexp.stages.lifting import whitening_of

RECORDS = 256
"""At most so many records are tried; and of probes, no more than precision.samples, which is small where a pass is dear."""

LEAST_PROBES = 16

LOSS_SHARE = 0.25
"""Noise may cost this share of the loss at the start ..."""

LEAST_NOISE_COST = 0.01
"""... and this much in any case, as a model knows its public records by heart; for squared errors in variances of the targets ..."""

MOST_NOISE_COST = 0.5
"""... and no more than this. Where gradients are not clipped, later rounds undo noise, and ``kept`` judges the end of the run."""

_BATCH = 64
_PAIRS = 4


class Guard:
    """Tries parameters on public records; without any, on probes with targets drawn from the plan's own model.

    Args:
        plan: The plan.
        public: The public records, if any.
        worker: A worker on the plan.
    """

    def __init__(self, plan: Plan, public: DataConfig | None, worker: Worker) -> None:
        self._plan = plan
        self._public = public
        self._worker = worker

    def moved(self, start: FloatArray, end: FloatArray) -> tuple[FloatArray, int]:
        """Return the point that the run goes on from, and how often the move from ``start`` to ``end``, (d,) each, was halved."""
        if not (self._plan.config.mechanism.guard and self._has_records and math.isfinite(self.bound)):
            return end, 0
        for halvings in range(HALVINGS):
            point = halved(start, end, halvings)
            if self.loss(point) <= self.bound:
                return point, halvings
        return start, HALVINGS

    def loss(self, theta: FloatArray) -> float:
        """Return the mean loss at ``theta`` (d,); infinite where a parameter or an output is not finite."""
        if not np.isfinite(theta).all():
            return math.inf
        outputs, records = self._outputs(theta), self._records
        if not bool(torch.isfinite(outputs).all()):
            return math.inf
        outputs, targets = self._among_public(outputs, records.targets)
        value = float(self._worker.loss.value(outputs, targets)[records.present].mean())
        return value if math.isfinite(value) else math.inf

    def _among_public(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and labels of the classes that public records have.

        A model that learns the others from private records moves their outputs in ways that public records can't judge.
        """
        classes = self._public_classes
        if classes is None or len(classes) == outputs.shape[-1]:
            return outputs, targets
        return outputs[:, classes], torch.searchsorted(classes, targets)

    @cached_property
    def _public_classes(self) -> torch.Tensor | None:
        """The classes among all public records, in order; None where there are no records, or no classes."""
        plan = self._plan
        if self._public is None or plan.config.model.loss != "cross-entropy":
            return None
        classes = torch.unique(self._records.targets[self._records.present])
        if len(classes) == plan.schema.classes:
            return classes
        return public_classes(self._public, plan.schema, self._worker.readers)

    @cached_property
    def bound(self) -> float:
        """The largest loss that a point may have, by ``mechanism.guard_rise``.

        With probes it is the largest number: their loss tells whether it is finite.
        """
        if self._public is None:
            return np.finfo(np.float64).max
        first, records = self.loss(self._plan.state.theta), self._records
        constant = constant_loss(self._plan.config.model.loss, records.targets[records.present])
        worst, unit = constant or (first, abs(first))
        return first + self._plan.config.mechanism.guard_rise * max(unit, worst - first)

    def cost_of_noise(self, state: RoundState, share: float = 1.0) -> float:
        """Return by how much a round's noise alone raises the loss at the state's parameters, over seeded draws of it.

        Each draw is taken with both signs, so that the slope of the loss drops out. ``share`` scales the noise.
        """
        first = self.loss(state.theta)
        rises = [self.loss(state.theta + move) - first for move in self._noise_moves(state, share)]
        return float(np.mean(rises))

    def kept(self, state: RoundState, end: FloatArray) -> int:
        """Return how many eighths of the way from the plan's parameters to ``end``, (d,), the model keeps after the last round.

        The way's length is the root mean quadratic form of the change in the outputs, in the loss's Hessian at the plan's outputs. All
        of it is kept where its square is twice that of the noise of all rounds or more, nothing where it is no larger, and a part in
        between.
        """
        mechanism = self._plan.config.mechanism
        last = state.round == mechanism.rounds - 1
        if not (mechanism.discount and last and self._has_records and mechanism.trust_radius is None):
            return WHOLE
        noise = mechanism.rounds * self._energy_of_noise(state) / (1.0 - mechanism.momentum) ** 2
        excess = self._energy(end) / noise - 1.0 if noise > 0 else 1.0
        return WHOLE if not excess < 1.0 else max(0, math.floor(WHOLE * excess))

    def _energy_of_noise(self, state: RoundState) -> float:
        """Return what a round's noise alone, at the state's scale, adds to the squared length of the way, over seeded draws."""
        energies = [self._energy(self._plan.state.theta + move) for move in self._noise_moves(state)]
        return float(np.mean(energies))

    def _noise_moves(self, state: RoundState, share: float = 1.0) -> Iterator[FloatArray]:
        """Yield moves (d,) that a round's noise alone makes, over seeded draws, each with both signs; ``share`` scales them.

        With noise in shares the noise is that of all sites, more than the planned one.
        """
        plan = self._plan
        lift = whitening_of(plan, state, self._worker).lift
        share *= math.sqrt(plan.config.noise_excess)
        for pair in range(_PAIRS):
            normal = np.random.default_rng([plan.config.subspace.seed, pair]).standard_normal(plan.k)
            move = lift(share * math.sqrt(state.grid.temperature) * normal)
            yield move
            yield -move

    def _energy(self, theta: FloatArray) -> float:
        """Return the mean over records of (o - o_0)^T H (o - o_0), with o_0 and H the outputs and Hessian at the plan's parameters."""
        first = self._outputs(self._plan.state.theta)
        change = (self._outputs(theta) - first).reshape(len(first), 1, -1)
        factors = self._worker.loss.hessian_factor(first).to(change.dtype)
        return float(torch.bmm(change, factors).square().sum(dim=(1, 2))[self._records.present].mean())

    @cached_property
    def unit(self) -> float:
        """The unit that losses are compared in: 1, for squared errors the variance of the targets, for losses of one's own the first."""
        records = self._records
        constant = constant_loss(self._plan.config.model.loss, records.targets[records.present])
        return constant[1] if constant and constant[1] > 0 else max(abs(self.loss(self._plan.state.theta)), 1e-300)

    @cached_property
    def allowance(self) -> float:
        """What noise may cost in loss over a whole run whose config sets no clip: a share of the loss that there is to lower."""
        share = LOSS_SHARE * self.loss(self._plan.state.theta) / self.unit
        return self.unit * min(max(share, LEAST_NOISE_COST), MOST_NOISE_COST)

    @property
    def _has_records(self) -> bool:
        return self._public is not None or self._plan.schema.input_shape is not None

    @cached_property
    def _records(self) -> Records:
        """The records, with features in the place of inputs where the model has a frozen part."""
        plan, worker = self._plan, self._worker
        if self._public is None:
            count = min(RECORDS, max(LEAST_PROBES, plan.config.precision.samples))
            records = ProbeSource(count, plan.config.subspace.seed).open(plan.schema, 0).read(np.arange(count))
        else:
            source = public_source(plan.config, self._public, plan.schema, readers=worker.readers)
            rows = source.slots.rows
            places = np.unique(np.linspace(0, len(rows) - 1, min(RECORDS, len(rows))).astype(np.int64))
            records = source.open(plan.schema, 0, worker.readers).read(rows[places])
        worker.network_at(plan.state.theta)
        if worker.frozen is not None:
            features = [worker.frozen.features(part) for part in torch.split(records.inputs, _BATCH)]
            records = Records(torch.cat(features), records.targets, records.present)
        if self._public is not None:
            return records
        outputs = self._outputs_of(records, plan.state.theta)
        width = worker.loss.noise_width(outputs)
        noise = np.random.default_rng(plan.config.subspace.seed).uniform(size=(len(outputs), width)).clip(1e-12)
        return Records(records.inputs, worker.loss.sample(outputs, torch.from_numpy(noise)), records.present)

    def _outputs(self, theta: FloatArray) -> torch.Tensor:
        return self._outputs_of(self._records, theta)

    def _outputs_of(self, records: Records, theta: FloatArray) -> torch.Tensor:
        network = self._worker.network_at(theta)
        frozen = self._worker.frozen
        network = network if frozen is None else frozen.head
        parts = torch.split(records.inputs, _BATCH)
        return torch.cat([network.outputs(part.to(network.device)).cpu().double() for part in parts])


def guard_line(halvings: int) -> str:
    """Return what the guard did to a move that it halved, in words. Public."""
    made = "the move was not made" if halvings >= HALVINGS else f"the move was cut to 1/{2**halvings}"
    return f"{made}: beyond, the loss on public records or probes leaves its bound"


def refuse_unusable_start(guard: Guard, theta: FloatArray) -> None:
    """Refuse (UsageError) a run whose model is of no use before its first round: a loss that isn't finite."""
    if not math.isfinite(guard.loss(theta)):
        raise UsageError(
            "model: its loss on public records or probes is not finite before the first round; expected a finite one: "
            "check model.weights, model.pretrain.learning_rate and the columns of data.public"
        )
