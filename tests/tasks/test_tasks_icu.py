"""The configs of configs/icu at their real size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fitted_tasks import CONFIGS, fitted_for_seeds

from distqexp.api import load_config


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "auroc"), [("0.25", 0.825), ("0.5", 0.833), ("1", 0.84)])
def test_icu_in_four_passes(epsilon: str, auroc: float, data_folder: Path, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "icu" / f"tuned-eps{epsilon}.toml")
    results = fitted_for_seeds(config, tmp_path, range(5))
    assert all(result.certificate["epsilon"] <= float(epsilon) for result in results)
    assert config.mechanism.passes <= 4
    assert np.mean([result.metrics["after"]["auroc"] for result in results]) >= auroc
    assert np.mean([result.metrics["after"]["log_loss"] for result in results]) <= 0.33
