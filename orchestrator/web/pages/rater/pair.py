"""What a rater does with a pair: choose, edit, ask for it again."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from orchestrator.conversations import edits, pairs
from orchestrator.conversations.schemas import Compare
from orchestrator.errors import ApiError
from orchestrator.people import access
from orchestrator.people.access import SignedIn
from orchestrator.people.tasks import Side
from orchestrator.web.pages.markdown import render_markdown
from orchestrator.web.pages.rater.shared import RaterPages, written
from orchestrator.web.pages.shell import (
    Id,
    go_to,
    text_of,
)
from orchestrator.web.pair_sampling import PairSampling
from orchestrator.web.service import server_sent_events


def add_pair(router: APIRouter, shared: RaterPages) -> None:
    feedback = shared.feedback

    @router.get("/pairs/{pair_id}/stream")
    async def stream(pair_id: Id, request: Request) -> StreamingResponse:
        """Both replies as they grow, as server-sent events."""
        pair = await _pair(request, pair_id)
        sampling = PairSampling(pair) if pair.complete else feedback.sampler.start(pair, stream=True)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(server_sent_events(sampling), media_type="text/event-stream", headers=headers)

    @router.get("/pairs/{pair_id}/replies")
    async def replies(pair_id: Id, request: Request) -> JSONResponse:
        """Both complete replies as safe HTML."""
        pair = await _pair(request, pair_id)
        if not pair.complete:
            raise ApiError(409, "pair_incomplete", f"Pair {pair_id} is not complete yet.")
        text = {candidate.side: candidate.text or "" for candidate in pair.candidates}
        html = {side: render_markdown(reply) for side, reply in text.items()}
        return JSONResponse({"text": text, "html": html, "alike": pair.alike}, headers={"Cache-Control": "no-store"})

    @router.post("/pairs/{pair_id}/comparison")
    async def compare(pair_id: Id, request: Request) -> Response:
        """Choose. A choice is one field: side and strength, or that none can be told."""

        def work(session: Session, me: SignedIn, form: FormData) -> int:
            pair = pairs.read_pair(session, me.rater, pair_id)
            pairs.compare(session, me.rater, pair_id, _choice(form, pair))
            access.visit_state(session, me.rater.id)
            return pair.dialogue_id

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/dialogues/{dialogue_id}")

    @router.post("/pairs/{pair_id}/edit")
    async def edit(pair_id: Id, request: Request) -> Response:
        """Write a better reply in place of choosing."""

        def work(session: Session, me: SignedIn, form: FormData) -> int:
            pair = pairs.read_pair(session, me.rater, pair_id)
            side = text_of(form, "side")
            if side not in _SIDE:
                raise ApiError(422, "unknown_side", f"Side {side!r} is unknown; expected a or b.")
            edits.edit_reply(session, me.rater, pair_id, _SIDE[side], written(text_of(form, "content")))
            access.visit_state(session, me.rater.id)
            return pair.dialogue_id

        _, dialogue_id = await shared.form(request, work)
        return go_to(f"/dialogues/{dialogue_id}")

    async def _pair(request: Request, pair_id: int) -> pairs.PairRow:
        _, pair = await run_in_threadpool(
            shared.for_me, request, lambda session, me: pairs.read_pair(session, me.rater, pair_id)
        )
        return pair


_SIDE: dict[str, Side] = {"a": "a", "b": "b"}


def _choice(form: FormData, pair: pairs.PairRow) -> Compare:
    """`a4` (side a, strong) to `a1`, `b1` to `b4`, or none of the two; and how long the rater looked.

    Of two replies that say the same none is better, which is a tie and no doubt.
    """
    chosen = text_of(form, "choice")
    duration = text_of(form, "duration_ms")
    duration_ms = min(int(duration), 7 * 24 * 3600 * 1000) if duration.isdecimal() and len(duration) < 12 else None
    if text_of(form, "none"):
        return Compare(side="none", reason="tie" if pair.alike else "cant_tell", duration_ms=duration_ms)
    if len(chosen) != 2 or chosen[0] not in _SIDE or chosen[1] not in "1234":
        raise ApiError(422, "no_choice", "Choose a reply and how sure you are, or say that you can't tell.")
    return Compare(side=_SIDE[chosen[0]], strength=int(chosen[1]), duration_ms=duration_ms)
