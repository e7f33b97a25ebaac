"""What was spent on each population, and the draws that were paid for."""

from __future__ import annotations

from distqexp.privacy.ledger.books import Cap, LedgerRow
from distqexp.privacy.ledger.ledger import Ledger

__all__ = ["Cap", "Ledger", "LedgerRow"]
