"""Noise by blocks: the same from one source by whoever draws it, other noise in every block, and all of it by the law.

Sources from the operating system are replaced by fixed ones, so that nothing here raises a false alarm, now or later. Each check of a
law would have a chance of at most 1e-8 to do so.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from distqexp import arrays
from distqexp.arrays import blocks_of
from distqexp.errors import FileContentError
from distqexp.kinds import Noise
from distqexp.mechanism.blocks import Source, new_source, noise_of_block
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.noise import draw_insecure
from distqexp.mechanism.rule import ReleaseRule

SIGMA = 2**20
ALARM = 1e-8
FIXED: Source = np.frombuffer(bytes([1]) + hashlib.sha256(b"a fixed source").digest(), dtype=np.uint8)


def blocks(source: Source, k: int, noise: Noise = Noise.DISCRETE) -> list[NDArray[np.int64]]:
    return [noise_of_block(source, number, place, SIGMA, noise) for number, place in enumerate(blocks_of(k))]


def p_value_of_scale(draws: NDArray[np.int64], sigma: float) -> float:
    """Two-sided, of the sum of squares of draws from N_Z(0, sigma^2); at sigma = 2^20 the grid doesn't show."""
    square = float(np.square(draws / sigma).sum())
    return 2 * min(float(chi2.cdf(square, len(draws))), float(chi2.sf(square, len(draws))))


def p_value_of_repeats(noise: list[NDArray[np.int64]]) -> float:
    """The least two-sided p-value of a correlation between two blocks, times the number of pairs."""
    pairs = [(a, b) for a in range(len(noise)) for b in range(a)]
    scores = [float(np.sum(noise[a] / SIGMA * (noise[b] / SIGMA))) / math.sqrt(len(noise[a])) for a, b in pairs]
    return len(pairs) * math.erfc(max(map(abs, scores)) / math.sqrt(2))


@pytest.mark.parametrize("noise", list(Noise))
def test_noise_of_blocks_has_its_law_and_no_block_repeats_another(
    noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that is 1 % off is rejected: 10^6 draws give it to 0.07 %. So is a block that has the noise of another one."""
    monkeypatch.setattr(arrays, "BLOCK", 1 << 17)
    found = blocks(FIXED, 8 << 17, noise)
    assert min(p_value_of_scale(np.concatenate(found), SIGMA), p_value_of_repeats(found)) > ALARM
    for wrong in (1.01, 0.99):
        assert p_value_of_scale(np.concatenate(found), wrong * SIGMA) < ALARM
    assert p_value_of_repeats([*found[:-1], found[2]]) < ALARM
    assert p_value_of_repeats([*found[:-1], -found[2]]) < ALARM


def test_a_source_keeps_its_noise_across_versions() -> None:
    """Stored sources are used on --resume: samplers that make other numbers of the same bits need a new first byte."""
    digests = {
        noise: hashlib.sha256(noise_of_block(FIXED, 3, slice(0, 70_000), SIGMA, noise).tobytes()).hexdigest()[:16]
        for noise in Noise
    }
    assert digests == {Noise.DISCRETE: "44b9869700fafc58", Noise.GAUSSIAN: "2e874d77742f6a60"}
    other = FIXED.copy()
    other[0] = 2
    with pytest.raises(FileContentError, match="stored noise: drawn in way 2; expected 1"):
        noise_of_block(other, 0, slice(0, 4), SIGMA, Noise.DISCRETE)


@pytest.mark.parametrize("noise", list(Noise))
def test_seeded_noise_is_the_same_by_blocks_and_as_a_whole(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 12)
    found = np.concatenate(blocks(new_source(noise, 7, 2), 83, noise))
    assert np.array_equal(found, draw_insecure(83, SIGMA, noise_seed=7, round=2, noise=noise))


def test_sources_are_new_and_the_rule_adds_each_blocks_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """83 draws at this scale agree in one place with a chance below 1e-4, in six below 1e-30."""
    monkeypatch.setattr(arrays, "BLOCK", 12)
    rule = ReleaseRule(83, Grid(step=2.0**-20, clip_integer=2**20, sigma=SIGMA), Noise.DISCRETE)
    sums = np.arange(83) * 2**40
    first, second = rule.draw(sums, None, 0), rule.draw(sums, None, 0)
    assert (first.dtype, first.shape, first[0]) == (np.uint8, (33,), 1)
    noisy, other = rule.noisy_sums(sums, first), rule.noisy_sums(sums, second)
    assert np.count_nonzero(noisy == other) < 6
    assert np.array_equal(noisy - sums, np.concatenate(blocks(first, 83)))
    assert np.array_equal(noisy[12:24], rule.noisy_block(sums[12:24], first, 1))
    stored = np.arange(83)[::-1].copy()  # noise that an older version stored as a whole
    assert np.array_equal(rule.noisy_sums(sums, stored), sums + stored)
