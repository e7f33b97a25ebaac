"""The subspaces of the parameter space, by kind: theta(w) = theta + P w."""

from __future__ import annotations

from distqexp.errors import UsageError
from distqexp.geometry.philox import stream_key
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.dense import DEFAULT_CACHE_BYTES, GaussianSubspace, RademacherSubspace
from distqexp.geometry.subspaces.identity import IdentitySubspace
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace
from distqexp.geometry.subspaces.public_pca import PublicPcaSubspace
from distqexp.geometry.subspaces.sjlt import SparseSubspace
from distqexp.geometry.subspaces.srht import HadamardSubspace

__all__ = [
    "GaussianSubspace",
    "HadamardSubspace",
    "IdentitySubspace",
    "KroneckerSubspace",
    "PublicPcaSubspace",
    "RademacherSubspace",
    "SparseSubspace",
    "Subspace",
    "make_subspace",
]


def make_subspace(
    kind: str,
    d: int,
    k: int | None,
    seed: int,
    round: int,
    nonzeros: int = 4,
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Subspace:
    """The flat subspace of one round (public): P of shape (d, k), regenerated from (kind, d, k, seed, round) alone.

    ``k`` may be None for identity, which has k = d. ``nonzeros`` counts for sjlt only. ``cache_bytes`` bounds the
    memory that gaussian and rademacher keep their entries in; above it they are made anew for every product,
    with the same bits. Raises UsageError for an unknown kind, k > d, or nonzeros > k.
    """
    if kind == "identity":
        if k is not None and k != d:
            raise UsageError(
                f"subspace identity: k = {k}, with d = {d} trainable parameters; leave k out, or choose another kind"
            )
        return IdentitySubspace(d)
    if k is None or not 1 <= k <= d:
        raise UsageError(f"subspace {kind}: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k")
    key = stream_key("subspace", kind, d, k, seed, round)
    if kind == "gaussian":
        return GaussianSubspace(d, k, key, cache_bytes)
    if kind == "rademacher":
        return RademacherSubspace(d, k, key, cache_bytes)
    if kind == "sjlt":
        return SparseSubspace(d, k, key, nonzeros)
    if kind == "srht":
        return HadamardSubspace(d, k, key)
    raise UsageError(f"subspace: unknown kind {kind!r}; expected identity, gaussian, rademacher, sjlt or srht")
