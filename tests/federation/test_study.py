"""A study has one form and one identity, is signed, keeps what its mode of trust promises, and says so in plain words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from federations import PLAN, identity, make_study

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.keys import Identity
from distqexp.federation.plain_words import in_plain_words
from distqexp.federation.study import Study, Trust, read_study, sign_study

SHARED = {"trust": Trust.SHARED_NOISE, "tolerated": 1, "k_min": 3}
PATH = Path("study.toml")


@pytest.mark.parametrize(
    "study", [make_study(4, 0), make_study(), make_study(5, 3), make_study(5, 4), make_study(**SHARED)]
)
def test_a_study_comes_back_from_its_canonical_form(study: Study) -> None:
    back = Study.parse(PATH, study.to_bytes())
    assert back == study
    assert back.study_id == hashlib.sha256(study.to_bytes()).hexdigest()
    assert back.roster_digest == study.roster_digest


def test_every_change_is_another_study_and_another_spelling_is_refused() -> None:
    study = make_study()
    content = study.to_bytes()
    for changes in (
        {"name": "other"},
        {"k_min": 3},
        {"epsilon": 2.5},
        {"presence": 2},
        {"unit": "stay"},
        {"rounds": 4},
    ):
        assert make_study(**changes).study_id != study.study_id
    assert make_study(5).roster_digest != study.roster_digest
    assert make_study(unit='a "b\\ é').study_id == Study.parse(PATH, make_study(unit='a "b\\ é').to_bytes()).study_id
    for old, new, words in (
        (b"epsilon = 2.0", b"epsilon = 2.00", "canonical"),
        (b"k_min = 2", b"k_min = 0x2", "canonical"),
        (
            b"k_min = 2",
            b"k_min = 9",
            "the study is refused: study sepsis: k_min 9; expected a whole number from 1 to 4",
        ),
        (b'name = "site0"', b'name = "site9"', "not signed by its own key"),
        (b"schema = 1", b"schema = 2", "schema 2"),
        (b"rounds = 3", b"", "it is no study"),
        (b'trust = "helper-masks"', b'trust = "none"', "it is no study"),
        (b"schema = 1", b"schema = 1\nmore = 1", "it is no study"),
        (b"[coordinator]", b"[[[", "it is no study"),
    ):
        assert old in content
        with pytest.raises(FileContentError, match=words):
            Study.parse(PATH, content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a b"}, "expected 1 to 64 letters"),
        ({"plan_id": "12"}, "expected 64 hexadecimal digits"),
        ({"unit": "a\nb"}, "unit"),
        ({"k_min": 5}, "k_min 5; expected a whole number from 1 to 4"),
        ({"k_min": 1}, "a sum of one site hides nothing"),
        ({"rounds": 0}, "rounds 0"),
        ({"presence": 0}, "presence 0"),
        ({"epsilon": 0.0}, "epsilon 0.0"),
        ({"epsilon": float("nan")}, "epsilon nan"),
        ({"delta": 1.0}, "delta 1.0"),
        ({"tolerated": 4}, "tolerated 4; expected a whole number from 0 to 3, fewer than the sites"),
        ({"tolerated": 1}, "expected 0: the coordinator draws the noise"),
        ({"sites": ()}, "no sites"),
        ({"sites": (identity("site0").card,) * 2}, "the same site twice"),
        ({"helpers": (identity("helper0").card,) * 2}, "the same helper twice"),
        ({"helpers": ()}, "0 helpers; expected 2, 3, 4"),
        ({"helpers": (identity("helper0").card,)}, "1 helpers; expected 2, 3, 4"),
        ({"helpers": tuple(identity(f"helper{number}").card for number in range(5))}, "5 helpers; expected 2, 3, 4"),
        ({"trust": Trust.CURATOR}, "2 helpers; expected 0"),
        ({"helpers": (identity("helper0").card, identity("office").card)}, "coordinator and helper"),
        ({"helpers": (identity("helper0").card, Identity.draw("site0").card)}, "share the name site0"),
        ({"helpers": (identity("helper0").card, identity("SITE0").card)}, "share the name site0"),
        ({**SHARED, "tolerated": 0}, "expected 1 or more: every site knows its own share"),
        ({**SHARED, "k_min": 2}, "expected 3 or more: fewer have too little noise"),
        ({**SHARED, "delta": 0.0}, "expected more than 0"),
    ],
)  # fmt: skip
def test_a_study_that_does_not_hold_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_study(**changes)


def test_one_key_under_two_names_is_refused() -> None:
    twin = Identity("twin", identity("site0")._signing, identity("helper0").agreement).card
    with pytest.raises(UsageError, match="share the key"):
        make_study(helpers=(identity("helper1").card, twin))


def test_a_site_may_be_a_helper_and_the_coordinator_a_site() -> None:
    study = make_study(
        coordinator=identity("site1").card,
        helpers=(identity("helper0").card, identity("site0").card),
        trust=Trust.MASKS,
    )
    assert list(study.roster) == ["site1", "site0", "site2", "site3", "helper0"]
    words = in_plain_words(study)
    assert any("site1 is the coordinator and a site" in line for line in words)
    assert "A helper and a site at once: site0." in words


def test_a_study_is_signed_by_its_coordinator_alone(tmp_path: Path) -> None:
    study = make_study()
    path, _ = sign_study(study, identity("office"), tmp_path)
    assert read_study(path, identity("office").card) == study
    with pytest.raises(UsageError, match="signed by site0; expected its coordinator office"):
        sign_study(study, identity("site0"), tmp_path)
    with pytest.raises(FileContentError, match="its signature is not that of office"):
        read_study(path, Identity.draw("office").card)
    with pytest.raises(FileContentError, match="the card given is site0's, and the study's coordinator is office;"):
        read_study(path, identity("site0").card)
    usurper = Identity("office", identity("office")._signing, identity("site9").agreement)
    forged, _ = sign_study(make_study(coordinator=usurper.card), usurper, tmp_path)
    with pytest.raises(FileContentError, match="agreement key"):
        read_study(forged, identity("office").card)


def test_no_message_falls_back_to_another_mode_of_trust() -> None:
    """A study with masks knows no bare sketch, one without no masks, and a seed goes to a helper alone."""
    masks, curator = make_study(), make_study(4, 0)
    for study, kinds in ((masks, ["sketch"]), (curator, ["masked", "seed", "answer"])):
        for kind in kinds:
            for make in (study.expects, study.envelope):
                with pytest.raises(UsageError, match="expected none: the study fixes its mode"):
                    make(kind)
    for recipient in (None, "site0", "office"):
        with pytest.raises(UsageError, match="expected helper0 or helper1"):
            masks.envelope("seed", recipient=recipient)
    with pytest.raises(UsageError, match="a masked for helper0; expected office"):
        masks.expects("masked", recipient="helper0")
    sketch = curator.expects("sketch", round=1)
    assert (sketch.recipient, sketch.senders, sketch.round) == ("office", curator.site_names, 1)
    assert masks.envelope("release", (2, 0)).recipient is None


def test_the_words_say_who_could_learn_what() -> None:
    curator, two, three, four = (in_plain_words(make_study(4, helpers)) for helpers in (0, 2, 3, 4))
    shared = in_plain_words(make_study(**SHARED))

    def has(lines: list[str], *parts: str) -> bool:
        return any(all(part in line for part in parts) for line in lines)

    for lines in (curator, two, three, four, shared):
        assert has(lines, "epsilon 2.0, delta 1e-05")
        assert has(lines, "No record leaves a site")
        assert has(lines, "site learns the releases")
        assert all("\n" not in line for line in lines)
    assert has(curator, "coordinator learns the exact sums of every site")
    assert has(two, "coordinator alone learns the exact sum over all listed sites, and nothing else")
    assert has(two, "helper0 alone", "nothing of any sum")
    assert has(two, "all helpers together (helper0 and helper1)", "each site's exact sums")
    assert has(two, "all helpers but one learn the exact sum", "one honest helper is enough")
    assert has(two, "all listed sites but one", "by subtraction")
    for lines in (three, four):
        assert has(lines, "all helpers but one could learn each site's exact sums")
    assert has(three, "any 2 of 3 helpers suffice")
    assert has(three, "coordinator and 1 helper learn", "two sums", "nothing prevents it")
    assert has(four, "any 3 of 4 helpers suffice")
    assert has(four, "coordinator and 1 helper learn the exact sum over all listed sites, no more")
    assert has(four, "coordinator and 2 helpers learn", "two sums", "nothing prevents it")
    assert not has(two, "two sums")
    assert has(shared, "coordinator alone learns the noisy sum, which is released anyway")
    assert has(shared, "share of the noise alone")
    assert has(shared, "missing and colluding sites are at most 1 together")
    assert PLAN[:16] in two[0]
