"""The plan that the tests of charges and draws share."""

from __future__ import annotations

from kills import plan

__all__ = ["plan"]
