"""The desk's page of work: groups of raters, and queues that say who may do what."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from orchestrator.people import queues
from orchestrator.people.queues import EVERYTHING, QueueError
from orchestrator.people.raters import get_rater
from orchestrator.people.tasks import TASKS
from orchestrator.store.acts import Actor, record_act
from orchestrator.web.pages.desk.shared import ROWS, Desk
from orchestrator.web.pages.shell import Id, go_to, text_of


def add_work(router: APIRouter, desk: Desk) -> None:
    """The routes of queues and groups."""
    _add_list(router, desk)
    _add_queues(router, desk)
    _add_groups(router, desk)


def _add_list(router: APIRouter, desk: Desk) -> None:
    @router.get("/work")
    def listing(request: Request) -> HTMLResponse:
        """Queues with what each brought towards its goal, and groups with their members."""

        def work(session: Session) -> Mapping[str, object]:
            return {
                "queues": queues.queue_figures(session, ROWS),
                "groups": queues.group_members(session),
                "offers": EVERYTHING,
                "statuses": queues.STATUSES,
                "tasks": TASKS,
            }

        return desk.show(request, "work.html", work)


def _add_queues(router: APIRouter, desk: Desk) -> None:
    @router.post("/queues")
    async def open_queue(request: Request) -> Response:
        """Open a queue of work."""

        def work(session: Session, form: FormData) -> None:
            task, _, question = text_of(form, "offer").partition(" ")
            goal = text_of(form, "goal").strip()
            queues.add_queue(
                session,
                task,
                question,
                group=text_of(form, "group") or None,
                status=text_of(form, "status") or None,
                weight=_whole(text_of(form, "weight").strip() or "1", "weight"),
                goal=_whole(goal, "goal") if goal else None,
            )

        await desk.act(request, work, "open_queue", lambda form: f"queue of {text_of(form, 'offer')}")
        return go_to("/desk/work")

    @router.post("/queues/{queue_id}/close")
    async def close_queue(queue_id: Id, request: Request) -> Response:
        """Offer nothing from a queue any more."""
        await desk.act(
            request, lambda session, form: queues.close_queue(session, queue_id), "close_queue", f"queue {queue_id}"
        )
        return go_to("/desk/work")


def _add_groups(router: APIRouter, desk: Desk) -> None:
    @router.post("/groups")
    async def add_group(request: Request) -> Response:
        """Add an empty group."""
        await desk.act(
            request,
            lambda session, form: queues.add_group(session, text_of(form, "name").strip()).id,
            "add_group",
            lambda form: f"group {text_of(form, 'name')}",
        )
        return go_to("/desk/work")

    @router.post("/groups/join")
    async def join(request: Request) -> Response:
        """Put a rater into a group."""

        def work(session: Session, form: FormData, actor: Actor) -> None:
            group, handle = text_of(form, "group"), text_of(form, "handle").strip()
            queues.join_group(session, group, handle)
            record_act(session, actor, "join_group", _membership(session, handle, group))

        await desk.act_as(request, work)
        return go_to("/desk/work")

    @router.post("/groups/leave")
    async def leave(request: Request) -> Response:
        """Take a rater out of a group."""

        def work(session: Session, form: FormData, actor: Actor) -> None:
            group, handle = text_of(form, "group"), text_of(form, "handle")
            queues.leave_group(session, group, handle)
            record_act(session, actor, "leave_group", _membership(session, handle, group))

        await desk.act_as(request, work)
        return go_to("/desk/work")


def _membership(session: Session, handle: str, group: str) -> str:
    # The rater by id: this record stays when an erasure takes the handle.
    return f"rater {get_rater(session, handle).id}, group {group}"


def _whole(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise QueueError(f"The queue's {name} is {text!r}; expected a whole number.")
    return int(text)
