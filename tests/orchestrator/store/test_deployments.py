"""Going back to what was live, and putting a policy live by hand: rows with who and why, all parts together."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.errors import ArtifactError, CycleError
from orchestrator.store.acts import Actor, Unsaid
from orchestrator.store.deployments import (
    Candidacy,
    live_deployment,
    preference_model_of,
    put_live,
    to_promote,
    to_roll_back_to,
)
from orchestrator.store.live import deployments, live_now, live_said, loop_state, to_markdown, to_text
from tests.running import add_artifact, add_cycle, deploy

ADA = Actor("Ada", "proven", "desk")


@pytest.fixture
def weeks(session: Session) -> list[t.Artifact]:
    """The initial policy and two snapshots, live one after the other, each with a [serving] section of its own."""
    made = []
    for number in range(3):
        policy = add_artifact(session, f"week {number}", kind="snapshot" if number else "initial_policy")
        if number:
            model = add_artifact(session, f"model {number}", kind="preference_model")
            session.add(t.LineageEdge(child_id=policy.id, role="preference_model", parent_id=model.id))
            session.flush()
        deploy(session, policy, add_cycle(session, number, temperature=1 + number))
        made.append(policy)
    return made


def go(session: Session, chosen: Candidacy, why: str = "it shouts", *, by_hand: bool = False) -> str:
    put_live(session, chosen, ADA, why, "by_hand" if by_hand else "roll_back")
    live = live_deployment(session)
    assert live is not None
    return live.digest


def test_a_roll_back_takes_policy_preference_model_and_serving_back(session: Session, weeks: list[t.Artifact]) -> None:
    before = deployments(session, 3)[1]
    assert go(session, to_roll_back_to(session)) == weeks[1].digest
    live, serving = live_now(session), live_deployment(session)
    assert live is not None
    assert serving is not None
    assert (live.digest, live.cycle, live.preference_model) == (before.digest, 1, before.preference_model)
    assert live.preference_model is not None
    assert serving.serving == {"temperature": 2}
    assert (live.decision, live.why, live.decided) == (
        "roll_back", "rolled back: it shouts", "Ada (proven by a token)",
    )  # fmt: skip
    assert [one.until is None for one in deployments(session, 9)] == [True, False, False, False]
    decision = session.get_one(t.Decision, session.get_one(t.Deployment, live.deployment_id).decision_id)
    # The cycle's own decision is not this one.
    assert (decision.cycle_id, decision.decision) == (None, "promote")


def test_going_back_twice_goes_back_two_and_then_no_further(session: Session, weeks: list[t.Artifact]) -> None:
    assert go(session, to_roll_back_to(session)) == weeks[1].digest
    assert go(session, to_roll_back_to(session)) == weeks[0].digest
    with pytest.raises(CycleError, match="Nothing was live before this policy"):
        to_roll_back_to(session)
    assert go(session, to_promote(session, weeks[2].digest), by_hand=True) == weeks[2].digest
    # Before what was put live by hand was the initial policy, for the second time.
    assert to_roll_back_to(session).digest == weeks[0].digest


def test_one_can_name_the_policy_or_the_cycle_to_go_back_to(session: Session, weeks: list[t.Artifact]) -> None:
    assert to_roll_back_to(session, cycle=0).digest == weeks[0].digest
    assert to_roll_back_to(session, weeks[1].digest[7:15]).digest == weeks[1].digest
    with pytest.raises(CycleError, match="is live already"):
        to_roll_back_to(session, cycle=2)
    with pytest.raises(CycleError, match="What cycle 7 made was never live"):
        to_roll_back_to(session, cycle=7)
    other = add_artifact(session, "never live")
    with pytest.raises(CycleError, match="was never live"):
        to_roll_back_to(session, other.digest)
    with pytest.raises(ArtifactError, match="of kind preference_model"):
        to_promote(session, f"artifact:{preference_model_of(session, weeks[1].id)}")


def test_what_never_was_live_is_promoted_with_its_own_preference_model(
    session: Session, weeks: list[t.Artifact]
) -> None:
    kept = add_artifact(session, "kept on the way")
    session.add(t.LineageEdge(child_id=kept.id, role="run", parent_id=weeks[1].id))
    session.flush()
    chosen = to_promote(session, kept.digest)
    assert (chosen.digest, chosen.deployment_id) == (kept.digest, None)
    # Of the run that kept it.
    assert chosen.preference_model_id == preference_model_of(session, weeks[1].id) is not None
    put_live(session, chosen, ADA, "milder", "by_hand")
    live = live_now(session)
    assert live is not None
    assert (live.decision, live.why) == ("by_hand", "put live by hand: milder")


def test_of_two_roll_backs_at_once_the_second_changes_nothing(session: Session, weeks: list[t.Artifact]) -> None:
    first, second = to_roll_back_to(session), to_roll_back_to(session)
    assert go(session, first) == weeks[1].digest
    with pytest.raises(CycleError, match="Something else has gone live meanwhile"):
        go(session, second)
    with pytest.raises(Unsaid):
        go(session, to_roll_back_to(session), "  ")


def test_before_anything_is_live_there_is_nothing_to_go_back_from(session: Session) -> None:
    with pytest.raises(CycleError, match="Nothing is live yet"):
        to_roll_back_to(session)
    assert live_said(loop_state(session))[0][1].startswith("nothing yet")
    assert "nothing yet" in to_text(loop_state(session))


def test_everybody_words_what_is_live_alike(session: Session, weeks: list[t.Artifact]) -> None:
    state = loop_state(session)
    model = session.get_one(t.Artifact, preference_model_of(session, weeks[2].id)).digest[:19]
    assert dict(live_said(state)) == {
        "Live": f"{weeks[2].digest[:19]} (snapshot, cycle 2), 100% of requests",
        "Since": dict(live_said(state))["Since"],
        "Why": "every gate passed",
        "Decided by": "test",
        "Preference model": model,
    }
    for said in (to_text(state), to_markdown(state)):
        assert f"{weeks[2].digest[:19]} (snapshot, cycle 2)" in said
        assert model in said
    assert state.to_json()["live"]["digest"] == weeks[2].digest
