"""The desk's pairing table: who meets whom in a task, how often, and what each pairing brought so far."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.conversations import contestants, pairings
from orchestrator.conversations.contestants import Contestant, ContestantError
from orchestrator.conversations.pairs import Sampling, sampling_now
from orchestrator.people.queues import group_members
from orchestrator.people.tasks import TASKS
from orchestrator.store.deployments import POLICIES
from orchestrator.web.pages.desk.shared import ROWS, Desk, newest_artifacts
from orchestrator.web.pages.shell import Id, go_to, text_of

ASKED_FOR_S = 5.0
"""Seconds that the operator waits for an outside model's first answer."""


def add_contestants(router: APIRouter, desk: Desk) -> None:
    """The routes of contestants and pairings."""
    _add_list(router, desk)
    _add_pairings(router, desk)
    _add_new_contestant(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    @router.get("/pairings")
    def listing(request: Request) -> HTMLResponse:
        """The pairing table and the contestants."""

        def work(session: Session) -> Mapping[str, object]:
            return {
                "figures": pairings.pairing_figures(session, ROWS),
                "contestants": [one for one in contestants.contestants(session) if one.kind != "policy"],
                "policies": newest_artifacts(session, POLICIES),
                "preference_models": newest_artifacts(session, ("preference_model",)),
                "groups": [group.name for group in group_members(session)],
                "tasks": TASKS,
                "max_k": contestants.MAX_K,
                "standings": dict(desk.feedback.outside.standings),
            }

        return desk.show(request, "pairings.html", work)


def _add_pairings(router: APIRouter, desk: Desk) -> None:
    @router.post("/pairings")
    async def open_pairing(request: Request) -> Response:
        """Let two contestants meet in a task."""

        def work(session: Session, form: FormData) -> None:
            a, b = (contestants.get_contestant(session, text_of(form, side).strip()) for side in ("a", "b"))
            weight = _number(text_of(form, "weight"))
            pairings.open_pairing(session, text_of(form, "task"), a.id, b.id, weight=weight)

        await desk.act(request, work, "open_pairing", lambda form: f"task {text_of(form, 'task')}")
        return go_to("/desk/pairings")

    @router.post("/pairings/{pairing_id}/end")
    async def end_pairing(pairing_id: Id, request: Request) -> Response:
        """Let them meet no more."""
        await desk.act(
            request,
            lambda session, form: pairings.end_pairing(session, pairing_id),
            "end_pairing",
            f"pairing {pairing_id}",
        )
        return go_to("/desk/pairings")


def _add_new_contestant(router: APIRouter, desk: Desk) -> None:
    asked: set[asyncio.Task[str]] = set()

    @router.post("/contestants")
    async def add(request: Request) -> Response:
        """Add a contestant that is not a plain policy."""

        def work(session: Session, form: FormData) -> tuple[Contestant, Sampling]:
            return _add_contestant(session, form), sampling_now(session)

        added, sampling = await desk.act(
            request, work, "add_contestant", lambda form: f"contestant {text_of(form, 'name')}"
        )
        if added.kind == "endpoint":
            # A slow one goes on being asked; the page says how it stands when it is shown again.
            asking = asyncio.create_task(
                desk.feedback.outside.ask_once(added, sampling, desk.feedback.config.secret_of)
            )
            asked.add(asking)
            asking.add_done_callback(asked.discard)
            await asyncio.wait({asking}, timeout=ASKED_FOR_S)
        return go_to("/desk/pairings")


def _add_contestant(session: Session, form: FormData) -> Contestant:
    kind, name = text_of(form, "kind"), text_of(form, "name").strip()
    if kind == "best_of":
        k = text_of(form, "k").strip()
        if not k.isdecimal() or len(k) > 9:
            raise ContestantError(f"k is {k!r}; expected a whole number.")
        policy, judge = text_of(form, "policy"), text_of(form, "preference_model")
        return contestants.add_best_of(session, name, policy, judge, int(k))
    if kind == "endpoint":
        return contestants.add_endpoint(
            session,
            name,
            text_of(form, "url").strip(),
            text_of(form, "model"),
            text_of(form, "key_variable").strip() or None,
        )
    if kind == "writer":
        return contestants.add_writer(session, name, text_of(form, "group"))
    raise ContestantError(f"Kind {kind!r} is unknown; expected best_of, endpoint or writer.")


def _number(text: str) -> float:
    try:
        number = float(text.strip() or "1")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ContestantError(f"The pairing's weight is {text!r}; expected a number above 0.")
    return number
