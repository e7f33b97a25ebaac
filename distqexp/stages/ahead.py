"""``distqexp check --public``: everything that can refuse a run before its private records are read. Charges and writes nothing."""

from __future__ import annotations

from pathlib import Path

from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.files import default_path
from distqexp.stages.charging import Charging, check_budget
from distqexp.stages.export import evaluation_of
from distqexp.stages.inputs import check_paths
from distqexp.stages.plan import describe_plan, plan_and_worker
from distqexp.stages.shares import refuse_one_group


def check_ahead(config: Config, ledger: Path | None = None) -> list[str]:
    """Do all that a run does before it opens a private file, and return lines on what was found.

    Files are there, the model takes the public records, the plan can be made, public evaluation records can be used, and the rounds fit
    what the population has left. Evaluation records that are private are not opened. No plan is written, and no ledger is made.

    Args:
        config: The config.
        ledger: The ledger's file; the user's own when None.

    Raises:
        DistqexpError: The run would be refused, in the same words.
    """
    refuse_one_group(config)
    check_paths(config)
    with SerialEngine() as engine:
        plan, worker = plan_and_worker(config, engine)
    lines = ["files: all that the config names are there; private ones were not opened", *describe_plan(plan)]
    evaluation = config.data.eval
    if evaluation is not None and not config.data.eval_private:
        outputs = evaluation_of(plan, plan.state.theta, evaluation, worker).outputs
        if outputs is None:
            raise UsageError("data.eval: no record of it can be used; expected records like the public ones")
        lines.append(f"evaluation: {len(outputs.losses):,} records can be used")
    where = default_path() if ledger is None else ledger
    if where.exists():
        with Ledger.open(where, create=False) as books:
            check_budget(plan, Charging(books), "release")
        lines.append(f"budget: all {plan.config.mechanism.rounds} round(s) fit what {config.data.population} has left")
    else:
        lines.append(f"budget: no ledger yet at {where}; the first run makes it")
    return [*lines, "nothing was charged; what only private files can be refused for is found at the start of the run"]
