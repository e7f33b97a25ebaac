"""Records in a script's own objects, arrays, tensors, datasets and loaders, as batches of plain arrays. As private as the records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.live.once import only_once

TOKENS, MASK = "input_ids", "attention_mask"
_FEATURES = ("features", "inputs", "x", "pixel_values", TOKENS)
_TARGETS = ("target", "targets", "labels", "label", "y")
_AT_ONCE = 2**24
"""About so many bytes of an array become one batch."""

_FORMS = "expected (features, targets) as arrays or tensors, a mapping of arrays, a DataFrame with target=..., a Dataset, a DataLoader"


class Batch(NamedTuple):
    """Some records as arrays.

    Attributes:
        features: (n, ...), real numbers.
        targets: (n,) or (n, o), real numbers; None where they were not asked for.
        units: (n,), numbers or texts; None where each record is a unit.
        mask: (n, L), where features are tokens with a mask.
        tokens: Whether features are tokens.
    """

    features: NDArray[Any]
    targets: NDArray[Any] | None
    units: NDArray[Any] | None = None
    mask: NDArray[Any] | None = None
    tokens: bool = False


class Roles(NamedTuple):
    """What the parts of a batch are for.

    Attributes:
        where: The argument that the records came in, for error messages.
        unit: The name of the unit ids, where batches carry them; None where each record is a unit.
        ids: The unit ids of all records in one array, where they came as such.
        classes: The labels, in the order of the model's outputs; None for numbers that are taken as they are.
        labelled: Whether there are targets.
        private: Whether the records are private. Public ones need no unit ids, and those that come with them are left out.
    """

    where: str
    unit: str | None = None
    ids: NDArray[Any] | None = None
    classes: Sequence[Any] | None = None
    labelled: bool = True
    private: bool = True


def batches_of(data: Any, roles: Roles) -> Iterator[Batch]:
    """Yield the records of ``data`` in batches; loaders and datasets are walked through once and never held.

    Raises:
        UsageError: ``data`` is of no known form, or its parts don't fit each other. Nothing that is named derives from a record's value.
    """
    passing = isinstance(data, Iterator) and not isinstance(data, tuple)
    if isinstance(data, torch.utils.data.Dataset) or (not passing and _is_map_style(data)):
        data = torch.utils.data.DataLoader(data, batch_size=1024)
    if isinstance(data, torch.utils.data.DataLoader):
        as_units = roles.private and roles.labelled and roles.unit is None
        yield from _of_items(only_once(data, roles.where) if as_units else data, roles)
    elif passing:
        yield from _of_items(data, roles)
    elif isinstance(data, Mapping | tuple | list) or not roles.labelled:
        yield from _of_arrays(data, roles)
    else:
        raise UsageError(f"{roles.where}: found {type(data).__name__}; {_FORMS}")


def plain(value: Any, where: str) -> NDArray[Any]:
    """Return a tensor, an array or a list as an array of real numbers or texts. Raises UsageError for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if hasattr(value, "toarray"):
        raise UsageError(f"{where}: a sparse matrix; expected a dense array; convert it by .toarray()")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"{where}: {type(value).__name__} can't be made an array; expected numbers of one shape"
        ) from None
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array


def codes_of(labels: Iterable[Any], classes: Sequence[Any]) -> NDArray[np.float64]:
    """Return the place of each label among ``classes``: -1 for another label, NaN for a missing one."""
    places = {value: float(place) for place, value in enumerate(classes)}

    def code(label: Any) -> float:
        try:
            missing = label is None or bool(label != label)
        except TypeError:  # pandas.NA is neither equal to itself nor not
            missing = True
        return float("nan") if missing else places.get(label, -1.0)

    return np.array([code(label) for label in labels], dtype=np.float64)


def _is_map_style(data: Any) -> bool:
    plain_kind = isinstance(data, Mapping | tuple | list | np.ndarray | torch.Tensor | str)
    return (
        not plain_kind and hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__array__")
    )


def _of_items(items: Iterable[Any], roles: Roles) -> Iterator[Batch]:
    if roles.ids is not None:
        raise UsageError(
            f"unit: an array beside a Dataset or DataLoader in {roles.where}; expected batches (features, targets, ids) and the ids' "
            "name, such as unit='patient'"
        )
    for item in items:
        yield _batch(item, roles)


