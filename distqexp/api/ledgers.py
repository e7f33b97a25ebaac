"""The interface: voids and ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distqexp.api.paths import StrPath, optional_path, several_paths
from distqexp.consortium.pins import refuse_pinned
from distqexp.privacy.ledger import Ledger, LedgerRow
from distqexp.privacy.ledger.head import Anchor
from distqexp.stages.by_hand import void_next
from distqexp.stages.void import Void, accept


def void(
    plan_file: StrPath,
    out: StrPath,
    *,
    release: StrPath | Sequence[StrPath] | None = None,
    ledger: StrPath | None = None,
    weights: StrPath | None = None,
) -> Void:
    """At the coordinator: give up, for ever, a round that will not be released, and write a void file for the sites.

    This is for a round whose sketches don't all arrive. The ledger refuses the round's release from then on, whatever the sums.
    Another call writes the same file. It is not signed yet: hand it on by a way that the sites trust.

    Args:
        plan_file: The plan's file.
        out: The void file to write.
        release: The release that the void round builds on; None for the first round. Where the plan names its weights, every release
            so far.
        ledger: The coordinator's ledger; the user's own when None.
        weights: This machine's copy of the pretrained weights, where the plan names them.

    Returns:
        The void. Public.

    Raises:
        UsageError: The round has a draw, or was released.
    """
    return void_next(
        Path(plan_file),
        Path(out),
        releases=several_paths(release),
        ledger=optional_path(ledger),
        weights=optional_path(weights),
    )


def accept_void(file: StrPath, *, ledger: StrPath | None = None) -> list[LedgerRow]:
    """At a site: take back, once, what the ledger charged for a round that the coordinator voided.

    Sketching the same records again is a new charge.

    Args:
        file: The void file, from the coordinator itself.
        ledger: The site's ledger; the user's own when None.

    Returns:
        The charges that were given back.

    Raises:
        FileContentError: The void doesn't fit the site's own charge (plan, round, state, population, shard), or a release of that
            round is known here, or it is of a study that was accepted here, whose voids come signed.
    """
    refuse_pinned(Path(file), kind="void")
    void_file = Void.read(Path(file))
    with Ledger.open(optional_path(ledger), create=False) as books:
        return accept(void_file, books)


def ledger_head(ledger: StrPath | None = None) -> str:
    """Name the ledger's newest entry, to be noted where nobody rolls anything back.

    A ledger that is put back together with its folder looks as it did then; ``ledger_verify`` with a noted head detects that.

    Args:
        ledger: The ledger's file; the user's own when None.

    Returns:
        The entry's number and hash, as ``N:HASH``. Public.
    """
    with Ledger.open(optional_path(ledger), create=False) as books:
        return str(books.head())


def ledger_verify(head: str | None = None, ledger: StrPath | None = None) -> None:
    """Check the ledger's chain, its seals and its stored arrays.

    Args:
        head: A head that was noted elsewhere (``N:HASH``); the ledger must hold that very entry.
        ledger: The ledger's file; the user's own when None.

    Raises:
        FileContentError: The ledger was altered or rolled back.
    """
    noted = None if head is None else Anchor.parse(head)
    with Ledger.open(optional_path(ledger), create=False) as books:
        books.verify(noted)
