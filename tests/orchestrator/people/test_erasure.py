"""A rater is forgotten: no text and no name of theirs is left in the database or in any artifact; the record is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db import tables as t
from models.chat.prompt_writing import message_key
from orchestrator import cli
from orchestrator.data import freeze
from orchestrator.data.prompt_set import build_prompt_set
from orchestrator.errors import ArtifactError, OrchestratorError
from orchestrator.people.erasure import MARK, TEXTS_BEGIN, TEXTS_END, Erased, erase
from orchestrator.people.raters import RaterError, create_rater
from orchestrator.people.withdrawal import touched
from orchestrator.stages.context import StageContext
from orchestrator.stages.context import build as build_artifact
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore
from tests.db.rows import add_comparison, add_cycle, add_dialogue, add_pair, add_rater, close
from tests.orchestrator.data.set_files import HALF, build, excluded, frozen, records

SECRET = "my landlord's name is Quentin Blume"
OTHERS = "what is the capital of France?"


class Week:
    """A cycle that learned from ann and ben: comparison set, prompt set, an evaluation and a snapshot of them."""

    def __init__(self, engine: Engine, store: ArtifactStore, tmp_path: Path) -> None:
        self.engine, self.store = engine, store
        with Session(engine) as session, session.begin():
            ann, ben = add_rater(session, "ann"), add_rater(session, "ben")
            self.ann_id, self.ben_id = ann.id, ben.id
            own = add_comparison(session, SECRET, rater=ann)
            pair = session.get_one(t.Pair, own.pair_id)
            dialogue = session.get_one(t.Dialogue, pair.dialogue_id)
            self.ann_dialogue_id = dialogue.id
            session.execute(text("alter table dialogues disable trigger user"))
            dialogue.rater_id = ann.id
            session.flush()
            session.execute(text("alter table dialogues enable trigger user"))
            other = add_comparison(session, OTHERS, rater=ben)
            self.own, self.other = own.id, other.id
        self.freeze_id = frozen(engine)
        with Session(engine) as session:
            self.cycle_id = session.scalars(select(t.Freeze.cycle_id)).one()
        folder = tmp_path / "set"
        build(engine, folder, self.freeze_id)
        with Session(engine) as session:
            digest = freeze.freeze_digest(session.get_one(t.Freeze, self.freeze_id))
        settings = HALF.selection() | {"freeze_id": self.freeze_id, "freeze": digest}
        self.set_id = self._record("comparison_set", folder, settings, {})
        (tmp_path / "held_out.jsonl").write_text(
            '{"kind": "helpful", "messages": [{"role": "user", "content": "held out"}]}\n'
        )
        prompts = tmp_path / "prompts"
        prompts.mkdir()
        build_prompt_set(folder, prompts, held_out_file=tmp_path / "held_out.jsonl")
        # As a model writes them: one after the example of ann's opening, one after ben's.
        with (prompts / "prompts.jsonl").open("a") as file:
            for example, written in ((SECRET, "who is Quentin Blume?"), (OTHERS, "what is the capital of Spain?")):
                messages = [{"role": "user", "content": written}]
                record = {"id": message_key(messages), "kind": "helpful", "split": "train", "messages": messages}
                record["written_from"] = [message_key([{"role": "user", "content": example}])]
                file.write(json.dumps(record) + "\n")
        self.prompts_id = self._record("prompt_set", prompts, {}, {"comparisons": self.set_id})
        replies = tmp_path / "replies"
        replies.mkdir()
        lines = [
            {
                "prompt_id": n,
                "messages": [{"role": "user", "content": content}],
                "reply": f"well, {content}",
                "score": 1,
            }
            for n, content in enumerate((SECRET, OTHERS))
        ]
        (replies / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.evaluation_id = self._record("evaluation", replies, {}, {"prompts": self.prompts_id})
        report = tmp_path / "report"
        report.mkdir()
        (report / "samples.jsonl").write_text((replies / "replies.jsonl").read_text())
        texts = f"{TEXTS_BEGIN}<p>{SECRET.replace(chr(39), '&#39;')}</p><p>{OTHERS}</p>{TEXTS_END}"
        (report / "report.html").write_text(f"<p>the verdict</p>{texts}<p>the gates</p>")
        self.report_id = self._record("report", report, {}, {"comparisons": self.set_id})
        weights = tmp_path / "weights"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(b"weights")
        self.snapshot_id = self._record("snapshot", weights, {}, {"prompts": self.prompts_id})

    def _record(self, kind: str, folder: Path, settings: dict[str, Any], inputs: dict[str, int]) -> int:
        published = self.store.publish(folder)
        with Session(self.engine) as session, session.begin():
            artifact = ledger.record(
                session, kind=kind, fingerprint=f"{kind} of the week", published=published, settings=settings,
                results={}, inputs=inputs, cycle_id=self.cycle_id,
            )  # fmt: skip
            session.add(t.Stage(cycle_id=self.cycle_id, name=kind, artifact_id=artifact.id, state="done"))
            return artifact.id

    def digest(self, artifact_id: int) -> str:
        with Session(self.engine) as session:
            return session.get_one(t.Artifact, artifact_id).digest

    @property
    def with_text(self) -> tuple[int, ...]:
        """The artifacts in which the rater's words stand."""
        return (self.set_id, self.prompts_id, self.evaluation_id, self.report_id)

    def erase(self, **rest: Any) -> Erased:
        return erase(self.engine, self.store, "ann", **rest)

    def everything(self) -> str:
        """Every value in the database and every byte of the store, as one text."""
        with self.engine.connect() as connection:
            rows = [
                str(row)
                for table in t.Base.metadata.sorted_tables
                for row in connection.execute(text(f"select to_jsonb(t) from {table.name} t"))
            ]
        root = Path(self.store.url.removeprefix("file://"))
        files = [path.read_text(errors="replace") for path in sorted(root.rglob("*")) if path.is_file()]
        return "\n".join(rows + files)


