"""The desk's page of what is live: why, by whom, what waits for a person, and the ways to decide and to go back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from db import tables as t
from db.session import transaction
from orchestrator.cycles import steering
from orchestrator.cycles.deciding import start_finishing
from orchestrator.cycles.telling import Database, loop_now, publish_at
from orchestrator.errors import ApiError, OrchestratorError
from orchestrator.instance.identity import ensure_own
from orchestrator.instance.policy_api import PolicyApi
from orchestrator.instance.prefect_api import PrefectApi
from orchestrator.store import approvals
from orchestrator.store.acts import Actor, newest_acts
from orchestrator.store.approvals import Answer, decision_said
from orchestrator.store.deployments import POLICIES, before_live
from orchestrator.store.live import Live, asked, deployments, live_said, loop_said
from orchestrator.store.verdicts import GateRow, evidence_said, gate_rows, passed_said
from orchestrator.web.pages.desk.samples import Beside, samples_of
from orchestrator.web.pages.desk.shared import Desk, newest_artifacts
from orchestrator.web.pages.shell import Id, go_to, text_of

logger = logging.getLogger(__name__)

HISTORY = 30
ACTS = 30
ANSWERS: dict[str, Answer] = {"promote": "promote", "refuse": "refuse"}


def add_live(router: APIRouter, desk: Desk) -> None:
    """The routes of what is live."""
    _add_page(router, desk)
    _add_decision(router, desk)
    _add_changes(router, desk)


def card(session: Session) -> Mapping[str, object]:
    """What the desk's first page says of the loop."""
    state = loop_now(session)
    return {"loop_state": state, "live_lines": live_said(state), "loop_lines": loop_said(state)}


def _add_page(router: APIRouter, desk: Desk) -> None:
    @router.get("/live")
    def live(request: Request) -> HTMLResponse:
        """What is live and where the loop is; what waits; what was live before; what people did."""

        def work(session: Session) -> Mapping[str, object]:
            history, waiting = deployments(session, HISTORY), approvals.waiting(session)
            return {
                **card(session),
                "asked": _asked(desk, session, waiting[0] if waiting else None),
                "carried_out": _carried_out(session),
                "history": history,
                "past": _past(history),
                "way_back": _way_back(session, history),
                "policies": _others(newest_artifacts(session, POLICIES), history),
                "acts": newest_acts(session, ACTS),
            }

        return desk.show(request, "live.html", work)


@dataclass(frozen=True)
class Asked:
    """What a person decides on: why they are asked, the evidence in a sentence, the gates, and replies old and new."""

    why: str
    found: str
    gates: tuple[GateRow, ...]
    samples: list[Beside]

    @property
    def all_passed(self) -> bool:
        """Whether no gate says anything against it; else the table of the gates is open."""
        return all(gate.outcome == "passed" for gate in self.gates)


def _asked(desk: Desk, session: Session, waiting: approvals.Waiting | None) -> Asked | None:
    if waiting is None:
        return None
    found = "; ".join(filter(None, (passed_said(waiting.reasons), evidence_said(waiting.evidence))))
    samples = samples_of(desk, session, waiting.cycle_id)
    return Asked(asked(waiting), f"{found[0].upper()}{found[1:]}.", gate_rows(waiting.reasons), samples)


def _past(history: list[Live]) -> list[tuple[str, str]]:
    """Policies that were live and are not, by digest and name, the newest first."""
    live = {one.digest for one in history if one.until is None}
    return list({one.digest: one.name for one in history if one.digest not in live}.items())


def _way_back(session: Session, history: list[Live]) -> str | None:
    """What a roll-back goes to where nothing is chosen, by name; None where there is no way back."""
    before = before_live(session)
    if before is None:
        return None
    return next((one.name for one in history if one.deployment_id == before.id), f"deployment {before.id}")


def _others(policies: list[tuple[str, str]], history: list[Live]) -> list[tuple[str, str]]:
    """Those that are not live now: putting live what is live is refused."""
    live = {one.digest for one in history if one.until is None}
    return [(digest, name) for digest, name in policies if digest not in live]


