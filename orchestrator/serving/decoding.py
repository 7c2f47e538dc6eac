"""One thread decodes for everybody: a running batch per snapshot, joined and left by requests at any step.

The event loop hands replies over and is woken when they grow; it never waits for a forward pass.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from models.chat.format import ChatFormat
from models.sampling.engine import DecodeEngine, Finished, SamplingParams

logger = logging.getLogger(__name__)


class Reply:
    """One reply while it is decoded. `ids` only grows, and `finished` or `failure` is set last."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        changed: asyncio.Event,
        *,
        every_token: bool,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self.ids: list[int] = []
        self.finished: Finished | None = None
        self.failure: str | None = None
        self.changed = changed
        """Set in the event loop with every token, or once at the end where `every_token` is off."""
        self.every_token = every_token

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished is not None or self.failure is not None

    def text(self, chat: ChatFormat) -> str:
        """The reply so far."""
        return chat.decode(self.ids)

    def num_tokens(self, chat: ChatFormat) -> int:
        """Its tokens, the end-of-turn token included."""
        return len(self.ids)


class DecodeThread:
    """Steps every engine that has work, in turn. Engines are touched by this thread alone."""

    def __init__(self) -> None:
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._replies: dict[DecodeEngine, dict[int, Reply]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.tokens = 0
        """Tokens decoded since the start."""
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    def start(self) -> None:
        """Begin; called in the event loop that will be woken."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End after the current step; what is under way fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, engine: DecodeEngine, replies: list[Reply]) -> None:
        """Let the replies join the engine's batch at its next step."""
        self._tell(lambda: self._submit(engine, replies))

    def cancel(self, engine: DecodeEngine, replies: list[Reply]) -> None:
        """Drop replies that nobody waits for; their slots are free from the next step on."""
        self._tell(lambda: self._cancel(engine, replies))

    def _tell(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # In the thread

    def _run(self) -> None:
        while self._turn():
            pass
        for replies in self._replies.values():
            self._fail(replies, "the policy server is stopping")

    def _turn(self) -> bool:
        """Wait for work, take in what came and step every batch once; False at the end.

        A method of its own, so that no variable of the waiting thread keeps the weights of an engine alive.
        """
        with self._wake:
            while not self._commands and not self._replies and not self._stopping:
                self._wake.wait()
            if self._stopping:
                return False
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        for engine in list(self._replies):
            self._step(engine)
            if not self._replies[engine]:
                del self._replies[engine]
        return True

    def _submit(self, engine: DecodeEngine, replies: list[Reply]) -> None:
        running = self._replies.setdefault(engine, {})
        for reply in replies:
            try:
                running[engine.submit(reply.prompt_ids, reply.params)] = reply
            except ValueError as error:
                reply.failure = str(error)
                self._notify([reply])

    def _cancel(self, engine: DecodeEngine, replies: list[Reply]) -> None:
        running = self._replies.get(engine, {})
        for handle, reply in list(running.items()):
            if reply in replies:
                engine.cancel(handle)
                del running[handle]

    def _step(self, engine: DecodeEngine) -> None:
        running = self._replies[engine]
        if not running:
            return
        try:
            tokens = engine.step()
        except Exception:
            # Out of memory, for one. The batch is lost, the weights are whole: the next requests start afresh.
            logger.exception("a decoding step failed; its %d replies are given up", len(running))
            engine.close()
            self._fail(running, "decoding failed; the server's log says why")
            return
        grown = []
        self.tokens += len(tokens)
        for token in tokens:
            reply = running[token.handle]
            reply.ids.append(token.token_id)
            if token.finished:
                reply.finished = token.finished
                del running[token.handle]
            if token.finished or reply.every_token:
                grown.append(reply)
        self._notify(grown)

    def _fail(self, running: dict[int, Reply], why: str) -> None:
        for reply in running.values():
            reply.failure = why
        self._notify(list(running.values()))
        running.clear()

    def _notify(self, replies: list[Reply]) -> None:
        # One call per step, not one per token: waking the loop costs more than the rest of this method.
        if replies and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_set_all, {reply.changed for reply in replies})


def _set_all(events: set[asyncio.Event]) -> None:
    for event in events:
        event.set()
