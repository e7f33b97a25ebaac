"""The audit of one run by canaries: its bound holds for the worst mechanisms, sound runs pass, and too little noise is found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from run_harness import Commands, overrides, table_source, table_tree, to_toml, write_table
from scipy.linalg import qr
from scipy.stats import binom

from distqexp.audit.canaries import NOISE_FACTORS, _apart, _posterior_means, _vectors
from distqexp.audit.candidates import Candidates, make_candidates
from distqexp.audit.guessing import chance, epsilon_shown, judge, mu_shown
from distqexp.config import Config, config_from_tree, load_config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.gradients.context import RoundContext
from distqexp.mechanism import rule as release
from distqexp.privacy import gdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.problem.dataset import Dataset
from distqexp.stages.plan import make_plan
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round

QUICK = ("mechanism.rounds=2", "model.pretrain.epochs=5", "precision.samples=100", "privacy.epsilon=0.5")
LEVEL = 1e-7


def one(value: float) -> NDArray[np.float64]:
    return np.array([value])


# --- the bound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 7, 40])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-6, 0.01])
def test_no_mechanism_that_reveals_with_probability_delta_beats_the_bound(m: int, epsilon: float, delta: float) -> None:
    """Randomised response of every coin, or all coins at once with probability delta; or each coin with delta on its own."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for correct in range(m + 1):
        bound = chance(correct, m, m, one(epsilon), one(delta))[0]
        at_once = delta + (1 - delta) * binom.sf(correct - 1, m, right)
        each = binom.sf(correct - 1, m, delta + (1 - delta) * right)
        assert max(at_once, each) <= bound * (1 + 1e-12) + 1e-15


def test_for_pure_privacy_it_is_the_binomial_tail_and_for_one_coin_it_is_exact() -> None:
    assert chance(75, 100, 100, one(math.log(3)), one(0.0))[0] == pytest.approx(0.553, abs=5e-4)
    assert chance(60, 90, 200, one(1.0), one(0.0))[0] == pytest.approx(binom.sf(59, 90, math.e / (1 + math.e)))
    right = math.e / (1 + math.e)
    assert chance(1, 1, 1, one(1.0), one(0.1))[0] == pytest.approx(0.1 + 0.9 * right)
    assert chance(0, 5, 9, one(1.0), one(0.1))[0] == 1.0
    with pytest.raises(UsageError, match="6 right of 5 guesses"):
        chance(6, 5, 9, one(1.0), one(0.0))


def test_what_is_shown_is_refuted_and_hardly_more_would_be() -> None:
    epsilon = epsilon_shown(118, 120, 200, 1e-9, LEVEL)
    assert (
        chance(118, 120, 200, one(epsilon), one(1e-9))[0]
        < LEVEL
        <= chance(118, 120, 200, one(epsilon * 1.001), one(1e-9))[0]
    )
    mu = mu_shown(118, 120, 200, LEVEL)
    assert mu > 0
    deltas = 10.0 ** -np.arange(2.0, 18.0)
    for value, refuted in ((mu * 0.99, True), (mu * 1.05, False)):  # other points of the curve
        epsilons = np.array([gdp.epsilon(float(delta), value) for delta in deltas])
        assert bool(chance(118, 120, 200, epsilons, deltas).min() < LEVEL) == refuted
    assert mu_shown(60, 120, 200, LEVEL) == epsilon_shown(60, 120, 200, 1e-9, LEVEL) == 0.0
    assert epsilon_shown(200, 200, 200, 1e-4, LEVEL) == 0.0  # delta alone may explain it: 200 e-4 / 2 > LEVEL


