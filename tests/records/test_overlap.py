"""No record in two roles: what is public, evaluated on, or another shard's, is none of a private unit's, by whatever name the file goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_tables import Patients, config_of, source

from distqexp import api
from distqexp.config import Config, DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem.identity import same_file
from distqexp.stages.overlaps import refuse_common_rows, refuse_overlaps
from distqexp.tuning.roles import assign_roles

WHOLE = Patients.some(40, 3, seed=4, first=100)
"""120 rows: patient 100 + u in rows 3 u to 3 u + 2."""


def itself(path: Path) -> Path:
    return path


def link(path: Path) -> Path:
    (path.parent / "link.csv").symlink_to(path)
    return path.parent / "link.csv"


def hard_link(path: Path) -> Path:
    os.link(path, path.parent / "hard.csv")
    return path.parent / "hard.csv"


def copy(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.parent / "copy.csv"))


def roundabout(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / path.name


NAMES = [itself, link, hard_link, copy, roundabout]


def public_and_private(
    folder: Path, name: Callable[[Path], Path], public: dict[str, Any], private: dict[str, Any]
) -> Config:
    path = WHOLE.write(folder / "whole.csv")
    return config_of(source(name(path), **public), source(path, **private), mechanism={"rounds": 1, "clip": 0.05})


def refused(config: Config, folder: Path, ledger: Path, *words: str) -> None:
    """A fit ends before its first round, with nothing charged and no row or id in its message."""
    with pytest.raises(UsageError) as caught:
        api.fit(config, folder / "out")
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    with Ledger.open(ledger) as books:
        assert books.rows() == []
    assert not [*(folder / "out").glob("sketch-*"), *(folder / "out").glob("quadratic-*")]
    shutil.rmtree(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("public", "private"),
    [
        ({}, {}),
        ({"rows": [[0, 61]]}, {"rows": [[60, 120]]}),
        ({"where": "a > 0"}, {"rows": [[60, 120]]}),
        # Other rows, of the same patients.
        ({"where": "ward == 'north'"}, {"where": "ward == 'south'"}),
        ({"rows": [[0, 62]]}, {"rows": [[62, 120]]}),
        ({"rows": [[0, 62]], "unit": None}, {"rows": [[62, 120]]}),
    ],
)  # fmt: skip
def test_public_records_that_are_private_are_refused(
    name: Callable[[Path], Path], public: dict[str, Any], private: dict[str, Any], tmp_path: Path, own_ledger: Path
) -> None:
    config = public_and_private(tmp_path, name, public, private)
    refused(
        config, tmp_path, own_ledger, "data.public: records of ", ".csv that are data.private's too", "disjoint rows"
    )


@pytest.mark.parametrize(
    ("public", "private"),
    [
        ({"rows": [[0, 60]]}, {"rows": [[60, 120]]}),
        ({"rows": [[0, 60]], "unit": None}, {"rows": [[60, 120]], "unit": None}),
        ({"where": "ward == 'north'", "unit": None}, {"where": "ward == 'south'", "unit": None}),
        ({"rows": [[0, 30], [90, 120]]}, {"rows": [[30, 90]]}),
    ],
)  # fmt: skip
def test_disjoint_records_of_one_file_are_allowed(
    public: dict[str, Any], private: dict[str, Any], tmp_path: Path
) -> None:
    config = public_and_private(tmp_path, itself, public, private)
    assert api.fit(config, tmp_path / "out") is not None


def test_another_file_with_the_same_ids_is_another_file(tmp_path: Path) -> None:
    """Ids of two files are not compared: nobody knows whether they name the same people."""
    path = WHOLE.write(tmp_path / "whole.csv")
    other = Patients.some(40, 3, seed=5, first=100).write(tmp_path / "other.csv")
    assert path.stat().st_size == other.stat().st_size
    refuse_overlaps(config_of(source(other), source(path)).data)


@pytest.mark.parametrize("name", NAMES)
def test_records_to_evaluate_on_are_not_private_ones_unless_they_are_said_to_be(
    name: Callable[[Path], Path], tmp_path: Path, own_ledger: Path
) -> None:
    path, public = WHOLE.write(tmp_path / "whole.csv"), Patients.some(20, 1, seed=9).write(tmp_path / "public.csv")
    other = name(path)

    def config(**data: Any) -> Config:
        return config_of(source(public), source(path, rows=[[0, 60]]), data=data)

    overlapping = source(other, rows=[[59, 90]], unit=None)
    refused(config(eval=overlapping), tmp_path, own_ledger, "data.eval: records of", "data.eval_private = true")
    refused(config(eval=overlapping | {"rows": [[30, 31]]}), tmp_path, own_ledger, "data.eval")
    refuse_overlaps(config(eval=overlapping, eval_private=True).data)
    refuse_overlaps(config(eval=source(other, rows=[[60, 120]])).data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", [None, "pid"])
def test_one_file_is_not_two_shards(
    name: Callable[[Path], Path], unit: str | None, tmp_path: Path, own_ledger: Path
) -> None:
    path, public = WHOLE.write(tmp_path / "whole.csv"), Patients.some(20, 1, seed=9).write(tmp_path / "public.csv")
    other = name(path)

    def config(north: list[list[int]], south: list[list[int]], presence: int = 1) -> Config:
        shards = [
            source(path, rows=north, unit=unit, shard="north"),
            source(other, rows=south, unit=unit, shard="south"),
        ]
        return config_of(source(public), *shards, privacy={"presence": presence}, mechanism={"rounds": 1})

    refused(config([[0, 63]], [[60, 120]]), tmp_path, own_ledger, "data.private", "privacy.presence")
    refuse_common_rows(config([[0, 60]], [[60, 120]]).data.private, 1)
    refuse_common_rows(config([[0, 63]], [[60, 120]], presence=2).data.private, 2)
    result = api.fit(config([[0, 60]], [[60, 120]]), tmp_path / "apart")
    assert result is not None


def test_three_shards_of_a_file_are_counted_together(tmp_path: Path) -> None:
    path = WHOLE.write(tmp_path / "whole.csv")

    def shards(*ranges: tuple[int, int]) -> tuple[DataConfig, ...]:
        named = [source(path, rows=[list(found)], unit=None, shard=f"s{i}") for i, found in enumerate(ranges)]
        return config_of(None, *named, precision={"kind": "identity"}).data.private

    refuse_common_rows(shards((0, 50), (40, 90), (80, 120)), 2)
    with pytest.raises(UsageError, match="several of the shards s0, s1, s2"):
        refuse_common_rows(shards((0, 50), (40, 90), (45, 120)), 2)


def test_a_site_looks_at_what_its_plan_shows(tmp_path: Path, own_ledger: Path) -> None:
    """The embedded digits are in every plan: their public rows are known at the site."""
    config = api.load_config()
    (private,) = config.data.private
    moved = replace(private, rows=((500, 700),))
    wrong = replace(config, data=replace(config.data, private=(moved,)))
    assert config.data.public is not None
    assert config.data.public.rows is not None
    api.plan(wrong, tmp_path / "plan.h5")
    with pytest.raises(UsageError, match=r"data.public: records of digits that are data.private's"):
        api.sketch(tmp_path / "plan.h5", None, tmp_path / "site.h5")
    with Ledger.open(own_ledger) as books:
        assert books.rows() == []
    refuse_overlaps(config.data)


def test_images_are_one_file_whatever_their_labels(tmp_path: Path) -> None:
    images = tmp_path / "images.idx"
    images.write_bytes(bytes([0, 0, 8, 3]) + np.array([6, 2, 2], dtype=">u4").tobytes() + bytes(24))
    for name in ("one", "other"):
        (tmp_path / f"{name}.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 6]) + bytes(6))
    one, other = (
        DataConfig(format="idx", path=str(images), labels=str(tmp_path / f"{name}.idx"), shard=name)
        for name in ("one", "other")
    )
    assert same_file(one, other)
    with pytest.raises(UsageError, match="stand in several of the shards one, other"):
        refuse_common_rows([one, other], 1)
    refuse_common_rows([replace(one, rows=((0, 3),)), replace(other, rows=((3, 6),))], 1)


@pytest.mark.parametrize("name", [name for name in NAMES if name is not copy])
def test_a_rehearsal_keeps_the_same_rules(name: Callable[[Path], Path], tmp_path: Path) -> None:
    """By links to a private file, and by copies of a public one, too."""
    path = WHOLE.write(tmp_path / "whole.csv")
    public = Patients.some(40, 3, seed=8, first=900).write(tmp_path / "public.csv")
    other = name(path)
    private = source(path)
    with pytest.raises(UsageError, match=r"data.public: its file is that of data.private"):
        assign_roles(config_of(source(other), private))
    for sources in ({"private": [source(other)]}, {"eval": source(other)}):
        with pytest.raises(UsageError, match=r"its file is that of data.private"):
            assign_roles(config_of(source(public), private, tune=sources))
    again = Path(shutil.copyfile(public, tmp_path / "again.csv"))
    held = {"private": [source(again, rows=[[0, 60]])], "eval": source(again, rows=[[59, 90]])}
    with pytest.raises(UsageError, match="the same records or units twice"):
        assign_roles(config_of(source(public), private, tune=held))
    fine = config_of(source(public), private, tune={**held, "eval": source(again, rows=[[60, 90]])})
    roles = assign_roles(fine)
    assert roles.reference.rows == ((90, 120),), "a copy's records are held out of data.public"
    assert isinstance(fine.tune, TuneConfig)


def test_a_rehearsal_leaves_copies_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no private file, so it can't compare bytes; the run refuses the copy before anything is charged."""
    path = WHOLE.write(tmp_path / "whole.csv")
    config = config_of(source(copy(path)), source(path))
    opened: list[Path] = []
    monkeypatch.setattr("distqexp.problem.identity.file_digest", lambda found: opened.append(found) or b"")
    assert assign_roles(config).stand_ins
    assert path not in opened
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"data\.public"):
        refuse_overlaps(config.data)
