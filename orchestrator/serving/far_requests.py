"""Before the policies: a detector says which requests lie far from what they were trained to answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from sqlalchemy import Engine

from models.chat.format import ChatFormatError, Message
from models.detectors.detector import OodDetector, OodDetectorError
from orchestrator.errors import ApiError, ArtifactError
from orchestrator.serving.names import full_digest
from orchestrator.settings import DetectorAction
from orchestrator.store.artifacts import ArtifactStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectorConfig:
    """Which detector is asked, and what becomes of a request that is far from home."""

    detector: str
    """Digest of an artifact of kind `ood_detector`, or its beginning."""
    action: DetectorAction
    """`log` a line, `flag` the answer too, or `refuse` the request."""


class FarRequests:
    """Judges requests before they are decoded. Without a working detector nothing is decoded: it fails shut."""

    def __init__(self, config: DetectorConfig, database: Engine, store: ArtifactStore, device: torch.device) -> None:
        self._config = config
        self._database = database
        self._store = store
        self._device = device
        self._detector: OodDetector | None = None
        # One thread loads and scores, beside decoding and the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="detector")
        self.far = 0
        """Requests that were far from home, since the start."""

    async def judge(self, messages: list[Message]) -> Mapping[str, object]:
        """What is told beside the answer: {"ood": {...}} where the action is `flag`, else nothing.

        Raises:
            ApiError: 403, the request is far from home and the action is `refuse`; 503, the detector can't be used.
        """
        if self._detector is None:
            digest = await full_digest(
                self._database, self._config.detector, ("ood_detector",), "detector", "the digest of a detector", ()
            )
            self._detector = await self._run(self._load, digest)
        try:
            (score,) = await self._run(self._detector.score, [messages])
        except ChatFormatError as error:
            raise ApiError(400, "unusable_messages", f"The detector can't read this: {error}") from None
        threshold = self._detector.threshold
        # Not "score > threshold": a score that is no number is as far from home as can be.
        far = not score <= threshold
        if far:
            self.far += 1
            # The text stays out of the log: it is a person's.
            logger.warning("a request is far from home: score %.1f, threshold %.1f", score, threshold)
            if self._config.action == "refuse":
                raise ApiError(
                    403,
                    "out_of_distribution",
                    "This is far from what the model was trained to answer, and this server refuses such requests.",
                )
        if self._config.action == "flag":
            return {"ood": {"score": score, "threshold": threshold, "flagged": far}}
        return {}

    def close(self) -> None:
        """Judge nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Any, argument: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    def _load(self, digest: str) -> OodDetector:
        try:
            return OodDetector.load(self._store.fetch(digest), self._device)
        except (ArtifactError, OodDetectorError) as error:
            logger.error("the detector of far requests: %s", error)
            raise ApiError(503, "detector_unusable", str(error), retry_after_s=5) from error
