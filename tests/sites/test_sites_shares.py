"""Noise in shares by hand: what sites hand on has their share of the noise, and nobody draws the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import table_source, table_tree, to_toml, write_table

from distqexp import api
from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.config import Config
from distqexp.config.reading import config_from_tree
from distqexp.costs.probe import Probe
from distqexp.errors import FileContentError, UsageError
from distqexp.mechanism.shares import NoiseShare
from distqexp.privacy.ledger import Ledger
from distqexp.report.html.reading import read_run
from distqexp.report.html.words import covered
from distqexp.stages import by_hand, shares
from distqexp.stages.ahead import check_ahead
from distqexp.stages.plan import describe_plan
from distqexp.tuning.tune import tune

SHARDS = ("north", "south", "east")


def tree_of(**mechanism: Any) -> dict[str, Any]:
    """Three sites of which one may be missing or collude; two rounds, with diagnostics."""
    tree = table_tree(mechanism={"rounds": 2, "tolerated_sites": 1, **mechanism}, diagnostics={"share": 0.1})
    tree["data"]["private"] = [table_source(None, shard=shard) for shard in SHARDS]
    return tree


@dataclass
class Sites:
    """A folder for all, a ledger for each, and the exact sums that each sketch was made of."""

    root: Path
    config: Config
    exact: list[IntegerArray]

    def sketch(self, shard: str, name: str, **more: Any) -> Path:
        out = self.root / name
        api.sketch(
            self.root / "plan.h5", self.root / f"{shard}.csv", out, shard=shard, ledger=self.ledger(shard), **more
        )
        return out

    def ledger(self, owner: str) -> Path:
        return self.root / owner / "ledger.sqlite"

    def sums(self, path: Path) -> IntegerArray:
        return Sketch.read(path, Plan.read(self.root / "plan.h5")).sums


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    write_table(tmp_path / "public.csv", 1, 80)
    for number, shard in enumerate(SHARDS):
        write_table(tmp_path / f"{shard}.csv", 10 + number, 20)
        (tmp_path / shard).mkdir()
    (tmp_path / "curator").mkdir()
    found = Sites(tmp_path, config_from_tree(tree_of(), tmp_path), [])

    def noted(plan: Plan, state: Any, sums: IntegerArray, *rest: Any) -> IntegerArray:
        found.exact.append(sums.copy())
        return shares.handed_on(plan, state, sums, *rest)

    monkeypatch.setattr(by_hand, "handed_on", noted)
    api.plan(found.config, tmp_path / "plan.h5")
    return found


def test_a_run_by_hand_from_sketch_to_verify(sites: Sites) -> None:
    root, plan = sites.root, Plan.read(sites.root / "plan.h5")
    share = plan.share(plan.state).sigma
    assert 2 * share**2 >= plan.state.grid.sigma**2 > 2 * (share - 1) ** 2
    assert any(f"each of 3 sites draws a share of sigma {share} grid units" in line for line in describe_plan(plan))
    releases: list[Path] = []
    for round in range(2):
        previous = releases[-1] if releases else None
        sketches = [sites.sketch(shard, f"{shard}-{round}.h5", release=previous) for shard in SHARDS]
        for exact, path in zip(sites.exact[-3:], sketches, strict=True):
            noise = sites.sums(path) - exact
            assert noise.shape == (plan.coordinates,)
            assert noise.all(), "every coordinate has noise, the diagnostics too"
            assert np.abs(noise).max() < 12 * share
            assert path.stat().st_mode & 0o777 == 0o600
        pooled = api.pool(root / "plan.h5", sketches, root / f"pooled-{round}.h5")
        out = root / f"release-{round}.h5"
        released = api.release(
            root / "plan.h5", root / f"pooled-{round}.h5", out,
            previous=previous, config=sites.config, ledger=sites.ledger("curator"),
        )  # fmt: skip
        np.testing.assert_array_equal(released.noisy_sums, pooled.sums, "no noise comes on top")
        releases.append(out)
    more = replace(pooled, sums=pooled.sums + 1)
    more.write(root / "more.h5")
    with pytest.raises(FileContentError, match="another sum of this round, with the same shares"):
        api.release(
            root / "plan.h5", root / "more.h5", root / "more-release.h5",
            previous=releases[0], config=sites.config, ledger=sites.ledger("curator"),
        )  # fmt: skip
    certificate, _ = api.export(root / "plan.h5", releases, root / "model", ledger=sites.ledger("curator"))
    said = certificate["noise_in_shares"]
    assert (said["sites"], said["tolerated"], said["variance_factor"]) == (3, 1, 1.5)
    assert 0 < said["total_variation"] < 1e-30
    assert any("each of 3 sites drew a share" in line for line in covered(read_run(root / "model")))
    assert 0 < certificate["epsilon"] <= sites.config.privacy.epsilon
    for file in (root / "plan.h5", *releases):
        (root / "model" / file.name).write_bytes(file.read_bytes())
    lines = api.verify(root / "model")
    assert any("every figure of plan and releases" in line for line in lines), lines
    forged = root / "model" / "certificate.json"
    forged.write_text(json.dumps({**certificate, "noise_in_shares": {**said, "tolerated": 2}}), "utf-8")
    with pytest.raises(FileContentError, match=r"noise_in_shares.tolerated"):
        api.verify(root / "model")
    for owner in ("curator", *SHARDS):
        with Ledger.open(sites.ledger(owner)) as ledger:
            events = [row.event for row in ledger.rows()]
            assert events == [plan.event(plan.state.grid)] * 2
            assert [getattr(event, "shares", None) for event in events] == [2, 2]
            assert ledger.spent("patients").shares_variation == said["total_variation"]


def test_a_repeat_gives_the_same_noise_and_other_records_other_noise_and_a_charge(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sites.sketch("north", "first.h5")
    again = sites.sketch("north", "again.h5")
    assert again.read_bytes() == first.read_bytes()
    assert len(Ledger.open(sites.ledger("north")).rows()) == 1

    # A kill between the stored share and the stored sums: the share is taken up again.
    drawn: list[IntegerArray] = []
    monkeypatch.setattr(NoiseShare, "draw", _noting(NoiseShare.draw, drawn))
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", _killed)
        with pytest.raises(KeyboardInterrupt):
            sites.sketch("south", "killed.h5")
    taken_up = sites.sums(sites.sketch("south", "south.h5"))
    assert len(drawn) == 1
    np.testing.assert_array_equal(taken_up, sites.exact[-1] + drawn[0])

    before = sites.exact[0]
    write_table(sites.root / "north.csv", 50, 20)
    other = sites.sketch("north", "other.h5")
    assert not np.array_equal(sites.exact[-1], before)
    assert not np.array_equal(sites.sums(other) - sites.exact[-1], sites.sums(first) - before), (
        "noise is never used twice"
    )
    assert len(Ledger.open(sites.ledger("north")).rows()) == 2


def _noting(draw: Callable[..., IntegerArray], drawn: list[IntegerArray]) -> Callable[..., IntegerArray]:
    def noted(*args: Any) -> IntegerArray:
        drawn.append(draw(*args))
        return drawn[-1]

    return noted


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_share_that_was_drawn_keeps_its_charge(sites: Sites) -> None:
    sites.sketch("north", "north.h5")
    api.void(sites.root / "plan.h5", sites.root / "void.h5", ledger=sites.ledger("curator"))
    with pytest.raises(FileContentError, match="a draw of this site's share of the noise"):
        api.accept_void(sites.root / "void.h5", ledger=sites.ledger("north"))


def test_seeds_and_runs_in_one_group_are_refused_before_anything_is_charged(sites: Sites, own_ledger: Path) -> None:
    with pytest.raises(UsageError, match="found 17; expected none"):
        sites.sketch("north", "north.h5", insecure_noise_seed=17)
    with pytest.raises(UsageError, match="found 17; expected none"):
        api.release(
            sites.root / "plan.h5", sites.root / "none.h5", sites.root / "release.h5",
            insecure_noise_seed=17, ledger=sites.ledger("curator"),
        )  # fmt: skip
    task = sites.root / "task.toml"
    task.write_text(to_toml(tree_of()), "utf-8")
    for run in (
        lambda: api.fit(sites.config, sites.root / "run"),
        lambda: tune(task, sites.root / "run"),
        lambda: check_ahead(sites.config),
        lambda: Probe(sites.config, sites.root),
    ):
        with pytest.raises(UsageError, match="tolerated_sites: found 1; expected 0 in one group of processes"):
            run()
    assert not (sites.root / "run").exists()
    assert not any(path.exists() for path in (own_ledger, sites.ledger("north"), sites.ledger("curator")))
    assert not sites.exact
