"""Arguments of ``fit`` that say one thing twice, or nothing: refused before a record is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from live_records import PRIVATE, PUBLIC, linear

import distqexp
from distqexp.errors import UsageError
from distqexp.live.request import plain_number
from distqexp.privacy.ledger import Ledger

TWICE: list[tuple[dict[str, Any], str]] = [
    ({"privacy.epsilon": 9.0}, "epsilon"),
    ({"privacy": {"delta": 0.1}}, "delta"),
    ({"privacy": {"units": 9, "adjacency": "replace-one"}}, "units"),
    ({"data.population": "free"}, "population"),
    ({"data": {"private": {"format": "digits"}}}, "private"),
    ({"data.public": {"format": "digits"}}, "public"),
    ({"model.loss": "cross-entropy"}, "loss"),
    ({"columns.standardise": False}, "standardise"),
]


@pytest.mark.parametrize(("settings", "argument"), TWICE, ids=[argument for _, argument in TWICE])
def test_a_setting_that_has_an_argument_is_refused(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(UsageError, match=f"expected it as the argument {argument} alone"):
        distqexp.fit(linear(), PRIVATE, public=PUBLIC, epsilon=0.5, delta=1e-5, population="study", settings=settings)
    with Ledger.open() as ledger:
        assert ledger.rows() == []


@pytest.mark.parametrize("units", [0, -1, 0.5])
@pytest.mark.parametrize("adjacency", ["add-remove", "zero-out"])
def test_a_number_of_units_below_one_is_never_taken_for_none(units: Any, adjacency: str) -> None:
    """Under add-remove the counted number is private, and would stand in the certificate."""
    with pytest.raises(UsageError, match=r"units: found .*at least 1") as caught:
        distqexp.fit(
            linear(), PRIVATE, public=PUBLIC, epsilon=1.0, delta=1e-5, units=units, settings={"privacy.adjacency": adjacency}
        )  # fmt: skip
    assert "400" not in str(caught.value)


def test_a_number_is_the_one_that_was_written() -> None:
    for written in (np.float32(0.1), np.float64(0.1), np.float16(0.1), torch.tensor(0.1)):
        assert plain_number(written) == 0.1
    for whole in (np.int64(3), torch.tensor(3), np.array(3)):
        assert plain_number(whole) == 3
        assert type(plain_number(whole)) is int
    assert plain_number(np.float32(1e-5)) == 1e-5
    assert plain_number("text") == "text"
    assert plain_number(np.ones(2)).shape == (2,)


def test_a_target_without_a_data_frame_is_refused() -> None:
    with pytest.raises(
        UsageError, match="target: 'died', and no records are a DataFrame; expected it with DataFrames alone"
    ):
        distqexp.fit(linear(), PRIVATE, public=PUBLIC, target="died", epsilon=1.0, delta=1e-5)
