"""The desk's invitations."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.datastructures import FormData

from db import tables as t
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.shell import Id, base_of, go_to, text_of


def add_invitations(router: APIRouter, desk: Desk) -> None:
    def _all(session: Session) -> Mapping[str, object]:
        joined = func.count(t.InvitationUse.rater_id)
        rows = session.execute(
            select(t.Invitation, joined)
            .outerjoin(t.InvitationUse, t.InvitationUse.invitation_id == t.Invitation.id)
            .group_by(t.Invitation.id)
            .order_by(t.Invitation.id.desc())
        ).all()
        return {"invitations": [tuple(row) for row in rows], "link": None}

    @router.get("/invitations")
    def listing(request: Request) -> HTMLResponse:
        """Invitations: how people come in who are not sent by a platform."""
        return desk.show(request, "invitations.html", _all)

    @router.post("/invitations")
    async def invite(request: Request) -> Response:
        """Make an invitation; its link is shown in the answer, once."""

        def work(session: Session, form: FormData) -> Mapping[str, object]:
            uses, days = text_of(form, "max_uses").strip(), text_of(form, "days").strip()
            if not all(value == "" or (value.isdecimal() and 0 < int(value) <= 10_000) for value in (uses, days)):
                raise ApiError(422, "not_a_number", "Give whole numbers from 1 to 10,000, or nothing.")
            _, token = access.create_invitation(
                session,
                text_of(form, "label"),
                max_uses=int(uses) if uses else None,
                valid_for=timedelta(days=int(days)) if days else None,
            )
            return {**_all(session), "link": f"{base_of(request)}/join/{token}"}

        shown = await desk.act(request, work, "invite", lambda form: f"invitation {text_of(form, 'label')}")
        return desk.page(request, "invitations.html", shown)

    @router.post("/invitations/{invitation_id}/end")
    async def end(invitation_id: Id, request: Request) -> Response:
        """Let nobody else join by it."""
        await desk.act(
            request,
            lambda session, form: access.end_invitation(session, invitation_id),
            "end_invitation",
            f"invitation {invitation_id}",
        )
        return go_to("/desk/invitations")
