"""Makes room for a new run in a folder that an earlier attempt was in, where nothing of worth is lost."""

from __future__ import annotations

from pathlib import Path

from distqexp.errors import DistqexpError, UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.files import default_path
from distqexp.report.progress import FILE_NAME as PROGRESS
from distqexp.storage.atomic import remove_unfinished
from distqexp.storage.hdf5 import read_header

_REMADE = ("plan.h5", PROGRESS)
"""What a run makes again at once, from its config alone."""

_WORK = ("sketch-*.h5", "quadratic-*.h5", "features-*.npy")
"""What a run has to work for again."""


def make_room(out: Path, *, overwrite: bool = False, ledger: Path | None = None) -> None:
    """Clear the folder of a run in which nothing was spent, for another run; for the first process, without ``--resume``.

    A plan alone goes without further ado. Unfinished sums go where ``overwrite`` asks for it. A folder with anything else in it (a release,
    a model, a file of somebody's own), or whose plan the ledger has a charge for, is left as it is, for ``open_folder`` to refuse.

    Args:
        out: The folder.
        overwrite: Whether the work of an earlier attempt may be thrown away.
        ledger: The ledger's file; the user's own when None.

    Raises:
        UsageError: Something would be lost although ``overwrite`` is set.
    """
    files = [path for path in out.iterdir() if not path.name.endswith(".unfinished")] if out.is_dir() else []
    kept = [path for path in files if path.name not in _REMADE and not (path.is_file() and _is_work(path))]
    work = [path for path in files if path.name not in _REMADE and path not in kept]
    plan = out / "plan.h5"
    spent = plan.exists() and _may_be_charged(plan, ledger)
    if overwrite and (kept or spent):
        what = "its plan has charges in the ledger" if spent else f"{sorted(kept)[0].name} is in it"
        raise UsageError(
            f"--overwrite {out}: {what}; expected a folder in which nothing was spent: take a new --out, or --resume its run"
        )
    if kept or spent or (work and not overwrite):
        return
    if not files:
        return
    for path in [*work, plan]:
        path.unlink(missing_ok=True)
    remove_unfinished(out)


def require_run(out: Path) -> None:
    """Refuse (UsageError) to resume in a folder that has files of somebody's own and no run; for the first process."""
    if (out / "plan.h5").exists() or not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if path.name != PROGRESS and not path.name.startswith("."))
    if others:
        raise UsageError(
            f"--resume: no run in {out}, which has {others[0]} in it; expected a run's folder, with its plan.h5: name that, or take a new "
            "one"
        )


def _is_work(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _WORK)


def _may_be_charged(plan: Path, ledger: Path | None) -> bool:
    """Whether the ledger has, or may have, a charge for the plan: a plan or a ledger that can't be read leaves that open."""
    try:
        plan_id = read_header(plan, kind="plan").plan_id
        where = default_path() if ledger is None else ledger
        if not where.exists():
            return False
        with Ledger.open(where, create=False) as books:
            return any(row.key.split("/")[1:2] == [plan_id] for row in books.rows())
    except DistqexpError:
        return True
