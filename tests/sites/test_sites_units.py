"""One table of patients with many rows: a plan for each patient and one for each row don't share a cap by chance.

A patient of 50 rows pays an epsilon of 152 for the second plan, where adding up the two as if they protected the same
would say 1.47. The second is refused, or counted for groups of 50 once the data owner says how many rows a patient has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import compose
from run_harness import FEATURES, Commands, table_source, table_tree, to_toml, write_table

from distqexp import api
from distqexp.errors import UsageError
from distqexp.privacy.events import of_group
from distqexp.privacy.ledger import Ledger

ROWS = 50
"""Of each patient."""


@dataclass
class Site:
    """A hospital that gets plans by file and has one table."""

    folder: Path
    run: Commands

    def plan(self, name: str, unit: str | None, **sections: Mapping[str, Any]) -> Path:
        """plan ``name``.h5 for each ``unit``; each row where None."""
        mechanism = {"rounds": 1, "clip": 0.05, **sections.pop("mechanism", {})}
        tree = table_tree(privacy={"epsilon": 1.0, "delta": 1e-5, "units": 200}, mechanism=mechanism)
        source = table_source(None, shard="north")
        source["columns"]["exclude"] = [column for column in ("patient", "stay") if column != unit]
        tree["data"] |= {"private": [source | ({"unit": unit} if unit else {})], **sections.pop("data", {})}
        config = self.folder / f"{name}.toml"
        config.write_text(to_toml(tree), "utf-8")
        self.run.done("plan", config, "--out", self.folder / f"{name}.h5")
        return self.folder / f"{name}.h5"

    def sketch(self, plan: Path) -> list[str | Path]:
        return ["sketch", plan, "--data", self.folder / "north.csv", "--out", plan.with_suffix(".sketch")]

    def charges(self) -> list[tuple[str, str | None]]:
        return [(row.population, row.unit) for row in Ledger.open().rows()]


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "public.csv", 1, 80)
    numbers = np.random.default_rng(2)
    lines = [",".join(["patient", "stay", *FEATURES, "died"])]
    for row in range(4 * ROWS):
        values = ",".join(f"{value:.3f}" for value in numbers.normal(size=len(FEATURES)))
        lines.append(f"p{row // ROWS},s{row // 10},{values},{row % 2}")
    (tmp_path / "north.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return Site(tmp_path, Commands(capsys))


def test_a_plan_for_rows_does_not_share_the_cap_of_patients(site: Site) -> None:
    site.run.done("ledger", "cap", "patients", "--epsilon", "1.5", "--delta", "1e-5")
    site.run.done(*site.sketch(site.plan("patients", "patient")))
    rows = site.plan("rows", None)
    refusal = site.run.distqexp(*site.sketch(rows)).refused(
        4, "'patient' and 'record'", "distqexp ledger cap patients", "--unit patient", "--records-per-unit"
    )
    assert not rows.with_suffix(".sketch").exists(), refusal
    site.run.distqexp(*site.sketch(site.plan("stays", "stay"))).refused(4, "'patient' and 'stay'", "on record")
    assert site.charges() == [("patients", "patient")]
    # The other way round too.
    site.run.done("ledger", "cap", "patients", "--epsilon", "1.5", "--delta", "1e-5")
    assert site.charges() == [("patients", "patient")]


def test_a_declared_number_of_rows_makes_them_groups(site: Site) -> None:
    cap = ["ledger", "cap", "patients", "--delta", "1e-5", "--unit", "patient", "--records-per-unit", str(ROWS)]
    shown = site.run.done(*cap, "--epsilon", "1.5")
    assert "for each patient, single records as groups of 50" in shown.out
    site.run.done(*site.sketch(site.plan("patients", "patient")))
    rows = site.plan("rows", None)
    site.run.distqexp(*site.sketch(rows)).refused(4, "budget spent", "delta 1 at epsilon 1.5")
    # What it would be: asserted as the figure itself.
    site.run.done(*cap, "--epsilon", "160")
    site.run.done(*site.sketch(rows))
    first, second = Ledger.open().rows()
    assert [first.unit, second.unit] == ["patient", "record"]
    spent = Ledger.open().spent("patients")
    assert spent == compose([first.event, *of_group([second.event], ROWS)])
    assert spent.epsilon(1e-5) == pytest.approx(152, abs=1)
    assert compose([first.event, second.event]).epsilon(1e-5) == pytest.approx(1.47, abs=0.01)  # what it is not
    told = site.run.done("ledger", "show").out
    assert "unit patient" in told
    assert "unit record" in told
    assert f"epsilon {spent.epsilon(1e-5):.6g} at delta 1e-05" in told


def test_a_plan_protects_one_kind_of_unit(site: Site) -> None:
    for units, words in (
        ((None, "patient"), "a column in every shard or in none"),
        (("record", "patient"), "another name"),
    ):
        shards = [
            table_source(None, shard=shard) | ({"unit": unit} if unit else {})
            for shard, unit in zip(("north", "south"), units, strict=True)
        ]
        (site.folder / "mixed.toml").write_text(to_toml(table_tree(data={"private": shards})), "utf-8")
        site.run.distqexp("plan", "mixed.toml", "--out", "mixed.h5").refused(2, "data.private.unit", words)


def test_shards_may_name_their_columns_each_in_its_own_way(site: Site) -> None:
    """Each site is charged for its own column; the curator for all of them together."""
    shards = [
        table_source(None, shard=shard) | {"unit": unit} for shard, unit in (("north", "patient"), ("south", "stay"))
    ]
    for shard in shards:
        shard["columns"] = {"target": "died", "features": list(FEATURES)}
    plan = site.plan("both", "patient", data={"private": shards})
    site.run.done(*site.sketch(plan), "--shard", "north")
    site.run.distqexp(*site.sketch(plan)[:-1], "south.sketch", "--shard", "south").refused(4, "'patient' and 'stay'")
    assert api.load_config(site.folder / "both.toml").unit == "patient+stay"
    assert site.charges() == [("patients", "patient")]


def test_fit_and_count_name_the_unit(site: Site) -> None:
    site.run.done("ledger", "cap", "patients", "--epsilon", "3", "--delta", "1e-5")
    source = table_source("north.csv", unit=True, shard="north", columns={"target": "died", "features": list(FEATURES)})
    site.plan("fit", "patient", data={"private": [source]})
    site.run.done("count", "fit.toml", "--epsilon", "0.1")
    assert site.run.fit("fit.toml", "--out", "run").code == 0
    assert site.charges() == [("patients", "patient")] * 2
    found = site.run.fit("fit.toml", "--out", "again", "--set", "mechanism.clip=0.04")
    assert found.code == 0
    certificate = (site.folder / "run" / "certificate.json").read_text("utf-8")
    assert '"unit_column": "patient"' in certificate
    with pytest.raises(UsageError, match="the ledger has releases that protect 'patient'"):
        Ledger.open().set_cap("patients", 3.0, 1e-5, unit="stay")
