"""Migrations go up and down, equal the models, and may be run by several processes at once."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Engine, text
from sqlalchemy.exc import DBAPIError

from db.migrate import current_revision, downgrade, newest_revision, upgrade
from db.session import make_engine
from db.tables import Base
from orchestrator.instance.postgres import EmbeddedPostgres
from tests.paths import PROJECT_ROOT

REVISIONS = sorted(path.name[:4] for path in (PROJECT_ROOT / "migrations" / "versions").glob("0*.py"))


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without tables."""
    connection = postgres.connect("postgres")
    connection.autocommit = True
    connection.cursor().execute("create database empty")
    yield postgres.url_of("empty")
    connection.cursor().execute("drop database empty with (force)")
    connection.close()


def schema(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Everything of ours in the database's catalogue, by kind."""
    queries = {
        "columns": "select table_name, column_name, data_type, column_default, is_nullable"
        " from information_schema.columns where table_schema = 'public'",
        "constraints": "select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint"
        " where connamespace = 'public'::regnamespace",
        "indexes": "select tablename, indexname, indexdef from pg_indexes where schemaname = 'public'",
        "triggers": "select tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) from pg_trigger"
        " where not tgisinternal",
        "functions": "select proname, prosrc from pg_proc where pronamespace = 'public'::regnamespace",
    }
    engine = make_engine(url)
    with engine.connect() as connection:
        found = {name: sorted(map(tuple, connection.execute(text(query)))) for name, query in queries.items()}
    engine.dispose()
    return {name: [row for row in rows if "alembic_version" not in row] for name, rows in found.items()}


def test_models_and_migrations_are_equal(engine: Engine) -> None:
    with engine.connect() as connection:
        options = {"compare_server_default": True, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_check_and_exclusion_constraints_are_equal_too(engine: Engine) -> None:
    """Alembic does not compare these: compared by name here."""
    declared = {
        constraint.name
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    with engine.connect() as connection:
        query = "select conname from pg_constraint where contype = :kind and connamespace = 'public'::regnamespace"
        assert set(connection.scalars(text(query), {"kind": "c"})) == declared
        assert set(connection.scalars(text(query), {"kind": "x"})) == {"ex_frozen_comparisons_run"}


def test_every_table_has_its_triggers(engine: Engine) -> None:
    """No row can be deleted, save from the queue; no table can be emptied."""
    with engine.connect() as connection:
        query = text("select tgrelid::regclass::text, tgname from pg_trigger where not tgisinternal")
        triggers = {(table, name.removeprefix(f"{table}_")) for table, name in connection.execute(query)}
    tables = set(Base.metadata.tables)
    assert {table for table, name in triggers if name == "no_truncate"} == tables
    guarded = {table for table, name in triggers if name in ("append_only", "no_delete")}
    assert guarded == tables - {"fresh_comparisons"}
    assert ("comparisons", "accept") in triggers


def test_every_time_carries_its_zone(engine: Engine) -> None:
    with engine.connect() as connection:
        query = text(
            "select count(*), count(*) filter (where data_type like '%with time zone') from information_schema.columns"
            " where table_schema = 'public' and data_type like '%time%'"
        )
        total, with_zone = connection.execute(query).one()
    assert total == with_zone > 20


def test_down_undoes_each_migration_and_up_brings_it_back(empty_url: str) -> None:
    states = {"base": schema(empty_url)}
    for revision in REVISIONS:
        upgrade(empty_url, revision)
        assert current_revision(empty_url) == revision
        states[revision] = schema(empty_url)
    assert newest_revision() == REVISIONS[-1]
    assert states["base"] == {name: [] for name in states["base"]}
    for revision in (*reversed(REVISIONS[:-1]), "base"):
        downgrade(empty_url, revision)
        assert schema(empty_url) == states[revision]
    assert current_revision(empty_url) is None
    upgrade(empty_url)
    assert schema(empty_url) == states[REVISIONS[-1]]


def test_processes_and_threads_at_once_migrate_once(empty_url: str) -> None:
    command = [sys.executable, "-c", "import sys; from db.migrate import upgrade; upgrade(sys.argv[1])", empty_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, cwd=PROJECT_ROOT) for _ in range(2)]
    errors = []

    def migrate() -> None:
        try:
            upgrade(empty_url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.communicate()[1].decode() for process in processes] == ["", ""]
    assert errors == []
    assert current_revision(empty_url) == REVISIONS[-1]


def test_a_migrated_database_is_left_alone(database_url: str) -> None:
    before = schema(database_url)
    upgrade(database_url)
    assert schema(database_url) == before


def test_the_scripts_are_found_beside_the_package() -> None:
    spec = find_spec("migrations.versions")
    assert spec is not None
    assert spec.origin is not None


def test_pairings_of_policies_become_pairings_of_contestants_and_back(empty_url: str) -> None:
    """0007: whatever was paired before, the same weights twice among them, is paired afterwards."""
    upgrade(empty_url, "0006")
    engine = make_engine(empty_url)
    one, two = (f"sha256:{number:064}" for number in (1, 2))
    met = "select snapshot_id from contestants where id = contestant_{}_id"
    with engine.begin() as connection:
        for fingerprint, digest in (("x", one), ("y", two), ("z", one)):
            connection.execute(
                text(
                    "insert into artifacts (kind, fingerprint, digest, settings, results, num_bytes) "
                    "values ('snapshot', :fingerprint, :digest, '{}', '{}', 1)"
                ),
                {"fingerprint": fingerprint, "digest": digest},
            )
        connection.execute(
            text(
                "insert into pairings (task, contestant_a_id, contestant_b_id, ended_at) values "
                "('helpful', 1, 2, null), ('helpful', 2, 3, now())"
            )
        )
    upgrade(empty_url, "0007")
    with engine.begin() as connection:
        rows = connection.execute(text(f"select ({met.format('a')}), ({met.format('b')}) from pairings order by id"))
        # Artifact 3 has the weights of artifact 1, so it is the same contestant.
        assert [tuple(row) for row in rows] == [(1, 2), (2, 1)]
        assert set(connection.scalars(text("select name from contestants"))) == {one, two}
    downgrade(empty_url, "0006")
    with engine.begin() as connection:
        rows = connection.execute(text("select contestant_a_id, contestant_b_id from pairings order by id"))
        assert [tuple(row) for row in rows] == [(1, 2), (2, 1)]
    upgrade(empty_url, "0007")
    with engine.begin() as connection:
        connection.execute(text("insert into rater_groups (name) values ('writers')"))
        connection.execute(text("insert into contestants (name, kind, group_id) values ('people', 'writer', 1)"))
    with pytest.raises(DBAPIError, match="the schema before 0007 has no place for them"):
        downgrade(empty_url, "0006")
    engine.dispose()


def test_the_table_of_prompts_goes_only_where_it_is_empty(empty_url: str) -> None:
    """0010: rows that somebody put there stop the migration, and stay; emptied as it says, the table goes."""
    upgrade(empty_url, "0009")
    engine = make_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(
            text("insert into prompts (source, kind, messages, identity_digest) values ('s', 'helpful', '[]', 'i')")
        )
    with pytest.raises(DBAPIError, match="the table prompts holds rows") as refused:
        upgrade(empty_url)
    assert current_revision(empty_url) == "0009"
    told = re.search(r"empty the table as its owner \((.+?)\) and migrate again", str(refused.value))
    assert told is not None
    with engine.begin() as connection:
        assert connection.scalar(text("select count(*) from prompts")) == 1
        connection.execute(text(told[1]))
    upgrade(empty_url)
    with engine.connect() as connection:
        assert connection.scalar(text("select to_regclass('prompts')")) is None
    engine.dispose()
