"""Differentially private fine-tuning by an exponential mechanism on a distributed local quadratic.

The interface for notebooks and scripts is ``distqexp.api``; importing this package loads nothing heavy.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
