"""Objective perturbation of a logistic model: the exact minimum of a loss with a random linear term.

The released point is the minimum over v of

    F(v) = sum_i l_i(v) + regularisation / 2 ||v - v_0||^2 + b . v,        b ~ N(0, deviation^2 I),

with v_0 public, features z_i clipped to ||z_i|| <= bound, and the logistic loss of t = +-z_i . v continued as a straight
line from where its slope times ||z_i|| is ``clip``, so that a gradient's norm is at most ``clip``. (Chaudhuri, Monteleoni
and Sarwate 2011; with Gaussian noise Kifer, Smith and Thakurta 2012; clipped gradients and a privacy profile in place of
a tail bound Redberg, Koskela and Wang, arXiv 2401.00583. What follows is their argument for one-sided slopes.)

Theorem. With K the largest curvature of a clipped record (``curvature_bound``), s = log(1 + K / regularisation) and
epsilon >= s, the exact minimum is (epsilon, delta)-DP when one record comes or goes, or is blanked, with

    delta = delta_Gauss(epsilon - s; mu = clip / deviation),

delta_Gauss the curve of the Gaussian mechanism (distqexp.privacy.gdp).

Proof. v is the minimum exactly where b = -(regularisation (v - v_0) + sum_i grad l_i(v)): a bi-Lipschitz map of R^d,
since F is strongly convex and its gradient Lipschitz. So v has the density of b there times the determinant of
A = regularisation I + sum_i Hessian l_i. Let D have the record z, and D' not. The Hessian of l at v is h z z^T, so the
quotient of the determinants, D over D', is 1 + h z^T A'^-1 z, which is between 1 and 1 + K / regularisation. The gradient
is r z with a slope r of one sign, fixed by the record's label, |r| ||z|| <= clip. Under D, b is normal, and at D' the same
v needs b + r z. So the log quotient of the normal densities is r z . b / deviation^2 + ||r z||^2 / (2 deviation^2)
= m V + m^2 / 2 with V = sign(r) z . b / (||z|| deviation), which is N(0, 1) since z and the sign don't depend on b, and
0 <= m <= mu, whatever m is as a function of b. That is convex in m, so at most max(0, mu V + mu^2 / 2): the privacy loss is
at most s + max(0, X) with X the privacy loss of the Gaussian mechanism, and for epsilon >= s

    delta <= E (1 - exp(epsilon - s - max(0, X)))_+ = E (1 - exp(epsilon - s - X))_+ = delta_Gauss(epsilon - s; mu).

In the other order the determinants help, the normal densities give max(0, X) likewise, and delta is no larger.

The statement is about the exact minimum in ideal arithmetic. Here the minimum is found in float64 to a gradient of 1e-9
of the noise, and no further noise hides the rest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from benchmarks.linear import LinearTask, clip_rows
from benchmarks.training import Clock, Setting
from distqexp.arrays import FloatArray
from distqexp.privacy import gdp

PRECISION = 1e-9
"""The norm of the gradient at what is taken for the minimum, relative to that of the noise or, without, to the clip."""
STEPS = 200


class Perturbation(NamedTuple):
    """What the privacy of objective perturbation depends on, besides the noise: all in whitened coordinates.

    Attributes:
        clip: The largest norm of a record's gradient.
        bound: The largest norm of a record's features, at least ``clip``.
        regularisation: That of the sum over records.
    """

    clip: float
    bound: float
    regularisation: float

    @property
    def curvature_bound(self) -> float:
        """The largest eigenvalue of a clipped record's Hessian: h ||z||^2 with h <= 1/4, and h <= c (1 - c) at c = clip / ||z||."""
        if self.clip <= self.bound / 2:
            return self.clip * (self.bound - self.clip)
        return self.bound**2 / 4

    @property
    def shift(self) -> float:
        """The part of epsilon that the determinant of the Hessian costs."""
        return math.log1p(self.curvature_bound / self.regularisation)

    def deviation(self, epsilon: float, delta: float) -> float | None:
        """Return the smallest standard deviation of the noise that is (epsilon, delta)-DP; None where none is."""
        left = epsilon - self.shift
        return self.clip / gdp.mu(left, delta) if left > 0 else None

    def delta(self, epsilon: float, deviation: float) -> float:
        """Return the delta at ``epsilon`` of noise of this standard deviation; 1 where the theorem says nothing."""
        left = epsilon - self.shift
        return math.exp(gdp.log_delta(left, self.clip / deviation)) if left >= 0 else 1.0


