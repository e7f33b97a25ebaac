"""Canaries: made-up records that move a run as much as any record can, and what its releases tell of each.

A canary's features are mixed from different public records, one feature at a time, with some left at zero, and its label is one that the
pretrained model doesn't expect. Its whitened gradient is then long, and clipped to the full C. Of many such records those become
canaries whose gradients point in directions of their own.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import solve

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.gradients.batching import Batch
from distqexp.gradients.context import RoundContext
from distqexp.problem.records import Records
from distqexp.problem.sources import DataSource
from distqexp.sketching.choice import sketcher_of
from distqexp.sketching.clip import clip_units
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.sketching.sketcher import BatchSketcher, Sketcher
from distqexp.stages.export import fine_tuned_network

COIN_VARIANCE = 0.25
"""The variance of a fair coin of values 0 and 1."""

RECORDS_PER_CANARY = 8
"""The number of records that are made for each canary, as long as their gradients fit LARGEST_TABLE."""

LARGEST_TABLE = 2**26
"""The largest table of gradients, in numbers."""

FEATURE_SHARES = (1.0, 0.3, 0.1, 0.03)
"""The share of its features that a record may have; the others are zero."""

NOISE_FACTORS = 2.0 ** np.arange(-10, 1.5, 0.5)
"""The true noise over the noise of the plan, as the guesser allows for it: a fault is found best by somebody who expects it."""

SAMPLED_NOISE_FACTORS = 2.0 ** np.arange(-10, 10.5, 0.5)
"""The same for sampled rounds, where who joined adds to the noise: so many units may vary that the noise of the plan is small beside it."""


def make_canaries(plan: Plan, base: Records, count: int, seed: int) -> Records:
    """Mix records from the present ones of ``base``, with labels that the plan's pretrained model doesn't expect.

    They are a function of the arguments, and public.

    Args:
        plan: The plan, whose first round the canaries are chosen for.
        base: Public records.
        count: How many canaries to return.
        seed: The seed of the mixture.
    """
    random = np.random.default_rng([seed, count])
    inputs = base.inputs[base.present].numpy()
    total = max(count, min(RECORDS_PER_CANARY * count, LARGEST_TABLE // plan.k))
    flat = inputs.reshape(len(inputs), -1)
    if plan.schema.tokens:  # a text mixed from others would lose its mask
        mixture = flat[random.integers(0, len(flat), total)]
    else:
        mixture = np.take_along_axis(flat, random.integers(0, len(flat), (total, flat.shape[1])), axis=0)
        keep = random.random(mixture.shape) < random.choice(FEATURE_SHARES, size=(total, 1))
        mixture = np.where(keep, mixture, 0)
    new_inputs = torch.from_numpy(np.ascontiguousarray(mixture.reshape(total, *inputs.shape[1:])))
    network = fine_tuned_network(plan, plan.state.theta)
    outputs = network.outputs(new_inputs.to(network.device)).cpu()
    targets = _unexpected(outputs, base.targets, plan.schema.loss, random)
    records = Records(new_inputs, targets, torch.ones(total, dtype=torch.bool))
    best = torch.from_numpy(_apart(_gradients(plan, records), count))
    return Records(records.inputs[best], targets[best], records.present[best])


def _gradients(plan: Plan, records: Records) -> FloatArray:
    """Return the records' clipped vectors (n, k) at the plan's first round."""
    context = RoundContext.of_state(plan, plan.state, ())
    sketcher, size = sketcher_of(context, plan.state), plan.config.engine.micro_batch
    vectors = []
    for first in range(0, len(records), size):
        window = slice(first, first + size)
        batch = Records(records.inputs[window], records.targets[window], records.present[window])
        vectors.append(_clipped_vectors(sketcher, [(context.on_device(batch), np.arange(len(batch)))], context.k)[0])
    return np.concatenate(vectors)


def _apart(vectors: FloatArray, count: int) -> IntegerArray:
    """Choose ``count`` rows of ``vectors`` (n, k), each time the one with the longest part orthogonal to the rows before."""
    lengths = np.square(vectors).sum(axis=1)
    # All rows in the orthonormal basis of the chosen ones: a pivoted Cholesky factor.
    factor = np.zeros((len(vectors), count))
    pivots = np.zeros(count, dtype=np.int64)
    remainders = lengths.copy()
    for step in range(count):
        best = int(remainders.argmax())
        pivots[step] = best
        if remainders[best] > 1e-9 * lengths.max():
            row = vectors @ vectors[best] - factor[:, :step] @ factor[best, :step]
            factor[:, step] = row / np.sqrt(remainders[best])
            remainders -= np.square(factor[:, step])
        remainders[best] = -np.inf
    return pivots


def _unexpected(outputs: torch.Tensor, examples: torch.Tensor, loss: str, random: np.random.Generator) -> torch.Tensor:
    """Make targets that the outputs don't expect, of the type and shape of the ``examples``."""
    if loss == "cross-entropy":
        classes = outputs.shape[1]
        other = torch.from_numpy(random.integers(1, classes, len(outputs)))
        return (outputs.argmax(dim=1) + other) % classes
    if loss == "binary-cross-entropy":
        return (outputs.reshape(-1) <= 0).to(examples.dtype)
    spread = 10.0 * (examples.std() + 1.0)
    signs = torch.from_numpy(random.choice([-1.0, 1.0], size=(len(outputs), *examples.shape[1:])))
    return (outputs.reshape(signs.shape) + spread * signs).to(examples.dtype)


