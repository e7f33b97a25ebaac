"""Audit by difference: in a hundred random settings no unit moves the integer sums by more than the certificate's mu allows.

Adversarial tables (huge, cancelling, aligned, vanishing, non-finite records), real runs, every unit of every shard blanked,
removed or replaced, every round. tests/support/difference_oracle.py says what is compared; test_leaks.py plants leaks of a
hundredth, which the same audit finds.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from difference_cases import COUNT, FORMS, MECHANISMS, case
from difference_oracle import Finding, audit, difference, gdp_delta, implied_mu, root_upwards, trace_norm

QUICK = 6
"""So many cases are among the quick tests."""

FOUND: dict[int, Finding] = {}


def finding(number: int, folder: Path) -> Finding:
    """The audit of a case, made once."""
    if number not in FOUND:
        FOUND[number] = audit(case(number), folder / f"case-{number}")
    return FOUND[number]


def figures(number: int, found: Finding) -> str:
    """The case and what was measured: test data, nobody's."""
    axes = ", ".join(f"{name} {value}" for name, value in case(number).axes.items())
    return f"case {number} ({axes}): largest share {found.ratio:.6f}; {'; '.join(found.violations)}"


NUMBERS: list[Any] = [*range(QUICK), *(pytest.param(number, marks=pytest.mark.slow) for number in range(QUICK, COUNT))]


@pytest.mark.parametrize("number", NUMBERS)
def test_no_unit_moves_the_sums_by_more_than_the_certificate_allows(number: int, tmp_path: Path) -> None:
    found = finding(number, tmp_path)
    assert {move.unit for move in found.moves} == set(case(number).units)
    assert not found.violations, figures(number, found)
    assert found.ratio <= 1, figures(number, found)


def test_the_quick_cases_come_near_to_what_is_allowed(tmp_path: Path) -> None:
    assert max(finding(number, tmp_path).ratio for number in range(QUICK)) > 0.999


@pytest.mark.slow
def test_nearly_every_case_comes_near_to_what_is_allowed(tmp_path: Path) -> None:
    """So that a bound that is a hundredth too small would be exceeded in most of them."""
    ratios = {number: finding(number, tmp_path).ratio for number in range(COUNT)}
    ordered = sorted(ratios.values())
    assert ordered[-1] > 0.999999
    assert sum(ratio > 0.99 for ratio in ordered) >= 80, sorted(ratios.items(), key=lambda pair: pair[1])[:25]
    assert ordered[5] > 0.8, sorted(ratios.items(), key=lambda pair: pair[1])[:10]


def test_the_cases_have_everything_that_bears_on_a_sum() -> None:
    """How often each choice is made: none is missing, none is rare."""
    counts = Counter(pair for number in range(COUNT) for pair in case(number).axes.items())
    expected = {
        "adjacency": ("zero-out", "add-remove", "replace-one"),
        "mechanism": tuple(MECHANISMS),
        "model": tuple(FORMS),
        "format": ("csv", "hdf5", "idx"),
        "units": ("column", "row"),
        "rounds": ("1", "2", "3", "4"),
        "parts": ("1", "2", "3"),
        "presence": ("1", "2", "3"),
        "subspace": ("identity", "gaussian", "rademacher", "sjlt", "srht", "public-pca", "kronecker", "kronecker-pca"),
        "precision": ("identity", "diagonal", "dense", "kronecker", "kronecker-joint"),
        "rounding": ("unit", "batch"),
        "views": ("True", "False"),
        "diagnostics": ("True", "False"),
        "momentum": ("True", "False"),
        "clip": ("clip", "clip_quantile", "clip_natural"),
        "double": ("True", "False"),
    }
    for axis, values in expected.items():
        for value in values:
            assert counts[axis, value] >= 4, (axis, value, counts[axis, value])
    several = [number for number in range(COUNT) if len(case(number).units) < len(case(number).shards[0].unit)]
    assert len(several) >= 20
    for number in range(COUNT):
        assert 6 <= len(case(number).units) <= 9


# --- the measure itself ----------------------------------------------------------------------------------------


def test_differences_wrap_where_sums_do() -> None:
    low, high = -(2**63), 2**63 - 1
    assert difference(high, low, wraps=True) == -1
    assert difference(low, high, wraps=True) == 1
    assert difference(high, low, wraps=False) == 2**64 - 1
    assert difference(5, -7, wraps=True) == difference(5, -7, wraps=False) == 12


def test_roots_are_exact_or_a_little_too_large() -> None:
    assert root_upwards(Fraction(0)) == 0
    assert root_upwards(Fraction(49)) == 7
    for square in (Fraction(2), Fraction(1, 3), Fraction(10**40 + 1), Fraction(1, 10**30)):
        assert root_upwards(square) ** 2 >= square
        assert (root_upwards(square) - Fraction(1, 2**40)) ** 2 < square


def test_trace_norms_of_packed_matrices() -> None:
    assert trace_norm([4, 1, 9], 2, "zero-out") == trace_norm([-4, -1, -9], 2, "zero-out") == 13
    assert float(trace_norm([3, 4, -3], 2, "replace-one")) == pytest.approx(10)
    with pytest.raises(AssertionError):
        trace_norm([3, 4, -3], 2, "zero-out")


def test_gaussian_deltas_and_implied_mus() -> None:
    """Of mu 1 at epsilon 1 (a figure of Balle and Wang's formula), and against simulation-free identities at epsilon 0."""
    assert float(gdp_delta(1.0, Fraction(1))) == pytest.approx(0.126936737507106, rel=1e-12)
    for mu in (0.01, 1.0, 40.0):
        total_variation = math.erf(mu / 2 / math.sqrt(2))
        assert float(gdp_delta(0.0, Fraction(mu) ** 2)) == pytest.approx(total_variation, rel=1e-12)
    # Randomised response of epsilon is as hard to tell as N(0, 1) from N(mu, 1) at the even level.
    for epsilon in (0.01, 1.0, 20.0):
        mu = float(implied_mu(Fraction(epsilon)))
        assert math.erf(mu / 2 / math.sqrt(2)) == pytest.approx(np.tanh(epsilon / 2), rel=1e-12)
