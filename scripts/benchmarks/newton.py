"""DP-Newton of a logistic model: Newton steps with noise on the clipped gradient and on the clipped Hessian.

As in Avella-Medina, Bradshaw and Loh 2023, "Differentially private inference via noisy optimization" (Annals of
Statistics), in coordinates that public records whiten. Every step releases two sums of all records:

    sum_i g_i min(1, C / ||g_i||) + N(0, deviation_g^2 I),        sum_i H_i min(1, B / ||H_i||_F) + E,

E symmetric with variance deviation_H^2 on the diagonal and half of that beside it. That is a Gaussian mechanism on the
coordinates of a symmetric matrix in which the Frobenius norm is the Euclidean one. When one record comes or goes, or is
blanked, the sums change by C and B at most, so the step is mu-GDP with mu^2 = (C / deviation_g)^2 + (B / deviation_H)^2.
Steps add their mu^2 (Dong, Roth and Su 2022), though each depends on those before it, and (epsilon, delta) follows from the whole
mu by distqexp.privacy.gdp. Eigenvalues of the noisy Hessian below a public floor are raised to it, which costs nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from benchmarks.linear import LinearTask
from benchmarks.training import Clock, Setting
from distqexp.arrays import FloatArray
from distqexp.privacy import gdp


class Steps(NamedTuple):
    """What DP-Newton does.

    Attributes:
        steps: The number of steps.
        clip: The largest norm of a record's gradient.
        hessian_clip: The largest Frobenius norm of a record's Hessian.
        floor: The smallest eigenvalue of the Hessian that is used, of the sum over records.
    """

    steps: int
    clip: float
    hessian_clip: float
    floor: float


def deviations(chosen: Steps, mu: float, share: float) -> tuple[float, float]:
    """Return the standard deviations of gradient and Hessian noise in each step, so that all steps together are mu-GDP.

    Args:
        chosen: Clips and number of steps.
        mu: Of the guarantee.
        share: Of mu^2, for the Hessians.
    """
    each = mu / math.sqrt(chosen.steps)
    return chosen.clip / (each * math.sqrt(1 - share)), chosen.hessian_clip / (each * math.sqrt(share))


def symmetric_noise(size: int, deviation: float, generator: np.random.Generator) -> FloatArray:
    """Draw a symmetric matrix (size, size): variance deviation^2 on the diagonal, half of that beside it."""
    draw = generator.standard_normal((size, size))
    return deviation * (draw + draw.T) / 2


def newton(
    features: FloatArray, labels: FloatArray, start: FloatArray, chosen: Steps, noise: tuple[float, float], seed: int
) -> FloatArray:
    """Return the parameters (d,) after all steps from ``start``, with noise of these standard deviations."""
    generator = np.random.default_rng(seed)
    v, squares = start.copy(), np.square(features).sum(axis=1)
    norms = np.sqrt(squares)
    for _ in range(chosen.steps):
        shares = expit(features @ v)
        residuals, bends = shares - labels, shares * (1 - shares)
        residuals = residuals * np.minimum(1.0, chosen.clip / np.maximum(np.abs(residuals) * norms, 1e-300))
        bends = np.minimum(bends, chosen.hessian_clip / np.maximum(squares, 1e-300))
        gradient = features.T @ residuals + noise[0] * generator.standard_normal(len(v))
        hessian = (features * bends[:, None]).T @ features + symmetric_noise(len(v), noise[1], generator)
        values, vectors = np.linalg.eigh(hessian)
        v = v - vectors @ ((vectors.T @ gradient) / np.maximum(values, chosen.floor))
    return v


def newton_theta(
    task: LinearTask, setting: Setting, epsilon: float, delta: float, seed: int
) -> tuple[FloatArray, dict[str, Any]]:
    """Return theta of one run of DP-Newton with public whitening, and its figures.

    Args:
        task: The records.
        setting: ``damping`` of the whitening; ``clip`` and ``hessian_clip``, by what is usual of public records at the
            start; ``floor``, by the number of records and the public mean curvature; ``steps``; ``share`` of mu^2 for Hessians.
        epsilon: Of the guarantee.
        delta: Of the guarantee.
        seed: Of the noise.
    """
    white = task.whitened(setting["damping"])
    chosen = Steps(
        steps=setting["steps"],
        clip=setting["clip"] * white.gradient_norm,
        hessian_clip=setting["hessian_clip"] * white.hessian_norm,
        floor=setting["floor"] * white.curvature * len(white.labels),
    )
    noise = deviations(chosen, gdp.mu(epsilon, delta), setting["share"])
    clock = Clock()
    v = newton(white.features, white.labels, white.start, chosen, noise, seed)
    return white.matrix @ v, {**clock.read(), "deviations": list(noise)}
