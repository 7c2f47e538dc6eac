"""The ledger: found by fingerprint, recorded once, resolved by name; and lineage in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.cli import main
from orchestrator.errors import ArtifactError
from orchestrator.store import ledger
from orchestrator.store.artifacts import ArtifactStore, Published
from orchestrator.store.lineage import lineage
from tests.db.rows import NOW, add_artifact
from tests.orchestrator.store.loop import Loop


def published(digit: str) -> Published:
    return Published(f"sha256:{digit * 64}", 10, ())


def record(session: Session, digit: str, fingerprint: str = "f", **inputs: int) -> t.Artifact:
    return ledger.record(
        session,
        kind="snapshot",
        fingerprint=fingerprint,
        published=published(digit),
        settings={"learning_rate": 0.1},
        results={"steps": 3},
        inputs=inputs,
        cycle_id=None,
        code_revision="abc",
    )


def test_a_fingerprint_depends_on_kind_settings_and_inputs_and_not_on_their_order() -> None:
    base = ledger.fingerprint("snapshot", {"a": 1, "b": [2]}, {"initial": "sha256:1", "pm": "sha256:2"})
    assert base == ledger.fingerprint("snapshot", {"b": [2], "a": 1}, {"pm": "sha256:2", "initial": "sha256:1"})
    others = [
        ledger.fingerprint("report", {"a": 1, "b": [2]}, {"initial": "sha256:1", "pm": "sha256:2"}),
        ledger.fingerprint("snapshot", {"a": 2, "b": [2]}, {"initial": "sha256:1", "pm": "sha256:2"}),
        ledger.fingerprint("snapshot", {"a": 1, "b": [2]}, {"initial": "sha256:2", "pm": "sha256:1"}),
    ]
    assert len({base, *others}) == 4
    # sha256sum of {"inputs":{},"kind":"k","settings":{}}: the text is fixed, because fingerprints are kept for ever.
    assert ledger.fingerprint("k", {}, {}) == "f3133969097ee7b9224f78ffb72100dba117f58beda82d5f98631d4f605f7ffa"


def test_the_same_artifact_recorded_twice_is_one_row(session: Session) -> None:
    parent = add_artifact(session)
    first, second = record(session, "1", initial=parent.id), record(session, "1", initial=parent.id)
    assert first.id == second.id
    assert session.scalars(select(t.LineageEdge.role)).all() == ["initial"]
    assert (first.settings, first.results, first.num_bytes) == ({"learning_rate": 0.1}, {"steps": 3}, 10)


def test_the_newest_artifact_of_a_fingerprint_is_found(session: Session) -> None:
    assert ledger.find(session, "f") is None
    record(session, "1")
    rebuilt = record(session, "2")
    record(session, "3", fingerprint="other")
    found = ledger.find(session, "f")
    assert found is not None
    assert found.id == rebuilt.id


def test_an_artifact_is_named_by_id_digest_or_its_beginning(session: Session) -> None:
    artifact = record(session, "a")
    record(session, "b")
    for name in (
        artifact.id,
        str(artifact.id),
        f"artifact:{artifact.id}",
        artifact.digest,
        "aaaaaa",
        "sha256:aaaaaaaa",
    ):
        assert ledger.resolve(session, name).id == artifact.id


@pytest.mark.parametrize("name", ["aaaaa", "999999999", "cccccc", "snapshot", "", "sha256:"])
def test_a_name_that_means_nothing_is_refused(session: Session, name: str) -> None:
    record(session, "a")
    with pytest.raises(ArtifactError, match="orchestrator artifacts"):
        ledger.resolve(session, name)


def test_an_ambiguous_beginning_is_refused_and_lists_what_it_means(session: Session) -> None:
    for last in "12":
        digest = "sha256:" + "d" * 63 + last
        add_artifact(session, digest=digest)
    with pytest.raises(ArtifactError, match="means 2 artifacts"):
        ledger.resolve(session, "dddddd")


def test_what_is_not_named_is_the_newest_of_its_kind(session: Session) -> None:
    def found(name: int | None, *kinds: str, **options: tuple[str, ...]) -> int:
        wanted = t.Artifact.digest != f"sha256:{'3' * 64}"
        return ledger.named_or_newest(session, name, kinds, wanted, nothing="nothing yet", **options).id

    old, new, unwanted = (record(session, digit, f"f{digit}") for digit in "123")
    other = add_artifact(session, kind="prompt_set")
    assert found(None, "snapshot") == new.id
    assert found(old.id, "snapshot") == old.id
    # A condition chooses among those that were not named; who names one means it.
    assert found(unwanted.id, "snapshot") == unwanted.id
    assert found(None, "snapshot", "prompt_set") == other.id
    assert found(None, "snapshot", "prompt_set", newest=("snapshot",)) == new.id
    with pytest.raises(ArtifactError, match=f"Artifact {other.id} is of kind prompt_set; expected snapshot or report"):
        found(other.id, "snapshot", "report")
    with pytest.raises(ArtifactError, match="nothing yet"):
        found(None, "report")


def test_a_measurement_repeated_is_one_row_and_a_new_one_is_another(session: Session) -> None:
    subject = add_artifact(session)
    first = ledger.record_evaluation(session, None, "policy", subject.id, {"ci": (0.1, 0.2)})
    assert ledger.record_evaluation(session, None, "policy", subject.id, {"ci": (0.1, 0.2)}).id == first.id
    assert ledger.record_evaluation(session, None, "policy", subject.id, {"ci": (0.1, 0.3)}).id != first.id
    assert session.execute(select(func.count()).select_from(t.Evaluation)).scalar_one() == 2


def keys(nodes) -> set[str]:
    return {node.key for node in nodes}


def test_a_reply_leads_back_to_weights_pm_comparisons_and_raters(session: Session) -> None:
    loop = Loop(session)
    reply = session.scalars(select(t.Candidate).where(t.Candidate.pair_id == loop.late.pair_id)).first()
    assert reply is not None
    found = lineage(session, f"candidate:{reply.id}")
    assert keys(found.upstream()) == {
        f"artifact:{loop.snapshot.id}",
        f"deployment:{loop.deployment.id}",
        f"artifact:{loop.pm.id}",
        f"artifact:{loop.initial.id}",
        f"artifact:{loop.set.id}",
        f"rater:{loop.anna.id}",
    }
    (edge,) = [edge for edge in found.edges if edge.child == f"artifact:{loop.set.id}"]
    assert edge.comparison_ids == [loop.one.id, loop.two.id]  # ben's tie is in no set
    assert keys(found.downstream()) == {f"comparison:{loop.late.id}"}  # not frozen yet


def test_a_message_that_was_a_reply_leads_back_the_same_way(session: Session) -> None:
    loop = Loop(session)
    reply = session.scalars(select(t.Candidate).where(t.Candidate.pair_id == loop.late.pair_id)).first()
    assert reply is not None
    pair = session.get_one(t.Pair, reply.pair_id)
    message = t.Message(
        dialogue_id=pair.dialogue_id, parent_id=pair.parent_id, role="assistant", content="x", candidate_id=reply.id
    )
    session.add(message)
    session.flush()
    found = lineage(session, f"message:{message.id}")
    assert {f"candidate:{reply.id}", f"rater:{loop.anna.id}", f"artifact:{loop.set.id}"} <= keys(found.upstream())


def test_a_rater_leads_forward_to_artifacts_and_deployments(session: Session) -> None:
    loop = Loop(session)
    found = lineage(session, "rater:anna")
    assert keys(found.downstream()) == {
        f"artifact:{loop.set.id}",
        f"artifact:{loop.pm.id}",
        f"artifact:{loop.snapshot.id}",
        f"deployment:{loop.deployment.id}",
    }
    assert found.nodes[f"deployment:{loop.deployment.id}"].facts["num_replies"] == 2
    assert lineage(session, f"rater:{loop.ben.id}").downstream() == []


def test_a_comparison_leads_both_ways(session: Session) -> None:
    loop = Loop(session)
    found = lineage(session, f"comparison:{loop.one.id}")
    assert {f"rater:{loop.anna.id}", f"artifact:{loop.initial.id}"} <= keys(found.upstream())
    assert f"deployment:{loop.deployment.id}" in keys(found.downstream())


def test_an_artifact_leads_both_ways_and_reads_as_a_tree(session: Session) -> None:
    loop = Loop(session)
    found = lineage(session, loop.pm.digest)
    assert keys(found.upstream()) == {f"artifact:{loop.initial.id}", f"artifact:{loop.set.id}", f"rater:{loop.anna.id}"}
    assert keys(found.downstream()) == {f"artifact:{loop.snapshot.id}", f"deployment:{loop.deployment.id}"}
    text = found.render()
    assert f"│  └─ comparisons: rater {loop.anna.id} (anna) (2 comparisons)" in text
    assert f"   └─ deployed: deployment {loop.deployment.id}, from " in text
    values = json.loads(json.dumps(found.to_json()))
    assert values["subject"]["key"] == f"artifact:{loop.pm.id}"
    assert {node["key"] for node in values["upstream"]} == keys(found.upstream())


def test_a_message_leads_forward_to_the_replies_that_answered_it(session: Session) -> None:
    loop = Loop(session)
    pair = session.get_one(t.Pair, loop.one.pair_id)
    ids = session.scalars(select(t.Candidate.id).where(t.Candidate.pair_id == pair.id).order_by(t.Candidate.side)).all()
    found = lineage(session, f"message:{pair.parent_id}")
    replies = {f"candidate:{id}" for id in ids}
    assert len(replies) == 2
    assert replies | {f"comparison:{loop.one.id}", f"artifact:{loop.pm.id}"} <= keys(found.downstream())
    assert f"answered by: reply {ids[0]} (side a of pair {pair.id})" in found.render()
    # What the replies came from is theirs and not the message's.
    assert keys(found.upstream()) == {f"rater:{loop.anna.id}"}


@pytest.mark.parametrize("name", ["candidate:999", "rater:nobody", "comparison:x", "message:999", "zebra:1"])
def test_something_that_is_not_there_is_named(session: Session, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"candidate:ID \(a reply\)" if name == "zebra:1" else name.split(":")[0]):
        lineage(session, name)


def test_the_commands_print_what_the_ledger_holds(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sqlalchemy import create_engine

    monkeypatch.setenv("DATABASE_URL", database_url)
    (home / "result").mkdir()
    (home / "result" / "results.json").write_text("{}")
    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    stored = store.publish(home / "result")
    engine = create_engine(database_url)
    with Session(engine) as session, session.begin():
        artifact_id = add_artifact(session, digest=stored.digest, created_at=NOW).id
    engine.dispose()

    assert main(["artifacts", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [artifact_id]
    assert main(["lineage", str(artifact_id)]) == 0
    assert "came from: nothing recorded" in capsys.readouterr().out
    assert main(["migrate", "--check"]) == 0
    capsys.readouterr()
    assert main(["verify"]) == 0
    assert "all are what their digests say" in capsys.readouterr().out

    file = store.fetch(stored.digest) / "results.json"
    file.chmod(0o644)
    file.write_text("[]")
    assert main(["verify", "--json"]) == 1
    (bad,) = json.loads(capsys.readouterr().out)["bad"]
    assert bad["id"] == artifact_id
    assert bad["problems"][0].startswith("file results.json has SHA-256")
    assert main(["lineage", "candidate:1"]) == 2
    assert "There is no candidate with id 1." in capsys.readouterr().err
