"""Small generated folders of MIMIC-IV, whose rows describe nobody, in all the forms that a folder may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from distqexp.problem.readers.clinical.catalogue import ITEMS, VARIABLES

UNITS = ("Medical Intensive Care Unit (MICU)", 'Surgical, "mixed"', "Coronary Care Unit (CCU)")
_HOUR = pd.Timedelta(hours=1)


def clinical_tables(stays: int = 40, seed: int = 3) -> dict[str, pd.DataFrame]:
    """Return five tables; every fourth patient has a second stay a day after the first. Values depend on who dies."""
    random = np.random.default_rng(seed)
    subject = 10_000 + np.cumsum(np.arange(stays) % 4 != 3)
    hadm, stay = 20_000 + np.arange(stays), 30_000 + np.arange(stays)
    first = pd.Series(pd.Timestamp("2150-03-01 10:20:30") + pd.to_timedelta((subject - 10_000) * 40, unit="D"))
    again = pd.Series(pd.to_timedelta(np.where(np.arange(stays) % 4 == 3, 20, 0), unit="h"))
    intime = first + again
    length = pd.Series(pd.to_timedelta(random.uniform(0.5, 7, stays).round(3), unit="D")).dt.floor("s")
    died = random.random(stays) < 0.4
    frame = pd.DataFrame({"subject_id": subject, "hadm_id": hadm, "stay_id": stay})
    people = frame.drop_duplicates("subject_id").reset_index(drop=True)
    return {
        "patients": pd.DataFrame(
            {"subject_id": people.subject_id, "gender": np.where(people.subject_id % 2, "F", "M"), "anchor_age": 30 + people.index % 60,
             "anchor_year": 2149, "anchor_year_group": "2011 - 2013", "dod": ""}
        ),
        "admissions": pd.DataFrame(
            {"subject_id": subject, "hadm_id": hadm, "admittime": intime - 3 * _HOUR, "dischtime": intime + length + 5 * _HOUR,
             "deathtime": (intime + length * random.choice([0.5, 1.02], stays)).dt.floor("s").where(died),
             "hospital_expire_flag": died.astype(int)}
        ),
        "icustays": frame.assign(
            first_careunit=random.choice(UNITS, stays), last_careunit=random.choice(UNITS, stays), intime=intime,
            outtime=intime + length, los=length / pd.Timedelta(days=1),
        ),
        "chartevents": _events(random, frame, intime, died, "chartevents"),
        "labevents": _events(random, frame, intime, died, "labevents").drop(columns="stay_id"),
    }  # fmt: skip


def _events(
    random: np.random.Generator, frame: pd.DataFrame, intime: pd.Series, died: np.ndarray, source: str
) -> pd.DataFrame:
    wanted = [(item, VARIABLES[place]) for item, place in ITEMS if VARIABLES[place].source == source]
    count = 60 * len(frame)
    rows, which = random.integers(0, len(frame), count), random.integers(0, len(wanted), count)
    typical = np.array([variable.typical for _, variable in wanted])[which]
    spread = np.array([variable.spread for _, variable in wanted])[which]
    values = np.round(typical + spread * (random.normal(size=count) + 2 * died[rows]), 2)
    items = np.array([item for item, _ in wanted])[which]
    values = np.where(items == 223761, np.round(values * 1.8 + 32, 1), values)
    times = intime.to_numpy()[rows] + pd.to_timedelta(random.integers(-20, 70, count) * 30, unit="m").to_numpy()
    return pd.DataFrame(
        {**{name: frame[name].to_numpy()[rows] for name in frame}, "charttime": times, "storetime": times,
         "itemid": np.where(random.random(count) < 0.2, 227_000, items), "value": values.astype(str), "valuenum": values}
    )  # fmt: skip


def write_folder(tables: dict[str, pd.DataFrame], folder: Path, form: str) -> Path:
    """Write the tables as csv, csv.gz or parquet, into hosp and icu."""
    for name, table in tables.items():
        place = folder / ("icu" if name in ("icustays", "chartevents") else "hosp")
        place.mkdir(parents=True, exist_ok=True)
        if form == "parquet":
            table.to_parquet(place / f"{name}.parquet", row_group_size=700)
        else:
            table.to_csv(place / f"{name}.{form}", index=False)
    return folder


def write_meds(tables: dict[str, pd.DataFrame], folder: Path) -> Path:
    """Write the same as events of the Medical Event Data Standard, into two files by patient."""
    stays, visits, people = tables["icustays"], tables["admissions"], tables["patients"]
    deaths = visits[visits.deathtime.notna()]
    parts = [
        pd.DataFrame({"subject_id": stays.subject_id, "time": stays.intime, "code": "ICU_ADMISSION//" + stays.first_careunit}),
        pd.DataFrame({"subject_id": stays.subject_id, "time": stays.outtime, "code": "ICU_DISCHARGE//" + stays.last_careunit}),
        pd.DataFrame({"subject_id": visits.subject_id, "time": visits.admittime, "code": "HOSPITAL_ADMISSION//URGENT//UNK"}),
        pd.DataFrame(
            {"subject_id": visits.subject_id, "time": visits.dischtime,
             "code": "HOSPITAL_DISCHARGE//" + visits.hospital_expire_flag.map({0: "HOME", 1: "DIED"})}
        ),
        pd.DataFrame({"subject_id": deaths.subject_id, "time": deaths.deathtime, "code": "MEDS_DEATH"}),
        pd.DataFrame({"subject_id": people.subject_id, "time": pd.NaT, "code": "GENDER//" + people.gender}),
        pd.DataFrame(
            {"subject_id": people.subject_id, "code": "MEDS_BIRTH",
             "time": pd.to_datetime((people.anchor_year - people.anchor_age).astype(str))}
        ),
    ]  # fmt: skip
    for name, first in (("chartevents", "LAB//"), ("labevents", "LAB//RESULT//")):
        events = tables[name]
        code = first + events.itemid.astype(str) + "//UNK"
        parts.append(
            pd.DataFrame(
                {
                    "subject_id": events.subject_id,
                    "time": events.charttime,
                    "code": code,
                    "numeric_value": events.valuenum,
                }
            )
        )
    events = pd.concat(parts, ignore_index=True)
    events["time"] = events.time.astype("datetime64[us]")
    events["numeric_value"] = events.numeric_value.astype("float64")
    middle = events.subject_id.median()
    for name, part in (("train", events[events.subject_id <= middle]), ("tuning", events[events.subject_id > middle])):
        (folder / "data" / name).mkdir(parents=True)
        part.sort_values(["subject_id", "time"]).to_parquet(folder / "data" / name / "0.parquet", index=False)
    return folder
