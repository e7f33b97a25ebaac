"""Long sums are recognised by their blocks, whoever has which of them; what an older version charged goes on as it was, or is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import NOISE, SMALL, SUMS, reserve

from distqexp import arrays
from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.recognised import BlockDigests

SOURCE = np.arange(33, dtype=np.uint8)


def charged(ledger: Ledger, **changes: Any) -> Any:
    return reserve(ledger, event=SMALL, **changes)


@pytest.fixture
def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five sums that these tests share are three blocks."""
    monkeypatch.setattr(arrays, "BLOCK", 2)


@pytest.mark.usefixtures("by_blocks")
def test_sums_and_the_digests_of_their_blocks_are_one_charge(path: Path) -> None:
    digests = BlockDigests.of(SUMS)
    assert (digests.length, len(digests.digests), digests.block) == (5, 3, 2)
    with Ledger.open(path) as ledger:
        first = charged(ledger, sums=digests)
        assert charged(ledger) == first
        ledger.persist_noise(first, SOURCE)
        (stored,) = path.with_name("ledger.sqlite.files").glob("noise-*")
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    with Ledger.open(path) as ledger:
        for sums in (SUMS, digests):
            again = charged(ledger, sums=sums)
            assert (again.id, again.state) == (1, "drawn")
            assert ledger.noise(again).tobytes() == SOURCE.tobytes()
        for other in (SUMS + np.array([0, 0, 0, 0, 1]), SUMS[[2, 3, 0, 1, 4]]):  # also where blocks only change places
            assert charged(ledger, sums=BlockDigests.of(other)).id > 1
        ledger.commit(again, SUMS + NOISE)
        assert not stored.exists()
        ledger.verify()


def test_a_charge_of_an_older_version_goes_on_with_its_noise_or_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path) as ledger:
        ledger.persist_noise(charged(ledger), NOISE)  # as a whole, as if the block were longer
        monkeypatch.setattr(arrays, "BLOCK", 2)
        chain = ledger.export()
        with pytest.raises(UsageError, match=r"ledger entry 1: .* by blocks of any length; expected 2: resume in one"):
            charged(ledger, sums=BlockDigests.of(SUMS))
        assert ledger.export() == chain
        again = charged(ledger)
        assert (again.id, again.state, ledger.noise(again).tolist()) == (1, "drawn", NOISE.tolist())
        # Digests of another release, or of blocks of another length, meet nothing of it.
        assert charged(ledger, key="plan/1", sums=BlockDigests.of(SUMS)).state == "reserved"
        monkeypatch.setattr(arrays, "BLOCK", 4)
        with pytest.raises(UsageError, match="by blocks of 2; expected 4"):
            charged(ledger, key="plan/1")


def test_a_charge_of_an_older_version_that_was_killed_before_its_draw_takes_a_source(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path) as ledger:
        first = charged(ledger)  # known as a whole, as if the block were longer
        monkeypatch.setattr(arrays, "BLOCK", 2)
        again = charged(ledger)
        assert (again.id, again.state) == (first.id, "reserved")
        ledger.persist_noise(again, SOURCE)
        assert ledger.noise(charged(ledger)).tobytes() == SOURCE.tobytes()


def test_a_source_is_no_noise_of_sums_that_are_known_as_a_whole(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(ValueError, match="noise: uint8"):
            ledger.persist_noise(charged(ledger), SOURCE)
        assert [row.state for row in ledger.rows()] == ["reserved"]


@pytest.mark.usefixtures("by_blocks")
def test_a_damaged_source_is_refused(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reservation = charged(ledger)
        ledger.persist_noise(reservation, SOURCE)
        (stored,) = path.with_name("ledger.sqlite.files").glob("noise-*")
        content = bytearray(stored.read_bytes())
        content[content.index(SOURCE.tobytes()) + 5] ^= 1
        stored.write_bytes(content)
        with pytest.raises(FileContentError, match="its seal does not fit"):
            ledger.noise(charged(ledger))
