"""A whole run on a MIMIC-IV folder by its config: care units as sites, stays in MEDS as the test, predictions for a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from clinical_folders import UNITS, clinical_tables, write_folder, write_meds

from distqexp import api
from distqexp.config import Config, config_from_tree
from distqexp.errors import UsageError
from distqexp.gradients.worker import Worker
from distqexp.problem.readers.clinical.catalogue import FEATURES
from distqexp.stages.remarks import Study


def _config(folder: Path, unit: str = "subject_id") -> Config:
    columns = {"target": "in_hospital_mortality"}
    site = {"format": "mimic-iv", "path": str(folder / "mimic"), "unit": unit, "columns": columns}
    return config_from_tree(
        {
            "model": {
                "factory": "distqexp.problem.models:logistic",
                "args": {"inputs": len(FEATURES)},
                "loss": "binary-cross-entropy",
            },
            "data": {
                "population": "icu",
                "private": [
                    {**site, "shard": name, "where": f"patient_careunit == '{unit}'"}
                    for name, unit in zip(("medical", "mixed", "coronary"), UNITS, strict=True)
                ],
                "eval": {"format": "meds", "path": str(folder / "meds"), "columns": columns},
            },
            "privacy": {"epsilon": 4.0, "delta": 1e-4, "units": 90},
            "mechanism": {"rounds": 1, "clip": 0.5},
        }
    )


def test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "ledger.sqlite"))
    write_folder(clinical_tables(120), tmp_path / "mimic", "csv.gz")
    write_meds(clinical_tables(40, seed=8), tmp_path / "meds")
    config, out = _config(tmp_path), tmp_path / "run"
    result = api.fit(config, out)
    assert result is not None
    printed = "".join(capfd.readouterr())
    texts = [path.read_text() for path in out.iterdir() if path.suffix in (".json", ".jsonl", ".html")]
    assert not any("left out" in text and "coma_scale" in text for text in [printed, *texts])
    definition = json.loads(api.Plan.read(out / "plan.h5").schema.definition or "")
    assert definition["version"] == 1
    assert definition["variables"][0]["itemids"] == [220045]
    assert any("every figure is its config's" in line for line in api.verify(out, config=config))
    lines = api.check(out / "plan.h5", shard="mixed", data=tmp_path / "mimic")
    assert any(line.startswith("  dirt, in the whole source: ") and "coma_scale_motor" in line for line in lines)
    plan = api.Plan.read(out / "plan.h5")
    assert not Study.of_plan(plan, Worker.of_plan(plan)).public  # so textbooks' figures are held against no site's
    api.predict(out, tmp_path / "mimic", tmp_path / "predictions.csv")
    assert len(list(csv.reader((tmp_path / "predictions.csv").open()))) == 121


def test_patients_are_units(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.private.unit: .*expected subject_id"):
        _config(tmp_path, unit="stay_id")