def test_sound_gaussian_releases_pass_and_much_weaker_ones_do_not() -> None:
    """Coins seen through N(0, 1/mu^2): each of the five sound ones fails with probability 1e-7 at most."""
    random = np.random.default_rng(1)
    mu, m = 0.3, 400
    claim = Guarantee(mu, 0.0, mu**2 / 2)
    for _ in range(5):
        coins = random.random(m) < 0.5
        noise = random.normal(size=m) / mu
        sound, weak = (judge("sums", coins + noise / factor, coins, claim, 1e-5, LEVEL) for factor in (1, 20))
        assert sound.holds
        assert sound.mu <= mu
        assert not weak.holds
        assert mu < weak.mu <= min(20 * mu, weak.reach)
        assert weak.epsilon_of_mu is not None
        assert weak.epsilon_of_mu > gdp.epsilon(1e-5, mu)
        assert weak.p_value < LEVEL <= sound.p_value


def test_right_guesses_of_a_pure_claim_are_judged_by_it() -> None:
    coins = np.arange(100) % 2 == 0
    strict, loose = (
        judge("sums", coins.astype(float), coins, Guarantee(50.0, 0.0, 1250.0, pure), 0.0, LEVEL) for pure in (1.0, 9.0)
    )
    assert (strict.holds, loose.holds) == (False, True)
    assert strict.epsilon_of_mu is None
    assert 1.0 < strict.epsilon < 9.0
    with pytest.raises(UsageError, match="two or more"):
        judge("sums", np.zeros(1), np.ones(1, dtype=np.bool_), Guarantee(1.0, 0.0, 0.5), 0.0, LEVEL)


# --- the guesser -------------------------------------------------------------------------------------------------


def test_canaries_are_chosen_like_the_pivots_of_a_qr_factorisation() -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(60, 15)) * random.uniform(0.2, 1.0, size=(60, 1))
    assert _apart(vectors, 12).tolist() == qr(vectors.T, pivoting=True)[2][:12].tolist()
    repeated = np.repeat(np.eye(3), 4, axis=0)
    assert sorted(np.flatnonzero(repeated[row])[0] for row in _apart(repeated, 3)) == [0, 1, 2]
    assert len(set(_apart(repeated, 8).tolist())) == 8


@pytest.mark.parametrize("factor", [1.0, 2.0**-4])
def test_estimates_are_posterior_means_at_the_likeliest_noise(factor: float) -> None:
    random = np.random.default_rng(4)
    vectors = random.normal(size=(20, 120))
    coins = random.random(20) < 0.5
    seen = (coins - 0.5) @ vectors + factor * random.normal(size=120)
    found = _posterior_means(vectors @ vectors.T, vectors @ seen, float(seen @ seen), 120)

    def direct(noise: float) -> tuple[float, NDArray[np.float64]]:
        covariance = noise**2 * np.eye(120) + vectors.T @ vectors / 4
        sign, size = np.linalg.slogdet(covariance)
        assert sign == 1
        weights = np.linalg.solve(covariance, seen)
        return float(-size - seen @ weights), vectors @ weights / 4

    likelihood, expected = max((direct(float(noise)) for noise in NOISE_FACTORS), key=lambda pair: pair[0])
    assert math.isfinite(likelihood)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert ((found > 0) == coins).all()


