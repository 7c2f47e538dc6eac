"""A small world for the desk: raters who compared, contestants, queues, groups and notices. For tests and pictures."""

from __future__ import annotations

from datetime import timedelta

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Accuracy
from orchestrator.conversations import contestants, pairings
from orchestrator.people import access, instruction_versions, notices, queues
from orchestrator.people.operators import ADMIN
from orchestrator.people.raters import create_rater
from orchestrator.store import approvals, deployments
from tests.orchestrator.published_results import held_out_report, preference_model_results
from tests.orchestrator.web.rating import ask, ok, pair_of
from tests.running import add_artifact

DESK = {
    "raters": "/desk",
    "live": "/desk/live",
    "rater": "/desk/raters/1",
    "touched": "/desk/raters/1/touched",
    "erasure": "/desk/raters/1/erase",
    "dialogue": "/desk/dialogues/1",
    "invitations": "/desk/invitations",
    "studies": "/desk/studies",
    "instructions": "/desk/instructions",
    "instructions-read": "/desk/instructions/helpful/helpful-2",
    "instructions-written": "/desk/instructions/helpful/helpful-2/edit",
    "work": "/desk/work",
    "pairings": "/desk/pairings",
    "notices": "/desk/notices",
    "elo": "/desk/elo",
    "cycles": "/desk/cycles",
}


def set_scene(session: Session) -> str:
    """Contestants, queues, groups and notices, and what the desk would find after a while; gives a writer's session."""
    initial = add_artifact(session, "initial", kind="initial_policy")
    live = session.scalars(select(t.Artifact).where(t.Artifact.kind == "snapshot")).one()
    results = preference_model_results(held_out_report(by_rater=AGREEMENT))
    judge = add_artifact(session, "judge", kind="preference_model", results=results)
    queues.add_group(session, "writers")
    wil, _ = create_rater(session, "wil")
    queues.join_group(session, "writers", "wil")
    best = contestants.add_best_of(session, "best of 16", live.digest, judge.digest, 16)
    contestants.add_endpoint(session, "big model", "https://models.example/v1", "big-1", "BIG_MODEL_KEY")
    people = contestants.add_writer(session, "our writers", "writers")
    policy, first = (contestants.policy(session, one.id) for one in (live, initial))
    pairings.open_pairing(session, "model_comparison", policy.id, first.id)
    pairings.open_pairing(session, "model_comparison", best.id, first.id, weight=0.5)
    pairings.open_pairing(session, "red_team_choose_best", people.id, policy.id)
    for offer in queues.EVERYTHING:
        queues.add_queue(session, *offer, goal=500 if offer[0] == "helpful" else None)
    ask_for_a_decision(session, initial, judge)
    write_instructions(session)
    access.create_study(session, "prolific", "66f0a1b2c3d4e5f6a7b8c9d0", "C1X4YZ8Q", 20)
    notices.announce(session, "On **Friday** there is no work. Thank you all!")
    return access.begin_session(session, wil.id)


def ask_for_a_decision(session: Session, initial: t.Artifact, judge: t.Artifact) -> None:
    """A past policy, a live one that a person wanted, and a cycle that waits for a person."""
    cycle = t.Cycle(number=7, name="assistant", state="open", config={})
    new = add_artifact(session, "the week's snapshot")
    session.add(cycle)
    session.flush()
    deployments.put_live(
        session, deployments.to_promote(session, initial.digest), ADMIN, "to compare with the beginning", "by_hand"
    )
    deployments.put_live(session, deployments.to_roll_back_to(session), ADMIN, "the comparison is done", "roll_back")
    reasons = [
        {"gate": "pm_accuracy", "passed": True, "reason": "PM held-out accuracy 0.612 [0.571, 0.652] lies above 0.5"},
        {"gate": "live_gain", "passed": True, "reason": "held-out score gain over the live policy +0.412 "
         "[+0.210, +0.614] does not lie below gates.min_gain_over_live = 0"},
        {"gate": "fresh_agreement", "passed": False, "holds": True, "reason": "this week's comparisons contradict the "
         "preference model of cycle 6 beyond chance: of 214 harmless it orders 31% as people did"},
    ]  # fmt: skip
    approvals.hold_for_decision(
        session, cycle.id, new.id, reasons[-1]["reason"], reasons, {"kl_nats": 6.2}, timedelta(hours=48)
    )


def write_instructions(session: Session) -> None:
    """A second version of what is helpful."""
    first = instruction_versions.shipped("helpful")
    page = first.page.replace("## Rather not", "## Be brief\n\nTwo or three turns are enough.\n\n## Rather not")
    instruction_versions.save(session, "helpful", first.key, first.text, page, by="Ada Lovelace")


AGREEMENT = {
    "1": Accuracy(accuracy=0.71, ci=(0.45, 0.88), n=14),
    "2": Accuracy(accuracy=0.5, ci=(0.22, 0.78), n=8),
}


def work_a_while(url: str, tokens: list[str]) -> None:
    """Let raters compare, so that the desk has something to show."""
    openings = ("How do I boil an egg?", "What rhymes with month?", "Plan my weekend.", "Why is the sky blue?")
    for place, token in enumerate(tokens):
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
            for number, opening in enumerate(openings[: 4 - place]):
                _, message_id = ask(client, task="model_comparison" if number % 2 else "helpful", content=opening)
                answer = {
                    "side": "ab"[(place + number) % 2],
                    "strength": 1 + number,
                    "duration_ms": 4000 + 1500 * number,
                }
                ok(client.post(f"/api/pairs/{pair_of(client, message_id)['pair_id']}/comparison", json=answer))
            # One of these is answered by a person.
            pair_of(client, ask(client, task="red_team_choose_best", content="How do I pick a lock?")[1], wait=False)
