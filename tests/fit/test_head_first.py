"""Head first, body later: which parameters move in which round, and that the files of such a run follow from one another."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fit_harness import QUICK, seeded_serial_run, settings
from run_harness import Commands
from same_bytes import KRONECKER_PCA, MLP

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import config_from_tree, config_to_tree, load_config
from distqexp.errors import UsageError
from distqexp.gradients.setup import blocks_of, build_network, still_blocks
from tests.support.states import states_of_run

HEAD_FIRST = (
    *QUICK,
    *MLP,
    *KRONECKER_PCA,
    "precision.refresh=4",
    "mechanism.momentum=0.5",
    "mechanism.rounds=4",
    'mechanism.head=["3.*"]',
    "mechanism.head_rounds=2",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds, the head alone in two, whose curvature would otherwise be kept over all of them."""
    return seeded_serial_run(tmp_path_factory.mktemp("head-first"), HEAD_FIRST)


def test_the_body_moves_from_its_round_on(run: Path) -> None:
    plan = Plan.read(run / "plan.h5")
    releases = [Release.read(run / f"release-{r:03d}.h5", plan) for r in range(4)]
    states = states_of_run(run)
    thetas = [plan.state.theta, *(release.theta for release in releases)]
    at, body = 0, {}
    for name, shape in build_network(plan.config).names_shapes:
        body[name] = slice(at, at + int(np.prod(shape)))
        at += int(np.prod(shape))
    assert set(body) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    for round, (before, after) in enumerate(pairwise(thetas)):
        moved = {name: bool((before[part] != after[part]).any()) for name, part in body.items()}
        expected = {name: round >= 2 or name.startswith("3.") for name in body}
        assert moved == expected, round
    rows = [state.precision["row/0000"] for state in states]
    assert [bool(row.any()) for row in rows] == [False, False, True, True]
    # The precision of the head is kept within its rounds and made anew where the body wakes up.
    heads = [state.precision["row/0001"] for state in states]
    assert [np.array_equal(*pair) for pair in pairwise(heads)] == [True, False, True]


def test_the_files_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [run / "plan.h5", *sorted(run.glob("release-*.h5"))]
    assert len(files) == 5
    assert Commands(capsys).done("verify", *files).out.count("every checksum holds") == 5


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (('mechanism.head=["3.*"]',), "together with mechanism.head_rounds above 0"),
        (("mechanism.head_rounds=1",), "together with mechanism.head_rounds above 0"),
        (('mechanism.head=["3.*"]', "mechanism.head_rounds=2"), "0 or more, below mechanism.rounds"),
        (('mechanism.head=["5.*"]', "mechanism.head_rounds=1"), "match no trainable parameter"),
        (('mechanism.head=["*"]', "mechanism.head_rounds=1"), "match every trainable parameter"),
        (('mechanism.head=["3.bias"]', "mechanism.head_rounds=1"), "match one of weight and bias of 3.weight"),
    ],
)
def test_a_head_that_is_none_is_refused_before_anything_is_spent(
    overrides: tuple[str, ...], expected: str, tmp_path: Path, own_ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = settings(*QUICK, *MLP, *KRONECKER_PCA, "mechanism.rounds=2", *overrides)
    outcome = Commands(capsys).fit("--out", tmp_path / "run", *words)
    assert outcome.code == 2
    assert expected in outcome.err
    assert not own_ledger.exists()


def test_still_blocks_follow_the_round(run: Path) -> None:
    plan = Plan.read(run / "plan.h5")
    network = build_network(plan.config)
    blocks = blocks_of(plan.config, network)
    assert blocks is not None
    assert [still_blocks(plan.config, network, blocks, round) for round in range(4)] == [{0}, {0}, set(), set()]
    tree = config_to_tree(plan.config)
    tree["mechanism"]["head"] = ["nothing"]
    with pytest.raises(UsageError, match="match no trainable parameter"):
        still_blocks(config_from_tree(tree), network, blocks, 0)


def test_a_precision_without_blocks_is_refused() -> None:
    tree = config_to_tree(load_config(None))
    tree["mechanism"] |= {"head": ["*weight"], "head_rounds": 1, "rounds": 2}
    tree["precision"]["kind"] = "diagonal"
    with pytest.raises(UsageError, match=r"precision\.kind = kronecker"):
        config_from_tree(tree)
