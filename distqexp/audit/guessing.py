"""From right guesses about who was in, to what a run must at least have given away: one run is enough.

A fair coin decides for each of m candidates whether it is among the records. Whoever sees the releases guesses some coins. Under
(epsilon, delta)-differential privacy the number of right guesses among r is hardly above a binomial law of r tries at
e^epsilon / (1 + e^epsilon) (Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run"). The bound below, delta's part
of it included, is proved in docs/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom

from distqexp.errors import UsageError
from distqexp.privacy import gdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.search import last_holding

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the candidates that are guessed, half of them in and half of them out; fixed beforehand, and paid for by a union bound."""

SPREADS = np.linspace(0.0, 9.0, 37)
"""A curve is tried at the epsilons mu^2/2 + mu z for these z. All of its points hold at once: the best one needs no union bound."""

LARGEST_MU = 1e3


@dataclass(frozen=True)
class Guesses:
    """How guesses with one score came out. Public: the candidates are made up.

    candidates: m; guesses: r, that of SHARES which shows most; correct: of these. p_value: the probability of so many, or of
    something as rare with another r, is at most this if the claim is true. mu, epsilon (at the claim's delta): at least so much was
    given away, up to the probability of failure; the true epsilon of a mu-GDP run is ``epsilon_of_mu`` (None for delta 0). reach: the
    mu that guesses without an error would have shown. holds: whether the claim survives.
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
    """At most so probable are ``correct`` or more right guesses of ``guesses`` about ``candidates`` coins; for each (epsilon, delta).

    P[Binomial(r, q) >= v] + m delta / (1 + e^epsilon), q = e^epsilon / (1 + e^epsilon). Raises UsageError for impossible counts.
    """
    if not 0 <= correct <= guesses <= candidates:
        raise UsageError(
            f"audit: found {correct} right of {guesses} guesses about {candidates}; expected ascending counts"
        )
    tail = binom.sf(correct - 1, guesses, expit(epsilon))
    return np.asarray(np.minimum(1.0, tail + candidates * delta * expit(-epsilon)))


def judged(
    score: str, scores: FloatArray, included: BoolArray, claim: Guarantee, delta: float, failure: float
) -> Guesses:
    """Guess the candidates with the highest ``scores`` (m,) in, those with the lowest out; compare with ``included`` and the claim.

    delta: the claim's. failure: the probability with which a true claim is refuted, at most. Raises UsageError for fewer than two.
    """
    count = len(scores)
    if scores.shape != included.shape or count < 2:
        raise UsageError(f"audit: {scores.shape} scores of {included.shape} candidates; expected as many, two or more")
    order = np.argsort(scores, kind="stable")
    numbers = sorted({max(2, 2 * int(count * share / 2)) for share in SHARES})
    level = failure / len(SHARES)
    tests = []
    for guesses in numbers:
        half = guesses // 2
        correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        tests.append((_of_guarantee(correct, guesses, count, claim), guesses, correct))
    chance_of_claim, guesses, correct = min(tests)
    mu = max(mu_shown(right, made, count, level) for _, made, right in tests)
    return Guesses(
        score=score, candidates=count, guesses=guesses, correct=correct,
        p_value=min(1.0, len(SHARES) * chance_of_claim), mu=mu,
        epsilon=max(epsilon_shown(right, made, count, delta, level) for _, made, right in tests),
        epsilon_of_mu=(gdp.epsilon(delta, mu) if mu else 0.0) if delta > 0 else None,
        reach=max(mu_shown(made, made, count, level) for made in numbers),
        holds=chance_of_claim >= level,
    )  # fmt: skip


def mu_shown(correct: int, guesses: int, candidates: int, level: float) -> float:
    """The largest mu found at which so many right guesses are less probable than ``level``: so a run is not mu-GDP; else 0."""

    def refuted(mu: float) -> bool:
        epsilons = mu * mu / 2 + mu * SPREADS
        return bool(chance(correct, guesses, candidates, epsilons, gdp.deltas(epsilons, mu)).min() < level)

    return _largest(refuted)


def epsilon_shown(correct: int, guesses: int, candidates: int, delta: float, level: float) -> float:
    """The largest epsilon found at which they are less probable than ``level`` under (epsilon, delta)-privacy; else 0."""

    def refuted(epsilon: float) -> bool:
        found = chance(correct, guesses, candidates, np.array([epsilon]), np.array([delta]))
        return bool(found[0] < level)

    return _largest(refuted)


def _of_guarantee(correct: int, guesses: int, candidates: int, claim: Guarantee) -> float:
    epsilons = [claim.mu**2 / 2 + claim.mu * spread for spread in SPREADS]
    epsilons += [claim.pure] if math.isfinite(claim.pure) else []
    deltas = np.array([claim.delta(epsilon) for epsilon in epsilons])
    return float(chance(correct, guesses, candidates, np.array(epsilons), deltas).min())


def _largest(refuted: Callable[[float], bool]) -> float:
    """What is refuted refutes all below it too, so any refuted value is a true bound; halving finds one next to the last."""
    smallest = 2.0**-10
    if not refuted(smallest):
        return 0.0
    high = 1.0
    while refuted(high) and high < LARGEST_MU:
        high *= 2
    return high if refuted(high) else last_holding(refuted, inside=smallest, outside=high)
