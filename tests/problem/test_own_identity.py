"""A digest of objects of a script's own: the same for the same code and state in every process, another for any other."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_records import OwnNet
from mpi_harness import run_environ
from torch import nn

from distqexp.problem.lent import name_of
from distqexp.problem.own_identity import identity_of
from distqexp.problem.own_losses import lent_name

SCRIPT = """
import torch
from torch import nn
from distqexp.problem.own_identity import identity_of

WIDTH = {width}

def bent(difference):
    return difference.abs().clamp(max={bend})

class Bent(nn.Module):
    convex = {convex}

    def __init__(self, scale):
        super().__init__()
        self.scale, self.names = scale, {{"b", "a", "c"}}
        self.register_buffer("weight", torch.tensor([{weight}, 2.0]))

    def forward(self, outputs, targets):{comment}
        return self.scale * WIDTH * bent(outputs - targets)

def closed(level):
    return lambda outputs, targets: level * (outputs - targets) ** 2

print(identity_of(Bent({scale}), values=True), identity_of(closed({level}), values=True))
"""
PLAIN: dict[str, Any] = {
    "width": 1, "bend": 1.0, "convex": True, "weight": 1.0, "comment": "", "scale": 1.0, "level": 0.5,
}  # fmt: skip


def said(folder: Path, **changes: Any) -> list[str]:
    (folder / "script.py").write_text(SCRIPT.format(**{**PLAIN, **changes}), "utf-8")
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=run_environ(), capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.process
def test_code_and_state_of_a_script_count_and_nothing_else(tmp_path: Path) -> None:
    """In processes of their own, whose hashes of texts differ."""
    plain = said(tmp_path)
    assert said(tmp_path, comment="  # as it was") == plain
    changes: dict[str, list[Any]] = {"width": [2], "bend": [2.0], "convex": [False], "weight": [3.0], "scale": [2.0]}
    for name, (value,) in changes.items():
        loss, closure = said(tmp_path, **{name: value})
        assert loss != plain[0], name
        assert closure == plain[1]
    assert said(tmp_path, level=0.25)[1] != plain[1]


def doubled(outputs: torch.Tensor, targets: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return by * (outputs - targets).abs()


class Scaled(OwnNet):
    """A module with an attribute that its repr doesn't show."""

    def __init__(self, scale: Any, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.scale = scale


class Read(Scaled):
    """With a property."""

    @property
    def level(self) -> float:
        return 1.0


class ReadOther(Scaled):
    """With another one."""

    @property
    def level(self) -> float:
        return 2.0


ReadOther.__qualname__ = "Read"


class Counted(Scaled):
    """Other code of the same attributes."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + 1


def cyclic() -> Any:
    found: list[Any] = [1]
    found.append(found)
    return found


OTHERS: list[Any] = [
    nn.HuberLoss(reduction="none", delta=1.0),
    nn.HuberLoss(reduction="none", delta=0.01),
    nn.SmoothL1Loss(reduction="none"),
    nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor([1.0])),
    nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor([2.0])),
    doubled,
    functools.partial(doubled, by=3.0),
    functools.partial(doubled, by=4.0),
    lambda outputs, targets: (outputs - targets) ** 2,
    torch.nn.functional.mse_loss,
    torch.nn.functional.l1_loss,
    np.arange(3),
    np.arange(4),
    {"a": 1, "b": 2},
    {1, 2},
    cyclic(),
    float,
    len,
    3.0,
    Scaled(1.0).forward,
]


def test_each_object_has_its_own_and_always_the_same() -> None:
    names = [identity_of(item, values=True) for item in OTHERS]
    assert names == [identity_of(item, values=True) for item in OTHERS]
    for (one, first), (other, second) in itertools.combinations(enumerate(names), 2):
        assert first != second, (OTHERS[one], OTHERS[other])
    assert identity_of({"b": 2, "a": 1}, values=True) == identity_of({"a": 1, "b": 2}, values=True)


def test_a_module_is_known_by_its_code_and_attributes_and_not_by_its_weights() -> None:
    module = Scaled(1.0)
    assert name_of(module) == name_of(Scaled(1.0, seed=1)) == name_of(Scaled(1.0).eval())
    assert len({name_of(each) for each in (module, Scaled(2.0), Counted(1.0), OwnNet(), OwnNet(3))}) == 5
    assert name_of(Read(1.0)) != name_of(ReadOther(1.0))
    before = name_of(module)
    module.register_forward_hook(lambda *_: None)
    assert name_of(module) == before
    scripted = torch.jit.script(OwnNet())
    assert name_of(scripted) == name_of(torch.jit.script(OwnNet())) != name_of(torch.jit.script(OwnNet(3)))


TABLE = np.arange(3.0)


def weighted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs() * float(TABLE[0])


def test_arrays_of_a_script_that_a_loss_looks_at_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be private records, and a digest of them would be public."""
    before = lent_name(weighted)
    monkeypatch.setitem(globals(), "TABLE", np.arange(4.0))
    assert lent_name(weighted) == before


def test_a_function_without_source_is_known_by_its_compiled_code() -> None:
    made = []
    for text in ("x + 1", "x + 1", "x + 2"):
        space: dict[str, Any] = {"__name__": "__shell__"}
        exec(f"def loss(x): return {text}", space)
        made.append(lent_name(space["loss"]))
    assert made[0] == made[1] != made[2]
    assert made[0].startswith("lent:__shell__.loss/")
