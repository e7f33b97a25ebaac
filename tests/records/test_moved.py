"""A table that was put in another order between rounds: whoever charges everybody, all others follow, to the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import Killed, killing
from record_tables import Patients, config_of, parts_charged, source

from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.errors import BudgetError, FileContentError
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger
from distqexp.report.certificate import certificate_bytes
from distqexp.stages import rounds as fit_module
from distqexp.stages import sketch as sketch_stage
from distqexp.stages.export import certificate_of, guarantee_of

NORTH = Patients.some(20, 3, seed=2, first=100)
SOUTH = Patients.some(16, 3, seed=3, first=300)
PUBLIC = Patients.some(50, 2, seed=1, first=900)
SWAPPED = np.r_[3:6, 0:3, 6:60]
"""The first two patients trade places: each is in the other's part."""


class Study:
    """Two sites and a coordinator, with a ledger each, in two rounds of two parts; files go between them by hand."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        PUBLIC.write(folder / "public.csv")
        shards = [source(None, shard=name) for name in ("north", "south")]
        mechanism = {"rounds": 2, "parts": 2, "clip": 0.05}
        self.config = config_of(
            source(folder / "public.csv"), *shards, **{"mechanism": mechanism, "privacy": {"units": 36}, **sections}
        )
        self.plan = api.plan(self.config, folder / "plan.h5")
        for name in ("north", "south"):
            with Ledger.open(self.ledger(name)) as ledger:
                ledger.set_cap("patients", 4.0, 1e-5)
        self.releases: list[Path] = []

    def ledger(self, name: str) -> Path:
        return self.folder / f"{name}.sqlite"

    def sketch(self, name: str, table: Patients) -> Path:
        round = len(self.releases)
        data, out = table.write(self.folder / f"{name}.csv"), self.folder / f"{name}-{round}.h5"
        release = self.releases[-1] if self.releases else None
        api.sketch(self.folder / "plan.h5", data, out, release=release, shard=name, ledger=self.ledger(name))
        return out

    def pool(self, *sketches: Path) -> Path:
        path = self.folder / f"quadratic-{len(self.releases)}.h5"
        path.unlink(missing_ok=True)
        api.pool(self.folder / "plan.h5", sketches, path)
        return path

    def release(self, quadratic: Path) -> Release:
        path = self.folder / f"release-{len(self.releases)}.h5"
        previous = self.releases[-1] if self.releases else None
        found = api.release(
            self.folder / "plan.h5",
            quadratic,
            path,
            previous=previous,
            config=self.config,
            ledger=self.ledger("curator"),
        )
        self.releases.append(path)
        return found

    def round(self, north: Patients, south: Patients) -> Release:
        return self.release(self.pool(self.sketch("south", south), self.sketch("north", north)))

    def epsilon(self, name: str) -> float:
        with Ledger.open(self.ledger(name)) as ledger:
            return ledger.spent("patients").epsilon(1e-5)

    def certificate(self, out: str = "model") -> dict[str, Any]:
        return api.export(self.folder / "plan.h5", self.releases, self.folder / out, ledger=self.ledger("curator"))[0]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def high_cap(study: Study) -> None:
    with Ledger.open(study.ledger("curator")) as ledger:
        ledger.set_cap("patients", 4.0, 1e-5)


def test_certificate_and_coordinator_say_what_the_site_says(study: Study) -> None:
    """The case c1_moved_part: today the site's ledger says 2.95, certificate and coordinator 2.0."""
    high_cap(study)
    assert study.round(NORTH, SOUTH).everybody is False
    moved = study.round(NORTH.in_order(SWAPPED), SOUTH)
    assert moved.everybody is True
    sketches = [Sketch.read(study.folder / f"{name}-1.h5", study.plan) for name in ("north", "south")]
    assert [sketch.everybody for sketch in sketches] == [True, False]
    certificate = study.certificate()
    assert certificate["epsilon"] == study.epsilon("curator") == study.epsilon("north")
    assert certificate["epsilon"] > 1.4 * study.epsilon("south") > 2.7
    assert [entry["part"] for entry in certificate["rounds"]] == [0, None]
    assert parts_charged(study.ledger("north")) == parts_charged(study.ledger("curator")) == [Part(0, 2), None]
    assert parts_charged(study.ledger("south")) == [Part(0, 2), Part(1, 2)]


def test_without_room_for_everybody_the_coordinator_refuses(study: Study) -> None:
    study.round(NORTH, SOUTH)
    with pytest.raises(BudgetError):
        study.round(NORTH.in_order(SWAPPED), SOUTH)
    assert parts_charged(study.ledger("curator")) == [Part(0, 2)]


