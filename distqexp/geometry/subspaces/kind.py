"""What a kind of subspace is: how large it is, what it is made from, and how the P of a round is rebuilt."""

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
"""The memory in bytes that a kind may keep its entries in by default."""


@dataclass(frozen=True)
class Frame:
    """What determines the subspace of one round, besides its kind and its arrays. Public.

    Attributes:
        d: The number of trainable parameters.
        k: The dimension.
        seed: The seed of whatever is drawn at random.
        round: The round that drew it.
        blocks: The parameters as matrices; None where the run does not work layer by layer.
        k_in: The largest number of dimensions of a layer's inputs, for kronecker kinds.
        k_out: The largest number of dimensions of a layer's outputs, for kronecker kinds.
        nonzeros: The number of nonzeros in a row, for sjlt.
        cache_bytes: The memory in bytes that a kind may keep its entries in; it changes no bit.
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
        """Return the key of the stream from which a flat kind draws its entries."""
        return stream_key("subspace", kind, self.d, self.k, self.seed, self.round)

    def required_blocks(self) -> Sequence[Block]:
        """Return the blocks. Raises UsageError when there are none."""
        if self.blocks is None:
            raise UsageError("subspace: no blocks of parameters; expected them for a kind that works layer by layer")
        return self.blocks


class SubspaceKind(ABC):
    """One kind of subspace. ``register_subspace`` makes it known under the name in its traits."""

    traits: SubspaceTraits

    def dimension(self, frame: Frame) -> int:
        """Return the dimension k of the subspace.

        ``frame.k`` is the k of the config, or 0 when it names none. Raises UsageError when the kind can't have that k.
        """
        if self.traits.size is not Size.WHOLE:
            return frame.k
        if frame.k not in (0, frame.d):
            raise UsageError(
                f"subspace {self.traits.name}: k = {frame.k}, with d = {frame.d} trainable parameters; leave k out, or choose another "
                "kind"
            )
        return frame.d

    def cached_bytes(self, d: int, k: int) -> int:
        """Return the most memory, in bytes, in which a rank keeps entries of P."""
        return 0

    @abstractmethod
    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        """Return the subspace of a round.

        Args:
            frame: What determines the subspace.
            arrays: The arrays that ``make`` returned, from the state of the round; empty for a kind that needs a seed alone.

        Raises:
            UsageError: The kind can't have this frame.
            FileContentError: The arrays are not those of this kind and frame.
        """

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        """Make the arrays of a kind that needs more than a seed. This is done once, on the root.

        Args:
            frame: What determines the subspace.
            public: For a kind that needs MOMENTS, the ``BlockMoments`` of every block; for one that needs GRADIENTS, the pair
                of Q (d, width), whose columns are orthonormal, and G^T Q (records, width).

        Raises:
            UsageError: No subspace can be made from these public records.
        """
        raise NotImplementedError(f"subspace {self.traits.name}: a seed gives it; nothing is made")


_KINDS: dict[str, SubspaceKind] = {}


def register_subspace(kind: SubspaceKind) -> None:
    """Make a kind known, also to configs. Every process that reads a plan with this kind has to register it."""
    SUBSPACES.setdefault(kind.traits.name, kind.traits)
    _KINDS[kind.traits.name] = kind


def subspace_kind(name: str) -> SubspaceKind:
    """Return the kind of that name. Raises UsageError for an unknown name."""
    if name not in _KINDS:
        raise UsageError(f"subspace: unknown kind {name!r}; expected {', '.join(_KINDS)}")
    return _KINDS[name]
