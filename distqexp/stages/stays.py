"""A clinical database as a table of ICU stays, made once for all runs; for the owner's terminal and folder only."""

from __future__ import annotations

from pathlib import Path

from distqexp.config import CLINICAL_FORMATS
from distqexp.errors import UsageError
from distqexp.problem.readers.base import existing_folder
from distqexp.problem.readers.clinical.reader import read_table
from distqexp.problem.readers.clinical.stored import write_stays
from distqexp.report.progress import Progress
from distqexp.stages.check import WARNING


def prepare_stays(folder: Path, out: Path, format: str) -> list[str]:
    """Read the database's folder, write the table to the new file ``out``, and say in lines what its rules did. The lines are private.

    Raises:
        FileContentError: A table or a column is missing, or a file is damaged.
        UsageError: There is no such folder or format, or ``out`` exists.
    """
    existing_folder(str(folder), "FOLDER")
    if format not in CLINICAL_FORMATS:
        raise UsageError(f"--format: found {format!r}; expected {' or '.join(CLINICAL_FORMATS)}")
    if out.exists() or not out.parent.is_dir():
        found = "exists; nothing is overwritten" if out.exists() else "its folder doesn't exist"
        raise UsageError(f"--out {out}: {found}; expected a new file in a folder that is there")
    # The owner's own terminal: the share of the bytes that are read may be shown there.
    with Progress(counts_public=True) as progress:
        progress.stage("reading the stays")
        table = read_table(folder, format, progress.advance)
    write_stays(table, out)
    return [
        WARNING,
        f"{out}: {len(table):,} stays of {len(set(table.ids['subject_id'].tolist()) - {-1}):,} patients",
        *(f"  dirt: {count:,} {words}" for words, count in table.dirt.items()),
    ]
