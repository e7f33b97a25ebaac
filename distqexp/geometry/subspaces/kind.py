"""What a kind of subspace is: how large, what it is made from, and how its P of a round comes about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.philox import stream_key
from distqexp.geometry.subspaces.base import Subspace
from distqexp.kinds import SUBSPACES, Size, SubspaceTraits

CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Frame:
    """What the subspace of one round is made on. Public.

    d, k: parameters, dimension. seed, round: of whatever is drawn at random (the round that drew it). blocks: the parameters as
    matrices, where the run works layer by layer. k_in, k_out: sides of kronecker kinds. nonzeros: of sjlt. cache_bytes: memory
    that a kind may keep its entries in; it changes no bit.
    """

    d: int
    k: int
    seed: int = 0
    round: int = 0
    blocks: Sequence[Block] | None = None
    k_in: int | None = None
    k_out: int | None = None
    nonzeros: int = 4
    cache_bytes: int = CACHE_BYTES

    def key(self, kind: str) -> bytes:
        """The stream of a flat kind's entries."""
        return stream_key("subspace", kind, self.d, self.k, self.seed, self.round)

    def required_blocks(self) -> Sequence[Block]:
        """The blocks. Raises UsageError where there are none."""
        if self.blocks is None:
            raise UsageError("subspace: no blocks of parameters; expected them for a kind that works layer by layer")
        return self.blocks


class SubspaceKind(ABC):
    """One kind. ``register_subspace`` makes it known by its name."""

    traits: SubspaceTraits

    def dimension(self, frame: Frame) -> int:
        """k. ``frame.k``: what was asked for, 0 for nothing. Raises UsageError where that is not what the parameters give."""
        if self.traits.size is not Size.WHOLE:
            return frame.k
        if frame.k not in (0, frame.d):
            raise UsageError(
                f"subspace {self.traits.name}: k = {frame.k}, with d = {frame.d} trainable parameters; leave k out, or choose another "
                "kind"
            )
        return frame.d

    def cached_bytes(self, d: int, k: int) -> int:
        """Memory that a rank keeps entries of P in, at most."""
        return 0

    @abstractmethod
    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        """P of a round. arrays: what ``make`` gave, as it is in the round's state; nothing for a kind that a seed gives.

        Raises UsageError, FileContentError for arrays that are not of this kind and frame.
        """

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        """The arrays, made once on the root, of a kind that needs something. Raises UsageError where it can't be made.

        public: of MOMENTS the ``BlockMoments`` of every block; of GRADIENTS Q (d, width), orthonormal, and G^T Q (records, width).
        """
        raise NotImplementedError(f"subspace {self.traits.name}: a seed gives it; nothing is made")


_KINDS: dict[str, SubspaceKind] = {}


def register_subspace(kind: SubspaceKind) -> None:
    """Make a kind known, to configs too. Every process that reads a plan with it has to."""
    SUBSPACES.setdefault(kind.traits.name, kind.traits)
    _KINDS[kind.traits.name] = kind


def subspace_kind(name: str) -> SubspaceKind:
    """The kind of that name. Raises UsageError for an unknown one."""
    if name not in _KINDS:
        raise UsageError(f"subspace: unknown kind {name!r}; expected {', '.join(_KINDS)}")
    return _KINDS[name]
