"""The audit by difference: how far every unit moves the integer sums of every round of a real run, against its certificate.

A case is run from plan to certificate (seeded noise, so that it can be repeated). Then every unit is taken away, blanked or
replaced, as the adjacency says, and the sums of every round are made anew at the states that the run's releases led to, by the
stage functions of the run. Differences are Python's integers, bounds are fractions: nothing here is rounded in the
bound's favour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from difference_cases import Case
from difference_tables import Shard, replacements
from numpy.typing import NDArray

from distqexp import api
from distqexp.artefacts.state import RoundState
from distqexp.config import DataConfig
from distqexp.engines.serial import SerialEngine
from distqexp.stages.rounds import FitResult
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round

NOISE_SEED = 7
FINE = 2**40
"""Roots are rounded upwards to a FINE-th of a grid step."""


@dataclass(frozen=True)
class Move:
    """How far one unit moved the sums of every round, in grid steps: the square, and an upper bound of the length."""

    unit: int
    squares: tuple[Fraction, ...]

    @property
    def lengths(self) -> tuple[Fraction, ...]:
        """Upper bounds of the lengths."""
        return tuple(root_upwards(square) for square in self.squares)


@dataclass
class Finding:
    """What an audit found. ratio: the largest move in one round, as a share of what is allowed. violations: in words."""

    moves: list[Move] = field(default_factory=list)
    ratio: float = 0.0
    violations: list[str] = field(default_factory=list)


def audit(case: Case, folder: Path) -> Finding:
    """Run the case, move every unit, compare with the certificate."""
    config = case.written(folder / "data")
    result = api.fit(config, folder / "run", insecure_noise_seed=NOISE_SEED)
    assert result is not None
    states = [result.plan.state, *(r.next_state for r in result.releases if r.next_state is not None)]
    assert len(states) == len(result.certificate["rounds"]) == config.mechanism.rounds
    whole = sums_of_rounds(config.data.private, result, states, folder / "whole")
    _require_the_released_sums(result, states, whole)
    finding = Finding()
    for unit in case.units:
        for number, shards in enumerate(neighbours(case, unit)):
            where = folder / f"unit-{unit}-{number}"
            moved = sums_of_rounds(case.on(shards, config, where / "data"), result, states, where / "sums")
            pairs = zip(states, whole, moved, strict=True)
            squares = tuple(square_of_move(result, state, first, second) for state, first, second in pairs)
            finding.moves.append(Move(unit, squares))
    for move in finding.moves:
        finding.violations += list(_violations(move, result, states))
    allowed = [Fraction(entry["sensitivity"]) / Fraction(entry["grid_step"]) for entry in result.certificate["rounds"]]
    finding.ratio = max(
        float(length / most) for move in finding.moves for length, most in zip(move.lengths, allowed, strict=True)
    )
    return finding


def neighbours(case: Case, unit: int) -> Iterator[list[Shard]]:
    """The datasets that differ in ``unit``, in every shard that it is in."""
    adjacency = case.axes["adjacency"]
    if adjacency == "zero-out":
        yield [shard.blanked(unit) for shard in case.shards]
    elif adjacency == "add-remove":
        yield [shard.without(unit) for shard in case.shards]
    else:
        random = np.random.default_rng(np.random.SeedSequence(case.number, spawn_key=(unit,)))
        yield from replacements(case.form, random, case.shards, unit)


def sums_of_rounds(
    private: tuple[DataConfig, ...], result: FitResult, states: Sequence[RoundState], folder: Path
) -> list[NDArray[np.int64]]:
    """The pooled integer sums of every round on private files, by the stage itself."""
    engine = SerialEngine()
    sources, fingerprints = open_shards(result.plan, private, engine)
    found = []
    for state in states:
        (folder / f"{state.round}").mkdir(parents=True)
        sums = sketch_round(result.plan, state, Shards(sources, fingerprints), folder / f"{state.round}", engine)
        assert sums is not None
        assert sums.dtype == np.int64
        found.append(sums)
    return found


def square_of_move(
    result: FitResult, state: RoundState, first: NDArray[np.int64], second: NDArray[np.int64]
) -> Fraction:
    """The square of how far two sums are apart, in grid steps; with private curvature of the Lipschitz constant's bound.

    Under add-remove sums are numbers modulo 2^64, so the difference is the smallest one.
    """
    plan = result.plan
    wraps = plan.config.privacy.adjacency == "add-remove"
    differences = [difference(int(a), int(b), wraps) for a, b in zip(first, second, strict=True)]
    linear = differences[: plan.coordinates]
    square = Fraction(sum(x * x for x in linear))
    if state.factors is None:
        assert len(differences) == plan.coordinates
        return square
    radius = plan.config.mechanism.trust_radius
    assert radius is not None
    price = Fraction(radius) * Fraction(state.factors.step) ** 2 / Fraction(state.grid.step)
    curvature = price * trace_norm(differences[plan.coordinates :], plan.k, plan.config.privacy.adjacency)
    return (root_upwards(square) + curvature) ** 2


def difference(first: int, second: int, wraps: bool) -> int:
    """first - second; the representative nearest to zero where sums wrap modulo 2^64."""
    found = first - second
    return (found + 2**63) % 2**64 - 2**63 if wraps else found


def trace_norm(packed: Sequence[int], k: int, adjacency: str) -> Fraction:
    """The sum of the sizes of the eigenvalues of a symmetric matrix, given by its packed upper triangle, or a little more.

    Of a unit that vanishes the matrix is positive semidefinite, and its trace is exact.
    """
    matrix = np.zeros((k, k))
    matrix[np.triu_indices(k)] = packed
    matrix = matrix + np.triu(matrix, 1).T
    sizes = np.linalg.eigvalsh(matrix)
    largest = float(np.abs(sizes).max())
    trace = sum(packed[at] for at in range(len(packed)) if _on_diagonal(at, k))
    if adjacency == "zero-out":
        # Up to the sign of the difference, and to the roundings of the eigenvalues.
        assert min(abs(sizes.min()), abs(sizes.max())) <= 1e-9 * largest * k or (sizes >= 0).all() or (sizes <= 0).all()
        return Fraction(abs(trace))
    return Fraction(float(np.abs(sizes).sum())) * (1 + Fraction(k, 10**12))


def _on_diagonal(at: int, k: int) -> bool:
    rows, columns = np.triu_indices(k)
    return bool(rows[at] == columns[at])


def root_upwards(square: Fraction) -> Fraction:
    """The root, at most a FINE-th too large."""
    scaled = math.ceil(square * FINE * FINE)
    return Fraction(math.isqrt(scaled - 1) + 1, FINE) if scaled else Fraction(0)


def _require_the_released_sums(
    result: FitResult, states: Sequence[RoundState], whole: Sequence[NDArray[np.int64]]
) -> None:
    """The sums measured here are those that the run released with its noise."""
    for state, sums, release in zip(states, whole, result.releases, strict=True):
        rule = result.plan.rule(state)
        expected = rule.noisy_sums(sums, rule.draw(sums, NOISE_SEED, state.round))
        assert np.array_equal(expected, release.noisy_sums), f"round {state.round}: other sums than the run's"


def _violations(move: Move, result: FitResult, states: Sequence[RoundState]) -> Iterator[str]:
    certificate = result.certificate
    spent = Fraction(0)
    epsilons: list[Fraction] = []
    radius = result.plan.config.mechanism.trust_radius
    for entry, square, state in zip(certificate["rounds"], move.squares, states, strict=True):
        sigma, step = entry["sigma"], Fraction(entry["grid_step"])
        spent += square / sigma**2
        at = f"unit {move.unit}, round {entry['round']}: moved the sums by {float(root_upwards(square)):.6f} steps"
        if square > (Fraction(entry["sensitivity"]) / step) ** 2:
            yield f"{at}; sensitivity {float(Fraction(entry['sensitivity']) / step):.6f}"
        if square > (Fraction(entry["mu"]) * sigma) ** 2:
            yield f"{at}; mu sigma = {entry['mu'] * sigma:.6f}"
        if (state.grid.step, state.grid.sigma) != (entry["grid_step"], sigma):
            yield f"{at}; another grid than the certificate's"
        if radius is not None:
            epsilons.append(2 * root_upwards(square) * step * Fraction(radius) / (sigma * step) ** 2)
    every = f"unit {move.unit}, all rounds: mu {math.sqrt(spent):.9f}; certificate {certificate['mu']:.9f}"
    if radius is None:
        if spent > Fraction(certificate["mu"]) ** 2:
            yield every
        if gdp_delta(certificate["epsilon"], spent) > certificate["delta"]:
            yield f"{every}: more than delta {certificate['delta']} at epsilon {certificate['epsilon']}"
        return
    if certificate["pure_epsilon"] is None or sum(epsilons) > Fraction(certificate["pure_epsilon"]):
        yield f"{every}: epsilon {float(sum(epsilons)):.9f}; certificate {certificate['pure_epsilon']}"
    # A round counts with the smaller of its mu and of what its pure epsilon implies.
    pairs = zip(move.squares, certificate["rounds"], epsilons, strict=True)
    least = sum(min(mpmath.mpf(_float_of(s / e["sigma"] ** 2)), implied_mu(x) ** 2) for s, e, x in pairs)
    if least > mpmath.mpf(certificate["mu"]) ** 2 * (1 + mpmath.mpf(10) ** -12):
        yield f"{every}, as bounded releases"


def gdp_delta(epsilon: float, square: Fraction) -> Any:
    """The delta at ``epsilon`` of a mu-GDP release, from its definition, to forty digits."""
    if square == 0:
        return mpmath.mpf(0)
    with mpmath.workdps(40):
        mu = mpmath.sqrt(mpmath.mpf(square.numerator) / square.denominator)
        e = mpmath.mpf(epsilon)
        return mpmath.ncdf(-e / mu + mu / 2) - mpmath.exp(e) * mpmath.ncdf(-e / mu - mu / 2)


def implied_mu(epsilon: Fraction) -> Any:
    """The smallest mu such that an epsilon-DP release is mu-GDP: twice the normal quantile of e^epsilon / (1 + e^epsilon)."""
    with mpmath.workdps(40):
        e = mpmath.mpf(epsilon.numerator) / epsilon.denominator
        return 2 * mpmath.sqrt(2) * mpmath.erfinv((mpmath.exp(e) - 1) / (mpmath.exp(e) + 1))


def _float_of(value: Fraction) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator
