"""Prefect's command line, whose server can plan runs and has one UI: `python -m flows.prefect_server server start`.

With SQLAlchemy 2.1 the scheduler of Prefect 3.8.8 fails at each run it would plan ("Can't evaluate bulk DML
statement"), so that no schedule ever fires: it inserts rows with a `state`, which 2.0 passed over because it is no
column, and 2.1 asks what to do with. The state has a row of its own, which Prefect inserts next.

Its second UI calls an outside host and hides Resume and Cancel. PREFECT_SERVER_UI_V2_ENABLED says only which of the two
comes first: the other one stays in the menu ("Switch to V2 UI") and in a banner, unless the server does not have it.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import prefect
from prefect.server.database.orm_models import FlowRun, TaskRun
from sqlalchemy import inspect


def pass_over_states() -> None:
    """Let bulk inserts of runs pass over their states, as SQLAlchemy 2.0 did."""
    for table in (FlowRun, TaskRun):
        mapper: Any = inspect(table)
        mapper.all_orm_descriptors["state"].bulk_dml_setter = lambda table, row, value: None


def offer_one_ui() -> None:
    """Let the server find no files of the second UI, as where Prefect was installed without it."""
    prefect.__ui_v2_static_path__ = Path("/nonexistent")


if __name__ == "__main__":
    pass_over_states()
    offer_one_ui()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
