"""A void: the coordinator's word that a round is never released, so that the sites may take their charge back."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.errors import FileContentError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.books import LedgerRow
from distqexp.privacy.ledger.files import default_path
from distqexp.privacy.ledger.head import Anchor
from distqexp.privacy.ledger.voids import Key
from distqexp.storage.hdf5 import read_file, write_file

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Void:
    """A void round. It is public, and not signed: a site has to get it from the coordinator by a channel that it trusts.

    Attributes:
        plan_id: The identity of the plan.
        round: The number of the round.
        state: The identity of the state that the round was sketched at.
        population: The population of the plan.
        shards: The shards of the plan.
        entry: The entry of the void in the coordinator's ledger.
    """

    plan_id: str
    round: int
    state: str
    population: str
    shards: tuple[str, ...]
    entry: Anchor

    @property
    def release(self) -> str:
        """The name by which ledgers know the round's release."""
        return f"{self.plan_id}/{self.round}/{self.state}"

    def write(self, path: Path) -> None:
        """Write the void file."""
        header = {
            "round": self.round,
            "state": self.state,
            "population": self.population,
            "shards": list(self.shards),
            "ledger": {"entry": self.entry.number, "hash": self.entry.hash},
        }
        write_file(path, kind="void", plan_id=self.plan_id, header=header, arrays={}, private=False)

    @staticmethod
    def read(path: Path) -> Void:
        """Read and check a void file. Raises FileContentError."""
        stored = read_file(path, kind="void")
        header = stored.header
        ledger = header.get("ledger")
        entry, digest = (ledger.get("entry"), ledger.get("hash")) if isinstance(ledger, dict) else (None, None)
        round, state, population, shards = (header.get(name) for name in ("round", "state", "population", "shards"))
        digests = [stored.plan_id, state, digest]
        valid = (
            all(type(number) is int and number >= 0 for number in (round, entry))
            and all(isinstance(text, str) and DIGEST.fullmatch(text) for text in digests)
            and isinstance(population, str)
            and isinstance(shards, list)
            and all(isinstance(shard, str) and shard.isprintable() for shard in shards)
            and not stored.arrays
        )
        if not valid:
            raise FileContentError(
                f"{path}: its fields are not those of a void; expected round, state, population, shards and ledger: copy it again"
            )
        return Void(stored.plan_id, round, str(state), str(population), tuple(shards), Anchor(entry, str(digest)))  # type: ignore[arg-type]


def void_round(plan: Plan, state: RoundState, ledger: Ledger, *, untried: bool = False) -> Void:
    """Write into the coordinator's ledger that the round is never released. Raises UsageError when it was drawn.

    A second call gives the same void and makes no second entry. It warns on standard error where the ledger knew nothing of the
    plan, unless it is said that no release was tried: it may be a ledger that the releases are not charged to.
    """
    population, release = plan.config.data.population, f"{plan.plan_id}/{state.round}/{state.identity()}"
    keys = [Key.of(row.key) for row in ledger.rows()]
    knows_plan = any(key is not None and key.plan == plan.plan_id for key in keys) or ledger.has_void(release)
    entry = ledger.void(population=population, release=release)
    if not (knows_plan or untried):
        sys.stderr.write(
            f"distqexp: warning: {ledger.path}: this ledger knows nothing of plan {plan.plan_id[:16]}: is DISTQEXP_LEDGER the one "
            "that its releases are charged to? Another one may have a release of this round, and the void is false then\n"
        )
        sys.stderr.flush()
    return Void(plan.plan_id, state.round, state.identity(), population, plan.config.shards, entry)


def accept(void: Void, ledger: Ledger) -> list[LedgerRow]:
    """Give a site's charge for a void round back, once. Raises FileContentError when the void does not fit the ledger."""
    roles = {f"site-{shard}" for shard in void.shards}
    return ledger.accept_void(population=void.population, release=void.release, roles=roles)


def refuse_false_void(plan: Plan, release: Release, ledger: Path | None) -> None:
    """Undo voids that ``release`` proves false: charge their rounds again and refuse the release, once.

    ``release`` proves its own round and all earlier ones to be released. ``ledger`` is as in Ledger.open; where the file doesn't
    exist there is nothing to mend. Raises FileContentError.
    """
    path = default_path() if ledger is None else ledger
    if not path.exists():
        return
    with Ledger.open(path, create=False) as books:
        rows = books.reinstate(plan=plan.plan_id, round=release.round)
    if rows:
        rounds = sorted({key.round for key in (Key.of(row.key) for row in rows) if key is not None})
        raise FileContentError(
            f"{path}: round {' and '.join(map(str, rounds))} of plan {plan.plan_id[:16]} was voided, yet a release of round "
            f"{release.round} is here: the void was false; the charge stands again; ask the coordinator, then run again"
        )
