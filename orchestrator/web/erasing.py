"""Erasures that were begun at the desk, carried out beside the requests: every artifact with text is read for it.

Each has a thread of its own and its own connections, so that raters wait for none. A process that is stopped meanwhile
leaves the erasure as far as it came; the desk says so, and the button there or the command goes on.
"""

from __future__ import annotations

import logging
import threading

from db.session import make_engine
from orchestrator.people.erasure import go_on
from orchestrator.store.artifacts import ArtifactStore

logger = logging.getLogger(__name__)


class Erasing:
    """What this process is erasing, and why it stopped where it did."""

    def __init__(self, database_url: str, store: ArtifactStore) -> None:
        self._database_url, self._store = database_url, store
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._problems: dict[int, str] = {}

    def start(self, erasure_id: int) -> None:
        """Carry an erasure out; nothing happens where this process does so already."""
        with self._lock:
            if erasure_id in self._running:
                return
            self._running.add(erasure_id)
            self._problems.pop(erasure_id, None)
        # A daemon: a server that is told to stop does not wait for it.
        threading.Thread(target=self._carry_out, args=(erasure_id,), name=f"erasure {erasure_id}", daemon=True).start()

    def running(self, erasure_id: int) -> bool:
        """Whether this process is at it."""
        return erasure_id in self._running

    def problem(self, erasure_id: int) -> str | None:
        """What stopped it here."""
        return self._problems.get(erasure_id)

    def _carry_out(self, erasure_id: int) -> None:
        engine = make_engine(self._database_url, pool_size=2)
        try:
            go_on(engine, self._store, erasure_id)
        except Exception as error:
            # Nobody waits for the answer: the page says it to whoever looks.
            logger.exception("erasure %s stopped", erasure_id)
            self._problems[erasure_id] = f"{type(error).__name__}: {error}"
        finally:
            engine.dispose()
            self._running.discard(erasure_id)
