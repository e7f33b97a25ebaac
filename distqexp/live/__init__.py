"""The interface for scripts and notebooks with live objects: a module and records in memory or behind a loader."""

from __future__ import annotations

from distqexp.live.fitting import fit
from distqexp.live.loading import LoadedModel, load_model
from distqexp.live.predictor import Predictor
from distqexp.live.result import Fitted

__all__ = ["Fitted", "LoadedModel", "Predictor", "fit", "load_model"]