def _carried_out(session: Session) -> list[str]:
    """Decisions that are being carried out now, in words."""
    rows = session.execute(
        select(t.Decision, t.Cycle.number)
        .join(t.Cycle, t.Cycle.id == t.Decision.cycle_id)
        .where(t.Cycle.id.in_(approvals.decided_and_open(session)), t.Decision.approval_id.is_not(None))
    )
    return [f"Cycle {number}: {decision_said(decision)}" for decision, number in rows]


def _add_decision(router: APIRouter, desk: Desk) -> None:
    @router.post("/approvals/{approval_id}")
    async def decide(approval_id: Id, request: Request) -> Response:
        """Promote or refuse what waits. A flow of Prefect's carries it out."""

        def work(session: Session, form: FormData, actor: Actor) -> int:
            answer = ANSWERS.get(text_of(form, "answer"))
            approval = session.get(t.Approval, approval_id)
            if answer is None or approval is None:
                raise ApiError(422, "unusable", "Nothing was decided: choose whether to promote or to refuse.")
            number = session.get_one(t.Cycle, approval.cycle_id).number
            approvals.decide(session, number, answer, actor, text_of(form, "reason"))
            return number

        number = await desk.act_as(request, work)
        response = go_to("/desk/live")
        response.background = BackgroundTask(_carry_out, desk, number)
        return response


def _add_changes(router: APIRouter, desk: Desk) -> None:
    @router.post("/live/roll-back")
    async def roll_back(request: Request) -> Response:
        """Go back to what was live before, or to a deployment of the list."""

        def change(form: FormData, actor: Actor) -> None:
            digest = text_of(form, "digest") or None
            steering.roll_back(*_tools(desk), actor, text_of(form, "reason"), digest=digest)

        return await _changed(desk, request, change)

    @router.post("/live/promote")
    async def promote(request: Request) -> Response:
        """Put any policy live."""

        def change(form: FormData, actor: Actor) -> None:
            steering.promote_by_hand(*_tools(desk), actor, text_of(form, "reason"), text_of(form, "digest"))

        return await _changed(desk, request, change)


def _tools(desk: Desk) -> tuple[Database, PolicyApi]:
    config = desk.feedback.config
    return functools.partial(transaction, desk.feedback.engine), PolicyApi(config.policy_url, config.admin_token)


def _carry_out(desk: Desk, number: int) -> None:
    """Let Prefect carry out what was decided; without it the cycle's next run does, or a look every ten minutes."""
    try:
        api = _own_prefect(desk)
        if api is not None:
            start_finishing(api, number)
    except OrchestratorError as error:
        logger.warning("cycle %d is decided, and is carried out later: %s", number, error)
    _publish(desk)


def _own_prefect(desk: Desk) -> PrefectApi | None:
    """The instance's Prefect server; None where it has none.

    Raises:
        ServiceUnavailable: another instance's answers there, or none.
    """
    if (url := desk.feedback.config.prefect_api_url) is None:
        return None
    api = PrefectApi(url)
    ensure_own(api, database=_tools(desk)[0])
    return api


def _publish(desk: Desk) -> None:
    try:
        api = _own_prefect(desk)
        if api is not None:
            publish_at(api, _tools(desk)[0], desk.feedback.config.feedback_url)
    except OrchestratorError as error:
        logger.warning("Prefect's artifact `live` is older than what is live: %s", error)


async def _changed(desk: Desk, request: Request, change: Callable[[FormData, Actor], None]) -> Response:
    """Do what changes the live policy, which takes transactions of its own, where the page is not an old one."""

    def check(session: Session, form: FormData, actor: Actor) -> tuple[FormData, Actor]:
        live = loop_now(session).live
        if text_of(form, "live") != str(live.deployment_id if live else ""):
            raise ApiError(
                409, "another_live", "Something else has gone live since this page was made. Reload it and look again."
            )
        return form, actor

    form, actor = await desk.act_as(request, check)

    def told() -> None:
        try:
            change(form, actor)
        except OrchestratorError as error:
            raise ApiError(422, "unusable", str(error)) from None

    await run_in_threadpool(told)
    response = go_to("/desk/live")
    response.background = BackgroundTask(_publish, desk)
    return response
