"""Canaries: made-up records that a run notices as much as any, and how strongly its releases tell of each.

A canary's features are mixed from different public records, one feature at a time, some left at zero, and its label is one that the
pretrained model doesn't expect. Its whitened gradient is then long, clipped to the full C. Of many such records those are taken whose
gradients point their own ways.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve

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
from distqexp.stages.export import fine_tuned

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

COIN_VARIANCE = 0.25

CHOICE = 8
"""So many records are made for each canary that is taken, as long as their gradients fit LARGEST_TABLE."""

LARGEST_TABLE = 2**26
"""Numbers."""

SHARES_KEPT = (1.0, 0.3, 0.1, 0.03)
"""Of a record's features; the others are zero."""

NOISE_FACTORS = 2.0 ** np.arange(-10, 1.5, 0.5)
"""The noise may be so many times what the plan says: a fault is found best by somebody who reckons with it."""


def make_canaries(plan: Plan, base: Records, count: int, seed: int) -> Records:
    """``count`` records mixed from those of ``base`` that are there, with labels that the plan's pretrained model doesn't expect.

    A function of the plan, of ``base`` and of ``seed``: public.
    """
    random = np.random.default_rng([seed, count])
    inputs, made = base.inputs[base.present].numpy(), max(count, min(CHOICE * count, LARGEST_TABLE // plan.k))
    flat = inputs.reshape(len(inputs), -1)
    if plan.schema.tokens:  # a text mixed from others would lose its mask
        mixed = flat[random.integers(0, len(flat), made)]
    else:
        mixed = np.take_along_axis(flat, random.integers(0, len(flat), (made, flat.shape[1])), axis=0)
        kept = random.random(mixed.shape) < random.choice(SHARES_KEPT, size=(made, 1))
        mixed = np.where(kept, mixed, 0)
    found = torch.from_numpy(np.ascontiguousarray(mixed.reshape(made, *inputs.shape[1:])))
    network = fine_tuned(plan, plan.state.theta)
    outputs = network.outputs(found.to(network.device)).cpu()
    targets = _unexpected(outputs, base.targets, plan.schema.loss, random)
    records = Records(found, targets, torch.ones(made, dtype=torch.bool))
    best = torch.from_numpy(_apart(_gradients(plan, records), count))
    return Records(records.inputs[best], targets[best], records.present[best])


def _gradients(plan: Plan, records: Records) -> FloatArray:
    """The records' clipped vectors (n, k) at the plan's first round."""
    context = RoundContext.of_state(plan, plan.state, ())
    sketcher, size = sketcher_of(context, plan.state), plan.config.engine.micro_batch
    found = []
    for first in range(0, len(records), size):
        window = slice(first, first + size)
        batch = Records(records.inputs[window], records.targets[window], records.present[window])
        found.append(_clipped(sketcher, [(context.on_device(batch), np.arange(len(batch)))], context.k)[0])
    return np.concatenate(found)


def _apart(vectors: FloatArray, count: int) -> NDArray[np.int64]:
    """``count`` rows of ``vectors`` (n, k): one after another, the one with the longest part orthogonal to those before."""
    lengths = np.square(vectors).sum(axis=1)
    # Rows in the orthonormal basis of those chosen: Cholesky's factor, pivoted.
    reduced = np.zeros((len(vectors), count))
    chosen = np.zeros(count, dtype=np.int64)
    left = lengths.copy()
    for step in range(count):
        best = int(left.argmax())
        chosen[step] = best
        if left[best] > 1e-9 * lengths.max():
            row = vectors @ vectors[best] - reduced[:, :step] @ reduced[best, :step]
            reduced[:, step] = row / np.sqrt(left[best])
            left -= np.square(reduced[:, step])
        left[best] = -np.inf
    return chosen


def _unexpected(outputs: torch.Tensor, known: torch.Tensor, loss: str, random: np.random.Generator) -> torch.Tensor:
    """Targets of the type and shape of the ``known`` ones."""
    if loss == "cross-entropy":
        classes = outputs.shape[1]
        other = torch.from_numpy(random.integers(1, classes, len(outputs)))
        return (outputs.argmax(dim=1) + other) % classes
    if loss == "binary-cross-entropy":
        return (outputs.reshape(-1) <= 0).to(known.dtype)
    spread = 10.0 * (known.std() + 1.0)
    signs = torch.from_numpy(random.choice([-1.0, 1.0], size=(len(outputs), *known.shape[1:])))
    return (outputs.reshape(signs.shape) + spread * signs).to(known.dtype)


def coin_estimates(
    plan: Plan, releases: tuple[Release, ...], source: DataSource, included: BoolArray, canaries: int
) -> FloatArray:
    """The best linear estimate of each canary's coin, (canaries,), from the noisy sums of all rounds.

    source: with every candidate in it; the canaries are its last units. included: the coins of the other units, (units,), which the
    guesser may know (those of canaries are not looked at). A round's noisy sums less the known units' are G^T b plus noise of
    variance sigma^2, with the canaries' clipped integer vectors as rows of G, at the theta of the round, and b the coins.
    """
    gram, right = np.zeros((canaries, canaries)), np.zeros(canaries)
    squares, numbers = 0.0, 0
    state: RoundState | None = plan.state
    for release in releases:
        if state is None:
            break
        context = RoundContext.of_state(plan, state, (source,))
        part, parts = plan.config.mechanism.part_of(state.round), plan.config.mechanism.parts
        mine = np.arange(len(included))
        if parts > 1 and source.partition is not None:
            mine = np.flatnonzero(source.partition.part == part)
        vectors, known, curvature = _vectors(context, state, mine, included, len(included) - canaries)
        observed = release.noisy_sums[: plan.k].astype(np.float64)
        if curvature is not None:
            observed = curvature @ observed
        centred = (observed - known - vectors.sum(axis=0) / 2) / state.grid.sigma
        scaled = vectors / state.grid.sigma
        weighted = np.vstack([scaled, centred])
        if curvature is not None:  # the noise of B y has the covariance sigma^2 B
            weighted = solve(curvature, weighted.T, assume_a="pos").T
        gram += weighted[:-1] @ scaled.T
        right += weighted[:-1] @ centred
        squares, numbers = squares + float(weighted[-1] @ centred), numbers + plan.k
        state = release.next_state
    return 0.5 + _posterior_means(gram, right, squares, numbers)


def _posterior_means(gram: FloatArray, right: FloatArray, squares: float, numbers: int) -> FloatArray:
    """Means of coins less a half, (n,), given G^T b plus noise; of NOISE_FACTORS the likeliest scales the noise.

    gram: G G^T, (n, n); right: G times what was seen, (n,), squares: its squared length, numbers: how many were seen; in units of
    the noise that the plan says.
    """
    values, vectors = np.linalg.eigh(gram)
    values, turned = np.maximum(values, 0.0), vectors.T @ right
    best, found = -np.inf, np.zeros(len(right))
    for variance in np.square(NOISE_FACTORS):
        ridge = values + variance / COIN_VARIANCE
        cost = (squares - float(np.square(turned) @ (1 / ridge))) / variance
        likelihood = -cost - numbers * np.log(variance) - float(np.log(ridge * COIN_VARIANCE / variance).sum())
        if likelihood > best:
            best, found = likelihood, vectors @ (turned / ridge)
    return found


def _vectors(
    context: RoundContext, state: RoundState, mine: NDArray[np.int64], included: BoolArray, first: int
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Canaries' clipped vectors (canaries, k), zero for those of other parts; the known units' sum (k,); and B with private curvature.

    In grid steps. mine: number of each unit of the round among all. first: number of the first canary. B counts a canary half.
    """
    vectors = np.zeros((len(included) - first, context.k))
    known = np.zeros(context.k)
    curvature = np.eye(context.k) if state.factors is not None else None
    sketcher = sketcher_of(context, state)
    for number, (_, start, end) in enumerate(context.pieces):
        units = mine[np.unique(context.sources[0].slots.unit[start:end])]
        linear, rows, owner = _clipped(sketcher, list(context.batches(number)), context.k)
        canary = units >= first
        vectors[units[canary] - first] = linear[canary]
        known += linear[~canary & included[units]].sum(axis=0)
        if curvature is not None and state.factors is not None:
            share = np.where(canary, 0.5, included[units])[owner]
            curvature += (rows * share[:, None]).T @ rows * state.factors.step**2
    return vectors, known, curvature


def _clipped(
    sketcher: Sketcher | BatchSketcher | CurvatureSketcher, batches: list[Batch], k: int
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """A piece's clipped vectors (units, k), its curvature factors (rows, k) and the unit of each row; in grid steps."""
    none = np.zeros((0, k)), np.zeros(0, dtype=np.int64)
    if isinstance(sketcher, CurvatureSketcher):
        linear, rows, owner = sketcher.unit_integers(batches)
        return linear.astype(np.float64), rows.astype(np.float64), owner
    if isinstance(sketcher, Sketcher):
        return sketcher.unit_integers(batches)[:, :k].astype(np.float64), *none
    vectors, finite = sketcher.gradients.of_piece(batches)
    return clip_units(vectors, finite, sketcher.clip) / sketcher.step, *none
