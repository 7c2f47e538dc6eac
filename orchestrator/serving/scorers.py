"""Preference models in memory, for best-of-k: which of k replies raters would like best.

Scoring runs in a thread of its own, so that decoding and the event loop go on beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from sqlalchemy import Engine

from models.chat.format import Message
from models.preference.model import PreferenceModel
from orchestrator.errors import ApiError, ArtifactError
from orchestrator.serving.names import full_digest
from orchestrator.store.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

_MAX_UNWANTED = 1
"""Preference models that stay in memory beside those of the pairing table, for requests that name one."""


class Scorers:
    """Loads preference models, scores with them, and lets go of those that nothing needs."""

    def __init__(self, database: Engine, store: ArtifactStore, device: torch.device) -> None:
        self._database = database
        self._store = store
        self._device = device
        self._held: OrderedDict[str, PreferenceModel] = OrderedDict()
        """The one used last at the end."""
        self._wanted: frozenset[str] = frozenset()
        # One thread loads and scores: a model that is let go of is never in use.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")

    def held(self) -> list[str]:
        """Digests of the preference models in memory."""
        return list(self._held)

    async def digest_of(self, name: str) -> str:
        """The digest of the one preference model that begins so; ApiError where there is none or more than one."""
        kinds, what = ("preference_model",), "preference model"
        return await full_digest(self._database, name, kinds, what, f"the digest of a {what}", self._held)

    async def keep(self, digests: frozenset[str]) -> None:
        """Hold these, and no more than one other."""
        self._wanted = digests
        for digest in sorted(digests - set(self._held)):
            await self._run(self._model, digest)
        await self._run(self._let_go)

    async def score(self, digest: str, dialogues: Sequence[Sequence[Message]]) -> list[float]:
        """A score per dialogue, each of which ends with the reply that is judged; loads the model if need be.

        Raises:
            ApiError: 503, the preference model can't be used.
        """
        return await self._run(self._score, digest, dialogues)

    def close(self) -> None:
        """Score nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: object, *arguments: object) -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)  # type: ignore[arg-type]

    # In the thread

    def _score(self, digest: str, dialogues: Sequence[Sequence[Message]]) -> list[float]:
        scores = self._model(digest).score(dialogues)
        self._let_go()
        return scores

    def _model(self, digest: str) -> PreferenceModel:
        if digest not in self._held:
            try:
                self._held[digest] = PreferenceModel.load(self._store.fetch(digest), self._device)
            except ArtifactError as error:
                raise ApiError(503, "preference_model_unusable", str(error)) from error
            except Exception as error:
                logger.exception("loading preference model %s failed", digest)
                message = f"Preference model {digest} can't be loaded: {error}"
                raise ApiError(503, "preference_model_unusable", message) from error
            logger.info("loaded preference model %s", digest)
        self._held.move_to_end(digest)
        return self._held[digest]

    def _let_go(self) -> None:
        unwanted = [digest for digest in self._held if digest not in self._wanted]
        for digest in unwanted[: max(0, len(unwanted) - _MAX_UNWANTED)]:
            del self._held[digest]
            logger.info("let go of preference model %s", digest)
