"""A visit that is killed at any of its steps: the next one goes on with one charge, one vector and one message of each kind."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

import numpy as np
import pytest
from consortium import SHARDS
from kills import Killed, killing
from run_harness import Commands
from studies import OFFICE, StudyFolders, begun_study

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.federation.messages import SUFFIX

SHARED = "helper-masks-distributed-noise"


@pytest.fixture
def study(tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch) -> StudyFolders:
    return begun_study(tmp_path_factory, run, monkeypatch, SHARED, {"tolerated_sites": 1})


def killed(patch: pytest.MonkeyPatch, place: str, call: int, *, before: bool, visit: Callable[[], object]) -> None:
    """Make a visit that is killed before or after so many calls of a function."""
    calls = iter(range(1000))
    with patch.context() as only_here:
        owner, _, name = place.rpartition(".")
        target = pkgutil.resolve_name(owner)
        only_here.setattr(target, name, killing(getattr(target, name), lambda *_, **__: next(calls) == call, before))
        with pytest.raises(Killed):
            visit()


def check_round(study: StudyFolders) -> None:
    """The round ends, with the sum of what the sites' ledgers know, one message of each and one charge."""
    study.sketches()
    plan = Plan.read(study.root / "plan.h5")
    vectors = [Sketch.read(study.own(site) / "sketch-000.h5", plan, own=True).sums for site in SHARDS]
    assert study.close().code == 0
    study.answers()
    outcome = study.release()
    assert outcome.code == 0, outcome
    np.testing.assert_array_equal(study.sums(0), np.sum(vectors, axis=0))
    for site in SHARDS:
        assert study.charges(site) == [(f"site-{site}", "0", "committed")]
        assert len(list(study.exchange.glob(f"masked-000-00-{site}-*{SUFFIX}"))) == 1
    assert study.charges(OFFICE) == [("release", "0", "committed")]
    assert len(list(study.exchange.glob(f"release-000-*{SUFFIX}"))) == 1


@pytest.mark.parametrize(
    ("place", "call", "before"),
    [
        ("distqexp.consortium.site.sketch_shard", 0, False),
        ("distqexp.consortium.site.contribute", 0, False),
        ("distqexp.consortium.journal.OpenJournal.note_sent", 0, False),
        ("distqexp.consortium.journal.OpenJournal.note_sent", 2, True),
        ("distqexp.consortium.journal.OpenJournal.note_sent", 2, False),
        ("distqexp.consortium.party.deliver", 1, True),
    ],
)
def test_a_site_that_is_killed_goes_on(
    study: StudyFolders, monkeypatch: pytest.MonkeyPatch, place: str, call: int, before: bool
) -> None:
    killed(monkeypatch, place, call, before=before, visit=lambda: study.sketch("north"))
    check_round(study)


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("distqexp.federation.pooling.Pool.close", False),
        ("distqexp.consortium.journal.OpenJournal.note_sent", False),
        ("distqexp.consortium.party.deliver", True),
    ],
)
def test_a_coordinator_that_is_killed_while_it_closes_goes_on(
    study: StudyFolders, monkeypatch: pytest.MonkeyPatch, place: str, before: bool
) -> None:
    study.sketches()
    # Its own messages are copied again first, two of them.
    call = 0 if "note" in place or "close" in place else 2
    killed(monkeypatch, place, call, before=before, visit=study.close)
    check_round(study)


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("distqexp.consortium.releasing.release_round", False),
        ("distqexp.consortium.releasing.write_message", False),
    ],
)
def test_a_coordinator_that_is_killed_while_it_releases_goes_on(
    study: StudyFolders, monkeypatch: pytest.MonkeyPatch, place: str, before: bool
) -> None:
    study.sketches()
    assert study.close().code == 0
    study.answers()
    killed(monkeypatch, place, 0, before=before, visit=study.release)
    check_round(study)


def test_a_release_that_is_in_the_log_alone_is_copied_by_the_next_visit(
    study: StudyFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.sketches()
    assert study.close().code == 0
    study.answers()
    killed(monkeypatch, "distqexp.consortium.party.deliver", 3, before=True, visit=study.release)
    assert not list(study.exchange.glob(f"release-000-*{SUFFIX}"))
    again = study.release()
    assert again.code == 2
    assert "round 1, attempt 0 is not closed" in again.reasons()[0]  # since round 0 is released
    assert len(list(study.exchange.glob(f"release-000-*{SUFFIX}"))) == 1
    study.sketches()
    assert study.close().code == 0


def test_a_helper_that_is_killed_before_its_answer_is_copied_goes_on(
    study: StudyFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.sketches()
    assert study.close().code == 0
    closing = study.closing()
    for place in ("distqexp.federation.helper.Helper.answer", "distqexp.consortium.party.deliver"):
        killed(
            monkeypatch, place, 0, before=place.endswith("deliver"),
            visit=lambda: study.at("ethics").distqexp("helper", "answer", closing),
        )  # fmt: skip
    check_round(study)
    assert len(list(study.exchange.glob(f"answer-*-ethics-*{SUFFIX}"))) == 1
