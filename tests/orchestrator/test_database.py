"""A transaction on the instance's database: what is refused has a type, and a connection that is lost is one line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from db import tables as t
from db.errors import DuplicateRater
from db.migrate import downgrade, upgrade
from db.session import session
from orchestrator.database import as_operators_error, database
from orchestrator.errors import ServiceUnavailable


@pytest.fixture(autouse=True)
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def test_a_refused_row_ends_in_its_typed_error_and_nothing_is_written() -> None:
    with database() as rows:
        rows.add(t.Rater(handle="ann", kind="human"))

    def again() -> None:
        with database() as rows:
            rows.add(t.Rater(handle="bob", kind="human"))
            rows.flush()
            # Nobody flushes this one, so it is refused at the end of the block.
            rows.add(t.Rater(handle="ann", kind="human"))

    with pytest.raises(DuplicateRater) as refused:
        again()
    assert refused.value.constraint == "uq_raters_handle"
    with database() as rows:
        assert rows.scalars(select(t.Rater.handle)).all() == ["ann"]


def lose_between_statements() -> None:
    with database() as rows:
        process = rows.scalar(select(func.pg_backend_pid()))
        with database() as other:
            assert other.scalar(text("select pg_terminate_backend(:process, 10000)"), {"process": process})
        rows.execute(text("select 1"))


def lose_within_a_statement() -> None:
    with database() as rows:
        rows.execute(text("select pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize("lose", [lose_between_statements, lose_within_a_statement])
def test_a_connection_that_is_lost_is_one_line(lose: Callable[[], None]) -> None:
    with pytest.raises(DBAPIError) as lost:
        lose()
    told = as_operators_error(lost.value)
    assert isinstance(told, ServiceUnavailable)
    assert re.fullmatch(r"The database at \S+ does not answer \(.*\)\. Start it, or check DATABASE_URL\.", str(told))


def test_what_a_migration_refuses_is_one_line(url: str) -> None:
    downgrade(url, "0009")
    with session(url) as rows:
        rows.execute(
            text("insert into prompts (source, kind, messages, identity_digest) values ('s', 'helpful', '[]', 'i')")
        )
    with pytest.raises(DBAPIError) as refused:
        upgrade(url)
    told = str(as_operators_error(refused.value))
    assert told.startswith("The database was not migrated: the table prompts holds rows, and the schema from 0010 on")
    assert "\n" not in told
