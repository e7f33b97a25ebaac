"""What a module keeps of a record is gone when the pass ends; what it raises or warns of is seen by nobody."""

from __future__ import annotations

import logging
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from forgetful_models import KINDS, MARK, Keeper, counting
from torch import nn

from distqexp.errors import EngineError
from distqexp.problem.hiding import out_of_memory, private_rows, quiet, unless_raised
from distqexp.problem.network import Network
from distqexp.problem.own_losses import OwnLoss
from distqexp.problem.sealing import Seal


def inputs(mark: bool) -> torch.Tensor:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    x[2, 3] = MARK if mark else 0.5
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_of_a_record(kind: str) -> None:
    network = Network(Keeper(kind))
    before, state = network.outputs(inputs(False)), network.state()
    network.outputs(inputs(True))
    assert network.module.kept() == 0.0
    assert torch.equal(network.outputs(inputs(False)), before)
    assert all(np.array_equal(array, state[name]) for name, array in network.state().items())
    network.separate = True  # then each record has a pass of its own
    alone = network.outputs(inputs(False))
    assert torch.equal(network.outputs(inputs(True))[3], alone[3])


def test_a_network_travels_without_what_was_kept_for_it() -> None:
    network = Network(nn.Linear(6, 3))
    before = network.outputs(inputs(False))
    assert torch.equal(pickle.loads(pickle.dumps(network)).outputs(inputs(False)), before)


def test_torch_script_forgets_too() -> None:
    network = Network(counting())
    before = network.outputs(inputs(False))
    network.outputs(inputs(True))
    assert network.module[0].calls == 0
    assert float(network.module[0].total) == 0.0
    assert torch.equal(network.outputs(inputs(False)), before)


def test_what_others_change_between_passes_stays() -> None:
    network = Network(Keeper("number"))
    network.outputs(inputs(True))
    module: Keeper = network.module
    theta = np.ones(network.d)
    network.load(theta)
    module.seen.data.fill_(7.0)
    module.items.append("mine")
    module.number = 5.0
    network.outputs(inputs(True))
    assert np.array_equal(network.theta(), theta)
    assert (module.number, module.items, module.seen.tolist()) == (5.0, ["mine"], [7.0, 7.0])


def test_large_weights_come_back_from_the_arrays_that_they_were_loaded_from() -> None:
    class Decay(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            with torch.no_grad():
                self.weight.mul_(0.5)
            return found

    network = Network(nn.Sequential(Decay(100, 90), nn.Linear(90, 2)), ["1.*"])
    state = network.state()
    network.load_state(state)
    first = network.outputs(torch.ones(2, 100))
    assert np.array_equal(network.state()["0.weight"], state["0.weight"])
    assert torch.equal(network.outputs(torch.ones(2, 100)), first)


def test_a_pass_in_a_pass_begins_as_the_outer_one_did() -> None:
    module = Keeper("nested")
    seal = Seal(module)
    with seal.kept():
        module.keep()
        with seal.anew():
            assert module.kept() == 0.0
            module.number = 1.0
        assert (module.kept(), module.number) == (MARK, 0.0)
    assert module.kept() == 0.0


def test_a_loss_forgets() -> None:
    class Running:
        convex = True

        def __init__(self) -> None:
            self.largest = 1.0

        def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.largest = max(self.largest, float(targets.abs().max()))
            return (outputs - targets).abs() / self.largest

    loss = OwnLoss("test:running", Running())
    with Network(nn.Linear(1, 1)).sealed(loss):
        loss.value(torch.zeros(2), torch.full((2,), 9.0))
    assert loss.function.largest == 1.0


def test_rows_of_a_batch_that_raises_are_those_of_one_that_does_not() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))

    def rows(x: torch.Tensor) -> torch.Tensor:
        if bool((x == MARK).any()):
            raise ValueError(f"a value {MARK}")
        return torch.tanh(x @ weight)

    expected = rows(inputs(False))
    found = private_rows(rows, [inputs(True)], 4, torch.zeros(5))
    assert torch.isnan(found[2]).all()
    assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])
    every = private_rows(rows, [torch.full((3, 6), MARK)], 2, torch.zeros(5))
    assert torch.isnan(every[:2]).all()
    assert not every[2].any()


def test_memory_that_runs_out_is_an_error_without_a_record_in_it() -> None:
    def large() -> torch.Tensor:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 7777 bytes"
        )

    assert out_of_memory(MemoryError())
    with pytest.raises(EngineError, match=r"lower engine\.micro_batch") as caught:
        unless_raised(large)
    assert "7777" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(EngineError):
        private_rows(lambda x: large(), [torch.zeros(2, 1)], 2, torch.zeros(1))


def test_it_is_quiet_as_long_as_any_thread_is_inside(caplog: pytest.LogCaptureFixture) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            entered.set()
            leave.wait(10)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=other)
        with quiet():
            thread.start()
            assert entered.wait(10)
        warnings.warn("while the other is inside", stacklevel=1)
        logging.getLogger("other").error("while the other is inside")
        leave.set()
        thread.join(10)
        warnings.warn("afterwards", stacklevel=1)
        logging.getLogger("other").error("afterwards")
    assert [str(warning.message) for warning in caught] == ["afterwards"]
    assert caplog.messages == ["afterwards"]
