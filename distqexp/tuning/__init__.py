"""Choosing hyperparameters on public records that play the private ones."""

from __future__ import annotations

from distqexp.tuning.tune import Choice, tune

__all__ = ["Choice", "tune"]