@pytest.fixture
def week(engine: Engine, tmp_path: Path) -> Week:
    store = ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    return Week(engine, store, tmp_path)


@pytest.fixture
def close_cycle(engine: Engine) -> Callable[[], None]:
    def act() -> None:
        with Session(engine) as session, session.begin():
            for cycle in session.scalars(select(t.Cycle).where(t.Cycle.state == "open")):
                close(session, cycle)

    return act


def test_no_text_and_no_name_is_left_anywhere_and_the_rest_stays(week: Week) -> None:
    before = week.everything()
    assert before.count("Quentin Blume") >= 5
    assert "'ann'" in before
    with Session(week.engine) as session:
        made = touched(session, week.ann_id)
    done = week.erase(note="a letter")
    after = week.everything()
    assert "Quentin" not in after
    assert "'ann'" not in after
    assert OTHERS in after
    assert (done.comparisons, done.messages) == (1, 1)
    assert set(done.artifacts) == {week.digest(id_) for id_ in week.with_text}
    with Session(week.engine) as session:
        rater = session.get_one(t.Rater, week.ann_id)
        assert (rater.handle, rater.status, rater.token_digest) == (f"erased-{week.ann_id}", "withdrawn", None)
        erasure = session.scalars(select(t.Erasure)).one()
        assert (erasure.rater_id, erasure.note, erasure.completed_at is not None) == (week.ann_id, "a letter", True)
        # The choice itself, and what was made of it, stay on record.
        assert session.get_one(t.Comparison, week.own).side == "a"
        since = touched(session, week.ann_id)
        assert (since.artifacts, since.deployments) == (made.artifacts, made.deployments)
        assert session.get_one(t.Rater, week.ben_id).handle == "ben"


def test_what_is_left_of_an_artifact_has_the_other_records_unchanged(week: Week) -> None:
    before = {record["id"]: record for record in records(week.store.fetch(week.digest(week.set_id)))}
    week.erase()
    with Session(week.engine) as session:
        places = dict(session.execute(select(t.ErasedArtifact.digest, t.ErasedArtifact.rewritten_digest)).all())
    left = week.store.fetch(places[week.digest(week.set_id)])
    after = {record["id"]: record for record in records(left)}
    assert after[str(week.other)] == before[str(week.other)]
    gone = after[str(week.own)]
    assert [message["content"] for name in ("prompt", "better", "worse") for message in gone[name]] == ["[erased]"] * 3
    assert gone["rater"] == str(week.ann_id)
    assert json.loads((left / MARK).read_text()) == {"comparisons": 1, "records": 0}
    assert not week.store.exists(week.digest(week.set_id))
    replies = (week.store.fetch(places[week.digest(week.evaluation_id)]) / "replies.jsonl").read_text().splitlines()
    assert [json.loads(line)["reply"] for line in replies] == ["[erased]", f"well, {OTHERS}"]
    # A page is HTML, in which words can't be told apart: its texts go together.
    report = week.store.fetch(places[week.digest(week.report_id)])
    assert (report / "report.html").read_text() == "<p>the verdict</p>[erased]<p>the gates</p>"
    # Weights hold no text that could be blanked; they are listed as touched and stay.
    assert week.store.exists(week.digest(week.snapshot_id))


