"""The kinds of subspaces and precisions by name, with what a config and a plan must know of each. Public.

What a kind does is in ``geometry``; this table is all that is needed to read a config or a plan. A new kind is a file in
``geometry/subspaces`` or ``geometry/precisions`` and its registration there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Needs(StrEnum):
    """What a kind is made from besides a seed."""

    NOTHING = "nothing"
    CURVATURE = "the curvature of public records in the subspace"
    MOMENTS = "second moments of public records' gradients, block by block"
    GRADIENTS = "the leading directions of public records' gradients"


class Size(StrEnum):
    """Which keys of [subspace] say how large a subspace is."""

    WHOLE = "every trainable parameter"
    FLAT = "k"
    SIDES = "k_in and k_out"


@dataclass(frozen=True)
class SubspaceTraits:
    """name: in configs and files. by_blocks: whether it works on the parameters layer by layer (it may without, for WHOLE)."""

    name: str
    size: Size = Size.FLAT
    needs: Needs = Needs.NOTHING

    @property
    def by_blocks(self) -> bool:
        """Whether it is a pair of factors for each block of parameters."""
        return self.size is Size.SIDES

    @property
    def stored(self) -> bool:
        """Whether its arrays are part of a round's state: a seed alone doesn't give it."""
        return self.needs is not Needs.NOTHING


@dataclass(frozen=True)
class PrecisionTraits:
    """name: in configs and files. by_blocks: whether it is a pair of factors for each block of parameters. splits: whether what it
    does to a gradient is done block by block, so that layers give whitened gradients without forming any."""

    name: str
    needs: Needs = Needs.CURVATURE
    by_blocks: bool = False
    splits: bool = False


SUBSPACES: dict[str, SubspaceTraits] = {
    traits.name: traits
    for traits in (
        SubspaceTraits("identity", Size.WHOLE),
        SubspaceTraits("gaussian"),
        SubspaceTraits("rademacher"),
        SubspaceTraits("sjlt"),
        SubspaceTraits("srht"),
        SubspaceTraits("kronecker", Size.SIDES),
        SubspaceTraits("kronecker-pca", Size.SIDES, Needs.MOMENTS),
        SubspaceTraits("public-pca", Size.FLAT, Needs.GRADIENTS),
    )
}
"""By name, in the order in which people are told of them."""

PRECISIONS: dict[str, PrecisionTraits] = {
    traits.name: traits
    for traits in (
        PrecisionTraits("identity", Needs.NOTHING, splits=True),
        PrecisionTraits("diagonal"),
        PrecisionTraits("dense"),
        PrecisionTraits("kronecker", Needs.MOMENTS, by_blocks=True, splits=True),
    )
}
"""By name, in the order in which people are told of them."""
