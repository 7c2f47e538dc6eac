"""A rater is forgotten: texts and identity become tombstones in the database and in every artifact that holds them.

It goes on where it was cut off: (1) the rater is withdrawn, and the comparisons whose text will be gone are written
down; (2) artifacts with such text are written anew, one after the other, and the old files deleted; (3) the database
is blanked. Weights that were trained on the texts stay; `withdrawal.touched` lists them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from db.session import transaction
from db.turns import prompt_of
from models.chat.prompt_writing import message_key
from orchestrator.people.raters import RaterError, get_rater
from orchestrator.people.withdrawal import withdraw
from orchestrator.store.artifacts import ArtifactStore

TOMBSTONE = "[erased]"
MARK = "erased.json"
"""In an artifact that was written anew: how much of it is gone."""

TEXTS_BEGIN, TEXTS_END = "<!-- texts -->", "<!-- end of texts -->"
"""Around what people wrote, and replies to it, in a page of an artifact."""

WITH_TEXT = ("comparison_set", "prompt_set", "evaluation", "reference_set", "report")
"""Kinds of artifacts that hold what people wrote, or replies to it."""

_TEXTS = re.compile(f"{re.escape(TEXTS_BEGIN)}.*?{re.escape(TEXTS_END)}", re.DOTALL)

# Dialogues that are the rater's own, and replies that the rater wrote in those of others.
_OWN = "select id from dialogues where rater_id = :rater_id"
_WRITTEN = f"""
    select candidates.id from candidates
    join pairs on pairs.id = candidates.pair_id
    where candidates.written_by_id = :rater_id or pairs.dialogue_id in ({_OWN})
"""
# Every message in which text of the rater's stands: all of their own dialogues, and what they wrote for others.
_MESSAGES = f"""
    select id from messages where dialogue_id in ({_OWN}) or candidate_id in ({_WRITTEN})
"""
# And every message after one of those: who reads that, reads the rater's text above it.
_BELOW = f"""
    with recursive below (id) as (
        {_MESSAGES}
        union
        select messages.id from below join messages on messages.parent_id = below.id
    )
"""
# Comparisons that would show such text: about one of those replies, or under one of those messages.
_COMPARISONS = f"""
    {_BELOW}
    select comparisons.id from comparisons
    join pairs on pairs.id = comparisons.pair_id
    where comparisons.rater_id = :rater_id
       or pairs.parent_id in (select id from below)
       or exists (select from candidates where candidates.pair_id = pairs.id and candidates.id in ({_WRITTEN}))
"""


ERASING = 0x65726173  # "eras": any number that nothing else uses as the first half of an advisory lock.
_ANY = 0
_AT_WORK = text(
    "select exists (select from pg_locks where locktype = 'advisory' and objsubid = 2 and classid = :key "
    "and objid = :erasure and database = (select oid from pg_database where datname = current_database()))"
)


@dataclass(frozen=True)
class Reach:
    """What an erasure would blank in the database, at the least: raters go on until it begins."""

    comparisons: int
    """Those of other raters about the rater's text among them."""
    messages: int
    replies: int
    problem_reports: int


def reach(session: Session, rater_id: int) -> Reach:
    """Count what erasing a rater would blank."""

    def count(query: str) -> int:
        return int(session.execute(text(f"select count(*) from ({query}) gone"), {"rater_id": rater_id}).scalar_one())

    reports = "select id from problem_reports where rater_id = :rater_id"
    return Reach(count(_COMPARISONS), count(_MESSAGES), count(_WRITTEN), count(reports))


@dataclass(frozen=True)
class Erased:
    """What an erasure did."""

    rater_id: int
    comparisons: int
    """Comparisons of which text is gone, those of other raters about the rater's text among them."""
    messages: int
    replies: int
    artifacts: tuple[str, ...]
    """Digests of the artifacts that were written anew."""


def erase(
    engine: Engine,
    store: ArtifactStore,
    handle: str,
    note: str = "",
    progress: Callable[[float], None] = lambda share: None,
) -> Erased:
    """Forget a rater, for good; called again it goes on where it was cut off.

    `progress` is told the share of the artifacts that were looked through.

    Raises:
        RaterError: there is no such rater, or a cycle is open that may hold the texts.
    """
    with transaction(engine) as session:
        erasure_id = begin(session, handle, note).id
    return go_on(engine, store, erasure_id, progress)


def go_on(
    engine: Engine, store: ArtifactStore, erasure_id: int, progress: Callable[[float], None] = lambda share: None
) -> Erased:
    """Carry out what was begun, from where it was cut off; one at a time, others wait.

    Raises:
        RaterError: a cycle is open that may hold the texts.
    """
    with transaction(engine) as session:
        rater_id = session.get_one(t.Erasure, erasure_id).rater_id
    with _alone(engine, erasure_id):
        _rewrite_artifacts(engine, store, erasure_id, rater_id, progress)
        with transaction(engine) as session:
            refuse_open_cycle(session)
            return _blank(session, erasure_id, rater_id)