SKETCHES: dict[str, tuple[str, ...]] = {
    "unit": (),
    "parts": ("mechanism.rounds=2", "mechanism.parts=2"),
    "diagnostics": ("diagnostics.share=0.1",),
    "batch": ("precision.kind=kronecker",),
    "private curvature": (
        "mechanism.curvature=private", "mechanism.trust_radius=5", "mechanism.noise=gaussian", "subspace.kind=gaussian", "subspace.k=20",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SKETCHES)
def test_known_units_and_canaries_with_their_coins_make_up_the_sums_of_a_run(kind: str, tmp_path: Path) -> None:
    """The guesser's vectors are those of the run: the same integers as the sketch stage's, blank slots and all."""
    config = load_config(None, [*QUICK, "mechanism.rounds=1", *SKETCHES[kind]])
    with SerialEngine() as engine:
        made = make_candidates(config, 30, tmp_path, engine, 5)
        plan = make_plan(made.config, engine)
        sources, prints = open_shards(plan, made.config.data.private, engine)
        sums = sketch_round(plan, plan.state, Shards(sources, prints), tmp_path, engine)
        (everybody,), _ = open_shards(plan, [made.full_source], engine)
    assert sums is not None
    context = RoundContext.of_state(plan, plan.state, (everybody,))
    units, parts = len(made.included), plan.config.mechanism.parts
    mine, first = np.arange(0, units, parts), units - 30
    vectors, known, curvature = _vectors(context, plan.state, mine, made.included, first)
    total = known + made.included[first:] @ vectors
    if kind == "batch":
        grid = plan.state.grid
        np.testing.assert_allclose(total, sums[: plan.k], atol=1e-6 * grid.clip_integer + len(context.pieces))
    else:
        assert total.tolist() == sums[: plan.k].tolist()
    lengths = np.linalg.norm(vectors, axis=1)
    here = np.arange(first, units) % parts == 0
    assert (lengths[~here] == 0).all()
    assert (lengths[here] > (0.5 if kind == "private curvature" else 0.99) * plan.state.grid.clip_integer).all()
    assert (curvature is not None) == (kind == "private curvature")
    if curvature is not None and plan.state.factors is not None:
        upper = np.triu_indices(plan.k)
        released = sums[plan.k :] * plan.state.factors.step**2 + np.eye(plan.k)[upper]
        np.testing.assert_allclose(curvature[upper], released, rtol=0.2, atol=0.2 * float(np.trace(curvature)) / plan.k)


# --- the run -----------------------------------------------------------------------------------------------------


def quieter(factor: float) -> Callable[..., Any]:
    """The seeded draw with ``factor`` times the noise that was asked for: the planted fault."""
    sound = release.draw_insecure

    def draw(k: int, sigma: float, noise_seed: int, round: int, noise: str) -> Any:
        return sound(k, factor * sigma, noise_seed, round, noise)

    return draw


@pytest.mark.slow
def test_a_run_with_a_twentieth_of_the_noise_exits_1_and_the_sound_one_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_ledger: Path
) -> None:
    run = Commands(capsys)
    command = ["audit", "--canaries", "250", *overrides(*QUICK), "--json", "--insecure-noise-seed", "7", "--out"]
    sound = run.done(*command, tmp_path / "sound")
    tree = json.loads((tmp_path / "sound" / "audit-run.json").read_text())
    assert json.loads(sound.out.splitlines()[-1]) == tree
    assert tree["holds"] is True
    assert tree["claim"]["epsilon"] == pytest.approx(0.5, rel=0.01)
    assert tree["canaries"]["mu"] <= tree["claim"]["mu"]
    assert "lower bound" in sound.out
    assert (tmp_path / "sound" / "audit-run.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(release, "draw_insecure", quieter(1 / 20))
    faulty = run.distqexp(*command, tmp_path / "faulty")
    assert faulty.code == 1
    assert "THE CLAIM IS WRONG" in faulty.out
    found = json.loads((tmp_path / "faulty" / "audit-run.json").read_text())
    assert found["holds"] is False
    assert found["canaries"]["epsilon_of_mu"] > found["claim"]["epsilon"]
    assert found["claim"]["mu"] == pytest.approx(tree["claim"]["mu"], rel=1e-5)
    assert not own_ledger.exists()


@pytest.mark.slow
def test_the_command_needs_no_private_file_and_real_noise_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_ledger: Path
) -> None:
    """Real entropy: false-alarm rate 1e-6. Patients with several records each; private.csv and eval.csv don't exist."""
    path = patients(tmp_path)
    run = Commands(capsys)
    out = tmp_path / "out"
    text = run.done("audit", path, "--canaries", "40", "--out", out).out
    tree = json.loads((out / "audit-run.json").read_text())
    assert tree["holds"] is True
    assert tree["noise_seed"] is None
    assert tree["canaries"]["candidates"] == 40
    assert tree["members"][0]["candidates"] == 60
    assert "no contradiction" in text
    assert sorted(file.name for file in out.iterdir()) == ["audit-run.json", "audit-run.png"]
    assert not own_ledger.exists()


