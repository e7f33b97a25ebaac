"""The rows of ICU stays computed with pandas, from the definition in docs/clinical.md and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

CHARTS = {
    "heart_rate": ([220045], 1, 300),
    "systolic_pressure": ([220050, 220179, 225309], 1, 400),
    "diastolic_pressure": ([220051, 220180, 225310], 1, 300),
    "mean_pressure": ([220052, 220181, 225312], 1, 300),
    "respiratory_rate": ([220210, 224690], 1, 70),
    "temperature": ([223761, 223762], 25, 45),
    "oxygen_saturation": ([220277], 1, 100),
    "coma_scale_eyes": ([220739], 1, 4),
    "coma_scale_verbal": ([223900], 1, 5),
    "coma_scale_motor": ([223901], 1, 6),
}
LABS = {
    "creatinine": ([50912], 0.01, 150),
    "urea_nitrogen": ([51006], 0.1, 300),
    "sodium": ([50983], 50, 250),
    "potassium": ([50971], 0.5, 30),
    "bicarbonate": ([50882], 1, 100),
    "glucose": ([50809, 50931], 1, 10_000),
    "lactate": ([50813], 0.01, 50),
    "hemoglobin": ([51222], 0.1, 50),
    "white_cells": ([51301], 0.01, 1000),
    "platelets": ([51265], 1, 10_000),
    "bilirubin": ([50885], 0.01, 150),
    "albumin": ([50862], 0.1, 10),
    "prothrombin_ratio": ([51237], 0.1, 50),
    "ph": ([50820], 6, 8.5),
}


def stays_with_pandas(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a row a stay, in the order of icustays: ids, labels and features."""
    stays = tables["icustays"].drop_duplicates(["subject_id", "stay_id"]).reset_index(drop=True)
    stays = stays.assign(row=np.arange(len(stays)))
    for column in ("intime", "outtime"):
        stays[column] = pd.to_datetime(stays[column])
    people = tables["patients"].drop_duplicates("subject_id").assign(dod=lambda t: pd.to_datetime(t.dod))
    visits = tables["admissions"].drop_duplicates(["subject_id", "hadm_id"])
    visits = visits.assign(**{name: pd.to_datetime(visits[name]) for name in ("admittime", "deathtime")})
    known = stays.merge(people, on="subject_id", how="left").merge(visits, on=["subject_id", "hadm_id"], how="left")
    values = pd.concat([_values(stays, tables["chartevents"], CHARTS), _values(stays, tables["labevents"], LABS)])
    values = values.drop_duplicates(["row", "itemid", "charttime", "valuenum"])
    moments = values.groupby(["row", "variable", "charttime"]).valuenum.mean()
    summary = moments.groupby(["row", "variable"]).agg(["min", "max", "mean"]).unstack("variable")
    result = known[["subject_id", "hadm_id", "stay_id"]].copy()
    dead_before = (known.deathtime < known.intime) | (known.dod + pd.Timedelta(days=1) <= known.intime)
    length = known.outtime - known.intime
    timed = length.notna() & (length >= pd.Timedelta(0)) & ~dead_before
    result["in_hospital_mortality"] = known.hospital_expire_flag.where(~dead_before).astype(float)
    inside = ((known.deathtime >= known.intime) & (known.deathtime <= known.outtime)).astype(float)
    result["icu_mortality"] = inside.where(timed & ~((known.hospital_expire_flag == 1) & known.deathtime.isna()))
    result["long_stay"] = (length > pd.Timedelta(days=3)).astype(float).where(timed)
    result["stay_days"] = (length / pd.Timedelta(days=1)).where(timed)
    result["age"] = known.anchor_age + known.intime.dt.year - known.anchor_year
    result["female"] = known.gender.map({"F": 1.0, "M": 0.0})
    for variable in (*CHARTS, *LABS):
        for statistic in ("min", "max", "mean"):
            found = summary[(statistic, variable)] if (statistic, variable) in summary else pd.Series(dtype=float)
            result[f"{variable}_{statistic}"] = found.reindex(stays.row).to_numpy()
    result["values"] = values.groupby("row").size().reindex(stays.row, fill_value=0).to_numpy()
    return result


def _values(
    stays: pd.DataFrame, events: pd.DataFrame, variables: dict[str, tuple[list[int], float, float]]
) -> pd.DataFrame:
    keys = ["subject_id", "stay_id"] if "stay_id" in events else ["subject_id"]
    rules = pd.DataFrame(
        [(item, name, low, high) for name, (items, low, high) in variables.items() for item in items],
        columns=["itemid", "variable", "low", "high"],
    )
    events = events.assign(
        charttime=pd.to_datetime(events.charttime, errors="coerce"),
        valuenum=pd.to_numeric(events.valuenum, errors="coerce"),
    )
    rows = (
        events[[*keys, "itemid", "charttime", "valuenum"]]
        .merge(rules, on="itemid")
        .merge(stays[[*keys, "row", "intime"]], on=keys)
    )
    after = (rows.charttime - rows.intime) / pd.Timedelta(hours=1)
    rows = rows[(after >= -6) & (after <= 24)]
    hot = rows.itemid.isin([223761, 223762]) & (rows.valuenum > 70)
    rows = rows.assign(valuenum=rows.valuenum.where(~hot, (rows.valuenum - 32) / 1.8))
    return rows[(rows.valuenum >= rows.low) & (rows.valuenum <= rows.high)]
