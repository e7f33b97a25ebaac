"""The stages as functions, for notebooks and scripts: everything that the command line can do.

Examples:
    A run on the embedded digits, from the config to the certificate (seeded here, so that it can be tested: leave the seed out):

    >>> from distqexp import api
    >>> config = api.load_config(None, ["mechanism.rounds=8", "mechanism.parts=8"])
    >>> result = api.fit(config, folder / "run", insecure_noise_seed=1)
    >>> result.certificate["epsilon"] <= config.privacy.epsilon
    True
    >>> result.metrics["after"]["accuracy"] > result.metrics["before"]["accuracy"]
    True

    The same by hand, a stage at a time, as a site and its coordinator do it by files:

    >>> plan = api.plan(config, folder / "plan.h5")
    >>> api.sketch(folder / "plan.h5", None, folder / "sketch.h5", insecure_noise_seed=1)
    >>> sums = api.pool(folder / "plan.h5", [folder / "sketch.h5"], folder / "quadratic.h5")
    >>> sums.sums.dtype, sums.sums.shape == (plan.width,)
    (dtype('int64'), True)
    >>> release = api.release(
    ...     folder / "plan.h5", folder / "quadratic.h5", folder / "release-000.h5", config=config, insecure_noise_seed=1
    ... )
    >>> release.theta.shape == (plan.d,)
    True
    >>> "release" in api.inspect(folder / "release-000.h5")
    True
"""

from __future__ import annotations

from distqexp.api.ledgers import accept_void, ledger_head, ledger_verify, void
from distqexp.api.looking import audit, audit_run, inspect, report, verify
from distqexp.api.stages import check, count, export, fit, plan, pool, predict, release, sketch, stays
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.audit.command import Audit
from distqexp.audit.one_run import RunAudit
from distqexp.config import Config, load_config
from distqexp.errors import (
    BudgetError,
    DistqexpError,
    EngineError,
    FileContentError,
    InternalError,
    RecordsChangedError,
    StoppedError,
    StorageError,
    UsageError,
)
from distqexp.live import LoadedModel, load_model
from distqexp.privacy.ledger import Ledger, LedgerRow
from distqexp.report.progress import ProgressEvent
from distqexp.stages.count import UnitCount
from distqexp.stages.plan import describe_plan
from distqexp.stages.rounds import FitResult
from distqexp.stages.void import Void
from distqexp.tuning import tune

__all__ = [
    "Audit",
    "BudgetError",
    "Config",
    "DistqexpError",
    "EngineError",
    "FileContentError",
    "FitResult",
    "InternalError",
    "Ledger",
    "LedgerRow",
    "LoadedModel",
    "Plan",
    "ProgressEvent",
    "Quadratic",
    "RecordsChangedError",
    "Release",
    "RunAudit",
    "StoppedError",
    "StorageError",
    "UnitCount",
    "UsageError",
    "Void",
    "accept_void",
    "audit",
    "audit_run",
    "check",
    "count",
    "describe_plan",
    "export",
    "fit",
    "inspect",
    "ledger_head",
    "ledger_verify",
    "load_config",
    "load_model",
    "plan",
    "pool",
    "predict",
    "release",
    "report",
    "sketch",
    "stays",
    "tune",
    "verify",
    "void",
]