def test_a_table_in_its_order_is_charged_by_part_everywhere(study: Study) -> None:
    releases = [study.round(NORTH, SOUTH), study.round(NORTH, SOUTH)]
    assert [release.everybody for release in releases] == [False, False]
    certificate = study.certificate()
    assert certificate["epsilon"] == study.epsilon("curator") == study.epsilon("north") <= 2.0


def test_the_coordinator_sees_the_order_where_a_site_forgot_it(study: Study) -> None:
    """A site with a new ledger charges its second round by part; what its parts rest on has come along."""
    high_cap(study)
    study.round(NORTH, SOUTH)
    for path in (study.ledger("north"), study.ledger("north").with_name("north.sqlite.files")):
        path.rename(path.with_name(f"lost-{path.name}"))
    assert study.round(NORTH.in_order(SWAPPED), SOUTH).everybody is True
    assert parts_charged(study.ledger("north")) == [Part(1, 2)]
    assert Sketch.read(study.folder / "north-1.h5", study.plan).everybody is False
    assert parts_charged(study.ledger("curator")) == [Part(0, 2), None]
    assert study.certificate()["epsilon"] == study.epsilon("curator") > 2.7


@pytest.mark.parametrize("adjacency", ["replace-one", "add-remove"])
def test_the_flag_follows_the_adjacency(adjacency: str, tmp_path: Path) -> None:
    """Under add-remove a unit's part is a hash of its id: no order moves it."""
    study = Study(tmp_path, privacy={"units": 36, "adjacency": adjacency})
    high_cap(study)
    study.round(NORTH, SOUTH)
    assert study.round(NORTH.in_order(SWAPPED), SOUTH).everybody is (adjacency == "replace-one")
    certificate = study.certificate()
    assert certificate["epsilon"] == study.epsilon("curator") == study.epsilon("north")


def test_the_worse_of_ledger_and_release_counts(study: Study) -> None:
    """A flag that was taken out of a release changes nothing: the ledger knows; and the other way round."""
    high_cap(study)
    releases = [study.round(NORTH, SOUTH), study.round(NORTH.in_order(SWAPPED), SOUTH)]
    first = study.certificate()
    replace(releases[1], everybody=False).write(study.releases[1])
    assert study.certificate("again")["epsilon"] == first["epsilon"]
    both = [Part(0, 2), Part(1, 2)]
    assert guarantee_of(study.plan, releases, both).epsilon(1e-5) == first["epsilon"]
    assert guarantee_of(study.plan, releases).epsilon(1e-5) == first["epsilon"]
    unflagged = [replace(release, everybody=False) for release in releases]
    assert guarantee_of(study.plan, unflagged, [Part(0, 2), None]).epsilon(1e-5) == first["epsilon"]
    assert guarantee_of(study.plan, unflagged, both).epsilon(1e-5) < 0.8 * first["epsilon"]


