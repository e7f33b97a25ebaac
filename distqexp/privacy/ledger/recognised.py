"""How a ledger recognises sums that were charged: by a keyed digest of them or, of long ones, of the digests of their blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distqexp.arrays import IntegerArray, blocks_of
from distqexp.errors import UsageError
from distqexp.privacy.ledger.books import Books, LedgerRow
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.storage.canonical import array_bytes, canonical_json


class BlockDigests(NamedTuple):
    """What stands for sums that no process has as a whole. As private as they are, and never stored.

    Attributes:
        length: The number of coordinates.
        digests: The digest of each block, see ``block_digest``, in order.
    """

    length: int
    digests: tuple[bytes, ...]

    @property
    def block(self) -> int | None:
        """The coordinates of a block; None where there is but one block."""
        places = blocks_of(self.length)
        return places[0].stop if len(places) > 1 else None

    @staticmethod
    def of(sums: IntegerArray) -> BlockDigests:
        """Return the digests of whole sums, int64 (k,)."""
        return BlockDigests(sums.size, tuple(block_digest(sums[place]) for place in blocks_of(sums.size)))


def block_digest(sums: IntegerArray) -> bytes:
    """Return the SHA-256 of the sums of one block, int64 (coordinates of the block,). Private."""
    return hashlib.sha256(array_bytes(sums)).digest()


def sums_tags(files: LedgerFiles, body: Mapping[str, Any], sums: IntegerArray | BlockDigests) -> list[bytes]:
    """Return the tags that recognise sums; a new row gets the first one. Private.

    Older versions tagged long sums as a whole, too. ``body`` has the fields of the charge.
    """
    text, tags = canonical_json(dict(body)), []
    digests = sums if isinstance(sums, BlockDigests) else BlockDigests.of(sums)
    if digests.block is not None:
        shape = f"({digests.length},) by {digests.block}".encode()
        tags.append(files.tag(b"sums by blocks", text, shape, b"".join(digests.digests)))
    if not isinstance(sums, BlockDigests):
        tags.append(files.tag(b"sums", text, str(sums.shape).encode(), array_bytes(sums)))
    return tags


def block_field(sums: IntegerArray | BlockDigests) -> dict[str, int]:
    """Return the field of an entry that says that its sums are known by their blocks, where they are. Public."""
    block = (sums if isinstance(sums, BlockDigests) else BlockDigests(sums.size, ())).block
    return {} if block is None else {"block": block}


def require_comparable(books: Books, rows: Iterable[LedgerRow], sums: IntegerArray | BlockDigests) -> None:
    """Refuse sums that can't be compared with those of earlier charges for the same release. Raises UsageError.

    They may be the same sums: a second charge would not be theirs.
    """
    block = block_field(sums).get("block")
    known = {block} if isinstance(sums, BlockDigests) else {block, None}
    for row in rows:
        found = books.entries[row.id - 1].body.get("block")
        if found not in known:
            raise UsageError(
                f"ledger entry {row.id}: charged for this round by another distqexp, which knows its sums by blocks of "
                f"{found or 'any length'}; expected {block}: resume in one process, or with that version"
            )
