"""GPUs: no tensor of a sketch is made on another device than the network's, and kinds of GPU don't mix. Marked tests need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers_harness import CrossEntropy, clipped_sum, fast, random_records, relative_error, whitening_for
from small_runs import make_config, plan_of, random_table, unit_integers
from torch import nn

from distqexp.costs.stated import _clipped_sum
from distqexp.engines import devices
from distqexp.engines.devices import described_device, refuse_mixed_devices, require_one_kind
from distqexp.engines.serial import SerialEngine
from distqexp.engines.threads import pin_threads
from distqexp.errors import EngineError, UsageError
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.layers import block_layout
from distqexp.problem import models
from distqexp.problem.hiding import unless_raised
from distqexp.problem.mixed import Mixed
from distqexp.problem.network import Network
from distqexp.problem.records import Records

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")


def words() -> nn.Module:
    return models.mean_of_words(words=11, outputs=3, width=4)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))


CASES: dict[str, tuple[Any, tuple[int, ...], torch.dtype]] = {
    "convolutions": (lambda: models.cnn(3), (1, 28, 28), torch.float32),
    "words": (words, (2, 5), torch.int64),
    "encoder": (encoder, (5, 8), torch.float32),
}


@pytest.mark.parametrize("name", list(CASES))
def test_every_tensor_of_a_sketch_is_made_on_the_network_s_device(name: str) -> None:
    """The meta device stands for a GPU: operations between it and the CPU are refused."""
    make, shape, kind = CASES[name]
    with torch.device("meta"):
        module = make()
    network = Network(module, device="meta")
    blocks = block_layout(network)
    whitening = [
        BlockWhitening(*(side.float().to("meta") for side in (pair.row, pair.column)))
        for pair in whitening_for(blocks, 3)
    ]
    inputs = torch.zeros((4, *shape), dtype=kind, device="meta")
    _clipped_sum(network, CrossEntropy(), inputs, blocks, whitening)


def test_a_tensor_on_another_device_is_found() -> None:
    class Forgetful(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.ones(3, device="cpu")

    with torch.device("meta"):
        module = Forgetful(4, 3)
    network = Network(module, device="meta")
    with pytest.raises(RuntimeError, match="device"):
        _clipped_sum(network, CrossEntropy(), torch.zeros(4, 4, device="meta"), block_layout(network), [])


class ThreeRanks(SerialEngine):
    """Three ranks, one after the other."""

    size = 3


def test_ranks_with_several_kinds_of_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names: Iterator[str] = iter(["H100, torch 2.8", "H100, torch 2.8", "A100, torch 2.8"] + ["H100"] * 3)
    monkeypatch.setattr(devices, "described_device", lambda: next(names))
    refuse_mixed_devices("cpu", ThreeRanks())
    with ThreeRanks() as engine:
        with pytest.raises(UsageError, match=r"rank 0 has H100, torch 2\.8, rank 2 has A100.*one kind on all ranks"):
            refuse_mixed_devices("cuda", engine)
        refuse_mixed_devices("cuda", engine)
    require_one_kind([])
    assert described_device()


def test_a_gpu_that_failed_ends_the_run_and_no_record_is_blamed() -> None:
    """Every later call would raise: records that are all right would be left out because of one that isn't."""
    for error in (
        torch.AcceleratorError("device-side assert: 7777"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED 7777"),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(EngineError, match="the GPU failed in a micro-batch") as caught:
            unless_raised(fail)
        assert "7777" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_products_in_fewer_bits_are_off_whatever_the_shell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's containers set the first of these, which torch then follows whatever a program says."""
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    pin_threads(1)
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    matmul = torch.backends.cuda.matmul
    found = [
        matmul.allow_tf32,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    ]
    assert found == [False] * 5


# --- with a GPU --------------------------------------------------------------------------------------------------


def on(device: str, name: str, mixed: Mixed | None = None) -> Network:
    torch.manual_seed(0)
    return Network(CASES[name][0](), device=device, mixed=mixed)


def records_for(name: str) -> Records:
    if name == "words":
        records = random_records((2, 5), 3, 6, vocabulary=11)
        records.inputs[:, 1] = 1
        return records
    return random_records(CASES[name][1], 3, 6)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "mixed", [None, Mixed(torch.bfloat16), Mixed(torch.float16)], ids=["off", "bfloat16", "float16"]
)
@pytest.mark.parametrize("name", list(CASES))
def test_gradients_on_a_gpu_are_those_of_the_cpu_and_records_stay_apart(name: str, mixed: Mixed | None) -> None:
    pin_threads(1)
    records, loss, vectors = records_for(name), CrossEntropy(), []
    for device in ("cpu", "cuda:0"):
        network = on(device, name, mixed)
        gradients = fast(network, loss, whitening_for(block_layout(network), 3), 8)
        vectors.append(torch.from_numpy(gradients._vectors(records)[0]))
    bound = 1e-4 if mixed is None else 16 * mixed.eps
    assert relative_error(vectors[1], vectors[0]) < bound
    for seed in range(5):
        keep = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5
        other = Records(records.inputs, records.targets, keep)
        again = torch.from_numpy(gradients._vectors(other)[0])
        assert torch.equal(again[keep], vectors[1][keep])
    sums = [clipped_sum(gradients, records, 0.1, 1e6) for _ in range(2)]
    np.testing.assert_array_equal(*sums)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["dense", "diagonal", "kronecker"])
def test_integers_of_units_on_a_gpu_do_not_depend_on_the_others(kind: str, tmp_path: Path) -> None:
    table = random_table("mlp", [1, 2, 1, 3] * 5, seed=1)
    for name in ("private", "public"):
        table.write(tmp_path / f"{name}.h5")
    config = make_config(tmp_path, "mlp", precision={"kind": kind}, engine={"device": "cuda"})
    plan = plan_of(config)
    every = unit_integers(config, plan)
    assert every.any(axis=1).all()
    np.testing.assert_array_equal(unit_integers(config, plan), every)
    cpu = make_config(tmp_path, "mlp", precision={"kind": kind})
    close = unit_integers(cpu, plan_of(cpu))
    assert np.abs(every - close).max() <= 1e-3 * np.abs(close).max()