def patients(folder: Path, **sections: Any) -> Path:
    """A task whose private and evaluation files are not there."""
    write_table(folder / "public.csv", 1, 120, records=3)
    data = {
        "public": table_source("public.csv", unit=True),
        "private": table_source("private.csv", unit=True),
        "eval": table_source("eval.csv"),
    }
    tree = table_tree(**{"data": data, "tune": {"holdout": 0.5}, **sections})
    (folder / "task.toml").write_text(to_toml(tree), "utf-8")
    return folder / "task.toml"


def candidates_of(config: Config, folder: Path, seed: int | None = 0) -> Candidates:
    folder.mkdir(exist_ok=True)
    with SerialEngine() as engine:
        return make_candidates(config, 40, folder, engine, seed)


def test_only_rows_of_data_public_are_read_where_one_file_holds_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: set[int] = set()
    read = Dataset.read

    def watched(self: Dataset, wanted: Any, views: Any = None) -> Any:
        if self.data.format == "digits":
            rows.update(int(row) for row in wanted)
        return read(self, wanted, views)

    monkeypatch.setattr(Dataset, "read", watched)
    candidates_of(load_config(None, QUICK), tmp_path)
    assert rows == set(range(597))


def test_candidates_are_whole_units_with_coins_of_their_own(tmp_path: Path) -> None:
    made = candidates_of(load_config(patients(tmp_path)), tmp_path / "a")
    assert len(made.included) == 100
    assert np.unique(made.unit).tolist() == list(range(100))
    assert np.bincount(made.unit)[-40:].tolist() == [1] * 40
    assert np.bincount(made.unit).max() == 3
    private = made.config.data.private[0]
    assert private.blank is not None
    assert np.load(private.blank).tolist() == (~made.included[made.unit]).tolist()
    assert not np.load(str(made.full_source.blank)).any()
    again, other = (
        candidates_of(load_config(tmp_path / "task.toml"), tmp_path / name, seed)
        for name, seed in (("b", 0), ("c", None))
    )
    assert again.included.tolist() == made.included.tolist()
    assert other.included.tolist() != made.included.tolist()
    assert other.records.inputs.equal(made.records.inputs)  # canaries are public: a function of the config
    kept = made.config
    user = load_config(tmp_path / "task.toml")
    assert (kept.privacy, kept.mechanism, kept.subspace) == (user.privacy, user.mechanism, user.subspace)


def test_what_can_not_be_audited_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, run = patients(tmp_path), tmp_path / "out", Commands(capsys)
    audit = ("audit", path, "--canaries", "40", "--out", out)
    run.distqexp(*audit, *overrides("privacy.adjacency=replace-one")).refused(2, "replace-one", "zero-out")
    run.distqexp("audit", path, "--canaries", "5", "--out", out).refused(2, "--canaries", "20 or more")
    run.distqexp("audit", "--out", out).refused(2, "--canaries N")
    run.distqexp(*audit, "--draws", "2000").refused(2, "--draws")
    run.distqexp("audit", path, "--out", out, *overrides("privacy.epsilon=1")).refused(2, "plan file alone")
    run.distqexp("audit", path, "--canaries", "40", "--out", path).refused(2, "--out", "folder")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    run.distqexp(*audit).refused(2, "2 processes")


def test_without_public_records_there_is_no_audit_of_a_run(tmp_path: Path) -> None:
    tree = table_tree(precision={"kind": "identity"})
    del tree["data"]["public"], tree["model"]["pretrain"]
    tree["data"]["private"]["columns"]["features"] = ["age", "dose", "rate"]
    config = config_from_tree(tree, tmp_path)
    with pytest.raises(UsageError, match=r"data\.public: absent"):
        candidates_of(config, tmp_path / "a")
    with pytest.raises(UsageError, match="20 or more"), SerialEngine() as engine:
        make_candidates(replace(config), 19, tmp_path, engine)
