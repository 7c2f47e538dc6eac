"""A small world for the desk: raters who compared, contestants, queues, groups and notices. For tests and pictures."""

from __future__ import annotations

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from models.preference.results import Accuracy
from orchestrator.conversations import contestants, pairings
from orchestrator.people import access, notices, queues
from orchestrator.people.raters import create_rater
from tests.orchestrator.published_results import held_out_report, preference_model_results
from tests.orchestrator.web.rating import ask, ok, pair_of
from tests.running import add_artifact

DESK = {
    "raters": "/desk",
    "rater": "/desk/raters/1",
    "touched": "/desk/raters/1/touched",
    "dialogue": "/desk/dialogues/1",
    "invitations": "/desk/invitations",
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
    notices.announce(session, "On **Friday** there is no work. Thank you all!")
    return access.begin_session(session, wil.id)


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