def coin_estimates(
    plan: Plan, releases: tuple[Release, ...], source: DataSource, included: BoolArray, canaries: int
) -> FloatArray:
    """Return the best linear estimate of each canary's coin, (canaries,), from the noisy sums of all rounds.

    A round's noisy sums less those of the other units are G^T b plus noise of variance sigma^2. The rows of G are the canaries'
    clipped integer vectors at the round's theta, and b are the canaries' coins.

    In a sampled round each of the units joins with probability q, and the guesser doesn't know which. On average the sums are q times
    those of all members, so G and the other units' sum count q times. How far the sample is from its average counts as noise.

    Args:
        plan: The plan of the run.
        releases: The releases of all rounds.
        source: Holds every candidate; the canaries are its last units.
        included: The coins, (units,). The guesser may know those of public units; those of canaries are not looked at.
        canaries: The number of canaries.
    """
    gram, right = np.zeros((canaries, canaries)), np.zeros(canaries)
    squares, numbers, share = 0.0, 0, plan.config.mechanism.sampling
    state: RoundState | None = plan.state
    for release in releases:
        if state is None:
            break
        context = RoundContext.of_state(plan, state, (source,))
        part, parts = plan.config.mechanism.part_of(state.round), plan.config.mechanism.parts
        units = np.arange(len(included))
        if parts > 1 and source.partition is not None:
            units = np.flatnonzero(source.partition.part == part)
        vectors, known_sum, curvature = _vectors(context, state, units, included, len(included) - canaries)
        sums = release.noisy_sums[: plan.k].astype(np.float64)
        if curvature is not None:
            sums = curvature @ sums
        deviation = (sums - share * (known_sum + vectors.sum(axis=0) / 2)) / state.grid.sigma
        rows = share * vectors / state.grid.sigma
        weights = np.vstack([rows, deviation])
        if curvature is not None:  # the noise of B y has the covariance sigma^2 B
            weights = solve(curvature, weights.T, assume_a="pos").T
        gram += weights[:-1] @ rows.T
        right += weights[:-1] @ deviation
        squares, numbers = squares + float(weights[-1] @ deviation), numbers + plan.k
        state = release.next_state
    factors = SAMPLED_NOISE_FACTORS if plan.config.mechanism.sampled else NOISE_FACTORS
    return 0.5 + _posterior_means(gram, right, squares, numbers, factors)


def _posterior_means(
    gram: FloatArray, right: FloatArray, squares: float, numbers: int, factors: FloatArray = NOISE_FACTORS
) -> FloatArray:
    """Return the means of coins less a half, (n,), given y = G^T b plus noise, which the likeliest of ``factors`` scales.

    gram: G G^T, (n, n). right: G y, (n,). squares: the squared length of y. numbers: the length of y. All are in units of the noise
    that the plan says.
    """
    values, vectors = np.linalg.eigh(gram)
    values, rotation = np.maximum(values, 0.0), vectors.T @ right
    best, means = -np.inf, np.zeros(len(right))
    for variance in np.square(factors):
        ridge = values + variance / COIN_VARIANCE
        cost = (squares - float(np.square(rotation) @ (1 / ridge))) / variance
        likelihood = -cost - numbers * np.log(variance) - float(np.log(ridge * COIN_VARIANCE / variance).sum())
        if likelihood > best:
            best, means = likelihood, vectors @ (rotation / ridge)
    return means


def _vectors(
    context: RoundContext, state: RoundState, round_units: IntegerArray, included: BoolArray, first: int
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Return the canaries' clipped vectors (canaries, k), the sum (k,) of the included public units, and B with private curvature.

    All are in grid steps. A canary of another part has a zero vector; B counts each canary half. round_units: the number of each unit
    of the round among all units. first: the number of the first canary.
    """
    vectors = np.zeros((len(included) - first, context.k))
    known_sum = np.zeros(context.k)
    curvature = np.eye(context.k) if state.factors is not None else None
    sketcher = sketcher_of(context, state)
    for number, (_, start, end) in enumerate(context.pieces):
        units = round_units[np.unique(context.sources[0].slots.unit[start:end])]
        linear, rows, owner = _clipped_vectors(sketcher, list(context.batches(number)), context.k)
        canary = units >= first
        vectors[units[canary] - first] = linear[canary]
        known_sum += linear[~canary & included[units]].sum(axis=0)
        if curvature is not None and state.factors is not None:
            share = np.where(canary, 0.5, included[units])[owner]
            curvature += (rows * share[:, None]).T @ rows * state.factors.step**2
    return vectors, known_sum, curvature


def _clipped_vectors(
    sketcher: Sketcher | BatchSketcher | CurvatureSketcher, batches: list[Batch], k: int
) -> tuple[FloatArray, FloatArray, IntegerArray]:
    """Return a piece's clipped vectors (units, k), its curvature factors (rows, k) and the unit of each row, in grid steps."""
    none = np.zeros((0, k)), np.zeros(0, dtype=np.int64)
    if isinstance(sketcher, CurvatureSketcher):
        linear, rows, owner = sketcher.unit_integers(batches)
        return linear.astype(np.float64), rows.astype(np.float64), owner
    if isinstance(sketcher, Sketcher):
        return sketcher.unit_integers(batches)[:, :k].astype(np.float64), *none
    vectors, finite = sketcher.gradients.of_piece(batches)
    return clip_units(vectors, finite, sketcher.clip) / sketcher.step, *none
