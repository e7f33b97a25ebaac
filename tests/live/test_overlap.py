"""Public and evaluation records that are private ones too, and unit ids in many ways of writing."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from live_records import BUDGET, EVALUATION, PRIVATE, PUBLIC, linear, records
from torch.utils.data import DataLoader, TensorDataset

import distqexp
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.live.batches import Roles
from distqexp.live.marks import Marking, Marks, canonical_ids, table_numbers
from distqexp.live.overlap import refuse_common_records
from distqexp.live.spool import spool
from distqexp.privacy.ledger import Ledger
from distqexp.sklearn import PrivateClassifier, PrivateValueError

pytestmark = pytest.mark.process  # a small process watches over the scratch folder

(X, Y), (PUBLIC_X, PUBLIC_Y) = PRIVATE, PUBLIC
IDS = np.arange(400) // 2
ORDER = np.random.default_rng(0).permutation(400)


def frame(pair: tuple[Any, Any], ids: Any) -> pandas.DataFrame:
    return pandas.DataFrame(pair[0], columns=list("abcd")).assign(died=pair[1], pid=ids)


def dataset(pair: tuple[Any, Any], ids: Any) -> TensorDataset:
    return TensorDataset(*map(torch.as_tensor, (*pair, ids)))


TABLE, DATASET = frame(PRIVATE, IDS), dataset(PRIVATE, IDS)
TABLED: dict[str, Any] = {"private": TABLE, "target": "died"}
COMMON = "has records in common with private"
SAME = "the same object as private"
IDS_TOO = "has unit ids that private has too"
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "the object": ({"public": PRIVATE}, f"public: {SAME}"),
    "its features": ({"public": (X, 1 - Y)}, f"public: {SAME}"),
    "the loader's dataset": ({"private": DataLoader(DATASET, 8), "unit": "pid", "public": DataLoader(DATASET, 9)}, f"public: {SAME}"),
    "evaluation": ({"evaluation": (X, Y)}, f"evaluation: {SAME}.*evaluation_private=True"),
    "a copy": ({"public": (X.copy(), Y)}, f"public: {COMMON}"),
    "with unit ids": ({"public": (X.copy(), Y), "unit": IDS}, f"public: {COMMON}"),
    "a part": ({"public": (X[100:150], Y[100:150])}, f"public: {COMMON}"),
    "a part beside others": ({"public": (np.concatenate([X[:40], PUBLIC_X]), np.concatenate([Y[:40], PUBLIC_Y]))}, f"public: {COMMON}"),
    "another order": ({"public": (X[ORDER], Y[ORDER])}, f"public: {COMMON}"),
    "another type": ({"public": (X.astype(np.float32), Y)}, f"public: {COMMON}"),
    "evaluation's copy": ({"evaluation": (X.copy(), Y)}, f"evaluation: {COMMON}.*evaluation_private=True"),
    "a loader": ({"public": DataLoader(TensorDataset(*map(torch.from_numpy, (X.copy(), Y))), 64)}, f"public: {COMMON}"),
    "a table": (TABLED | {"public": TABLE.copy(), "features": list("dbca")}, f"public: {COMMON}"),
    "a table of other columns": (
        TABLED | {"public": TABLE[[*"dcba", "died"]].iloc[::-1].assign(e=1), "features": list("abcd")}, f"public: {COMMON}",
    ),
    "a person's other records": (
        {"private": TABLE.iloc[::2], "public": TABLE.iloc[1::2], "unit": "pid", "target": "died"}, f"public: {IDS_TOO}",
    ),
    "ids in another way of writing": (
        TABLED | {"public": frame(PUBLIC, [f" {number}.0" for number in range(120)]), "unit": "pid"}, f"public: {IDS_TOO}",
    ),
    "ids of a dataset": ({"private": DATASET, "unit": "pid", "public": dataset(PUBLIC, IDS[:120])}, f"public: {IDS_TOO}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_private_records_in_another_role_are_refused(name: str) -> None:
    changes, words = CALLS[name]
    call: dict[str, Any] = {"private": PRIVATE, "public": PUBLIC, **changes}
    with pytest.raises(UsageError, match=f"^{words}") as caught:
        distqexp.fit(linear(), call.pop("private"), callback=lambda _: None, **{**BUDGET, **call})
    assert not any(count in str(caught.value) for count in ("400", "200", "120", "40", "50"))
    with Ledger.open() as ledger:
        assert ledger.rows() == []


def test_records_that_are_others_are_taken() -> None:
    """Parts of one array; people of their own ids, who may have rows in common; private evaluation records."""
    whole, labels = records(5, 520)
    common: dict[str, Any] = {"callback": lambda _: None, **BUDGET}
    distqexp.fit(linear(), (whole[:400], labels[:400]), public=(whole[400:], labels[400:]), population="a", **common)
    other = frame((X[:120], Y[:120]), [f"b-{number}" for number in range(120)])
    distqexp.fit(linear(), TABLE, public=other, target="died", unit="pid", population="b", **common)
    distqexp.fit(
        linear(), PRIVATE, public=PUBLIC, evaluation=PRIVATE, evaluation_private=True, population="c", **common
    )


def test_an_estimator_refuses_them_too() -> None:
    with pytest.raises(PrivateValueError, match=f"^public: {COMMON}"):
        PrivateClassifier(public=(X.astype(np.float32), Y)).fit(X, Y)


def marks(rows: Any) -> Marks:
    marking = Marking()
    marking.add(np.asarray(rows, dtype=np.float64), None)
    return marking.marks()


def refused(private: Any, public: Any) -> bool:
    try:
        refuse_common_records([marks(private)], {"public": marks(public)})
    except UsageError:
        return True
    return False


LAWS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "three questions": lambda random, count: random.integers(0, 2, (count, 3)),
    "many categories": lambda random, count: random.integers(0, 4, (count, 4)),
    "a long tail": lambda random, count: random.zipf(1.5, (count, 1)),
    "blank images": lambda random, count: random.normal(size=(count, 4)) * (random.random((count, 1)) > 0.2),
    "as many values as rows": lambda random, count: random.integers(0, 1000, (count, 1)),
}


@pytest.mark.parametrize("law", LAWS)
def test_rows_that_are_equal_by_chance_are_no_reason(law: str) -> None:
    """Both from one law: a refusal has a chance of at most 1e-9 each time, and 4 sizes of 25 draws are 1e-7 together."""
    random = np.random.default_rng(7)
    for private, public in ((1000, 1000), (1000, 100), (100, 1000), (30, 30)):
        assert not any(refused(LAWS[law](random, private), LAWS[law](random, public)) for _ in range(25))


@pytest.mark.parametrize("law", ["many categories", "a long tail", "blank images", "as many values as rows"])
def test_copies_show_where_values_are_many(law: str) -> None:
    """Among 256 combinations of categories a copy is no different from chance, and isn't refused: what is refused is certain."""
    random = np.random.default_rng(8)
    rows = LAWS[law](random, 1000)
    assert refused(rows, rows[:500]) is (law in ("blank images", "as many values as rows"))


