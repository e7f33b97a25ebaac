"""The choices that all rooms know by name: neighbouring datasets, noise, subspaces, precisions. Public.

What a kind of subspace or precision does is in ``geometry``; its row here is all that is needed to read a config or a plan. To add a
kind, add a file to ``geometry/subspaces`` or ``geometry/precisions`` and register the kind there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AUTO = "auto"
"""The kind of subspace or precision that stands for one that the plan chooses."""


class Adjacency(StrEnum):
    """Which datasets are neighbours.

    The value is the text that stands in configs, files and ledgers; ``Adjacency(text)`` reads it.
    """

    ZERO_OUT = "zero-out"
    ADD_REMOVE = "add-remove"
    REPLACE_ONE = "replace-one"

    @property
    def sensitivity_factor(self) -> int:
        """The largest distance between the sums of two neighbouring datasets, in clips."""
        return 2 if self is Adjacency.REPLACE_ONE else 1

    @property
    def counts_public(self) -> bool:
        """Whether the number of slots is public, and with it the share of the work that is finished."""
        return self is not Adjacency.ADD_REMOVE


class Noise(StrEnum):
    """The noise of a release. The value is the text that stands in configs and files; ``Noise(text)`` reads it."""

    DISCRETE = "discrete"
    """Integers, drawn exactly."""
    GAUSSIAN = "gaussian"
    """Continuous noise, rounded to the grid."""


class Needs(StrEnum):
    """What a kind of subspace or precision is made from besides a seed."""

    NOTHING = "nothing"
    CURVATURE = "the curvature of public records in the subspace"
    MOMENTS = "second moments of public records' gradients, block by block"
    GRADIENTS = "the leading directions of public records' gradients"


class Size(StrEnum):
    """Which keys of [subspace] give the size of a subspace."""

    WHOLE = "every trainable parameter"
    FLAT = "k"
    SIDES = "k_in and k_out"


@dataclass(frozen=True)
class SubspaceTraits:
    """What configs and plans must know of a kind of subspace.

    Attributes:
        name: The name of the kind in configs and files.
        size: Which keys of [subspace] give its size.
        needs: What it is made from besides a seed.
    """

    name: str
    size: Size = Size.FLAT
    needs: Needs = Needs.NOTHING

    @property
    def by_blocks(self) -> bool:
        """Whether the subspace is a pair of factors for each block of parameters. One of size WHOLE can work by blocks without."""
        return self.size is Size.SIDES

    @property
    def stored(self) -> bool:
        """Whether its arrays are stored in a round's state, because a seed alone doesn't give them."""
        return self.needs is not Needs.NOTHING


@dataclass(frozen=True)
class PrecisionTraits:
    """What configs and plans must know of a kind of precision.

    Attributes:
        name: The name of the kind in configs and files.
        needs: What it is made from besides a seed.
        by_blocks: Whether it is a pair of factors for each block of parameters.
        splits: Whether it acts on a gradient block by block, so that layers give whitened gradients without a whole gradient
            being formed.
        joint: Whether leading directions of the whole network's curvature are whitened as well.
    """

    name: str
    needs: Needs = Needs.CURVATURE
    by_blocks: bool = False
    splits: bool = False
    joint: bool = False


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
"""The kinds by name, in the order in which messages list them."""

PRECISIONS: dict[str, PrecisionTraits] = {
    traits.name: traits
    for traits in (
        PrecisionTraits("identity", Needs.NOTHING, splits=True),
        PrecisionTraits("diagonal"),
        PrecisionTraits("dense"),
        PrecisionTraits("kronecker", Needs.MOMENTS, by_blocks=True, splits=True),
        PrecisionTraits("kronecker-joint", Needs.MOMENTS, by_blocks=True, joint=True),
    )
}
"""The kinds by name, in the order in which messages list them."""
