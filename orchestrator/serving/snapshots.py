"""Which snapshots are held in memory, and which one `policy-live` means.

The database is the record: what it says is live or paired is loaded and kept, preference models of best-of-k too
(`scorers.py`). Anything else that is loaded, by an
admin or because a request named it, is let go once it is idle. All state belongs to the event loop; loading runs in a
thread of its own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from db.session import transaction
from models.chat.format import ChatFormat
from models.model_folders.loading import load_causal_lm
from models.model_folders.probe_reply import ProbeReplyMismatch, check_probe_reply
from models.policy.rollout import SAMPLER_BOUNDS
from models.runtime.training_choices import Precision
from models.sampling.engine import DecodeEngine
from orchestrator.conversations.pairings import Served, served
from orchestrator.errors import ApiError, ArtifactError
from orchestrator.serving.engines import Engines, OutsideEngine
from orchestrator.serving.names import database_away, full_digest
from orchestrator.serving.scorers import Scorers
from orchestrator.store.artifacts import ArtifactStore
from orchestrator.store.deployments import POLICIES, made_at
from orchestrator.store.live import Live, deployments, live_now

logger = logging.getLogger(__name__)

LIVE = "policy-live"
# Deployments among which the one before is looked for: a few roll-backs to and fro.
LOOKED_BACK = 10


@dataclass(eq=False)
class Snapshot:
    """Weights in memory with their chat format and their running batch."""

    digest: str
    chat: ChatFormat
    engine: DecodeEngine | OutsideEngine
    proven: bool
    """Whether it said, when it was loaded, what it said when it was saved; False where it has no probe reply."""
    loaded_at: float = field(default_factory=time.time)
    in_flight: int = 0
    """Requests that hold it; while there is one, it stays."""
    idle_since: float = field(default_factory=time.monotonic)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the snapshot in memory for the time of a request."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self.idle_since = time.monotonic()


@dataclass(frozen=True)
class SnapshotLimits:
    """How much is held at once."""

    device: torch.device
    max_slots: int = 64
    """Replies decoded at the same time, per snapshot."""
    max_context: int | None = None
    """Prompt and reply tokens of a request; by default what the model holds."""
    max_snapshots: int = 8
    """Snapshots in memory; one more is refused while none of them can be let go."""
    idle_s: float = 30.0
    """How long a snapshot that nothing needs stays after its last request."""
    engines: tuple[str, ...] = ()
    """Base URLs of outside engines that decode in place of the built-in one."""
    engine_key: str | None = field(default=None, repr=False)
    precision: Precision = "float32"
    """What the built-in engine computes in."""
    follow_s: float = 2.0
    """How often the database is asked what is live and paired."""


class Snapshots:
    """Loads, makes live and lets go of snapshots."""

    def __init__(self, database: Engine, store: ArtifactStore, limits: SnapshotLimits) -> None:
        self._database = database
        self._store = store
        self._limits = limits
        self._engines = Engines(limits.engines, limits.engine_key)
        self.scorers = Scorers(database, store, limits.device)
        self._held: dict[str, Snapshot] = {}
        self._loading: dict[str, asyncio.Task[Snapshot]] = {}
        self._wanted: frozenset[str] = frozenset()
        self._live: Snapshot | None = None
        self._before: str | None = None
        self.deployment: Live | None = None
        """How what is live came to be so, as the database says it."""
        self.behind = False
        """Whether the database says that something else is live than what `policy-live` means here."""
        self._looks = self._followed = 0
        """How often the database was asked, and which of these looks was followed last."""
        # One at a time: two big models loading together may not fit where one does.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.swaps = 0
        """How often another snapshot became the live one, the first included."""
        self.failed_loads = 0
        self.trouble: str | None = "the database was not asked yet"
        """Why what is live may not be what the database says; None when all is well."""

    @property
    def live(self) -> Snapshot | None:
        """What `policy-live` means now."""
        return self._live

    def held(self) -> list[Snapshot]:
        """Every snapshot in memory, oldest first."""
        return list(self._held.values())

    def standing(self) -> dict[str, str]:
        """Digests of what is live and of what was live before it, by `live` and `before`."""
        live = {"live": self._live.digest} if self._live is not None else {}
        return live | ({"before": self._before} if self._before is not None else {})

    def wanted(self, snapshot: Snapshot) -> bool:
        """Whether the snapshot is live or in an active pairing."""
        return snapshot is self._live or snapshot.digest in self._wanted

    async def resolve(self, model: str) -> Snapshot:
        """The snapshot that a request's `model` names: `policy-live`, a digest, or the beginning of one.

        A policy of ours that is not in memory is loaded: a feedback app may come back to a pair of an earlier one.
        """
        if model == LIVE:
            if self._live is None:
                raise ApiError(503, "no_policy_live", "No policy is live yet.", retry_after_s=2)
            return self._live
        if model in self._held:
            return self._held[model]
        return await self.load(await self.digest_of(model))

    async def digest_of(self, name: str) -> str:
        """The digest of the one policy that begins so; ApiError where there is none or more than one."""
        return await full_digest(self._database, name, POLICIES, "policy", f"{LIVE} or a snapshot digest", self._held)

    async def made_at(self, digest: str) -> float:
        """When the weights were published, or loaded where they are in memory; seconds since 1970."""
        if digest in self._held:
            return self._held[digest].loaded_at
        try:
            return await asyncio.to_thread(self._read_made_at, digest)
        except SQLAlchemyError as error:
            raise database_away(digest, error) from None

    async def load(self, digest: str) -> Snapshot:
        """The snapshot in memory, fetched, verified and loaded first if need be."""
        if digest in self._held:
            return self._held[digest]
        loading = self._loading.get(digest)
        if loading is None:
            loading = self._loading[digest] = asyncio.create_task(self._load(digest))
            loading.add_done_callback(lambda _: self._loading.pop(digest, None))
        # A request that is cancelled while it waits must not stop the loading for the others.
        return await asyncio.shield(loading)

    def unload(self, digest: str) -> None:
        """Let go of a snapshot once its requests are done; refused for what raters may be given."""
        snapshot = self._held.get(digest)
        if snapshot is None:
            return
        if self.wanted(snapshot):
            raise ApiError(409, "snapshot_in_use", f"Snapshot {digest} is live or in an active pairing; it stays.")
        snapshot.idle_since = -1e9
        self.sweep()

    def sweep(self) -> None:
        """Free what is neither wanted nor used."""
        now = time.monotonic()
        freed = False
        for snapshot in self.held():
            idle = snapshot.in_flight == 0 and now - snapshot.idle_since >= self._limits.idle_s
            if idle and not self.wanted(snapshot):
                del self._held[snapshot.digest]
                logger.info("let go of %s", snapshot.digest)
                freed = True
        if freed:
            # Modules of transformers are in reference cycles; without this the weights would linger.
            asyncio.get_running_loop().call_later(0.1, _collect)

    async def follow(self) -> None:
        """Hold what the database says is live and paired, for as long as the server runs."""
        while True:
            await self.refresh()
            self.sweep()
            await asyncio.sleep(self._limits.follow_s)

    async def refresh(self) -> None:
        """Ask the database once what is live and paired, and load it. Trouble is remembered, not raised."""
        self._looks += 1
        look = self._looks
        try:
            live, self._before, wanted = await asyncio.to_thread(self._read)
            self._wanted = wanted.policies
            if live is not None:
                await self._follow_live(live, look)
            for digest in sorted(self._wanted):
                await self.load(digest)
            await self.scorers.keep(wanted.preference_models)
            trouble = None if self._live is not None else "no policy is live"
        except SQLAlchemyError as error:
            trouble, self.behind = f"the database does not answer: {str(error).splitlines()[0]}", True
        except ApiError as error:
            trouble = error.message
        if trouble != self.trouble:
            if trouble:
                logger.warning("%s", trouble)
            self.trouble = trouble

    async def _follow_live(self, live: Live, look: int) -> None:
        """Let `policy-live` mean what a look at the database found; running requests finish on what they began with."""
        self.behind = self._live is None or self._live.digest != live.digest
        snapshot = await self.load(live.digest)
        if look < self._followed:
            # It took long to load, and a later look has been followed meanwhile.
            return
        self._followed = look
        if snapshot is not self._live:
            logger.info("%s is %s from now on", LIVE, live.digest)
            self.swaps += 1
        self._live, self.deployment, self.behind = snapshot, live, False

    async def close(self) -> None:
        """Start no more loading."""
        await self._engines.close()
        self._loader.shutdown(wait=False, cancel_futures=True)
        self.scorers.close()

    async def _load(self, digest: str) -> Snapshot:
        self._make_room()
        began = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            if self._engines.urls:
                folder = await loop.run_in_executor(self._loader, self._store.fetch, digest)
                engine = await self._engines.find(digest, folder)
                snapshot = Snapshot(digest, ChatFormat.load(folder), engine, proven=False)
            else:
                snapshot = await loop.run_in_executor(self._loader, self._read_weights, digest)
        except ArtifactError as error:
            self.failed_loads += 1
            raise ApiError(503, "snapshot_unusable", str(error)) from error
        except ProbeReplyMismatch as error:
            logger.error("snapshot %s: %s", digest, error)
            self.failed_loads += 1
            message = f"Snapshot {digest} is not what was saved: {error}. It is not served; look at the server's log."
            raise ApiError(503, "snapshot_unusable", message) from error
        except Exception as error:
            logger.exception("loading %s failed", digest)
            self.failed_loads += 1
            raise ApiError(503, "snapshot_unusable", f"Snapshot {digest} can't be loaded: {error}") from error
        self._held[digest] = snapshot
        logger.info("loaded %s in %.2f s", digest, time.monotonic() - began)
        return snapshot

    def _make_room(self) -> None:
        """Let the longest idle snapshot go where the limit is reached; refuse where all are in use."""
        if len(self._held) < self._limits.max_snapshots:
            return
        idle = [one for one in self.held() if one.in_flight == 0 and not self.wanted(one)]
        if not idle:
            raise ApiError(
                503,
                "too_many_snapshots",
                f"{len(self._held)} snapshots are held and in use; the limit is {self._limits.max_snapshots}. "
                "End a pairing, or raise --max-snapshots.",
                retry_after_s=5,
            )
        oldest = min(idle, key=lambda one: one.idle_since)
        oldest.idle_since = -1e9
        self.sweep()

    def _read_weights(self, digest: str) -> Snapshot:
        folder = self._store.fetch(digest)
        chat = ChatFormat.load(folder)
        model = load_causal_lm(folder, device=self._limits.device)
        limits = self._limits
        engine = DecodeEngine(model, chat.stop_ids, limits.max_slots, limits.max_context, limits.precision)
        # The reply was written in float32: rounding of another format is no other policy.
        rounding = 0.0 if limits.precision == "float32" else SAMPLER_BOUNDS[limits.precision]
        return Snapshot(digest, chat, engine, check_probe_reply(engine, chat, folder, rounding))

    def _read_made_at(self, digest: str) -> float:
        with transaction(self._database) as session:
            return made_at(session, digest).timestamp()

    def _read(self) -> tuple[Live | None, str | None, Served]:
        with transaction(self._database) as session:
            live = live_now(session)
            return live, _before(session, live), served(session)


def _before(session: Session, live: Live | None) -> str | None:
    """The digest of the snapshot that was live last before this one, itself aside."""
    earlier = deployments(session, LOOKED_BACK)
    return next((one.digest for one in earlier if live is not None and one.digest != live.digest), None)


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
