"""The freeze: each comparison in exactly one, whatever is in flight, and after dump and restore."""

from __future__ import annotations

import os
import subprocess
import threading
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from db import tables as t
from db.migrate import upgrade
from db.session import make_engine
from orchestrator.config import ComparisonsSection
from orchestrator.data import freeze as dataset
from orchestrator.errors import CycleError
from orchestrator.instance.postgres import EmbeddedPostgres
from orchestrator.instance.postgres_files import binary
from tests.db.rows import add_artifact, add_comparison, add_cycle, close

WRITERS = 8


def frozen_ids(session: Session) -> dict[int, list[int]]:
    """Comparison ids by freeze."""
    found: dict[int, list[int]] = {freeze_id: [] for freeze_id in session.scalars(select(t.Freeze.id))}
    for run in session.scalars(select(t.FrozenComparison).order_by(t.FrozenComparison.first_id)):
        found[run.freeze_id] += range(run.first_id, run.last_id + 1)
    return found


def next_freeze(session: Session) -> t.Freeze:
    """Freeze in a cycle that is opened and closed for it."""
    cycle = add_cycle(session)
    frozen = dataset.freeze(session, cycle.id)
    close(session, cycle)
    return frozen


def test_a_transaction_open_during_the_freeze_is_in_the_next_one(engine: Engine) -> None:
    with Session(engine) as early, Session(engine) as late, Session(engine) as freezer:
        in_flight = add_comparison(late, "in flight").id  # inserted first, so its id is the lowest
        before = add_comparison(early, "before").id
        early.commit()
        first = next_freeze(freezer).id
        freezer.commit()
        late.commit()
        after = add_comparison(early, "after").id
        early.commit()
        second = next_freeze(freezer).id
        freezer.commit()
        assert in_flight < before
        assert frozen_ids(freezer) == {first: [before], second: [in_flight, after]}
        assert freezer.scalars(select(t.FreshComparison)).all() == []


def test_a_freeze_does_not_wait_for_an_open_transaction(engine: Engine) -> None:
    with Session(engine) as late, Session(engine) as freezer:
        add_comparison(late)
        freezer.connection().exec_driver_sql("set local lock_timeout = '1s'")
        assert next_freeze(freezer).num_fresh == 0
        late.rollback()


def test_what_is_rolled_back_is_in_no_freeze(engine: Engine) -> None:
    with Session(engine) as session:
        add_comparison(session)
        session.rollback()
        kept = add_comparison(session).id
        session.commit()
        frozen = next_freeze(session)
        assert (frozen.num_fresh, frozen_ids(session)) == (1, {frozen.id: [kept]})


def test_a_freeze_that_is_rolled_back_loses_nothing(engine: Engine) -> None:
    with Session(engine) as session:
        kept = add_comparison(session).id
        session.commit()
        next_freeze(session)
        session.rollback()
        frozen = next_freeze(session)
        assert frozen_ids(session) == {frozen.id: [kept]}


def test_the_freeze_of_a_cycle_is_sticky(session: Session) -> None:
    add_comparison(session)
    cycle = add_cycle(session)
    first = dataset.freeze(session, cycle.id)
    add_comparison(session)
    assert dataset.freeze(session, cycle.id).id == first.id
    assert first.num_fresh == 1
    close(session, cycle)
    assert dataset.freeze(session, cycle.id).id == first.id  # asked again after the cycle ended


def test_a_closed_cycle_does_not_freeze(session: Session) -> None:
    cycle = add_cycle(session, state="cancelled")
    with pytest.raises(CycleError, match="only an open cycle"):
        dataset.freeze(session, cycle.id)


def test_a_cycle_that_was_cancelled_elsewhere_does_not_freeze(engine: Engine) -> None:
    with Session(engine) as session, Session(engine) as other:
        cycle = add_cycle(session)
        session.commit()
        assert cycle.state == "open"  # read by this session, and kept
        close(other, other.get_one(t.Cycle, cycle.id))
        other.commit()
        with pytest.raises(CycleError, match="only an open cycle"):
            dataset.freeze(session, cycle.id)


def test_the_newest_of_several_earlier_sets_is_taken(session: Session) -> None:
    section = ComparisonsSection()
    # By number and not by text, of which 9 would be above 10: ids cross the next power of ten, wherever they are now.
    border = 10 ** len(str(next_freeze(session).id))
    session.execute(text("select setval(pg_get_serial_sequence('freezes', 'id'), :last)"), {"last": border - 6})
    freezes = [next_freeze(session) for _ in range(12)]
    assert (freezes[0].id, freezes[11].id) == (border - 5, border + 6)
    sets = []
    for frozen in freezes[:11]:
        settings = section.selection() | {"freeze_id": frozen.id, "freeze": dataset.freeze_digest(frozen)}
        sets.append(add_artifact(session, "comparison_set", settings=settings))
    assert dataset.previous_comparison_set(session, freezes[11].id, section) is sets[10]
    assert dataset.previous_comparison_set(session, freezes[3].id, section) is sets[2]
    assert dataset.previous_comparison_set(session, freezes[0].id, section) is None


