"""Parts of the records with an index of pandas: rows go together by position, so that another order is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
from live_records import BUDGET, PRIVATE, PUBLIC, linear

import distqexp
from distqexp.errors import UsageError
from distqexp.live.alignment import require_aligned
from distqexp.sklearn import PrivateClassifier, PrivateValueError

pytestmark = pytest.mark.process  # a small process watches over the scratch folder

FRAME = pandas.DataFrame(PRIVATE[0], columns=list("abcd"))
DIED = pandas.Series(PRIVATE[1], name="died")
PATIENT = pandas.Series(np.arange(400) // 4, name="patient")
ORDER = np.random.default_rng(0).permutation(400)
PUBLIC_FRAME = pandas.DataFrame(PUBLIC[0], columns=list("abcd")).assign(died=PUBLIC[1])

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unit": ({"private": FRAME.assign(died=DIED).iloc[ORDER], "unit": PATIENT, "target": "died"}, "unit: another index"),
    "targets": ({"private": (FRAME.iloc[ORDER], DIED)}, "private: targets: another index"),
    "unit of a pair": ({"private": (FRAME, DIED), "unit": PATIENT.iloc[ORDER]}, "unit: another index"),
    "public": ({"private": (FRAME, DIED), "public": (PUBLIC_FRAME, DIED)}, "public: targets: another index"),
    "a mapping": ({"private": {"features": FRAME.iloc[ORDER], "target": DIED}}, "private: target: another index"),
    "a shorter one": ({"private": (FRAME, DIED), "unit": PATIENT.iloc[7:]}, "unit: another index"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_another_index_is_refused(name: str) -> None:
    call, words = WRONG[name]
    call = {"public": PUBLIC_FRAME, **call}
    with pytest.raises(UsageError, match=rf"^{words}.*expected one index"):
        distqexp.fit(linear(), call.pop("private"), callback=lambda _: None, **{**BUDGET, **call})


def test_the_same_index_and_none_are_taken() -> None:
    shuffled = FRAME.iloc[ORDER]
    require_aligned("private", shuffled, PATIENT.loc[shuffled.index])
    require_aligned("private", shuffled, PATIENT.to_numpy())
    require_aligned("private", shuffled, "patient")
    require_aligned("private", (shuffled, DIED.iloc[ORDER]), PATIENT.iloc[ORDER])
    require_aligned("private", PRIVATE, PATIENT.iloc[ORDER])  # arrays have no index
    require_aligned("private", iter([]), None)


def test_units_of_an_estimator_too() -> None:
    with pytest.raises(PrivateValueError, match=r"^unit: another index"):
        PrivateClassifier(classes=[0, 1]).fit(FRAME.iloc[ORDER], DIED.iloc[ORDER], unit=PATIENT)
