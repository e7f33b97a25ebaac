"""The states of a run's rounds, from its files: heavy ones are computed again from the public records."""

from __future__ import annotations

from pathlib import Path

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.gradients.worker import Worker
from distqexp.stages.completing import completion


def states_of_run(folder: Path, config: Config | None = None) -> list[RoundState]:
    """Return the states of all rounds of the run in ``folder``; ``config`` says where its public records lie."""
    plan = Plan.read(folder / "plan.h5")
    complete = completion(plan, config, Worker.of_plan(plan))
    states = [plan.state]
    for round in range(plan.config.mechanism.rounds - 1):
        release = Release.read(folder / f"release-{round:03d}.h5", plan)
        state = release.next_state
        if state is None:
            assert complete is not None
            state = complete(states[-1], release)
        assert state is not None
        states.append(state)
    return states