def test_a_certificate_without_the_flag_is_refused_where_the_ledger_knows(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release and certificate are edited together, so that they agree; only a ledger can tell, and without one verify says so."""
    high_cap(study)
    releases = [study.round(NORTH, SOUTH), study.round(NORTH.in_order(SWAPPED), SOUTH)]
    certificate, path = study.certificate(), study.folder / "model" / "certificate.json"
    files = [study.folder / "plan.h5", *study.releases]
    monkeypatch.setenv("DISTQEXP_LEDGER", str(study.ledger("curator")))
    assert any("are this machine's own" in line for line in api.verify(path, *files))
    unflagged = [replace(release, everybody=False) for release in releases]
    unflagged[1].write(study.releases[1])
    forged = certificate_of(
        study.plan, unflagged, certificate["model_sha256"], certificate["ledger"], [Part(0, 2), Part(1, 2)]
    )
    assert forged["epsilon"] < 0.8 * certificate["epsilon"]
    path.write_bytes(certificate_bytes(forged))
    with pytest.raises(FileContentError, match=r"round 1: charged to part 1; .* has it charged to everybody"):
        api.verify(path, *files)
    monkeypatch.setenv("DISTQEXP_LEDGER", str(study.folder / "none.sqlite"))
    lines = api.verify(path, *files)
    assert any("not checked: ledger entry" in line and "whose units each round" in line for line in lines), lines


def test_equal_sums_of_another_order_are_a_charge_of_their_own(study: Study, tmp_path: Path) -> None:
    """All blank: both orders have the sums 0. A charge to a part doesn't cover everybody."""
    plan = study.plan
    sums, bases = np.zeros(plan.width, dtype=np.int64), (b"1" * 64, b"2" * 64)
    high_cap(study)
    for basis, everybody in (
        (bases[0], False),
        (bases[0], False),
        (bases[1], False),
        (bases[1], False),
        (bases[0], True),
    ):
        path = tmp_path / "quadratic.h5"
        Quadratic(plan.plan_id, 0, plan.state.identity(), sums, basis, everybody).write(path)
        (tmp_path / "release.h5").unlink(missing_ok=True)
        api.release(
            tmp_path / "plan.h5", path, tmp_path / "release.h5", config=study.config, ledger=study.ledger("curator")
        )
    assert parts_charged(study.ledger("curator")) == [Part(0, 2), None]


# --- one run, killed and resumed ---------------------------------------------------------------------------------


def one_run(folder: Path) -> Any:
    PUBLIC.write(folder / "public.csv")
    NORTH.write(folder / "private.csv")
    mechanism = {"rounds": 2, "parts": 2, "clip": 0.05}
    return config_of(source(folder / "public.csv"), source(folder / "private.csv"), mechanism=mechanism)


def killed_before_the_draw_of_round_one(config: Any, out: Path, patch: pytest.MonkeyPatch, **keywords: Any) -> None:
    with patch.context() as inner:
        last = killing(fit_module.draw_release, lambda plan, state, *_, **__: state.round == 1, True)
        inner.setattr(fit_module, "draw_release", last)
        with pytest.raises(Killed):
            api.fit(config, out, **keywords)


@pytest.mark.parametrize("orders", [(NORTH, SWAPPED, None), (NORTH, SWAPPED, SWAPPED), (NORTH, None, SWAPPED)])
def test_a_resume_charges_what_was_sketched_not_what_the_file_is_now(
    orders: Sequence[Any], tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today the stored sums of a table in another order are charged by the order of the table that lies there when the run goes on."""
    config, out, path = one_run(tmp_path), tmp_path / "out", tmp_path / "private.csv"
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("patients", 4.0, 1e-5)
    calls = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(
            sketch_stage, "sketch_round", killing(sketch_stage.sketch_round, lambda *_, **__: next(calls), True)
        )
        with pytest.raises(Killed):
            api.fit(config, out)

    def lies_there(order: Any) -> None:
        (NORTH if order is None else NORTH.in_order(order)).write(path)

    lies_there(orders[1])
    killed_before_the_draw_of_round_one(config, out, monkeypatch, resume=True)
    stored = Quadratic.read(out / "quadratic-001.h5", Plan.read(out / "plan.h5"))
    lies_there(orders[2])
    result = api.fit(config, out, resume=True)
    assert result is not None
    moved = orders[1] is not None
    assert parts_charged(own_ledger) == [Part(0, 2), None if moved else Part(1, 2)]
    assert [release.everybody for release in result.releases] == [False, moved]
    assert stored.everybody is False
    assert len(stored.basis) == 32
    with Ledger.open(own_ledger) as ledger:
        assert result.certificate["epsilon"] == ledger.spent("patients").epsilon(1e-5)
    assert (result.certificate["epsilon"] > 2.5) is moved


def test_what_the_parts_rest_on_has_its_length_and_the_flag_its_plan(study: Study, tmp_path: Path) -> None:
    plan, path = study.plan, tmp_path / "file.h5"
    sums = np.zeros(plan.width, dtype=np.int64)
    for basis in (b"", b"1" * 32, b"1" * 65):
        Quadratic(plan.plan_id, 0, plan.state.identity(), sums, basis).write(path)
        with pytest.raises(FileContentError, match="what its parts rest on is uint8"):
            Quadratic.read(path, plan)
    config = replace(study.config, mechanism=replace(study.config.mechanism, parts=1))
    (tmp_path / "whole").mkdir()
    whole = api.plan(config, tmp_path / "whole" / "plan.h5")
    Quadratic(whole.plan_id, 0, whole.state.identity(), sums, b"", True).write(path)
    with pytest.raises(FileContentError, match="everybody is True; expected false, as the plan has no parts"):
        Quadratic.read(path, whole)
    done = np.ones(1, dtype=np.bool_)
    Sketch(whole.plan_id, 0, whole.state.identity(), "north", sums, done, "", b"", True).write(path)
    with pytest.raises(FileContentError, match="everybody is True"):
        Sketch.read(path, whole)
