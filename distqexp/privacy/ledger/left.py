"""What is left of a population's budget, in words. Public, as all of a ledger's figures are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distqexp.privacy import gdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.ledger.books import Cap
from distqexp.privacy.units import RECORD

REST = 0.99
"""The share of the remaining epsilon that is promised to a run: discrete noise and rounding take less than what is held back."""


@dataclass(frozen=True)
class Left:
    """What a cap leaves.

    Attributes:
        cap: The cap.
        spent: The epsilon of all charges together at the cap's delta.
        run: About the epsilon that one more run may take, at the cap's delta: epsilons add up to less than their sum.
        unit: The column of the unit ids, or "record"; None where nothing says it.
    """

    cap: Cap
    spent: float
    run: float
    unit: str | None

    @staticmethod
    def of(cap: Cap, spent: Guarantee, unit: str | None) -> Left:
        """Return what ``cap`` leaves after charges with the guarantee ``spent``, to units of this name."""
        epsilon = spent.epsilon(cap.delta) if spent.mu or spent.pure else 0.0
        if cap.delta == 0:
            return Left(cap, epsilon, max(cap.epsilon - epsilon, 0.0), unit)
        most = gdp.mu(cap.epsilon, cap.delta)
        mu = math.sqrt(most**2 - spent.mu**2) if spent.mu < most else 0.0
        return Left(cap, epsilon, REST * gdp.epsilon(cap.delta, mu) if mu else 0.0, unit)

    def line(self) -> str:
        """Return the budget in a sentence for people."""
        whom = {None: "each unit", RECORD: "each record"}.get(self.unit, f"each {self.unit}")
        left = amount_left(self.cap.epsilon - self.spent, self.cap.epsilon)
        further = amount_left(self.run, self.cap.epsilon)
        more = "" if further == "nothing" else f"; one more run may take about epsilon {further}"
        return f"{left} of {self.cap.epsilon:g} left for {whom} at delta {self.cap.delta:g}{more}"


def amount_left(left: float, cap: float) -> str:
    """Write what is left of a budget in two digits, rounded downwards: nobody is to be promised more than there is."""
    if not left >= cap / 200:
        return "nothing" if not left > 0 else "almost nothing"
    size = 10.0 ** (math.floor(math.log10(left)) - 1)
    return f"{math.floor(left / size + 1e-9) * size:.2g}"
