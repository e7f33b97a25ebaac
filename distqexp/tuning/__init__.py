"""Choosing hyperparameters on public records that play the private ones."""

from __future__ import annotations

from distqexp.tuning.tune import Tuned, tune

__all__ = ["Tuned", "tune"]
