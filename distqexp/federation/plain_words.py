"""A study in plain words: what is computed, what leaves a site, and what each party, alone or with others, could learn."""

from __future__ import annotations

from collections.abc import Sequence

from distqexp.federation.quorum import quorum, withstood
from distqexp.federation.study import Study, Trust
from distqexp.kinds import Adjacency

_NEIGHBOURS = {
    Adjacency.ZERO_OUT: "contributes or counts as blank",
    Adjacency.ADD_REMOVE: "is there or not",
    Adjacency.REPLACE_ONE: "is there or is another",
}


def in_plain_words(study: Study) -> list[str]:
    """Return the study in lines for the people who decide whether a site takes part."""
    return [*_computed(study), *_leaving(study), *_learnt(study), *_coalitions(study)]


def _computed(study: Study) -> list[str]:
    sites, unit = len(study.sites), study.unit
    which = f"all {sites}" if study.k_min == sites else f"{study.k_min} to {sites}"
    lines = [
        f"Study {study.name} ({study.study_id[:16]}), coordinated by {study.coordinator.name}, under plan {study.plan_id[:16]}, "
        f"which fine-tunes the model with SHA-256 {study.model[:16]}.",
        f"Computed: one model, in {_times(study.rounds, 'round')}. In each round the sums of clipped gradients of {which} sites are "
        "added up, noise is added, and the noisy sum is released to everybody.",
        f"Guarantee: what is released is about as likely whether or not any one {unit!r} {_NEIGHBOURS[study.adjacency]} (epsilon "
        f"{study.epsilon}, delta {study.delta}, all rounds together).",
        f"A {unit!r} may be at {_times(study.presence, 'site')}; at more sites it is protected less, and no one can see that.",
        f"Sites: {', '.join(study.site_names)}.",
    ]
    if study.helpers:
        lines.append(f"Helpers: {', '.join(study.helper_names)}.")
    if study.coordinator.name in study.site_names:
        known = "what it contributed itself"
        if study.trust is Trust.SHARED_NOISE:
            known += ", its share of the noise too, so it counts as one site that colludes"
        lines.append(f"{study.coordinator.name} is the coordinator and a site: it knows {known}.")
    if both := [name for name in study.helper_names if name in study.site_names]:
        lines.append(f"A helper and a site at once: {', '.join(both)}.")
    return lines


def _leaving(study: Study) -> list[str]:
    lines = [
        "No record leaves a site. In each round one vector of whole numbers does: the sum over the site's records."
    ]
    if study.trust is Trust.CURATOR:
        return [
            *lines,
            "It goes to the coordinator as it is, sealed so that the coordinator alone can open it: it is as sensitive as the records.",
        ]
    if study.trust is Trust.SHARED_NOISE:
        lines.append(
            f"Before it leaves, the site adds a share of the noise: large enough that any {len(study.sites) - study.tolerated} "
            "sites have the whole noise together."
        )
    return [
        *lines,
        "It is masked: random numbers are added that only the helpers can take off again, and only from the sum of at least "
        f"{study.k_min} sites.",
        "Each helper gets a fresh key of 32 bytes for the masks of the round, sealed, and never the vector.",
        "What goes to the coordinator or a helper is sealed, so that nobody else can open it.",
    ]


def _learnt(study: Study) -> list[str]:
    lines = [
        "A site learns the releases and its own records, and nothing else of the other sites' records.",
        "Whoever reads the exchanged files learns the releases and who took part.",
    ]
    if study.trust is Trust.CURATOR:
        return [*lines, "The coordinator learns the exact sums of every site: it has to be trusted with the records."]
    lines.append(f"From one round the coordinator alone learns {_whole(study)}, and nothing else of any site.")
    lines += [
        f"{name} alone, as a helper, learns which sites took part in which round, and nothing of any sum."
        for name in study.helper_names
    ]
    return lines


def _whole(study: Study) -> str:
    masks = study.trust is Trust.MASKS
    return "the exact sum over all listed sites" if masks else "the noisy sum, which is released anyway"


def _coalitions(study: Study) -> list[str]:
    if study.trust is Trust.CURATOR:
        return ["There are no helpers: nothing stands between the coordinator and a site's sums."]
    single = (
        "each site's exact sums"
        if study.trust is Trust.MASKS
        else "each site's sums with that site's share of the noise alone"
    )
    count = len(study.helpers)
    enough, honest = quorum(count), withstood(count)
    whole = "the exact sum over all listed sites" if study.trust is Trust.MASKS else "the noisy sum"
    lines = [f"The coordinator and all helpers together ({_list(study.helper_names)}) could learn {single}."]
    if count == 2:
        lines.append(f"The coordinator and all helpers but one learn {whole}, no more: one honest helper is enough.")
    else:
        lines.append(
            f"The coordinator and all helpers but one could learn {single}, too: any {enough} of {count} helpers suffice to take "
            "masks off, so that one may be missing."
        )
    if count > 2 and honest:
        lines.append(f"The coordinator and {_times(honest, 'helper')} learn {whole}, no more.")
    if honest + 1 < enough:
        lines.append(
            f"The coordinator and {_times(honest + 1, 'helper')} learn {whole}; but if the coordinator shows the other helpers lists "
            "that differ, it learns two sums, and from their difference perhaps what a single site sent. The helpers' logs show that "
            "afterwards; nothing prevents it."
        )
    if study.trust is Trust.MASKS:
        lines.append(
            "The coordinator and all listed sites but one learn that site's exact sums, by subtraction: no mask prevents that."
        )
    else:
        lines.append(
            f"The guarantee holds as long as missing and colluding sites are at most {study.tolerated} together: colluding sites "
            "can subtract their own shares of the noise."
        )
    if study.trust is Trust.MASKS:
        lines.append(
            "Two sums with and without a site tell the coordinator about that site: the sums of two rounds with different lists "
            "roughly, as rounds are alike, and exactly where nothing moved between them, or where a second study over the same records "
            "differs in nothing that matters. No mask prevents that; noise in shares does."
        )
    lines.append(
        "Masks hide and do not check: a site that sends wrong numbers is not found out, nor one of two helpers that answers wrong ones."
    )
    return lines


def all_released(study: Study) -> str:
    """Say that no round is left."""
    return f"all {study.rounds} rounds are released" if study.rounds > 1 else "its one round is released"


def _times(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _list(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
