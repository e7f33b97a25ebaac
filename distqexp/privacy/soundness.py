"""What no list of releases can amount to: a figure that says so is a defect here, and ends the work. All quantities are public."""

from __future__ import annotations

import math

from distqexp.errors import InternalError
from distqexp.privacy.guarantee import Guarantee

_SLACK = 1e-8
"""Relative; far above rounding errors, far below what a release costs that is worth a charge."""

_REPORT = "this is a defect of distqexp, and nothing was drawn or certified: please report it with this line"


def require_sound(guarantee: Guarantee, delta: float, before: Guarantee | None = None, epsilon: float = 1.0) -> float:
    """The epsilon at ``delta`` of one or more releases, above 0; infinity where there is none.

    before: what a part of them amounted to, at least what it says then: its epsilon, its delta at ``epsilon``, its pure epsilon.
    Raises InternalError.
    """
    found = guarantee.epsilon(delta)
    if not found > 0:
        raise InternalError(
            f"privacy accounting: releases of epsilon {found!r} at delta {delta!r}; expected above 0; {_REPORT}"
        )
    spent = guarantee.delta(epsilon)
    if not 0 <= spent <= 1 or (spent == 0 and epsilon < guarantee.pure):
        raise InternalError(
            f"privacy accounting: releases of delta {spent!r} at epsilon {epsilon!r}, with a pure epsilon of {guarantee.pure!r}; "
            f"expected above 0, 1 at most; {_REPORT}"
        )
    if before is None:
        return found
    for name, earlier, later in (
        (f"epsilon at delta {delta!r}", before.epsilon(delta), found),
        (f"delta at epsilon {epsilon!r}", before.delta(epsilon), spent),
        ("pure epsilon", before.pure, guarantee.pure),
    ):
        if not later >= earlier * (1 - _SLACK):
            raise InternalError(
                f"privacy accounting: one more release makes {name} {later!r}, it was {earlier!r}; {_REPORT}"
            )
    return found


def require_certifiable(epsilon: float) -> None:
    """Refuse an epsilon that no certificate can state. Raises InternalError."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InternalError(f"certificate: epsilon {epsilon!r}; expected a finite number above 0; {_REPORT}")
