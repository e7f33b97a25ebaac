"""Masks: sums are exact, what anybody holds of one site without its helpers is uniform, and lists that differ give nothing away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from federations import make_study, uniform, vectors
from numpy.typing import NDArray

from distqexp.errors import FileContentError, UsageError
from distqexp.federation import masks
from distqexp.federation.masks import MaskContext, fresh_seeds, masked, stream_sums, unmasked
from distqexp.federation.quorum import withstood

SIZE = 20_000
TWO, THREE, FOUR = (MaskContext.of(make_study(4, helpers), 1, 0) for helpers in (2, 3, 4))
SITES = make_study().site_names
PATH = Path("seed.message")


def seeds_of(context: MaskContext, site: str) -> dict[str, bytes]:
    """Seeds that are the same in every run of the tests."""
    return {helper: f"{site}/{helper}".encode().ljust(32, b".") for helper in context.helpers}


def oracle_stream(
    seed: bytes, context: MaskContext, site: str, helper: str, group: Sequence[str]
) -> NDArray[np.uint64]:
    """The stream in one piece, straight from its definition."""
    key = HKDF(hashes.SHA256(), 32, salt=None, info=context.label("mask", site, helper, *group)).derive(seed)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * SIZE))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def test_a_masked_vector_is_the_vector_plus_the_streams_of_a_group_of_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = vectors(1, SIZE)[0]
    seeds = seeds_of(THREE, "site0")
    wanted = [
        vector.view(np.uint64) + sum(oracle_stream(seeds[helper], THREE, "site0", helper, group) for helper in group)
        for group in THREE.groups
    ]
    found = masked(vector, seeds, THREE, "site0")
    assert np.array_equal(found, wanted)
    monkeypatch.setattr(masks, "_BLOCK", 777)
    assert np.array_equal(masked(vector, seeds, THREE, "site0"), found), "blocks change nothing"


@pytest.mark.parametrize("context", [TWO, THREE, FOUR])
def test_sums_are_exact_and_any_quorum_of_helpers_suffices(context: MaskContext) -> None:
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
        enough = {2: 2, 3: 2, 4: 3}[len(context.helpers)]
        subsets = [*combinations(context.helpers, enough), context.helpers]
        for some in subsets:
            assert np.array_equal(unmasked(total, {helper: answers[helper] for helper in some}, context), plain)
        for few in ((), context.helpers[: enough - 1]):
            with pytest.raises(FileContentError, match=f"expected those of {enough} helpers"):
                unmasked(total, {helper: answers[helper] for helper in few}, context)
        if len(context.helpers) > 2:
            answers["helper1"] = answers["helper1"] + np.uint64(1)
            with pytest.raises(FileContentError, match="the groups of helpers give different sums"):
                unmasked(total, answers, context)


@pytest.mark.parametrize("context", [TWO, THREE, FOUR])
@pytest.mark.parametrize("value", [0, 1, -1, 2**62])
def test_what_the_coordinator_holds_of_a_site_is_uniform(context: MaskContext, value: int) -> None:
    vector = np.full(SIZE, value, dtype=np.int64)
    assert not uniform(vector.view(np.uint64)), "the test can fail"
    for row in masked(vector, seeds_of(context, "site0"), context, "site0"):
        assert uniform(row)


def known_streams(context: MaskContext, site: str, helpers: Iterable[str]) -> NDArray[np.uint64]:
    """What these helpers' seeds tell of a site's masks, a row for each group."""
    rows = np.zeros((len(context.groups), SIZE), dtype=np.uint64)
    for helper in helpers:
        own = stream_sums({site: seeds_of(context, site)[helper]}, context, helper, SIZE)
        for group, row in zip(context.groups_of(helper), own, strict=True):
            rows[context.groups.index(group)] += row
    return rows


@pytest.mark.parametrize(
    ("context", "colluding"),
    [
        (TWO, ["helper0"]),
        (TWO, ["helper1"]),
        (THREE, ["helper0"]),
        (THREE, ["helper2"]),
        (FOUR, ["helper0", "helper3"]),
    ],
)
def test_the_coordinator_with_fewer_helpers_than_a_quorum_holds_uniform_numbers(
    context: MaskContext, colluding: list[str]
) -> None:
    """All seeds of some helpers are known, those of the others are not: every row is still uniform, and so are differences."""
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


def view(context: MaskContext, lists: Sequence[Iterable[str]], colluding: Sequence[str] = ()) -> set[frozenset[str]]:
    """The sums that a coordinator learns that shows each helper a list of its own, and has the seeds of the colluding ones."""
    rows: list[tuple[frozenset[object], frozenset[str]]] = []

    def unknown(site: str, group: Sequence[str], helpers: Iterable[str]) -> set[object]:
        return {(site, group, helper) for helper in helpers if helper not in colluding}

    for site in SITES:
        rows += [(frozenset(unknown(site, group, group)), frozenset([site])) for group in context.groups]
    for helper, listed in zip(context.helpers, lists, strict=True):
        for group in context.groups_of(helper):
            rows.append((frozenset().union(*(unknown(site, group, [helper]) for site in listed)), frozenset()))
    return {sites for sites in kernel_of_streams(rows) if sites}


LISTS = [frozenset(some) for size in (2, 3, 4) for some in combinations(SITES, size)]
WHOLE, HALF, REST = frozenset(SITES), frozenset(SITES[:2]), frozenset(SITES[2:])


@pytest.mark.parametrize(
    ("context", "colluding"),
    [(TWO, []), (TWO, ["helper0"]), (THREE, []), (FOUR, []), (FOUR, ["helper0"]), (FOUR, ["helper3"])],
)
def test_lists_that_differ_give_one_sum_at_most(context: MaskContext, colluding: list[str]) -> None:
    """Every choice of a list of two or more of four sites for each honest helper; with four helpers, of five lists."""
    honest = [helper for helper in context.helpers if helper not in colluding]
    assert len(colluding) <= withstood(len(context.helpers))
    for chosen in product(LISTS if len(honest) < 4 else [WHOLE, HALF, REST, *LISTS[6:8]], repeat=len(honest)):
        shown = dict(zip(honest, chosen, strict=True))
        learnt = {
            shown[group_honest[0]]
            for group in context.groups
            if (group_honest := [helper for helper in group if helper in honest])
            and len({shown[helper] for helper in group_honest}) == 1
        }
        assert view(context, [shown.get(helper, WHOLE) for helper in context.helpers], colluding) == learnt
        assert len(learnt) <= 1


@pytest.mark.parametrize(("context", "colluding"), [(THREE, ["helper0"]), (FOUR, ["helper0", "helper1"])])
def test_more_colluding_helpers_than_are_withstood_may_give_two_sums(
    context: MaskContext, colluding: list[str]
) -> None:
    """This is what the study says in plain words: a quorum of three lists has no honest helper in common with the other."""
    assert len(colluding) == withstood(len(context.helpers)) + 1
    lists = [WHOLE] * len(context.helpers)
    lists[-1] = frozenset(SITES[1:])
    assert view(context, lists, colluding) == {WHOLE, frozenset(SITES[1:])}, "the difference is site0"


def test_one_seed_for_each_pair_of_helpers_would_give_parts_of_a_list_away() -> None:
    """The simpler replication, with streams that two of three helpers share: two halves and the whole give each half's sum."""
    rows: list[tuple[frozenset[object], frozenset[str]]] = [
        (frozenset((site, pair) for pair in THREE.groups), frozenset([site])) for site in SITES
    ]
    for helper, listed in zip(THREE.helpers, (HALF, REST, WHOLE), strict=True):
        rows += [(frozenset((site, pair) for site in listed), frozenset()) for pair in THREE.groups_of(helper)]
    found = {sites for sites in kernel_of_streams(rows) if sites}
    assert len(found) == 2
    assert found <= {HALF, REST, WHOLE}
    assert view(THREE, [HALF, REST, WHOLE]) == set()


def test_contexts_and_vectors_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="expected one with masks"):
        MaskContext.of(make_study(4, 0), 0, 0)
    with pytest.raises(UsageError, match="round 3; expected 0 to 2"):
        MaskContext.of(make_study(), 3, 0)
    for vector in (np.zeros(3), np.zeros((2, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)):
        with pytest.raises(UsageError, match="expected int64"):
            masked(vector, seeds_of(TWO, "site0"), TWO, "site0")  # type: ignore[arg-type]
