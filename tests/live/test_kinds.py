"""Live fits of tokens and images, on other engines, and taken up again; what is refused before a record is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_records import BUDGET, PRIVATE, PUBLIC, SETTINGS, OwnNet, unequal
from torch import nn
from torch.utils.data import Dataset

import distqexp
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.report.progress import ProgressEvent

pytestmark = pytest.mark.process

SEEDED: dict[str, Any] = {**BUDGET, "callback": lambda _: None, "insecure_noise_seed": 1}


class Text(nn.Module):
    """The mean of the embeddings of a record's tokens, and a linear head: (n, 2, L) to (n, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Tokens and mask to logits."""
        mask = records[:, 1].float()[..., None]
        return self.head((self.table(records[:, 0]) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))


class Rows(Dataset[dict[str, torch.Tensor]]):
    """A mapping of arrays, row by row, as a tokenised dataset gives it."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(array[row]) for name, array in self.arrays.items()}


def texts(seed: int, count: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 20, (count, 6))
    mask = (np.arange(6) < random.integers(1, 7, (count, 1))).astype(np.int64)
    return {"input_ids": tokens, "attention_mask": mask, "labels": (tokens[:, 0] > 9).astype(np.int64)}


def test_tokens_as_a_mapping_and_as_a_dataset_are_one() -> None:
    private, public, module = texts(1, 200), texts(2, 60), Text()
    common = {**SEEDED, "loss": "cross-entropy", "public": public}
    mapping = distqexp.fit(module, private, population="a", **common)
    dataset = distqexp.fit(module, Rows(private), population="b", **common)
    assert mapping.card.schema.tokens
    assert mapping.card.schema.vocabulary == 20
    assert not unequal(mapping.model, dataset.model)
    new = {name: private[name] for name in ("input_ids", "attention_mask")}
    np.testing.assert_array_equal(mapping.predict_proba(new), dataset.predict_proba(Rows(private)))
    with pytest.raises(UsageError, match="loss: not given"):
        distqexp.fit(module, private, public=public, population="c", **SEEDED)


def test_images_reach_the_module_as_they_are() -> None:
    random = np.random.default_rng(3)
    images = random.normal(5.0, 2.0, (200, 1, 8, 8)).astype(np.float32)
    labels = random.integers(0, 3, 200)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    options = {**SEEDED, "settings": {**SETTINGS, "precision.kind": "kronecker"}}
    result = distqexp.fit(module, (images[50:], labels[50:]), public=(images[:50], labels[:50]), **options)
    outputs = result.model(torch.from_numpy(images)).detach().double().numpy()
    np.testing.assert_allclose(result.outputs(images), outputs, rtol=1e-5, atol=1e-6)
    assert result.predict(images).shape == (200,)


class Boxed(OwnNet):
    """A module that gives more than its logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, inputs: torch.Tensor) -> Any:
        outputs = super().forward(inputs)
        return {"logits": outputs, "hidden": inputs} if self.kind == "dict" else (outputs, inputs[:, None])


@pytest.mark.parametrize("kind", ["dict", "tuple", "scripted"])
def test_modules_of_other_kinds_learn_what_a_plain_one_learns(kind: str) -> None:
    """With the loss found from the targets. A copy of TorchScript's parameters would get no gradient."""
    torch.manual_seed(1)
    plain = OwnNet()
    module = torch.jit.script(plain) if kind == "scripted" else Boxed(kind)
    module.load_state_dict(plain.state_dict())
    results = [
        distqexp.fit(each, PRIVATE, public=PUBLIC, population=name, **SEEDED)
        for name, each in (("plain", plain), ("other", module))
    ]
    assert len(unequal(results[0].model, plain)) == 4
    for name, value in results[1].model.named_parameters():
        torch.testing.assert_close(value, results[0].model.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_a_lazy_module_is_refused_by_its_layer() -> None:
    with pytest.raises(UsageError, match=r"model: 0 \(LazyLinear\) is lazy.*call the module once before it is given"):
        distqexp.fit(nn.Sequential(nn.LazyLinear(2)), PRIVATE, public=PUBLIC, **SEEDED)


def test_an_interrupted_fit_is_taken_up_again(tmp_path: Path) -> None:
    def interrupt(event: ProgressEvent) -> None:
        if (event.stage, event.round, event.share) == ("release", 0, 1.0):
            raise KeyboardInterrupt

    module = OwnNet()
    whole = distqexp.fit(module, PRIVATE, public=PUBLIC, population="whole", **SEEDED)
    with pytest.raises(KeyboardInterrupt):
        distqexp.fit(module, PRIVATE, public=PUBLIC, out=tmp_path / "run", **{**SEEDED, "callback": interrupt})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "release-000.h5").exists()
    result = distqexp.fit(module, PRIVATE, public=PUBLIC, out=tmp_path / "run", resume=True, **SEEDED)
    assert len(result.history) == 2
    assert result.certificate["epsilon"] == whole.certificate["epsilon"]
    with Ledger.open() as ledger:
        assert len([row for row in ledger.rows() if row.population == "default"]) == 2


@pytest.mark.slow
def test_dask_workers_get_the_module_itself() -> None:
    module = OwnNet()
    serial = distqexp.fit(module, PRIVATE, public=PUBLIC, population="a", **SEEDED)
    options = {**SEEDED, "settings": {**SETTINGS, "engine.kind": "dask", "engine.workers": 2}}
    over_dask = distqexp.fit(module, PRIVATE, public=PUBLIC, population="b", **options)
    assert len(over_dask.history) == len(serial.history)
    assert unequal(over_dask.model, module)
