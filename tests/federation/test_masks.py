"""Masks: sums are exact, what anybody holds of one site without its helpers is uniform, and lists that differ give nothing away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from federations import identity, make_study, uniform, vectors
from numpy.typing import NDArray

from distqexp.errors import FileContentError, UsageError
from distqexp.federation import masks
from distqexp.federation.masks import MaskContext, fresh_seeds, masked, stream_sums, unmasked
from distqexp.federation.sealing import SEALED_BYTES, seal, unseal

SIZE = 20_000
TWO, THREE = (MaskContext.of(make_study(4, helpers), 1, 0) for helpers in (2, 3))
SITES = make_study().site_names
PATH = Path("seed.message")


def seeds_of(context: MaskContext, site: str) -> dict[str, bytes]:
    """Seeds that are the same in every run of the tests."""
    return {helper: f"{site}/{helper}".encode().ljust(32, b".") for helper in context.helpers}


def oracle_stream(seed: bytes, context: MaskContext, site: str, helper: str, pair: Sequence[str]) -> NDArray[np.uint64]:
    """The stream in one piece, straight from its definition."""
    key = HKDF(hashes.SHA256(), 32, salt=None, info=context.label("mask", site, helper, *pair)).derive(seed)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * SIZE))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def test_a_masked_vector_is_the_vector_plus_the_streams_of_both_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = vectors(1, SIZE)[0]
    seeds = seeds_of(THREE, "site0")
    wanted = [
        vector.view(np.uint64) + sum(oracle_stream(seeds[helper], THREE, "site0", helper, pair) for helper in pair)
        for pair in THREE.pairs
    ]
    found = masked(vector, seeds, THREE, "site0")
    assert np.array_equal(found, wanted)
    monkeypatch.setattr(masks, "_BLOCK", 777)
    assert np.array_equal(masked(vector, seeds, THREE, "site0"), found), "blocks change nothing"


@pytest.mark.parametrize("context", [TWO, THREE])
def test_sums_are_exact_and_any_two_helpers_suffice(context: MaskContext) -> None:
    values = vectors(4, 1000)
    for listed in ([0, 1, 2, 3], [1, 3]):
        names = [SITES[number] for number in listed]
        total = sum(
            masked(values[number], seeds_of(context, SITES[number]), context, SITES[number]) for number in listed
        )
        answers = {
            helper: stream_sums({name: seeds_of(context, name)[helper] for name in names}, context, helper, 1000)
            for helper in context.helpers
        }
        with np.errstate(over="ignore"):
            plain = values[listed].sum(axis=0)
        subsets = [*combinations(context.helpers, 2), context.helpers]
        for some in subsets:
            assert np.array_equal(unmasked(total, {helper: answers[helper] for helper in some}, context), plain)
        for few in ((), context.helpers[:1]):
            with pytest.raises(FileContentError, match="expected those of two helpers"):
                unmasked(total, {helper: answers[helper] for helper in few}, context)
        if len(context.helpers) == 3:
            answers["helper1"] = answers["helper1"] + np.uint64(1)
            with pytest.raises(FileContentError, match="the pairs of helpers give different sums"):
                unmasked(total, answers, context)


@pytest.mark.parametrize("context", [TWO, THREE])
@pytest.mark.parametrize("value", [0, 1, -1, 2**62])
def test_what_the_coordinator_holds_of_a_site_is_uniform(context: MaskContext, value: int) -> None:
    vector = np.full(SIZE, value, dtype=np.int64)
    assert not uniform(vector.view(np.uint64)), "the test can fail"
    for row in masked(vector, seeds_of(context, "site0"), context, "site0"):
        assert uniform(row)


def known_streams(context: MaskContext, site: str, helpers: Iterable[str]) -> NDArray[np.uint64]:
    """What these helpers' seeds tell of a site's masks, a row for each pair."""
    rows = np.zeros((len(context.pairs), SIZE), dtype=np.uint64)
    for helper in helpers:
        own = stream_sums({site: seeds_of(context, site)[helper]}, context, helper, SIZE)
        for pair, row in zip(context.pairs_of(helper), own, strict=True):
            rows[context.pairs.index(pair)] += row
    return rows


@pytest.mark.parametrize(
    ("context", "colluding"), [(TWO, ["helper0"]), (TWO, ["helper1"]), (THREE, ["helper0"]), (THREE, ["helper2"])]
)
def test_the_coordinator_with_one_helper_still_holds_uniform_numbers(
    context: MaskContext, colluding: list[str]
) -> None:
    """All seeds of one helper are known, those of the others are not: every row is still uniform, and so are differences."""
    vector = np.zeros(SIZE, dtype=np.int64)
    left = masked(vector, seeds_of(context, "site0"), context, "site0") - known_streams(context, "site0", colluding)
    for row in left:
        assert uniform(row)
    for first, second in combinations(left, 2):
        assert uniform(first - second)
    other = masked(vector, seeds_of(context, "site1"), context, "site1") - known_streams(context, "site1", colluding)
    assert uniform((left - other)[0]), "nor do two sites' masks cancel"


@pytest.mark.parametrize(("context", "colluding"), [(TWO, ["helper0", "helper1"]), (THREE, ["helper0", "helper2"])])
def test_the_coordinator_with_two_helpers_learns_a_site(context: MaskContext, colluding: list[str]) -> None:
    """This is what the study says in plain words; with three helpers, two of them are enough."""
    vector = vectors(1, SIZE)[0]
    left = masked(vector, seeds_of(context, "site0"), context, "site0") - known_streams(context, "site0", colluding)
    assert [np.array_equal(row.view(np.int64), vector) for row in left].count(True) == 1


def test_seeds_under_another_context_unmask_nothing() -> None:
    """Another round, attempt, plan, roster, study or site: no stream is used twice."""
    vector = np.zeros(SIZE, dtype=np.int64)
    seeds = seeds_of(TWO, "site0")
    rows = masked(vector, seeds, TWO, "site0")
    changes = ({"round": 2}, {"attempt": 1}, {"plan_id": "8" * 64}, {"roster": "7" * 64}, {"study": "6" * 64})
    for context in [dataclasses.replace(TWO, **change) for change in changes]:
        assert uniform(rows[0] - masked(vector, seeds, context, "site0")[0])
    assert uniform(rows[0] - masked(vector, seeds, TWO, "site1")[0])
    assert uniform(rows[0] - masked(vector, dict(zip(seeds, reversed(seeds.values()), strict=True)), TWO, "site0")[0])


def test_fresh_seeds_are_fresh() -> None:
    drawn = [seed for _ in range(50) for seed in fresh_seeds(THREE).values()]
    assert len(set(drawn)) == 150
    assert {len(seed) for seed in drawn} == {32}


def kernel_of_streams(rows: list[tuple[frozenset[object], frozenset[str]]]) -> list[frozenset[str]]:
    """What can be computed modulo 2 from rows (streams, sites) without any stream left: the sets of sites, one a dimension.

    If there is none, the streams' parts of the rows are independent modulo 2, so modulo 2^64 as well, and the rows are uniform.
    """
    pivots: dict[object, tuple[frozenset[object], frozenset[str]]] = {}
    found = []
    for streams, sites in rows:
        while streams and (pivot := min(streams, key=str)) in pivots:
            streams, sites = streams ^ pivots[pivot][0], sites ^ pivots[pivot][1]
        if streams:
            pivots[min(streams, key=str)] = streams, sites
        else:
            found.append(sites)
    return found


def view(context: MaskContext, lists: Sequence[Iterable[str]], *, by_pair: bool) -> list[frozenset[str]]:
    """What a coordinator learns that shows each helper a list of its own. Without ``by_pair``, helpers share a seed of each pair."""
    rows: list[tuple[frozenset[object], frozenset[str]]] = []
    for site in SITES:
        if by_pair:
            rows += [(frozenset((site, pair, helper) for helper in pair), frozenset([site])) for pair in context.pairs]
        else:
            rows.append((frozenset((site, pair) for pair in context.pairs), frozenset([site])))
    for helper, listed in zip(context.helpers, lists, strict=True):
        for pair in context.pairs_of(helper):
            streams = frozenset((site, pair, helper) if by_pair else (site, pair) for site in listed)
            rows.append((streams, frozenset()))
    return kernel_of_streams(rows)


@pytest.mark.parametrize("context", [TWO, THREE])
def test_lists_that_differ_give_nothing_away_and_one_list_gives_its_sum_alone(context: MaskContext) -> None:
    """Every choice of a list of two or more of four sites for each helper. Each helper answers one list."""
    lists = [frozenset(some) for size in (2, 3, 4) for some in combinations(SITES, size)]
    helpers = len(context.helpers)
    for first in lists:
        for second in lists:
            for third in lists if helpers == 3 else [first]:
                chosen = [first, second, third][:helpers]
                shared = [some for some in set(chosen) if chosen.count(some) > 1]
                assert set(view(context, chosen, by_pair=True)) == set(shared), chosen


def test_one_seed_for_each_pair_of_helpers_would_give_parts_of_a_list_away() -> None:
    """The simpler replication, with shared streams: a coordinator that shows two halves and the whole learns each half's sum."""
    halves = frozenset(SITES[:2]), frozenset(SITES[2:])
    found = view(THREE, [*halves, frozenset(SITES)], by_pair=False)
    assert {frozenset(SITES[:2]), frozenset(SITES[2:])} <= set(found) | {found[0] ^ found[1]}
    assert view(THREE, [*halves, frozenset(SITES)], by_pair=True) == []


