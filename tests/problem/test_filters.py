"""Filters: the grammar, its refusals, missing values, and that nothing is evaluated as code."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.problem.filters import parse_filter


class Table:
    def numbers(self, name: str) -> NDArray[np.float64]:
        return {"CCU": np.array([0.0, 1, 1, np.nan]), "SAPS-I": np.array([1.0, 2, 3, 4]), "and": np.arange(4.0)}[name]

    def texts(self, name: str) -> list[str | None]:
        return {"site": ["north", "south", None, "east and west"], "two words": ["a", "b", "a", "b"]}[name]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("CCU == 1", [1, 2]),
        ("CCU != 1", [0]),
        ("CCU==1 and SAPS-I>=3", [2]),
        ("SAPS-I < 2.5e0 and SAPS-I > -1", [0, 1]),
        ("SAPS-I <= 3 and CCU == 0", [0]),
        ("site == 'north'", [0]),
        ('site != "north"', [1, 3]),
        ("site == 'east and west'", [3]),
        ("`two words` == 'a' and SAPS-I > 1", [2]),
        ("`and` >= 2 and CCU == 1", [2]),
    ],
)
def test_rows_that_a_filter_leaves(text: str, rows: list[int]) -> None:
    masks = [comparison.mask(Table()) for comparison in parse_filter(text)]
    assert np.flatnonzero(np.logical_and.reduce(masks)).tolist() == rows


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "CCU", "CCU ==", "== 1", "CCU == 1 and", "CCU == 1 or CCU == 2", "CCU = 1", "CCU == 1 CCU == 2",
        "__import__('os').system('true')", "CCU == north", "CCU == 1; CCU", "1 == CCU", "CCU == 1 and and CCU == 1",
        "CCU == 'a", "CCU == 1x",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"data\.where") as caught:
        parse_filter(text)
    assert "\n" not in str(caught.value)
