"""The ledger: the privacy budget spent on each population, and the draws that were paid for."""

from __future__ import annotations

from distqexp.privacy.ledger.books import Cap, LedgerRow, Reservation
from distqexp.privacy.ledger.files import default_path
from distqexp.privacy.ledger.head import Anchor
from distqexp.privacy.ledger.ledger import Ledger, Provenance
from distqexp.privacy.ledger.populations import PlanPopulation
from distqexp.privacy.ledger.voids import Key

__all__ = ["Anchor", "Cap", "Key", "Ledger", "LedgerRow", "PlanPopulation", "Provenance", "Reservation", "default_path"]