def test_a_touched_cycle_says_that_it_is_not_reproducible(
    week: Week, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with Session(week.engine) as session:
        assert ledger.cycle_not_reproducible(session, week.cycle_id) is None
    week.erase()
    with Session(week.engine) as session:
        assert ledger.cycle_not_reproducible(session, week.cycle_id) == "not reproducible: 1 comparisons erased"
        artifacts = {id_: session.get_one(t.Artifact, id_) for id_ in (week.set_id, week.prompts_id, week.snapshot_id)}
        with pytest.raises(ArtifactError, match="is not reproducible: 1 comparisons erased"):
            ledger.check_whole(session, [artifacts[week.set_id]])
        with pytest.raises(ArtifactError, match="is not reproducible: texts were erased"):
            ledger.check_whole(session, [artifacts[week.prompts_id]])
        ledger.check_whole(session, [artifacts[week.snapshot_id]])


def test_a_touched_cycles_report_is_written_anew_all_the_same(
    week: Week, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close_cycle: Callable[[], None]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORCHESTRATOR_ARTIFACT_URL", week.store.url)
    close_cycle()
    week.erase()
    context = StageContext(week.cycle_id, "write_report", after_end=True)

    def write(out: Path) -> dict[str, Any]:
        (out / "report.html").write_text("what is left")
        return {}

    inputs = {"comparison_set": week.set_id}
    with pytest.raises(ArtifactError, match="is not reproducible"):
        build_artifact(context, "report", {}, inputs, write)
    first = build_artifact(context, "report", {}, inputs, write, whole=False)
    assert build_artifact(context, "report", {}, inputs, write, whole=False) == first
    with Session(week.engine) as session:
        moved = ledger.place_of(session, week.digest(week.report_id))
        assert ledger.place_of(session, week.digest(first)) == week.digest(first)
    assert moved != week.digest(week.report_id)
    assert week.store.exists(moved)


def test_later_sets_have_nothing_of_it_and_share_no_shard_with_a_touched_one(
    week: Week, tmp_path: Path, close_cycle: Callable[[], None]
) -> None:
    with Session(week.engine) as session, session.begin():
        add_comparison(session, "a new one", rater=session.get_one(t.Rater, week.ben_id))
    later = frozen(week.engine)

    def previous() -> t.Artifact | None:
        with Session(week.engine) as session:
            return freeze.previous_comparison_set(session, later, HALF)

    assert previous() is not None
    week.erase()
    assert previous() is None
    build(week.engine, tmp_path / "next", later)
    # Frozen before the withdrawal, built after it: the text is gone all the same.
    assert excluded(tmp_path / "next") == {str(week.own): "erased"}
    assert len(records(tmp_path / "next")) == 2


def test_what_a_rater_wrote_in_other_peoples_dialogues_goes_with_all_that_followed(
    engine: Engine, tmp_path: Path
) -> None:
    store = ArtifactStore(f"file://{tmp_path / 'store'}", tmp_path / "cache")
    with Session(engine) as session, session.begin():
        wil, ben = add_rater(session, "wil"), add_rater(session, "ben")
        _, (opening,) = add_dialogue(session, OTHERS)
        pair, written, machine = add_pair(session, opening, complete=False)
        now = session.scalar(text("select now()"))
        for row, content, writer in ((written, SECRET, wil.id), (machine, "Paris.", None)):
            row.text, row.completed_at, row.written_by_id = content, now, writer
        session.flush()
        session.add(t.Comparison(pair_id=pair.id, rater_id=ben.id, side=written.side))
        follows = t.Message(
            dialogue_id=pair.dialogue_id, parent_id=pair.parent_id, role="assistant", content=SECRET,
            candidate_id=written.id,
        )  # fmt: skip
        session.add(follows)
        session.flush()
        asks = t.Message(dialogue_id=pair.dialogue_id, parent_id=follows.id, role="user", content="go on")
        session.add(asks)
        session.flush()
        later = t.Pair(dialogue_id=pair.dialogue_id, parent_id=asks.id, question="helpful")
        session.add(later)
        session.flush()
        session.add_all(t.Candidate(pair_id=later.id, side=side, text=side, completed_at=now) for side in ("a", "b"))
        session.flush()
        session.add(t.Comparison(pair_id=later.id, rater_id=ben.id, side="a"))
        kept = add_comparison(session, "unrelated", rater=ben).id
        follows_id, asks_id, machine_id = follows.id, asks.id, machine.id
    done = erase(engine, store, "wil")
    assert (done.comparisons, done.messages, done.replies) == (2, 1, 1)
    with Session(engine) as session:
        assert session.get_one(t.Message, follows_id).content == "[erased]"
        assert session.get_one(t.Message, asks_id).content == "go on"
        assert session.get_one(t.Candidate, machine_id).text == "Paris."
    results = build(engine, tmp_path / "set", frozen(engine))
    assert results.excluded == {"erased": 2}
    assert [record["id"] for record in records(tmp_path / "set")] == [str(kept)]


def test_it_goes_on_where_it_was_cut_off(week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(Exception):
        pass

    real, calls = week.store.delete, []

    def cut(digest: str) -> None:
        calls.append(digest)
        if len(calls) == 2:
            raise Cut
        real(digest)

    monkeypatch.setattr(week.store, "delete", cut)
    with pytest.raises(Cut):
        week.erase()
    # Texts are still in the database: without them the rest could not be found.
    assert "Quentin" in week.everything()
    monkeypatch.setattr(week.store, "delete", real)
    assert len(week.erase().artifacts) == 4
    assert "Quentin" not in week.everything()
    with Session(week.engine) as session:
        assert len(session.scalars(select(t.Erasure)).all()) == 1
        assert session.scalars(select(t.ErasedArtifact.num_comparisons)).all().count(1) == 1


def test_a_second_rater_of_the_same_set_is_erased_from_what_is_left(week: Week) -> None:
    week.erase()
    done = erase(week.engine, week.store, "ben")
    assert week.digest(week.set_id) in done.artifacts
    left = week.everything()
    # Ben's own choice is about an imported text; in the set it is gone with the choice.
    assert OTHERS not in "".join(
        path.read_text() for path in Path(week.store.url.removeprefix("file://")).rglob("shards/*")
    )
    assert "'ben'" not in left
    with Session(week.engine) as session:
        assert ledger.cycle_not_reproducible(session, week.cycle_id) == "not reproducible: 2 comparisons erased"


def test_it_waits_for_an_open_cycle(week: Week, close_cycle: Callable[[], None]) -> None:
    with Session(week.engine) as session, session.begin():
        add_cycle(session)
    with pytest.raises(RaterError, match="is open and may hold the texts"):
        week.erase()
    assert "Quentin" in week.everything()
    with Session(week.engine) as session:
        # Not begun either: the rater still takes part.
        assert session.scalars(select(t.Erasure)).all() == []
        assert session.get_one(t.Rater, week.ann_id).status == "normal"
    close_cycle()
    week.erase()
    with pytest.raises(OrchestratorError, match="no rater 'ann'"):
        week.erase()


def test_the_database_lets_an_erasure_put_tombstones_and_nothing_else(session: Session) -> None:
    comparison = add_comparison(session)
    session.execute(text("set local orchestrator.erasing = 'on'"))
    session.execute(text("update messages set content = '[erased]'"))
    session.execute(text(f"update raters set handle = 'erased-{comparison.rater_id}', platform = null"))
    for statement in (
        "update messages set content = 'something nicer'",
        "update messages set role = 'assistant', content = '[erased]'",
        "update comparisons set side = 'b'",
        "update pairs set question = 'harmless'",
        "update raters set handle = 'erased-0'",
        "delete from messages",
    ):
        with pytest.raises(DBAPIError, match="refused"), session.begin_nested():
            session.execute(text(statement))


def test_without_yes_nothing_is_changed(
    week: Week, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ORCHESTRATOR_ARTIFACT_URL", week.store.url)
    assert cli.main(["rater", "erase", "ann"]) == 1
    assert "Nothing was changed. ann made 1 comparisons" in capsys.readouterr().out
    assert "Quentin" in week.everything()
    assert cli.main(["verify"]) == 0
    assert cli.main(["rater", "erase", "ann", "--yes"]) == 0
    assert f"now erased-{week.ann_id}" in capsys.readouterr().out
    with Session(week.engine) as session:
        (act,) = session.scalars(select(t.OperatorAct))
        assert (act.act, act.subject, act.identity) == ("erase", f"rater {week.ann_id}", "machine")
    assert cli.main(["verify"]) == 0
    assert "4 of them were written anew" in capsys.readouterr().out
    with Session(week.engine) as session, pytest.raises(RaterError, match="kept for raters who were erased"):
        create_rater(session, "erased-7")
