"""A run's finished rounds leave out the heavy state of the round after them; public records give it again, to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands, table_tree, write_task

from distqexp import api
from distqexp.artefacts import release as release_module
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config, load_config
from distqexp.errors import FileContentError
from distqexp.stages import rounds as rounds_module
from tests.support.states import states_of_run

ROUNDS = 4
SEED = 3


class Stopped(Exception):
    """Ends a run as a kill would."""


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state counts as a heavy one."""
    monkeypatch.setattr(release_module, "LIGHT", 0)


@pytest.fixture
def config(tmp_path: Path, own_ledger: Path, heavy: None) -> Config:
    """A table's config, whose public records lie in a file."""
    tree = table_tree(mechanism={"rounds": ROUNDS, "momentum": 0.5}, precision={"kind": "dense", "refresh": 2})
    del tree["mechanism"]["clip"]
    tree["mechanism"]["clip_quantile"] = 0.5
    return load_config(write_task(tmp_path, tree))


def run(config: Config, out: Path, **options: object) -> api.FitResult:
    result = api.fit(config, out, insecure_noise_seed=SEED, callback=lambda _: None, **options)  # type: ignore[arg-type]
    assert result is not None
    return result


def stored(out: Path) -> tuple[Plan, list[Release]]:
    plan = Plan.read(out / "plan.h5")
    return plan, [Release.read(path, plan) for path in sorted(out.glob("release-*.h5"))]


def test_the_default_job_s_releases_weigh_little(tmp_path: Path, run: Commands) -> None:
    assert run.fit("--out", tmp_path / "run", "--insecure-noise-seed", "1", "--set", "mechanism.rounds=3").code == 0
    sizes = [path.stat().st_size for path in sorted((tmp_path / "run").glob("release-*.h5"))]
    assert len(sizes) == 3
    assert max(sizes) < 25_000  # 650 parameters and 650 sums, 8 bytes each, and the format
    lines = run.done("verify", tmp_path / "run").out
    assert lines.count("every figure is its plan's, and it builds on") == 3
    assert "its parameters" not in lines


def test_states_are_left_out_and_come_back_to_the_last_bit(tmp_path: Path, config: Config) -> None:
    result = run(config, tmp_path / "run")
    _, releases = stored(tmp_path / "run")
    assert [release.next_state for release in releases] == [None] * ROUNDS
    assert [release.next_rules is None for release in releases] == [False] * (ROUNDS - 1) + [True]
    made = [release.next_state for release in result.releases[:-1]]
    for state, again in zip(made, states_of_run(tmp_path / "run", config)[1:], strict=True):
        assert state is not None
        assert again.identity() == state.identity()


def test_verify_says_what_it_could_not_check_and_checks_it_with_the_config(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, out, task = Commands(capsys), tmp_path / "run", tmp_path / "task.toml"
    assert task.exists()
    run(config, out)
    said = commands.done("verify", out).out
    assert said.count("not checked: its parameters, as the round before left its state out") == ROUNDS - 1
    assert "not checked: its parameters" not in commands.done("verify", out, "--config", task).out
    _, releases = stored(out)
    forged = dataclasses.replace(releases[2], theta=releases[2].theta + 1e-3)
    forged.write(out / "release-002.h5")
    assert any(
        "not checked: its parameters" in line for line in api.verify(out / "plan.h5", *sorted(out.glob("release-*.h5")))
    )
    with pytest.raises(FileContentError, match="its noisy sums give"):
        api.verify(out / "plan.h5", *sorted(out.glob("release-*.h5")), config=config)


@pytest.mark.parametrize("stop", range(ROUNDS))
def test_a_run_that_was_killed_before_it_left_a_state_out_goes_on(
    stop: int, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config, tmp_path / "whole")
    original, calls = rounds_module._lighten, []

    def stopping(out: Path, releases: list[Release]) -> None:
        calls.append(len(releases))
        if len(calls) == stop + 2:  # the first call is for what an earlier attempt left
            raise Stopped
        original(out, releases)

    with monkeypatch.context() as patch:
        patch.setattr(rounds_module, "_lighten", stopping)
        with pytest.raises(Stopped):
            run(config, tmp_path / "run")
    if stop:
        assert stored(tmp_path / "run")[1][stop - 1].next_state is not None
    again = run(config, tmp_path / "run", resume=True)
    assert np.array_equal(again.releases[-1].theta, whole.releases[-1].theta)
    for number in range(ROUNDS):
        name = f"release-{number:03d}.h5"
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_goes_on_from_a_light_release_is_refused(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, out = Commands(capsys), tmp_path / "run"
    run(config, out)
    commands.distqexp(
        "sketch", out / "plan.h5", "--release", out / "release-001.h5", "--data", tmp_path / "private.csv", "--out", tmp_path / "all.h5",
        "--insecure-noise-seed", str(SEED),
    ).refused(3, "without the state of the next round")  # fmt: skip


@pytest.mark.parametrize("left", range(ROUNDS))
def test_a_run_goes_on_where_its_latest_releases_are_gone(left: int, tmp_path: Path, config: Config) -> None:
    whole, out = run(config, tmp_path / "run"), tmp_path / "run"
    before = {number: (out / f"release-{number:03d}.h5").read_bytes() for number in range(ROUNDS)}
    for number in range(left, ROUNDS):
        (out / f"release-{number:03d}.h5").unlink()
    again = run(config, out, resume=True)
    assert np.array_equal(again.releases[-1].theta, whole.releases[-1].theta)
    assert {number: (out / f"release-{number:03d}.h5").read_bytes() for number in range(ROUNDS)} == before


def test_a_state_that_public_records_do_not_give_is_refused(tmp_path: Path, config: Config) -> None:
    out = tmp_path / "run"
    run(config, out)
    rows = (tmp_path / "public.csv").read_text().splitlines()
    (tmp_path / "public.csv").write_text("\n".join([rows[0], *rows[20:]]) + "\n")
    with pytest.raises(FileContentError, match=r"next\.clip"):
        api.verify(out, config=config)
