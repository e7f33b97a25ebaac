"""Whether parts of the records that came with row labels of pandas have the same ones, so that rows go together as they stand."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from distqexp.errors import UsageError


def require_aligned(where: str, records: Any, unit: Any = None) -> None:
    """Refuse parts of records whose row labels are others than those of the rest: by position they would meet other records.

    Args:
        where: the argument that the records came in.
        records: the records; of a tuple, a list or a mapping the parts are compared.
        unit: the unit ids that go with them, row by row.

    Raises:
        UsageError: with the argument. No label is named: it may be private.
    """
    named: Iterable[tuple[str, Any]] = records.items() if isinstance(records, Mapping) else [("records", records)]
    if isinstance(records, tuple | list):
        named = zip(("features", "targets", "ids"), records, strict=False)
    parts = {f"{where}: {name}": part for name, part in named if _has_labels(part)}
    parts |= {"unit": unit} if _has_labels(unit) else {}
    first = next(iter(parts), "")
    for name, part in parts.items():
        if not part.index.equals(parts[first].index):
            raise UsageError(
                f"{name}: another index than that of {first.replace(': ', ' ')}; expected one index for both, as rows go together by "
                "position: .loc[index] brings them in order, .to_numpy() says that they are in order as they stand"
            )


def _has_labels(part: Any) -> bool:
    pandas = sys.modules.get("pandas")  # whoever passes one has imported it
    return pandas is not None and isinstance(part, pandas.DataFrame | pandas.Series)
