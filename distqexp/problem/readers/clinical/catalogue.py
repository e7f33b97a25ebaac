"""What a row of an ICU stay holds: variables with their itemids and plausible ranges, and the window. Public constants of a version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distqexp.errors import UsageError

VERSION = 1
"""It grows whenever anything here changes that alters a value."""

BEFORE = 6 * 3600
"""The window begins so many seconds before a stay's intime."""
AFTER = 24 * 3600
"""The window ends so many seconds after a stay's intime; both ends belong to it."""
LONG_STAY = 3 * 86_400
"""A stay of more seconds is a long one."""

FAHRENHEIT_ABOVE = 70.0
"""A temperature above this is in degrees Fahrenheit and one below it in degrees Celsius, whatever its itemid says."""

OLDEST = 120.0
"""Ages above this, in years, are missing."""

CHARTS, LABS = "chartevents", "labevents"
STATISTICS = ("min", "max", "mean")


@dataclass(frozen=True)
class Variable:
    """A vital sign or a laboratory value.

    Attributes:
        name: the first part of its three features' names.
        source: the table that it stands in.
        itemids: the itemids that are this variable.
        unit: its unit.
        lowest: values below are left out.
        highest: values above are left out.
        typical: a round figure of textbooks, which stands in for missing values where there are no public records.
        spread: how far values commonly are from it; features are divided by it where there are no public records.
    """

    name: str
    source: str
    itemids: tuple[int, ...]
    unit: str
    lowest: float
    highest: float
    typical: float
    spread: float


VARIABLES = (
    Variable("heart_rate", CHARTS, (220045,), "/min", 1, 300, 85, 20),
    Variable("systolic_pressure", CHARTS, (220050, 220179, 225309), "mmHg", 1, 400, 120, 22),
    Variable("diastolic_pressure", CHARTS, (220051, 220180, 225310), "mmHg", 1, 300, 65, 15),
    Variable("mean_pressure", CHARTS, (220052, 220181, 225312), "mmHg", 1, 300, 80, 15),
    Variable("respiratory_rate", CHARTS, (220210, 224690), "/min", 1, 70, 19, 6),
    Variable("temperature", CHARTS, (223761, 223762), "degrees Celsius", 25, 45, 36.9, 0.7),
    Variable("oxygen_saturation", CHARTS, (220277,), "%", 1, 100, 97, 3),
    Variable("coma_scale_eyes", CHARTS, (220739,), "points", 1, 4, 3, 1),
    Variable("coma_scale_verbal", CHARTS, (223900,), "points", 1, 5, 3.5, 1.5),
    Variable("coma_scale_motor", CHARTS, (223901,), "points", 1, 6, 5.5, 1),
    Variable("creatinine", LABS, (50912,), "mg/dL", 0.01, 150, 1.2, 1.2),
    Variable("urea_nitrogen", LABS, (51006,), "mg/dL", 0.1, 300, 24, 20),
    Variable("sodium", LABS, (50983,), "mmol/L", 50, 250, 139, 5),
    Variable("potassium", LABS, (50971,), "mmol/L", 0.5, 30, 4.2, 0.7),
    Variable("bicarbonate", LABS, (50882,), "mmol/L", 1, 100, 24, 5),
    Variable("glucose", LABS, (50809, 50931), "mg/dL", 1, 10_000, 130, 55),
    Variable("lactate", LABS, (50813,), "mmol/L", 0.01, 50, 2, 1.8),
    Variable("hemoglobin", LABS, (51222,), "g/dL", 0.1, 50, 10.5, 2),
    Variable("white_cells", LABS, (51301,), "1000/uL", 0.01, 1000, 11, 7),
    Variable("platelets", LABS, (51265,), "1000/uL", 1, 10_000, 210, 100),
    Variable("bilirubin", LABS, (50885,), "mg/dL", 0.01, 150, 1.2, 3),
    Variable("albumin", LABS, (50862,), "g/dL", 0.1, 10, 3.3, 0.7),
    Variable("prothrombin_ratio", LABS, (51237,), "INR", 0.1, 50, 1.3, 0.6),
    Variable("ph", LABS, (50820,), "pH", 6, 8.5, 7.38, 0.08),
)
"""The variables, whose itemids are those of MIMIC-IV's d_items and d_labitems."""

TEMPERATURE = next(place for place, variable in enumerate(VARIABLES) if variable.name == "temperature")

ITEMS = tuple((itemid, place) for place, variable in enumerate(VARIABLES) for itemid in variable.itemids)
"""Each itemid with the place of its variable."""

FEATURES = (
    "age",
    "female",
    *(f"{variable.name}_{statistic}" for variable in VARIABLES for statistic in STATISTICS),
)
"""The features of a stay, in order."""

TYPICAL = (65.0, 0.5, *(float(variable.typical) for variable in VARIABLES for _ in STATISTICS))
SPREADS = (17.0, 0.5, *(float(variable.spread) for variable in VARIABLES for _ in STATISTICS))

CLASSES = ("in_hospital_mortality", "icu_mortality", "long_stay")
LABELS = (*CLASSES, "stay_days")
"""What may be predicted of a stay: three labels of 0 and 1, and a number."""

IDS = ("subject_id", "hadm_id", "stay_id")
COUNTS = ("stay_number", "values")
UNITS = ("first_careunit", "last_careunit", "patient_careunit")
"""Columns that are neither features nor labels, which ``where`` may name."""

COLUMNS = (*IDS, *UNITS, *COUNTS, *LABELS, *FEATURES)


def chosen(features: Sequence[str] | None, exclude: Sequence[str]) -> tuple[str, ...]:
    """Return the features of a config: the listed ones, or all but ``exclude``. Raises UsageError for one that is none."""
    for key, names in (("features", features or ()), ("exclude", exclude)):
        if wrong := [name for name in names if name not in FEATURES]:
            raise UsageError(
                f"data.*.columns.{key}: {', '.join(map(repr, wrong[:6]))}; expected features of an ICU stay: age, female, a variable with "
                "_min, _max or _mean, such as heart_rate_min; docs/clinical.md lists them"
            )
    names = tuple(features or (name for name in FEATURES if name not in exclude))
    if not names:
        raise UsageError("data.*.columns.exclude: leaves no feature; expected at least one; list fewer")
    return names


def definition() -> str:
    """Return all of this as a text of JSON, which the plan holds: sites with another definition are refused."""
    return json.dumps(
        {
            "version": VERSION,
            "window": [-BEFORE, AFTER],
            "long_stay": LONG_STAY,
            "fahrenheit_above": FAHRENHEIT_ABOVE,
            "oldest": OLDEST,
            "variables": [asdict(variable) for variable in VARIABLES],
        },
        sort_keys=True,
    )
