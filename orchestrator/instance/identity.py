"""Whose a Prefect server is: the id of a database, kept on the server as a variable. Nobody writes to another's.

A server that nobody has claimed yet is claimed by the first who would write to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables as t
from orchestrator.database import database
from orchestrator.errors import ServiceUnavailable
from orchestrator.instance.prefect_api import PrefectApi, api_url
from orchestrator.settings import Settings

VARIABLE = "orchestrator_instance"


def own_prefect(*, claim: bool = False) -> PrefectApi:
    """The Prefect server that the environment names, or that of the instance on the home; see `ensure_own`."""
    api = PrefectApi(api_url(Settings.from_env().home))
    ensure_own(api, claim=claim)
    return api


def ensure_own(
    api: PrefectApi, *, claim: bool = False, database: Callable[[], AbstractContextManager[Session]] = database
) -> None:
    """Return where the Prefect server is this instance's; an unclaimed one is claimed, any with `claim`.

    `database` opens a transaction in the instance's database, whose id is the instance's.

    Raises:
        ServiceUnavailable: it is another instance's; nothing was written.
    """
    with database() as session:
        own = session.scalars(select(t.InstanceIdentity.id)).one()
    owner = api.variable(VARIABLE)
    if owner == own:
        return
    if owner is not None and not claim:
        raise ServiceUnavailable(foreign(api, owner, own))
    api.set_variable(VARIABLE, own)


def foreign(api: PrefectApi, owner: object, own: str) -> str:
    """What was found, whose it is, and what to do."""
    return (
        f"The Prefect server at {api.ui_url} ({home_in_words(api)}) belongs to instance {owner}; this database is "
        f"instance {own}. Nothing was written there. Set PREFECT_API_URL to this instance's own server, or unset it. "
        "Where the server is this instance's and its database is a new or an older one: "
        "`orchestrator register --claim`, or `orchestrator up --claim` where that starts the server."
    )


def home_in_words(api: PrefectApi) -> str:
    """Where the server keeps its files, for a person who looks for whose it is."""
    return f"its PREFECT_HOME: {api.server_home() or 'not told'}"


def prefect_at(url: str) -> str:
    """Which Prefect server answers at the address, as a sentence; "" where none does."""
    api = PrefectApi(url, timeout_s=5.0)
    try:
        owner = api.variable(VARIABLE)
        whose = f"of instance {owner}" if owner else "that no instance has claimed"
        return f"A Prefect server {whose} answers there ({home_in_words(api)}); nothing was written to it."
    except (ServiceUnavailable, ValueError):
        return ""
