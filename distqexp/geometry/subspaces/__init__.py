"""The subspaces of the parameter space by kind: a run moves theta to theta + P w."""

from __future__ import annotations

from distqexp.errors import UsageError
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.dense import GaussianKind, GaussianSubspace, RademacherKind, RademacherSubspace
from distqexp.geometry.subspaces.identity import IdentityKind, IdentitySubspace
from distqexp.geometry.subspaces.kind import CACHE_BYTES, Frame, SubspaceKind, register_subspace, subspace_kind
from distqexp.geometry.subspaces.kronecker import KroneckerPcaKind, KroneckerSubspace, RandomKroneckerKind
from distqexp.geometry.subspaces.public_pca import PublicPcaKind, PublicPcaSubspace
from distqexp.geometry.subspaces.sjlt import SparseKind, SparseSubspace
from distqexp.geometry.subspaces.srht import HadamardKind, HadamardSubspace
from distqexp.kinds import Size

__all__ = [
    "Frame",
    "GaussianSubspace",
    "HadamardSubspace",
    "IdentitySubspace",
    "KroneckerSubspace",
    "PublicPcaSubspace",
    "RademacherSubspace",
    "SparseSubspace",
    "Subspace",
    "SubspaceKind",
    "make_subspace",
    "register_subspace",
    "subspace_kind",
]

for _kind in (
    IdentityKind(), GaussianKind(), RademacherKind(), SparseKind(), HadamardKind(), RandomKroneckerKind(), KroneckerPcaKind(),
    PublicPcaKind(),
):  # fmt: skip
    register_subspace(_kind)


def make_subspace(
    kind: str,
    d: int,
    k: int | None,
    seed: int,
    round: int,
    nonzeros: int = 4,
    *,
    cache_bytes: int = CACHE_BYTES,
) -> Subspace:
    """Return the public flat subspace of one round, P of shape (d, k), from (kind, d, k, seed, round) alone.

    Args:
        kind: The name of the kind.
        d: The number of trainable parameters.
        k: The dimension; it may be None for identity, which has k = d.
        seed: The seed of the subspace.
        round: The round that draws it.
        nonzeros: The number of nonzeros in a row, for sjlt alone.
        cache_bytes: The memory in bytes that gaussian and rademacher may keep their entries in. Larger subspaces are
            generated again for every product, with the same bits.

    Raises:
        UsageError: The kind is unknown, k is above d, or nonzeros is above k.
    """
    implementation = subspace_kind(kind)
    if implementation.traits.size is Size.WHOLE:
        k = implementation.dimension(Frame(d, k or 0))
    if k is None or not 1 <= k <= d:
        raise UsageError(f"subspace {kind}: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k")
    return implementation.restore(Frame(d, k, seed, round, nonzeros=nonzeros, cache_bytes=cache_bytes), {})
