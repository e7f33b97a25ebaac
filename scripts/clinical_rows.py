"""Time and memory for reading a generated MIMIC-IV folder of many chart rows.

    nice python scripts/clinical_rows.py --rows 50000000

Patients, stays and values are drawn from a fixed seed and describe nobody. Charts are written as chartevents.csv.gz, in the order of the
stays as in MIMIC-IV, or in random order with --shuffled. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from distqexp.problem.readers.clinical.catalogue import ITEMS, VARIABLES
from distqexp.problem.readers.clinical.mimic import read_mimic
from distqexp.report.progress import Progress

ROWS_A_STAY = 5000
"""As in MIMIC-IV: 433 million chart rows of 94 thousand stays."""
WANTED = 0.25
"""The share of chart rows with a wanted itemid."""
_AT_ONCE = 1 << 20


def main() -> None:
    """Make a folder, read it in a process of its own and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000, help="chart rows")
    parser.add_argument("--shuffled", action="store_true", help="chart rows in random order within each million")
    parser.add_argument("--folder", type=Path, help="where to make the folder; a temporary one when absent")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        _read(options.read)
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        start = time.perf_counter()
        make_folder(folder, options.rows, options.shuffled)
        made = time.perf_counter() - start
        command = [sys.executable, __file__, "--read", str(folder)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        size = sum(file.stat().st_size for file in folder.rglob("*.csv*"))
        print(json.dumps({"rows": options.rows, "bytes": size, "seconds_to_make": round(made), **json.loads(found)}))
    finally:
        shutil.rmtree(folder)


def _read(folder: Path) -> None:
    start = time.perf_counter()
    with Progress(counts_public=True) as progress:
        progress.stage("reading the stays")
        table = read_mimic(folder, progress.advance)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "stays": len(table),
                "values": int(table.numbers["values"].sum()),
                "seconds": round(seconds, 1),
                "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                "peak_mb": _peak(),
            }
        )
    )


def _peak() -> int:
    """Return the most memory that this process has had, in MB; ``ru_maxrss`` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6)


def make_folder(folder: Path, rows: int, shuffled: bool) -> None:
    """Write the five tables, with ``rows`` chart rows."""
    random = np.random.default_rng(7)
    count = max(1, rows // ROWS_A_STAY)
    (folder / "hosp").mkdir()
    (folder / "icu").mkdir()
    subject, hadm, stay = (
        10_000_000 + np.arange(count) // 2,
        20_000_000 + np.arange(count),
        30_000_000 + np.arange(count),
    )
    begin = np.datetime64("2150-01-01T00:00:00") + np.arange(count) * 3_000_000 % 1_500_000_000 * np.timedelta64(1, "s")
    length = random.integers(86_400, 6 * 86_400, count) * np.timedelta64(1, "s")
    died = random.random(count) < 0.1
    people = np.unique(subject)
    _write(
        folder / "hosp/patients.csv.gz",
        {"subject_id": people, "gender": np.where(people % 2, "F", "M"), "anchor_age": 40 + people % 50,
         "anchor_year": np.full(len(people), 2150), "dod": np.full(len(people), None)},
    )  # fmt: skip
    death = np.where(died, begin + length, np.datetime64("NaT", "s"))
    _write(
        folder / "hosp/admissions.csv.gz",
        {"subject_id": subject, "hadm_id": hadm, "admittime": begin, "dischtime": begin + length, "deathtime": death,
         "hospital_expire_flag": died.astype(int)},
    )  # fmt: skip
    _write(
        folder / "icu/icustays.csv.gz",
        {"subject_id": subject, "hadm_id": hadm, "stay_id": stay, "first_careunit": np.where(stay % 2, "MICU", "SICU"),
         "last_careunit": np.where(stay % 3, "MICU", "SICU"), "intime": begin, "outtime": begin + length},
    )  # fmt: skip
    _write_events(folder / "icu/chartevents.csv.gz", random, rows, shuffled, (subject, hadm, stay, begin))
    _write_events(folder / "hosp/labevents.csv.gz", random, rows // 20, shuffled, (subject, hadm, stay, begin))


def _write_events(
    path: Path, random: np.random.Generator, rows: int, shuffled: bool, stays: tuple[np.ndarray, ...]
) -> None:
    subject, hadm, stay, begin = stays
    lab = path.name.startswith("labevents")
    wanted = [(item, variable) for item, variable in ITEMS if VARIABLES[variable].source == path.name.split(".")[0]]
    items, places = (np.array(column) for column in zip(*wanted, strict=True))
    typical = np.array([VARIABLES[place].typical for place in places])
    spread = np.array([VARIABLES[place].spread for place in places])
    with gzip.open(path, "wb", compresslevel=1) as file:
        for first in range(0, rows, _AT_ONCE):
            number = np.arange(first, min(first + _AT_ONCE, rows))
            if shuffled:
                number = random.permutation(number)
            row = np.minimum(number * len(stay) // rows, len(stay) - 1)
            which = random.integers(0, len(items), len(row))
            other = random.random(len(row)) > WANTED
            values = np.round(typical[which] + spread[which] * random.normal(size=len(row)), 1)
            times = begin[row] + random.integers(-360, 5760, len(row)) * np.timedelta64(60, "s")
            common = {"subject_id": subject[row], "hadm_id": hadm[row]}
            item = np.where(other, 227_000 + which, items[which])
            empty, text = np.full(len(row), None), values.astype(str)
            columns = (
                {"labevent_id": number, **common, "specimen_id": number, "itemid": item, "order_provider_id": empty, "charttime": times,
                 "storetime": times, "value": text, "valuenum": values, "valueuom": np.full(len(row), "mg/dL")}
                if lab
                else {**common, "stay_id": stay[row], "caregiver_id": stay[row], "charttime": times, "storetime": times, "itemid": item,
                      "value": text, "valuenum": values, "valueuom": np.full(len(row), "mmHg"), "warning": np.zeros(len(row), dtype=int)}
            )  # fmt: skip
            file.write(_csv(columns, header=first == 0))


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(_csv(columns, header=True))


def _csv(columns: dict[str, np.ndarray], header: bool) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.csv.WriteOptions(include_header=header, quoting_style="needed")
    pa.csv.write_csv(pa.table({name: pa.array(column) for name, column in columns.items()}), sink, options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


if __name__ == "__main__":
    main()
