"""Per-example gradients of layers as small factors: hooks, rules a layer family, and the whole pass. Private results."""

from __future__ import annotations

from distqexp.gradients.layers.layout import block_layout
from distqexp.gradients.layers.rules import register_rule

__all__ = ["block_layout", "register_rule"]