def test_freezes_form_a_chain_and_have_digests_of_their_own(session: Session) -> None:
    first, second = next_freeze(session), next_freeze(session)
    assert (first.previous_id, second.previous_id) == (None, first.id)
    assert dataset.freeze_digest(first) == dataset.freeze_digest(first) != dataset.freeze_digest(second)


def test_a_second_freeze_of_the_same_cycle_waits_and_returns_the_first(engine: Engine) -> None:
    with Session(engine) as session:
        add_comparison(session)
        cycle_id = add_cycle(session).id
        session.commit()
    found: list[int] = []

    def freeze() -> None:
        with Session(engine) as session:
            found.append(dataset.freeze(session, cycle_id).id)
            session.commit()

    waiting = text(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    with Session(engine) as first, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
        freeze_id = dataset.freeze(first, cycle_id).id
        second = threading.Thread(target=freeze)
        second.start()
        while second.is_alive() and not observer.scalar(waiting):
            second.join(0.01)
        first.commit()
        second.join()
    assert found == [freeze_id]


def test_eight_writers_and_freezes_at_once_lose_and_double_nothing(engine: Engine) -> None:
    """Each writer commits 25 comparisons in transactions of 1 to 4, and rolls some back; freezes run all the while."""
    barrier = threading.Barrier(WRITERS + 1)
    committed: list[int] = []
    running = WRITERS
    lock = threading.Lock()

    def write(number: int) -> None:
        nonlocal running
        with Session(engine) as session:
            barrier.wait()
            written = 0
            while written < 25:
                size = 1 + (written + number) % 4
                ids = [add_comparison(session, f"{number} {written}").id for _ in range(size)]
                if (written + number) % 5 == 0:
                    session.rollback()
                    ids = [add_comparison(session, f"{number} {written}").id for _ in range(size)]
                session.commit()
                written += size
                with lock:
                    committed.extend(ids)
        with lock:
            running -= 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    num_while_writing = 0
    with Session(engine) as session:
        barrier.wait()
        while running:
            num_while_writing += next_freeze(session).num_fresh > 0
            session.commit()
        for thread in threads:
            thread.join()
        next_freeze(session)
        session.commit()
        frozen = [id for ids in frozen_ids(session).values() for id in ids]
        assert num_while_writing >= 2
        assert sorted(frozen) == sorted(committed)
        assert len(set(frozen)) == len(frozen)
        assert session.execute(select(func.sum(t.Freeze.num_fresh))).scalar_one() == len(committed)


def test_an_outside_writer_is_frozen_too(engine: Engine) -> None:
    with Session(engine) as session:
        pair_id = add_comparison(session, "ours").pair_id
        session.commit()
        cursor = session.connection().connection.cursor()
        cursor.execute("insert into raters (handle, kind) values ('outsider', 'human') returning id")
        rater_id = cursor.fetchone()[0]
        # COPY, as a bulk loader does it.
        cursor.copy_expert(
            "copy comparisons (pair_id, rater_id, side) from stdin", StringIO(f"{pair_id}\t{rater_id}\tb\n")
        )
        assert next_freeze(session).num_fresh == 2


def test_after_dump_and_restore_nothing_is_lost_or_doubled(
    postgres: EmbeddedPostgres, engine: Engine, database_url: str, tmp_path: Path
) -> None:
    with Session(engine) as session:
        old = [add_comparison(session, f"old {number}").id for number in range(3)]
        add_artifact(session)
        session.commit()
        first = next_freeze(session).id
        session.commit()
        waiting = [add_comparison(session, f"fresh {number}").id for number in range(2)]
        session.commit()
    restored = postgres.connect("postgres")
    restored.autocommit = True
    restored.cursor().execute("create database restored")
    try:
        dump_and_restore(database_url, postgres.url_of("restored"), tmp_path / "dump")
        upgrade(postgres.url_of("restored"))  # nothing to do: the revision came along
        copy = make_engine(postgres.url_of("restored"))
        with Session(copy) as session:
            assert sorted(session.scalars(select(t.FreshComparison.comparison_id))) == waiting
            added = add_comparison(session, "after the restore").id  # the triggers came along
            second = next_freeze(session).id
            assert frozen_ids(session) == {first: old, second: [*waiting, added]}
            assert added > max(waiting)
            assert second > first
        copy.dispose()
    finally:
        restored.cursor().execute("drop database restored with (force)")
        restored.close()


def dump_and_restore(source: str, target: str, file: Path) -> None:
    """As an operator does it: pg_dump of one database, pg_restore into an empty one."""
    for program, url, arguments in (
        ("pg_dump", source, ["--format=custom", f"--file={file}"]),
        ("pg_restore", target, ["--exit-on-error", f"--dbname={urlsplit(target).path[1:]}", str(file)]),
    ):
        parts = urlsplit(url)
        environment = os.environ | {
            "PGHOST": str(parts.hostname),
            "PGPORT": str(parts.port),
            "PGUSER": str(parts.username),
            "PGPASSWORD": str(parts.password),
            "PGDATABASE": parts.path[1:],
        }
        subprocess.run([binary(program), *arguments], env=environment, check=True, capture_output=True)
