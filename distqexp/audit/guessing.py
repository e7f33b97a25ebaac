"""Lower bounds on what one run has given away, from right guesses about who was in it.

A fair coin decides for each of m candidates whether it is among the records. Somebody sees the releases and guesses some coins. Under
(epsilon, delta)-differential privacy the number of right guesses among r is hardly above a binomial law of r tries at
e^epsilon / (1 + e^epsilon) (Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run"). The bound below, delta's part
of it included, is proved in docs/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from distqexp.arrays import BoolArray, FloatArray
from distqexp.audit.bounds import curve_of
from distqexp.errors import UsageError
from distqexp.privacy import gdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.search import last_holding

SHARES = (1.0, 0.75, 0.5, 0.25)
"""The shares of the candidates that are guessed, half of them in and half out; fixed beforehand, and paid for by a union bound."""

SPREADS = np.linspace(0.0, 9.0, 37)
"""A curve is tried at the epsilons mu^2/2 + mu z for these z. All of its points hold at once: the best one needs no union bound."""

LARGEST_MU = 1e3
"""Where the search for a bound ends."""


@dataclass(frozen=True)
class Guesses:
    """How guesses with one score came out. Public: no candidate is a private record.

    Attributes:
        score: The name of the score.
        candidates: The number m of candidates.
        guesses: The number r of guesses, for the one of SHARES that shows most.
        correct: The number of right guesses among them.
        p_value: If the claim is true, so many right guesses, or something as rare with another r, have at most this probability.
        mu: The run gave away at least this mu, but for the probability of failure.
        epsilon: The run gave away at least this epsilon at the claim's delta, but for the same probability; bounded separately.
        epsilon_of_mu: The epsilon, at the claim's delta, of a run that is mu-GDP with this ``mu``; None for delta 0.
        reach: The mu that guesses without an error would have shown.
        holds: Whether the claim survives.
    """

    score: str
    candidates: int
    guesses: int
    correct: int
    p_value: float
    mu: float
    epsilon: float
    epsilon_of_mu: float | None
    reach: float
    holds: bool


def chance(correct: int, guesses: int, candidates: int, epsilon: FloatArray, delta: FloatArray) -> FloatArray:
    """Bound the probability of that many right guesses, or more, under (epsilon, delta)-differential privacy.

    With v right of r guesses about m coins the bound is P[Binomial(r, q) >= v] + m delta / (1 + e^epsilon), where
    q = e^epsilon / (1 + e^epsilon).

    Args:
        correct: The number v of right guesses.
        guesses: The number r of guesses.
        candidates: The number m of coins.
        epsilon: Values of epsilon, (n,).
        delta: The delta of each, (n,).

    Returns:
        The bound for each pair, (n,).

    Raises:
        UsageError: The counts are impossible.
    """
    if not 0 <= correct <= guesses <= candidates:
        raise UsageError(
            f"audit: found {correct} right of {guesses} guesses about {candidates}; expected ascending counts"
        )
    tail = binom.sf(correct - 1, guesses, expit(epsilon))
    return np.asarray(np.minimum(1.0, tail + candidates * delta * expit(-epsilon)))


def judge(
    score: str, scores: FloatArray, included: BoolArray, claim: Guarantee, delta: float, failure: float
) -> Guesses:
    """Guess that the candidates with the highest scores are in and those with the lowest are out, and test the claim with that.

    Args:
        score: The name of the score.
        scores: The score of each candidate, (m,).
        included: The coin of each candidate, (m,).
        claim: The guarantee that is claimed.
        delta: The claim's delta.
        failure: The largest probability with which a true claim is refuted.

    Raises:
        UsageError: There are fewer than two candidates, or not as many scores.
    """
    count = len(scores)
    if scores.shape != included.shape or count < 2:
        raise UsageError(f"audit: {scores.shape} scores of {included.shape} candidates; expected as many, two or more")
    order = np.argsort(scores, kind="stable")
    numbers = sorted({max(2, 2 * int(count * share / 2)) for share in SHARES})
    level = failure / len(SHARES)
    tests = []
    epsilons, deltas = _curve(claim)
    for guesses in numbers:
        half = guesses // 2
        correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        # The best point of the curve: all of them bound the same probability.
        tests.append((float(chance(correct, guesses, count, epsilons, deltas).min()), guesses, correct))
    chance_of_claim, guesses, correct = min(tests)
    mu = max(mu_shown(right, total, count, level) for _, total, right in tests)
    return Guesses(
        score=score, candidates=count, guesses=guesses, correct=correct,
        p_value=min(1.0, len(SHARES) * chance_of_claim), mu=mu,
        epsilon=max(epsilon_shown(right, total, count, delta, level) for _, total, right in tests),
        epsilon_of_mu=(gdp.epsilon(delta, mu) if mu else 0.0) if delta > 0 else None,
        reach=max(mu_shown(total, total, count, level) for total in numbers),
        holds=chance_of_claim >= level,
    )  # fmt: skip


def mu_shown(correct: int, guesses: int, candidates: int, level: float) -> float:
    """Search for the largest mu at which so many right guesses are less probable than ``level``, so that no mu-GDP run made them.

    Args:
        correct: The number of right guesses.
        guesses: The number of guesses.
        candidates: The number of coins.
        level: The probability.

    Returns:
        The largest such mu that was found; 0 where there is none.
    """

    def refuted(mu: float) -> bool:
        epsilons = mu * mu / 2 + mu * SPREADS
        return bool(chance(correct, guesses, candidates, epsilons, gdp.deltas(epsilons, mu)).min() < level)

    return _largest(refuted)


def epsilon_shown(correct: int, guesses: int, candidates: int, delta: float, level: float) -> float:
    """Search for the largest epsilon at which (epsilon, delta)-privacy makes so many right guesses less probable than ``level``.

    Args:
        correct: The number of right guesses.
        guesses: The number of guesses.
        candidates: The number of coins.
        delta: The delta.
        level: The probability.

    Returns:
        The largest such epsilon that was found; 0 where there is none.
    """

    def refuted(epsilon: float) -> bool:
        bounds = chance(correct, guesses, candidates, np.array([epsilon]), np.array([delta]))
        return bool(bounds[0] < level)

    return _largest(refuted)


def _curve(claim: Guarantee) -> tuple[FloatArray, FloatArray]:
    """Return the epsilons at which a claim is tried, (n,), and their deltas.

    The mu of a claim on sampled rounds leaves their coins aside and is far too large, so that a fixed grid is tried as well.
    """
    epsilons = [claim.mu**2 / 2 + claim.mu * spread for spread in SPREADS]
    epsilons += [claim.pure] if math.isfinite(claim.pure) else []
    if claim.sampled_releases is not None:
        return curve_of(claim, *epsilons)
    return np.array(epsilons), np.array([claim.delta(epsilon) for epsilon in epsilons])


def _largest(refuted: Callable[[float], bool]) -> float:
    """Return a refuted value next to the largest, or 0. A refuted value refutes all below it, so each is a true bound."""
    smallest = 2.0**-10
    if not refuted(smallest):
        return 0.0
    high = 1.0
    while refuted(high) and high < LARGEST_MU:
        high *= 2
    return high if refuted(high) else last_holding(refuted, inside=smallest, outside=high)
