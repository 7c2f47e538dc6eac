"""The desk's page of Elo: where everybody stands that raters compared."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from orchestrator.judging.standings import elo_tables
from orchestrator.web.pages.desk.shared import Desk


def add_elo(router: APIRouter, desk: Desk) -> None:
    @router.get("/elo")
    def elo(request: Request) -> HTMLResponse:
        """Elo of every policy that raters compared, helpful and harmless apart, as of now."""
        return desk.show(request, "elo.html", lambda session: {"tables": elo_tables(session)})