@contextmanager
def _alone(engine: Engine, erasure_id: int) -> Iterator[None]:
    """Be seen at work on an erasure, and let nobody else rewrite artifacts meanwhile.

    Two who write the same artifact anew would each keep what the other blanked.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        keys = [{"key": ERASING, "erasure": number} for number in (erasure_id, _ANY)]
        try:
            for key in keys:
                connection.execute(text("select pg_advisory_lock(:key, :erasure)"), key)
            yield
        finally:
            # A connection that goes back to its pool would keep them.
            connection.execute(text("select pg_advisory_unlock_all()"))


def at_work(session: Session, erasure_id: int) -> bool:
    """Whether somebody carries it out now, or waits to, on whichever machine."""
    return bool(session.scalar(_AT_WORK, {"key": ERASING, "erasure": erasure_id}))


def begin(session: Session, handle: str, note: str) -> t.Erasure:
    """Write down that a rater is to be forgotten, and end their access; an erasure that was begun stays as it is.

    Raises:
        RaterError: there is no such rater, the note names them, or a cycle is open that may hold the texts.
    """
    rater = get_rater(session, handle)
    found = session.scalars(select(t.Erasure).where(t.Erasure.rater_id == rater.id)).one_or_none()
    if found is not None:
        return found
    if re.search(rf"(?<!\w){re.escape(handle)}(?!\w)", note, re.IGNORECASE):
        raise RaterError(
            f"The note names {handle!r}, and it stays on record when the name is gone. Write it without any name."
        )
    refuse_open_cycle(session)
    withdraw(session, handle, note)
    erasure = t.Erasure(rater_id=rater.id, note=note)
    session.add(erasure)
    session.flush()
    values = {"rater_id": rater.id, "erasure_id": erasure.id}
    session.execute(
        text(
            f"insert into erased_comparisons (comparison_id, erasure_id) select id, :erasure_id from ({_COMPARISONS}) "
            "gone on conflict do nothing"
        ),
        values,
    )
    # Nobody goes on in these, and nothing is sampled into them any more.
    session.execute(
        text("update dialogues set ended_at = clock_timestamp() where rater_id = :rater_id and ended_at is null"),
        values,
    )
    session.execute(
        text("update rater_sessions set ended_at = clock_timestamp() where rater_id = :rater_id and ended_at is null"),
        values,
    )
    return erasure


def refuse_open_cycle(session: Session) -> None:
    """Refuse to erase while a cycle is open.

    Raises:
        RaterError: one is.
    """
    number = session.scalar(select(t.Cycle.number).where(t.Cycle.state == "open"))
    if number is not None:
        raise RaterError(
            f"Cycle {number} is open and may hold the texts in its work. Wait for its end, or give it up with "
            "`orchestrator cycle cancel`; then erase again."
        )


# Files

Blank = Callable[[dict[str, Any]], str | None]
"""Blanks a record in place; "comparison" or "record" where it had text to blank, else None."""


def _rewrite_artifacts(
    engine: Engine, store: ArtifactStore, erasure_id: int, rater_id: int, progress: Callable[[float], None]
) -> None:
    with transaction(engine) as session:
        gone = set(
            session.scalars(select(t.ErasedComparison.comparison_id).where(t.ErasedComparison.erasure_id == erasure_id))
        )
        users = text(f"{_BELOW} select id from messages where role = 'user' and id in (select id from below)")
        prompts = {
            message_key(prompt_of(session, message_id))
            for message_id in session.scalars(users, {"rater_id": rater_id}).all()
        }
        # An artifact that was written anew before lies elsewhere: the newest of its places.
        moved = select(t.ErasedArtifact.digest, t.ErasedArtifact.rewritten_digest).order_by(t.ErasedArtifact.id)
        places = {row.digest: row.rewritten_digest for row in session.execute(moved)}
        done = set(session.scalars(select(t.ErasedArtifact.digest).where(t.ErasedArtifact.erasure_id == erasure_id)))
        digests = session.scalars(
            select(t.Artifact.digest).where(t.Artifact.kind.in_(WITH_TEXT)).distinct().order_by(t.Artifact.digest)
        ).all()
    for number, digest in enumerate(digests):
        progress(number / len(digests))
        place = places.get(digest, digest)
        if digest in done:
            # Cut off between the record and the deletion, perhaps; deleting twice is no harm.
            if place != digest:
                store.delete(digest)
            continue
        if not store.exists(place):
            continue
        _rewrite(engine, store, digest, place, erasure_id, _blanker(gone, prompts))
    progress(1.0)


def _rewrite(engine: Engine, store: ArtifactStore, digest: str, place: str, erasure_id: int, blank: Blank) -> None:
    """Write an artifact anew where it has text to blank.

    Hashes inside it (a comparison set's of its shards) stay as they were: what is left is for reading, not training.
    """
    source = store.fetch(place)
    with tempfile.TemporaryDirectory(prefix="erasing-") as folder:
        copy, counts = Path(folder), {"comparison": 0, "record": 0}
        for file in sorted(source.rglob("*")):
            if not file.is_file():
                continue
            target = copy / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".jsonl":
                with file.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
                    for line in lines:
                        out.write(_blanked(line, blank, counts))
            else:
                shutil.copyfile(file, target)
        if not any(counts.values()):
            return
        for page in copy.glob("*.html"):
            page.write_text(_TEXTS.sub(TOMBSTONE, page.read_text(encoding="utf-8")), encoding="utf-8")
        erased = {"comparisons": counts["comparison"], "records": counts["record"]}
        earlier = copy / MARK
        if earlier.exists():
            before = json.loads(earlier.read_text())
            erased = {name: number + before[name] for name, number in erased.items()}
        earlier.write_text(json.dumps(erased) + "\n")
        rewritten = store.publish(copy).digest
    with transaction(engine) as session:
        session.add(
            t.ErasedArtifact(
                digest=digest,
                erasure_id=erasure_id,
                rewritten_digest=rewritten,
                num_comparisons=counts["comparison"],
                num_records=counts["record"],
            )
        )
    # Last: until the record stands, the old files are what there is.
    store.delete(digest)
    if place != digest:
        store.delete(place)


def _blanked(line: str, blank: Blank, counts: dict[str, int]) -> str:
    record = json.loads(line)
    kind = blank(record) if isinstance(record, dict) else None
    if kind is None:
        return line
    counts[kind] += 1
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def _blanker(gone: set[int], prompts: set[str]) -> Blank:
    ids = {str(number) for number in gone}

    def blank(record: dict[str, Any]) -> str | None:
        if "better" in record and record.get("id") in ids:
            for name in ("prompt", "better", "worse"):
                _blank_messages(record[name])
            record["split_key"] = ""
            return "comparison"
        messages = record.get("messages")
        # What a model wrote after the example of such a text may repeat it.
        if isinstance(messages, list) and not prompts.isdisjoint(
            [message_key(messages), *record.get("written_from", ())]
        ):
            _blank_messages(messages)
            if "reply" in record:
                record["reply"] = TOMBSTONE
            return "record"
        return None

    return blank


def _blank_messages(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        message["content"] = TOMBSTONE


# Rows


def _blank(session: Session, erasure_id: int, rater_id: int) -> Erased:
    """Put tombstones in place of texts and identity; the database lets nothing else change."""
    values = {"rater_id": rater_id, "tombstone": TOMBSTONE, "name": f"erased-{rater_id}"}
    # What was drawn and never sampled is completed as erased, so that nobody samples it.
    unwritten = f"text is null and id in ({_WRITTEN})"
    session.execute(
        text(f"update candidates set text = :tombstone, completed_at = clock_timestamp() where {unwritten}"), values
    )
    session.execute(text("select set_config('orchestrator.erasing', :name, true)"), values)

    def change(statement: str) -> int:
        return int(session.execute(text(statement), values).rowcount)  # type: ignore[attr-defined]

    # The messages first: which candidates' they are is asked of candidates that are still theirs.
    messages = change(f"update messages set content = :tombstone, client_key = null where id in ({_MESSAGES})")
    replies = change(f"update candidates set text = :tombstone where id in ({_WRITTEN})")
    change("update comparisons set source_value = null where rater_id = :rater_id and source_value is not null")
    change("update dialogues set split_key = null, client_key = null where rater_id = :rater_id")
    change("update problem_reports set content = :tombstone where rater_id = :rater_id")
    change("update visits set external_id = 'erased-' || id where rater_id = :rater_id")
    change("update raters set handle = :name, platform = null, token_digest = null where id = :rater_id")
    session.execute(text("select set_config('orchestrator.erasing', '', true)"))
    session.execute(
        text("update erasures set completed_at = clock_timestamp() where id = :id and completed_at is null"),
        {"id": erasure_id},
    )
    comparisons = session.scalar(
        select(func.count()).select_from(t.ErasedComparison).where(t.ErasedComparison.erasure_id == erasure_id)
    )
    artifacts = session.scalars(
        select(t.ErasedArtifact.digest).where(t.ErasedArtifact.erasure_id == erasure_id).order_by(t.ErasedArtifact.id)
    )
    return Erased(rater_id, comparisons or 0, messages, replies, tuple(artifacts))
