"""What ledgers of a consortium say of voids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consortium import Consortium

from distqexp.privacy.ledger import Ledger


def ledger_of(folder: Path) -> Ledger:
    return Ledger.open(folder / "books" / "ledger.sqlite")


def states(folder: Path) -> list[str]:
    with ledger_of(folder) as ledger:
        return [row.state for row in ledger.rows()]


def history(folder: Path) -> list[dict[str, Any]]:
    with ledger_of(folder) as ledger:
        return ledger.export()


def accept(consortium: Consortium, shard: str, file: Path) -> Any:
    return consortium.at(consortium.site(shard)).distqexp("ledger", "accept-void", file)
