"""The desk: what is live and what waits; who the raters are, what they did and wrote, and how people come in.

Operators sign in with tokens of their own, or with the admin token, apart from raters and from programs. Everything
here is also a command.
"""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.web.pages.desk.elo import add_elo
from orchestrator.web.pages.desk.entrance import add_entrance
from orchestrator.web.pages.desk.erasure import add_erasure
from orchestrator.web.pages.desk.instructions import add_instructions
from orchestrator.web.pages.desk.invitations import add_invitations
from orchestrator.web.pages.desk.live import add_live
from orchestrator.web.pages.desk.notices import add_notices
from orchestrator.web.pages.desk.pairings import add_contestants
from orchestrator.web.pages.desk.raters import add_dialogues, add_raters
from orchestrator.web.pages.desk.reports import add_reports
from orchestrator.web.pages.desk.shared import Desk
from orchestrator.web.pages.desk.studies import add_studies
from orchestrator.web.pages.desk.work import add_work
from orchestrator.web.pages.shell import PageRoute
from orchestrator.web.service import Feedback


def desk_pages(feedback: Feedback) -> APIRouter:
    """The routes of the desk."""
    desk = Desk(feedback)
    router = APIRouter(prefix="/desk", include_in_schema=False, route_class=PageRoute)
    add_entrance(router, desk)
    add_raters(router, desk)
    add_live(router, desk)
    add_erasure(router, desk)
    add_dialogues(router, desk)
    add_invitations(router, desk)
    add_studies(router, desk)
    add_instructions(router, desk)
    add_work(router, desk)
    add_contestants(router, desk)
    add_notices(router, desk)
    add_elo(router, desk)
    add_reports(router, desk)
    return router
