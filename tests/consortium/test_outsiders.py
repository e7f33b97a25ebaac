"""What the exchanged folder gives to whoever reads all of it: an outsider without keys, another site, a helper."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import numpy as np
import pytest
from federations import uniform
from studies import OFFICE, StudyFolders
from study_forgery import message, stolen

from distqexp.errors import FileContentError
from distqexp.federation.header import KINDS
from distqexp.federation.messages import SUFFIX, peek
from distqexp.federation.sealing import opened

Begin = Callable[..., StudyFolders]


@pytest.mark.parametrize("trust", ["trusted-curator", "helper-masks"])
def test_only_the_recipient_reads_what_a_party_sends(begin: Begin, trust: str) -> None:
    """Sketches, masked vectors, seeds and answers of a round look random (false alarms: ALARM each) and open for one party alone.

    A masked vector less the answers would be the exact sum, and a sketch is one.
    """
    study = begin(trust)
    usual = os.umask(0o077)
    study.sketches()
    assert study.close().code == 0
    kinds = {"sketch"} if trust == "trusted-curator" else {"masked", "seed", "answer"}
    if trust == "helper-masks":
        study.answers(0)
    os.umask(usual)
    found: set[str] = set()
    for path in study.exchange.glob(f"*{SUFFIX}"):
        header, _ = peek(path)
        if not KINDS[header.kind].sealed:
            continue
        found.add(header.kind)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, "parties with accounts of their own share the folder"
        stored = path.read_bytes()[-header.length :]
        if header.kind != "seed":  # which is too short for the test
            words = np.frombuffer(stored[: len(stored) // 8 * 8], "<u8").astype(np.uint64)
            assert uniform(words), path.name
        for party in study.parties:
            pieces = opened(path, [stored], study.identity(party), header, header.sender)
            if party == header.recipient:
                assert b"".join(pieces)
                continue
            with pytest.raises(FileContentError, match=f"can't be opened by {party}"):
                b"".join(pieces)
    assert found == kinds
    for kind in kinds:
        headers = [peek(path)[0] for path in study.exchange.glob(f"{kind}-*{SUFFIX}")]
        named = kind == "sketch"  # it holds the name of its shard
        lengths = {header.length - named * len(header.sender) for header in headers}
        assert len(lengths) == 1, "files of sites of other sizes are as long"


def test_a_vector_that_its_recipient_cannot_open_does_not_stop_the_others(begin: Begin) -> None:
    """A site that seals to the wrong key is out of the round; its signed message is refused once, and left out later."""
    study = begin()
    study.sketches()
    mine, south = message(study, "masked-000-00-north"), message(study, "masked-000-00-south")
    mine.unlink()
    stolen(study, south, study.identity("north"))
    study.check_refused(OFFICE, study.close(), "can't be opened")
    outcome = study.close()
    assert outcome.code == 0
    assert "is closed over east, south, west:" in outcome.out