def _of_arrays(data: Any, roles: Roles) -> Iterator[Batch]:
    whole = _batch(data, roles)
    parts = [part for part in whole[:4] if part is not None]
    lengths = {len(part) for part in parts}
    if len(lengths) != 1:
        raise UsageError(f"{roles.where}: arrays with different numbers of rows; expected one length for all of them")
    if roles.ids is not None:
        if len(roles.ids) != len(whole.features):
            raise UsageError(f"unit: not as many ids as records in {roles.where}; expected one each")
        whole = whole._replace(units=roles.ids)
    features = whole.features
    step = max(1, _AT_ONCE // max(1, features.nbytes // max(1, len(features))))
    for first in range(0, len(features), step):
        window = slice(first, first + step)
        targets, units, mask = (
            None if part is None else part[window] for part in (whole.targets, whole.units, whole.mask)
        )
        yield Batch(features[window], targets, units, mask, whole.tokens)


def _batch(item: Any, roles: Roles) -> Batch:
    """Return one batch as it came from a loader, or all arrays as one."""
    mask = None
    if isinstance(item, Mapping):
        tokens = TOKENS in item
        features = _entry(item, _FEATURES, roles.where)
        targets = _entry(item, _TARGETS, roles.where) if roles.labelled else None
        in_batch = roles.unit is not None and roles.ids is None and roles.private
        units = _entry(item, (str(roles.unit),), roles.where) if in_batch else None
        mask = plain(item[MASK], roles.where) if tokens and MASK in item else None
    else:
        tokens = False
        features, targets, units = _parts(item, roles)
    values = numbers(features, roles.where, "features")
    labels = None if targets is None else _targets(targets, roles)
    ids = None if units is None else plain(units, roles.where)
    return Batch(values if values.ndim > 1 else values.reshape(-1, 1), labels, ids, mask, tokens)


def _parts(item: Any, roles: Roles) -> tuple[Any, Any, Any]:
    if not roles.labelled:
        first = isinstance(item, tuple) or (isinstance(item, list) and item and isinstance(item[0], torch.Tensor))
        return (item[0] if first else item), None, None
    expected = 3 if roles.unit is not None and roles.ids is None and roles.private else 2
    if not roles.private and isinstance(item, tuple | list) and len(item) == 3:
        item = item[:2]
    if not isinstance(item, tuple | list) or len(item) != expected:
        found = f"{len(item)} parts" if isinstance(item, tuple | list) else type(item).__name__
        names = "(features, targets, unit ids)" if expected == 3 else "(features, targets)"
        many = isinstance(item, list) and len(item) > 3
        hint = "; or give the ids: unit=ids" if expected == 3 else "; name the ids of a third part by unit='patient'"
        if many:
            found = "many parts"  # how many records there are may be private
            hint = "; of single records make a torch Dataset, or two arrays"
        raise UsageError(f"{roles.where}: records of {found}; expected {names}{hint}")
    if item[1] is None:
        raise UsageError(f"{roles.where}: targets are None; expected one a record")
    return item[0], item[1], item[2] if expected == 3 else None


def _entry(item: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    found = [name for name in names if name in item]
    if len(found) != 1:
        raise UsageError(f"{where}: a mapping with {list(item)}; expected one of {', '.join(names)} in it")
    return item[found[0]]


def numbers(value: Any, where: str, what: str) -> NDArray[Any]:
    """Return real numbers as an array. Raises UsageError for anything else; the message names the type alone."""
    array = plain(value, where)
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{where}: {what} of type {array.dtype}; expected real numbers; encode the others first")
    if array.ndim == 0:
        raise UsageError(f"{where}: {what} are one number; expected one row a record")
    return array


def _targets(value: Any, roles: Roles) -> NDArray[Any]:
    if roles.classes is not None:
        return codes_of(plain(value, roles.where).reshape(-1).tolist(), roles.classes)
    array = plain(value, roles.where)
    if array.dtype.kind not in "iuf":
        raise UsageError(
            f"{roles.where}: targets of type {array.dtype}; expected numbers, or the labels declared: classes=['no', 'yes']"
        )
    return array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array
