"""Modules as descriptions and back, modules that are lent, and files that need no second look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from live_records import OwnNet
from torch import nn

from distqexp.errors import UsageError
from distqexp.problem import layers, lent
from distqexp.problem.readers.base import check_first, note_own_file
from distqexp.storage.canonical import canonical_json

DESCRIBED = [
    nn.Linear(3, 2, bias=False),
    nn.Linear(3, 2, dtype=torch.float64),
    nn.Sequential(*(nn.Linear(2, 2) for _ in range(12))),
    nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), stride=2, padding="valid"), nn.BatchNorm2d(4, affine=False), nn.LeakyReLU(0.3),
        nn.MaxPool2d(2, 1), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d((None, 2)), nn.Flatten(),
        nn.Sequential(nn.Dropout(0.1), nn.LayerNorm([8], bias=False), nn.Tanh(), nn.Linear(8, 3), nn.Softplus(2.0)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DESCRIBED)))
def test_torchs_own_layers_are_described_and_built_again(number: int) -> None:
    module = DESCRIBED[number]
    description = layers.describe(module)
    assert description is not None
    again = layers.build(**json.loads(canonical_json(description)))  # a plan sorts the keys of its tables
    assert repr(again) == repr(module)
    again.load_state_dict(module.state_dict())
    assert layers.describe(again) == description


def hooked() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: None)
    return module


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


class Other(nn.Linear):
    """A layer of somebody's own by the name of none of torch's."""


@pytest.mark.parametrize(
    "module", [OwnNet(), hooked(), shared(), Other(2, 2), nn.Sequential(Other(2, 2)), nn.LSTM(2, 2)]
)
def test_anything_else_is_not_described(module: nn.Module) -> None:
    assert layers.describe(module) is None


def test_a_description_builds_nothing_but_layers() -> None:
    with pytest.raises(UsageError, match="found 'Module'"):
        layers.build("Module")
    with pytest.raises(UsageError, match="found 'system'"):
        layers.build("Sequential", parts=[("0", {"kind": "system"})])


def test_a_lent_module_is_borrowed_as_a_copy_while_it_is_lent() -> None:
    module, other = OwnNet(), OwnNet()
    name = lent.name_of(module)
    assert name == lent.name_of(other)
    assert name != lent.name_of(OwnNet(3))
    with lent.lending(name, module):
        with lent.lending(name, other):
            assert lent.lent_object(name) is other
        borrowed: Any = lent.borrow(name)
        assert borrowed is not module
        assert torch.equal(borrowed.head.weight, module.head.weight)
    with pytest.raises(UsageError, match=r"OwnNet was a live module.*model=MyModel"):
        lent.borrow(name)


def test_a_module_that_cannot_be_copied_says_so() -> None:
    module = OwnNet()
    module.lock = (item for item in ())  # type: ignore[assignment]
    with pytest.raises(UsageError, match="can't be copied"):
        lent.copied(module)


def test_an_own_file_is_not_looked_at_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("distqexp.problem.readers.base.check_confined", lambda *_: looked.append("looked"))
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]
    note_own_file(path)
    check_first(path, "structure")
    assert looked == []
    path.write_bytes(path.read_bytes() + b"more")
    check_first(path, "structure")
    assert looked == ["looked"]
