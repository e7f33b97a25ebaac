"""Checks for privacy figures that no list of releases can have.

Such a figure is a defect of the package, and ends the work. All quantities are public.
"""

from __future__ import annotations

import math

from distqexp.errors import InternalError
from distqexp.privacy.guarantee import Guarantee

_SLACK = 1e-8
"""The relative slack of comparisons: far above rounding errors, far below the cost of any release that is worth a charge."""

_SAMPLED_SLACK = 1e-4
"""The same with sampled releases, whose losses are composed on a grid that may become finer with one more release."""

_REPORT = "this is a defect of distqexp, and nothing was drawn or certified: please report it with this line"


def require_sound(guarantee: Guarantee, delta: float, before: Guarantee | None = None, epsilon: float = 1.0) -> float:
    """Return the epsilon at ``delta`` of one or more releases, after checks that no sound accounting can fail.

    Args:
        guarantee: The guarantee of the releases.
        delta: The delta at which the epsilon is wanted.
        before: The guarantee of a part of the releases. Its epsilon at ``delta``, its delta at ``epsilon`` and its pure
            epsilon must not exceed those of ``guarantee``.
        epsilon: The epsilon at which deltas are checked and compared.

    Returns:
        The epsilon, above 0; infinity where there is none.

    Raises:
        InternalError: A check failed.
    """
    epsilon_at_delta = guarantee.epsilon(delta)
    if not epsilon_at_delta > 0:
        raise InternalError(
            f"privacy accounting: releases of epsilon {epsilon_at_delta!r} at delta {delta!r}; expected above 0; {_REPORT}"
        )
    delta_at_epsilon = guarantee.delta(epsilon)
    if not 0 <= delta_at_epsilon <= 1 or (delta_at_epsilon == 0 and epsilon < guarantee.pure):
        raise InternalError(
            f"privacy accounting: releases of delta {delta_at_epsilon!r} at epsilon {epsilon!r}, "
            f"with a pure epsilon of {guarantee.pure!r}; expected above 0, 1 at most; {_REPORT}"
        )
    if before is None:
        return epsilon_at_delta
    for name, earlier, later in (
        (f"epsilon at delta {delta!r}", before.epsilon(delta), epsilon_at_delta),
        (f"delta at epsilon {epsilon!r}", before.delta(epsilon), delta_at_epsilon),
        ("pure epsilon", before.pure, guarantee.pure),
    ):
        slack = _SLACK if guarantee.sampled_releases is None else _SAMPLED_SLACK
        if not later >= earlier * (1 - slack):
            raise InternalError(
                f"privacy accounting: one more release makes {name} {later!r}, it was {earlier!r}; {_REPORT}"
            )
    return epsilon_at_delta


def require_certifiable(epsilon: float) -> None:
    """Raise InternalError for an epsilon that no certificate can state: one that is not finite and above 0."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InternalError(f"certificate: epsilon {epsilon!r}; expected a finite number above 0; {_REPORT}")
