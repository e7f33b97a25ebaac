"""Per-example gradients of layers as small factors: hooks, a rule for each family of layers, and the pass. Private."""

from __future__ import annotations

from distqexp.gradients.layers.forms import Dense, Form, Indexed, Tensor, Whole, apply, apply_left
from distqexp.gradients.layers.layout import block_layout
from distqexp.gradients.layers.rules import register_rule
from distqexp.gradients.layers.store import CHUNK

__all__ = [
    "CHUNK",
    "Dense",
    "Form",
    "Indexed",
    "Tensor",
    "Whole",
    "apply",
    "apply_left",
    "block_layout",
    "register_rule",
]