def test_only_the_right_helper_opens_a_seed_and_only_in_its_context() -> None:
    seed, helper = seeds_of(TWO, "site0")["helper0"], identity("helper0")
    sealed = seal(seed, helper.card, TWO, "site0")
    assert len(sealed) == SEALED_BYTES
    assert unseal(PATH, sealed, helper, TWO, "site0") == seed
    assert seal(seed, helper.card, TWO, "site0") != sealed
    later = dataclasses.replace(TWO, round=2)
    other_roster = dataclasses.replace(TWO, roster="7" * 64)
    for args in (
        (sealed, identity("helper1"), TWO, "site0"),
        (sealed, helper, later, "site0"),
        (sealed, helper, other_roster, "site0"),
        (sealed, helper, TWO, "site1"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), helper, TWO, "site0"),
        (bytes(32) + sealed[32:], helper, TWO, "site0"),
        (sealed[:40], helper, TWO, "site0"),
        (b"", helper, TWO, "site0"),
    ):
        with pytest.raises(FileContentError, match=r"can't be opened; expected one sealed to helper\d for round \d"):
            unseal(PATH, *args)


def test_contexts_and_vectors_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="expected one with masks"):
        MaskContext.of(make_study(4, 0), 0, 0)
    with pytest.raises(UsageError, match="round 3; expected 0 to 2"):
        MaskContext.of(make_study(), 3, 0)
    for vector in (np.zeros(3), np.zeros((2, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)):
        with pytest.raises(UsageError, match="expected int64"):
            masked(vector, seeds_of(TWO, "site0"), TWO, "site0")  # type: ignore[arg-type]