def test_a_few_rows_in_common_are_left_alone() -> None:
    """Two corpora without duplicates: below one in a hundred public rows nothing is said."""
    one, other = np.arange(10_000.0)[:, None], np.arange(10_000.0, 20_000.0)[:, None]
    assert not refused(one, np.concatenate([other, one[:90]]))
    assert refused(one, np.concatenate([other, one[:200]]))


def test_marks_are_of_what_an_entry_says() -> None:
    one = pandas.DataFrame({"b": [0.0, np.nan, 1], "a": ["x", None, "y"], "c": pandas.to_datetime(["2021-01-01"] * 3)})
    other = pandas.DataFrame(
        {"c": one["c"].astype("datetime64[s]"), "a": one["a"].astype("string").astype(object), "b": [-0.0, np.nan, 1]}
    )
    assert table_numbers(one)[[0, 2]].tolist() == table_numbers(other)[[0, 2]].tolist()
    assert len(np.unique(marks([[1.0, 2.0], [2.0, 1.0], [1.0, math.nan]]).rows)) == 3
    assert marks(np.int8([[1, 0]])).rows == marks([[1.0, -0.0]]).rows


def test_marks_are_kept_in_a_private_file(tmp_path: Path) -> None:
    marking = Marking()
    marking.add(X, [None, *map(str, IDS[1:])])
    path = tmp_path / "private.marks"
    marking.marks().write(path)
    read = Marks.read(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read.units == 201
    np.testing.assert_array_equal(read.rows, marking.marks().rows)


WRITTEN: dict[str, Any] = {
    "numbers": IDS,
    "fractions of none": IDS.astype(np.float64),
    "texts": IDS.astype(str),
    "bytes": IDS.astype(str).astype(bytes),
    "numbers and texts": np.array([int(i) if i % 2 else str(i) for i in IDS], dtype=object),
    "blanks and points": np.array([f" {i}" if row % 2 else f"{i}.0" for row, i in enumerate(IDS)]),
    "a tensor": torch.from_numpy(IDS),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("form", ["arrays", "frame", "batches"])
def test_units_are_counted_by_their_canonical_ids(name: str, form: str, tmp_path: Path) -> None:
    ids = WRITTEN[name]
    data: Any = PRIVATE if form == "arrays" else frame(PRIVATE, IDS).drop(columns="pid")
    roles = Roles("private", unit="pid", ids=np.asarray(ids))
    if form == "batches":
        data = ((X[i : i + 50], Y[i : i + 50], ids[i : i + 50]) for i in range(0, 400, 50))
        roles = Roles("private", unit="pid")
    assert spool(data, tmp_path / "private", roles, "died").units == 200


def test_a_fit_by_ids_in_several_ways_of_writing_has_one_number_of_units() -> None:
    for name in ("blanks and points", "numbers and texts"):
        result = distqexp.fit(
            linear(), PRIVATE, public=PUBLIC, unit=WRITTEN[name], population=name, callback=lambda _: None, **BUDGET
        )
        assert result.certificate["units"] == 200
    days = pandas.to_datetime(IDS, unit="D")
    result = distqexp.fit(
        linear(), PRIVATE, public=PUBLIC, unit=days, evaluation=EVALUATION, callback=lambda _: None, **BUDGET
    )
    assert result.certificate["units"] == 200


def test_ids_that_are_none_are_refused_in_a_line(tmp_path: Path) -> None:
    def changing(first: Any, second: Any) -> Any:
        yield X[:50], Y[:50], first
        yield X[50:100], Y[50:100], second

    numbers, texts = IDS[:50], IDS[50:100].astype(str)
    cases: list[tuple[Any, Any, str]] = [
        (PRIVATE, IDS + 1j, "private: unit ids of type complex128; expected numbers or texts"),
        (PRIVATE, pandas.to_timedelta(IDS, unit="D").to_numpy(), "private: unit ids of type timedelta64"),
        (PRIVATE, (IDS + 2**24).astype(np.float32), "private: unit ids: a whole number is a float and too large"),
        (changing(numbers, texts), None, "private: pid are numbers in some batches and texts in others"),
        (changing(texts, numbers), None, "private: pid are numbers in some batches and texts in others"),
        (changing(numbers, np.stack([numbers] * 2, 1)), None, r"private: unit ids of shape \(n, ...\)"),
    ]
    for place, (data, ids, words) in enumerate(cases):
        with pytest.raises(DistqexpError, match=f"^{words}") as caught:
            spool(data, tmp_path / f"private-{place}", Roles("private", unit="pid", ids=ids), None)
        assert "400" not in str(caught.value)


def test_missing_ids_are_nobodys() -> None:
    ids = np.array([None, "a", float("nan"), pandas.NA, "", b"a", "a "], dtype=object)
    assert canonical_ids(ids, "private") == [None, "a", None, None, None, "a", "a"]
    with pytest.raises(FileContentError, match="too large to be exact"):
        canonical_ids(np.array([2.0**60]), "private")
