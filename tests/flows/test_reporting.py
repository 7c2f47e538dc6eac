"""The report of an earlier cycle is written anew where it can be, and in nobody's way where it can't."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flows.reporting import report_anew
from flows.running import InProcess
from orchestrator.errors import ArtifactError


class WithoutFiles(InProcess):
    """Where the files of an earlier cycle are gone."""

    async def ask(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return 3

    async def stage(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise ArtifactError("Artifact 41 is not there.")


def test_an_earlier_report_that_cant_be_written_anew_ends_no_cycle(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(report_anew(WithoutFiles(print), 7)) is False
    assert "stays as it was: Artifact 41 is not there." in caplog.text