def minimise(
    features: FloatArray, labels: FloatArray, chosen: Perturbation, tilt: FloatArray, start: FloatArray
) -> tuple[FloatArray, float]:
    """Return the minimum of F, with ``tilt`` for b and ``start`` for v_0, and the norm of the gradient there.

    Newton steps, halved until the objective falls enough.

    Args:
        features: (n, d), each row of a norm of at most ``chosen.bound``.
        labels: (n,), 0 or 1.
        chosen: Clip and regularisation.
        tilt: (d,).
        start: (d,).
    """
    signed = features * (1 - 2 * labels)[:, None]
    norms = np.maximum(np.linalg.norm(features, axis=1), 1e-300)
    steepest = np.minimum(chosen.clip / norms, 1.0)
    with np.errstate(divide="ignore"):
        bends_until = np.log(steepest) - np.log1p(-steepest)  # where the slope, the logistic function, is the steepest
    weight, enough = chosen.regularisation, PRECISION * (float(np.linalg.norm(tilt)) or chosen.clip)

    def value(v: FloatArray) -> float:
        t = signed @ v
        inside = np.minimum(t, bends_until)
        losses = np.logaddexp(0.0, inside) + np.where(t > inside, steepest * (t - inside), 0.0)
        return float(losses.sum() + weight / 2 * np.square(v - start).sum() + tilt @ v)

    v = start.copy()
    gradient = np.full_like(v, math.inf)
    for _ in range(STEPS):
        t = signed @ v
        slopes = np.minimum(expit(t), steepest)
        gradient = signed.T @ slopes + weight * (v - start) + tilt
        if np.linalg.norm(gradient) <= enough:
            break
        bends = np.where(t < bends_until, slopes * (1 - slopes), 0.0)
        hessian = (signed * bends[:, None]).T @ signed + weight * np.eye(len(v))
        move = np.linalg.solve(hessian, gradient)
        here, fall, length = value(v), float(gradient @ move), 1.0
        while length > 1e-10 and value(v - length * move) > here - 1e-4 * length * fall + 1e-13 * abs(here):
            length /= 2
        v = v - length * move
    return v, float(np.linalg.norm(gradient))


def objective_theta(
    task: LinearTask, setting: Setting, epsilon: float, delta: float, seed: int
) -> tuple[FloatArray, dict[str, Any]] | None:
    """Return theta of one run of objective perturbation with public whitening, and its figures; None where epsilon is too small.

    Args:
        task: The records.
        setting: ``damping`` of the whitening; ``bound`` of the features, by the public root mean square norm; ``clip`` of
            gradients, by the bound; ``regularisation``, by the number of records and the public mean curvature.
        epsilon: Of the guarantee.
        delta: Of the guarantee.
        seed: Of the noise.
    """
    white = task.whitened(setting["damping"])
    bound = setting["bound"] * white.norm
    weight = setting["regularisation"] * white.curvature * len(white.labels)
    chosen = Perturbation(min(setting["clip"], 1.0) * bound, bound, weight)
    deviation = chosen.deviation(epsilon, delta)
    if deviation is None:
        return None
    clock = Clock()
    tilt = deviation * np.random.default_rng(seed).standard_normal(len(white.start))
    v, left = minimise(clip_rows(white.features, bound), white.labels, chosen, tilt, white.start)
    return white.matrix @ v, {**clock.read(), "deviation": deviation, "shift": chosen.shift, "gradient_left": left}
