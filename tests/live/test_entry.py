"""The names of the package: ``distqexp.fit`` is a module and a function, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from live_records import BUDGET, PRIVATE, PUBLIC, linear
from run_harness import run_process

import distqexp


def test_the_package_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="fitt"):
        distqexp.__getattr__("fitt")
    assert set(distqexp.__all__) == {"__version__", "fit", "load_model"}


@pytest.mark.process
def test_fit_is_a_module_and_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    from distqexp import fit

    assert isinstance(fit, ModuleType)
    assert fit is distqexp.fit
    assert fit.main(["--help-me"]) == 2
    assert "--help" in capsys.readouterr().err
    result = fit(linear(), PRIVATE, public=PUBLIC, callback=lambda _: None, **BUDGET)
    assert result.predict(PRIVATE[0]).dtype == np.int64
    assert distqexp.load_model(result.out).classes is not None


@pytest.mark.process
def test_the_module_still_runs_as_the_main_job(tmp_path: Path) -> None:
    refused = run_process("distqexp.fit", "gone.toml", folder=tmp_path)
    assert refused.refused(2, "gone.toml: no such file")
    done = subprocess.run(
        [sys.executable, "-m", "distqexp.fit", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "usage: python -m distqexp.fit" in done.stdout
    assert done.stderr == ""


@pytest.mark.process
def test_heavy_libraries_wait_until_they_are_needed() -> None:
    code = (
        "import sys, distqexp, distqexp.fit; "
        "print([name for name in ('pandas', 'sklearn', 'pyarrow', 'scipy.stats', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
